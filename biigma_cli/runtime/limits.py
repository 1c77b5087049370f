"""What an exported model states of its validation answers: when not to answer, what to call
suspicious, and which class shares its probabilities stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from biigma_cli.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from biigma_cli.metrics import ClassPrior, Ints, Limit, Limits, ScreeningLimit, ScreeningLimits
    from biigma_cli.runtime.session import ModelInfo

#: In an exported model's metadata.
ABSTENTION = "abstention"
SCREENING = "screening"
PRIOR = "prior"

_Found = TypeVar("_Found")


class Stated(NamedTuple):
    """Found on a model's validation part.

    Attributes:
        abstention: on the answer's probability, of "can't say".
        screening: on the malignant classes' probability; None where not every class is known to
            be malignant or benign.
        prior: class shares; None where the part lacks a class.
    """

    abstention: Limits | None = None
    screening: ScreeningLimits | None = None
    prior: ClassPrior | None = None

    @classmethod
    def find(
        cls,
        label_n: Ints,
        proba_nY: npt.NDArray[np.floating[Any]],
        malignant: Sequence[bool | None],
        groups: Sequence[str],
        *,
        flagged_n: npt.NDArray[np.bool_] | None,
    ) -> Self:
        """Of a model with these answers; see `metrics.limits`, `screening_limits`, `fit_prior`.

        Args:
            malignant: of each class.
        """
        from biigma_cli.metrics import fit_prior, limits, malignant_classes, screening_limits

        malignant_Y = malignant_classes(malignant)
        return cls(
            limits(label_n, proba_nY, groups, flagged_n=flagged_n),
            None
            if malignant_Y is None
            else screening_limits(label_n, proba_nY, malignant_Y, groups, flagged_n=flagged_n),
            fit_prior(label_n, proba_nY, flagged_n=flagged_n),
        )

    @classmethod
    def of(cls, info: ModelInfo) -> Self:
        """What a model states. Raises `ModelFileError` where it is damaged."""
        return cls(_abstention_of(info), _screening_of(info), prior_of(info))

    def to_metadata(self) -> dict[str, dict[str, Any]]:
        """By their keys, those that there are."""
        every = {ABSTENTION: self.abstention, SCREENING: self.screening, PRIOR: self.prior}
        return {key: found.to_dict() for key, found in every.items() if found is not None}

    def summary(self) -> list[str]:
        """A line for each kind of limit."""
        both = (self.abstention, self.screening)
        return [found.summary() for found in both if found is not None]


#: Of a model that states none.
NOTHING_STATED = Stated()


def abstention_limit(info: ModelInfo, max_error: float) -> tuple[Limit, Limits]:
    """The lowest limit of a model that promises at most that share of wrong answers.

    Raises:
        UsageError: it states no limits, or none promises so much.
        ModelFileError: they are damaged.
    """
    found = _abstention_of(info)
    if found is None:
        raise _without(info, "--max-error", "--abstain-below")
    limit = found.at_most(max_error)
    if limit is None:
        more = found.next_to(max_error)
        raise UsageError(
            f"no limit of {info.name} promises at most {max_error:g} of wrong answers: on its "
            f"{found.groups} validation lesions too many were wrong, or they are too few",
            fix="use another model, or give a probability with --abstain-below"
            if more is None
            else f"ask for --max-error {more:g}, the next that can be promised",
        )
    return limit, found


def screening_limit(
    info: ModelInfo, min_sensitivity: float
) -> tuple[ScreeningLimit, ScreeningLimits]:
    """The highest limit of a model that promises at least that sensitivity to malignant lesions.

    Raises:
        UsageError: it states no limits, none promises so much, or its classes are not known to be
            malignant or benign.
        ModelFileError: they are damaged.
    """
    check_tells_malignant(info.name, info.classes, info.malignant, "--min-sensitivity")
    found = _screening_of(info)
    if found is None:
        raise _without(info, "--min-sensitivity", "--suspicious-from")
    limit = found.at_least(min_sensitivity)
    if limit is None:
        less = found.next_to(min_sensitivity)
        raise UsageError(
            f"no limit of {info.name} promises a sensitivity of {min_sensitivity:g}: its "
            f"{found.malignant} malignant validation images are too few",
            fix="use another model, or give a probability with --suspicious-from"
            if less is None
            else f"ask for --min-sensitivity {less:g}, the next that can be promised",
        )
    return limit, found


def check_tells_malignant(
    name: str, classes: Sequence[str], malignant: Sequence[bool | None], option: str
) -> None:
    """Raise `UsageError` where not every class of a model is known to be malignant or benign."""
    from biigma_cli.metrics import malignant_classes

    if malignant_classes(malignant) is None:
        raise UsageError(
            f"{name} does not tell malignant from benign: its classes are {', '.join(classes)}",
            fix=f"use another model, or leave {option} out",
        )


def _without(info: ModelInfo, option: str, instead: str) -> UsageError:
    return UsageError(
        f"{info.name} states no limits for {option}",
        fix=f"run 'biigma eval --model {info.path} --split val --store', which finds them on "
        f"the validation images, or give a probability with {instead}",
    )


def _abstention_of(info: ModelInfo) -> Limits | None:
    from biigma_cli.metrics import Limits

    return _read(info, ABSTENTION, Limits.from_dict)


def _screening_of(info: ModelInfo) -> ScreeningLimits | None:
    from biigma_cli.metrics import ScreeningLimits

    return _read(info, SCREENING, ScreeningLimits.from_dict)


def prior_of(info: ModelInfo) -> ClassPrior | None:
    """The class shares that a model states; None where it states none.

    Raises `ModelFileError` where they are damaged.
    """
    from biigma_cli.metrics import ClassPrior

    def read(plain: Mapping[str, Any]) -> ClassPrior:
        found = ClassPrior.from_dict(plain)
        if len(found.shares) != len(info.classes):
            raise ValueError(f"{len(found.shares)} shares for {len(info.classes)} classes")
        return found

    return _read(info, PRIOR, read)


def _read(info: ModelInfo, key: str, read: Callable[[Mapping[str, Any]], _Found]) -> _Found | None:
    plain = info.metadata.get(key)
    if plain is None:
        return None
    try:
        return read(plain)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{info.path} has damaged metadata ({key}): {error}", fix="export it again"
        ) from error
