"""`biigma predict`: probabilities where classes are more or less common than in the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import typer

from biigma_cli.cli.boundary import note
from biigma_cli.cli.prevalence import MALIGNANT, parse_shares, told_shares, whole_shares

if TYPE_CHECKING:
    from biigma_cli.cli.predict_limits import Thresholds
    from biigma_cli.metrics import Floats
    from biigma_cli.runtime.pipeline import Result
    from biigma_cli.runtime.session import ModelInfo

PrevalenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prevalence",
        metavar="CODE=SHARE,...",
        help="Class shares among the patients' images, such as MEL=0.01,BCC=0.02 or "
        "malignant=0.03; the other classes share the rest as in the data. Probabilities and "
        "answers are then for these.",
    ),
]


def parse_prevalence(
    texts: Sequence[str], *, tta: bool, max_error: float | None
) -> dict[str, float]:
    """Shares by class code, as the options give them. Raises `UsageError` where it cannot be."""
    from biigma_cli.errors import UsageError

    if max_error is not None:
        raise UsageError(
            "the limits of --max-error hold for the class shares of the validation images, not for "
            "those of --prevalence",
            fix="leave one of the two out, or give a probability with --abstain-below",
        )
    if tta:
        raise UsageError(
            "--prevalence corrects the probabilities of one view, not those of --tta",
            fix="leave one of the two out",
        )
    return parse_shares(texts)


class Prevalence(NamedTuple):
    """Class shares that probabilities are to be for.

    Attributes:
        named: by class code, or `MALIGNANT`, as they were given.
        weights_Y: what each probability is multiplied with.
    """

    named: dict[str, float]
    weights_Y: Floats

    @classmethod
    def choose(cls, named: dict[str, float], info: ModelInfo, thresholds: Thresholds) -> Self:
        """Those of a model; says what they are, and what the model's own are.

        Args:
            thresholds: of `predict`; a promised sensitivity is to be kept.

        Raises:
            UsageError: it states none, has no such class, the shares are too many or too few, or
                the malignant classes have others of each other than the promise holds for.
            ModelFileError: its own are damaged.
        """
        from biigma_cli.errors import UsageError
        from biigma_cli.runtime.limits import prior_of

        promised = thresholds.min_sensitivity is not None
        prior = prior_of(info)
        if prior is None:
            raise UsageError(
                f"{info.name} states no class shares for --prevalence",
                fix=f"run 'biigma eval --model {info.path} --split val --store', which finds them "
                "on the validation images where these have each class",
            )
        shares = whole_shares(named, info.classes, info.malignant, prior.shares, info.name)
        ours, theirs = _malignant(info, prior.shares), _malignant(info, shares)
        if promised:
            _check_mix(ours, theirs)
        note(
            f"probabilities where {told_shares(info.classes, shares)}; the model's validation "
            f"images are {told_shares(info.classes, prior.shares)}"
        )
        if promised:
            note("suspicious or not is judged by the model's own probabilities, not by these")
        elif thresholds.suspicious_from is None and sum(theirs) < sum(ours):
            note(
                "answers are the most probable class, so the rarer malignant images are, the more "
                "of them are called benign; --min-sensitivity finds them"
            )
        # In one order, so that rows of the same shares are of the same settings.
        order = (*info.classes, MALIGNANT)
        named = {code: named[code] for code in order if code in named}
        return cls(named, prior.weights(shares))

    def settings(self) -> dict[str, float]:
        """As every record says them."""
        return {f"prevalence_{code}": share for code, share in self.named.items()}

    def adjusted(self, result: Result) -> Result:
        """The answer with other probabilities."""
        import numpy as np

        from biigma_cli.metrics import at_prevalence

        if result.probabilities_Y is None:
            return result
        found_Y = at_prevalence(result.probabilities_Y, self.weights_Y)
        return result._replace(probabilities_Y=found_Y.astype(np.float32))


def _malignant(info: ModelInfo, shares: tuple[float, ...]) -> list[float]:
    """Those of the malignant classes; none where it is not known which they are."""
    from biigma_cli.metrics import malignant_classes

    if malignant_classes(info.malignant) is None:
        return []
    return [share for share, m in zip(shares, info.malignant, strict=True) if m]


def _check_mix(ours: list[float], theirs: list[float]) -> None:
    """Raise `UsageError` where the malignant classes have other shares of all malignant images.

    A model finds more of one class than of another, so its sensitivity to all hangs on them.

    Args:
        ours: shares of the malignant classes on the validation part.
        theirs: those that were given.
    """
    from biigma_cli.errors import UsageError

    here, there = sum(ours), sum(theirs)
    pairs = zip(ours, theirs, strict=True)
    if there and any(abs(o / here - t / there) > 1e-6 for o, t in pairs):
        raise UsageError(
            "the limits of --min-sensitivity hold for the malignant classes in the shares that "
            "they have of each other on the validation images, not for others",
            fix=f"give them together, as --prevalence {MALIGNANT}={there:.4g}, or give a limit "
            "with --suspicious-from",
        )
