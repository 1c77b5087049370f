"""`biigma predict`: from which probability on there is an answer, and what is suspicious."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from biigma_cli.cli.boundary import note

if TYPE_CHECKING:
    from biigma_cli.runtime.session import ModelInfo

AbstainBelowOption = Annotated[
    float | None,
    typer.Option(
        "--abstain-below", metavar="P", help='Answer "can\'t say" where no class reaches P.'
    ),
]
MaxErrorOption = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        metavar="E",
        help="Choose that P from the model's validation images, so that at most a share E of "
        "the answers is wrong, with 95% confidence.",
    ),
]
SuspiciousFromOption = Annotated[
    float | None,
    typer.Option(
        "--suspicious-from",
        metavar="P",
        help="Call suspicious what is malignant with a probability of P or more.",
    ),
]
MinSensitivityOption = Annotated[
    float | None,
    typer.Option(
        "--min-sensitivity",
        metavar="S",
        help="Choose that P from the model's validation images, so that at least a share S of "
        "the malignant is suspicious, with 95% confidence.",
    ),
]


class Thresholds(NamedTuple):
    """What the answers are held against: as the options were given, then as it was chosen.

    Attributes:
        abstain_below: least probability of an answer; None: all are given.
        max_error: what `abstain_below` is chosen for; None where it was given.
        suspicious_from: least malignancy that is suspicious; None: nothing is said of it.
        min_sensitivity: what `suspicious_from` is chosen for; None where it was given.
    """

    abstain_below: float | None = None
    max_error: float | None = None
    suspicious_from: float | None = None
    min_sensitivity: float | None = None

    def settings(self) -> dict[str, float]:
        """Those that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def check(self, *, tta: bool) -> None:
        """Raise `UsageError` where no limit could be chosen, whatever the model."""
        from biigma_cli.errors import UsageError

        for own, promised, option, promise, example in (
            (self.abstain_below, self.max_error, "--abstain-below", "--max-error",
             "a share of the answers, such as 0.1"),
            (self.suspicious_from, self.min_sensitivity, "--suspicious-from", "--min-sensitivity",
             "a share of the malignant images, such as 0.9"),
        ):  # fmt: skip
            if own is not None and not 0 <= own <= 1:
                raise UsageError(f"{option} is {own}", fix="give a probability, 0 to 1")
            if promised is None:
                continue
            if not 0 < promised < 1:
                raise UsageError(f"{promise} is {promised:g}", fix=f"give {example}")
            if own is not None:
                raise UsageError(
                    f"both {option} and {promise} are given", fix="leave one of them out"
                )
            if tta:
                raise UsageError(
                    f"the limits of {promise} are those of one view, not of --tta",
                    fix=f"leave one of the two out, or give a probability with {option}",
                )

    def choose(self, info: ModelInfo, *, input_check: bool) -> Thresholds:
        """The thresholds; says what chosen ones did on the validation part.

        Raises:
            UsageError: the model promises nothing of the kind, or cannot tell.
            ModelFileError: its limits are damaged.
        """
        from biigma_cli.errors import UsageError
        from biigma_cli.runtime.limits import check_tells_malignant

        for promised, option in (
            (self.max_error, "--max-error"), (self.min_sensitivity, "--min-sensitivity")
        ):  # fmt: skip
            if promised is not None and info.input_check and not input_check:
                raise UsageError(
                    f"the limits of {option} were found with the input check",
                    fix="leave --no-input-check out",
                )
        if self.suspicious_from is not None:
            check_tells_malignant(info.name, info.classes, info.malignant, "--suspicious-from")
        found = self
        if self.max_error is not None:
            found = found._replace(abstain_below=_abstain_below(info, self.max_error))
        if self.min_sensitivity is not None:
            found = found._replace(suspicious_from=_suspicious_from(info, self.min_sensitivity))
        return found


def _abstain_below(info: ModelInfo, max_error: float) -> float:
    from biigma_cli.runtime.limits import abstention_limit

    limit, found = abstention_limit(info, max_error)
    wrong = limit.wrong / limit.answered
    note(
        f"can't say below {limit.threshold:.2f}: of {found.images} validation images "
        f"{limit.answered / found.images:.1%} are answered, {wrong:.1%} of these wrongly; at most "
        f"{max_error:g} with 95% confidence, on images like those"
    )
    return limit.threshold


def _suspicious_from(info: ModelInfo, min_sensitivity: float) -> float:
    from biigma_cli.runtime.limits import screening_limit

    limit, found = screening_limit(info, min_sensitivity)
    hit = 1 - limit.missed / found.malignant
    spared = f", of {found.benign} benign ones {1 - limit.spared / found.benign:.1%}"
    note(
        f"suspicious from {limit.threshold:g} on: of {found.malignant} malignant validation images "
        f"{hit:.1%} are{spared if found.benign else ''}; at least {min_sensitivity:g} of the "
        "malignant with 95% confidence, on images like those"
    )
    return limit.threshold
