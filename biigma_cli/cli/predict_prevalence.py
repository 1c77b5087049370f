"""`biigma predict`: probabilities where classes are more or less common than in the data."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import typer

from biigma_cli.cli.boundary import note

if TYPE_CHECKING:
    from biigma_cli.metrics import ClassPrior, Floats
    from biigma_cli.runtime.pipeline import Result
    from biigma_cli.runtime.session import ModelInfo

PrevalenceOption = Annotated[
    str | None,
    typer.Option(
        "--prevalence",
        metavar="CODE=SHARE,...",
        help="Class shares among the patients' images, such as MEL=0.01,BCC=0.02 or "
        "malignant=0.03; the other classes share the rest as in the data. Probabilities and "
        "answers are then for these.",
    ),
]
#: All malignant and pre-malignant classes together.
MALIGNANT = "malignant"
_EXAMPLE = "write it as MEL=0.01,BCC=0.02, shares from 0 to 1"


def parse_prevalence(text: str, *, tta: bool, max_error: float | None) -> dict[str, float]:
    """Shares by class code, as the option gives them. Raises `UsageError` where it cannot be."""
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
    named: dict[str, float] = {}
    for item in text.split(","):
        code, equals, share = (part.strip() for part in item.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = float("nan")
        if not code or not equals or not 0 <= value <= 1:
            raise UsageError(f"--prevalence: {item.strip()!r} is no share of a class", fix=_EXAMPLE)
        if code in named:
            raise UsageError(f"--prevalence names {code} twice", fix="name each class once")
        named[code] = value
    return named


class Prevalence(NamedTuple):
    """Class shares that probabilities are to be for.

    Attributes:
        named: by class code, or `MALIGNANT`, as they were given.
        weights_Y: what each probability is multiplied with.
    """

    named: dict[str, float]
    weights_Y: Floats

    @classmethod
    def choose(cls, named: dict[str, float], info: ModelInfo) -> Self:
        """Those of a model; says what they are, and what the model's own are.

        Raises:
            UsageError: it states none, has no such class, or the shares are too many or too few.
            ModelFileError: its own are damaged.
        """
        from biigma_cli.errors import UsageError
        from biigma_cli.runtime.limits import prior_of

        prior = prior_of(info)
        if prior is None:
            raise UsageError(
                f"{info.name} states no class shares for --prevalence",
                fix=f"run 'biigma eval --model {info.path} --split val --store', which finds them "
                "on the validation images",
            )
        try:
            shares = prior.whole(_by_index(named, info, prior))
        except ValueError as error:
            raise UsageError(
                f"--prevalence: {error}", fix="give shares that sum to 1, or leave classes out"
            ) from None
        note(
            f"probabilities where {_told(info, shares)}; the model's validation images are "
            f"{_told(info, prior.shares)}"
        )
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


def _by_index(named: dict[str, float], info: ModelInfo, prior: ClassPrior) -> dict[int, float]:
    from biigma_cli.errors import UsageError
    from biigma_cli.runtime.limits import check_tells_malignant

    if MALIGNANT in named and MALIGNANT not in info.classes:
        check_tells_malignant(info, f"--prevalence {MALIGNANT}")
        if len(named) > 1:
            raise UsageError(
                f"--prevalence: {MALIGNANT} goes with no other class", fix="name either"
            )
        own = {i: s for i, s in enumerate(prior.shares) if info.malignant[i]}
        return {i: s * named[MALIGNANT] / sum(own.values()) for i, s in own.items()}
    for code in named:
        if code not in info.classes:
            near = difflib.get_close_matches(code.upper(), info.classes, n=1)
            raise UsageError(
                f"--prevalence: {info.name} has no class {code!r}",
                fix=f"did you mean {near[0]}?"
                if near
                else f"choose from: {', '.join(info.classes)}",
            )
    return {info.classes.index(code): share for code, share in named.items()}


def _told(info: ModelInfo, shares: tuple[float, ...]) -> str:
    return ", ".join(f"{c} {s:.2%}" for c, s in zip(info.classes, shares, strict=True))
