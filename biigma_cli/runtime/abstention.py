"""The limits of an exported model: below which probability it had better not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from biigma_cli.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from biigma_cli.metrics import Limit, Limits
    from biigma_cli.runtime.session import ModelInfo

#: In an exported model's metadata.
KEY = "abstention"


def limits_of(info: ModelInfo) -> Limits | None:
    """Those it states, or None. Raises `ModelFileError` where they are damaged."""
    from biigma_cli.metrics import Limits

    plain = info.metadata.get(KEY)
    if plain is None:
        return None
    try:
        return Limits.from_dict(plain)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{info.path} has damaged limits ({KEY}): {error}", fix="export it again"
        ) from error


def limit_for(info: ModelInfo, max_error: float) -> tuple[Limit, Limits]:
    """The lowest limit of a model that promises at most that share of wrong answers.

    Raises:
        UsageError: it states no limits, or none promises so much.
        ModelFileError: they are damaged.
    """
    found = limits_of(info)
    if found is None:
        raise UsageError(
            f"{info.name} states no limits for --max-error",
            fix=f"run 'biigma eval --model {info.path} --split val --store', which finds them on "
            "the validation images, or give a probability with --abstain-below",
        )
    limit = found.at_most(max_error)
    if limit is None:
        more = found.next_to(max_error)
        raise UsageError(
            f"no limit of {info.name} promises at most {max_error:.3g} of wrong answers: on its "
            f"{found.groups} validation lesions too many were wrong, or they are too few",
            fix="use another model, or give a probability with --abstain-below"
            if more is None
            else f"ask for --max-error {more:g}, the next that can be promised",
        )
    return limit, found
