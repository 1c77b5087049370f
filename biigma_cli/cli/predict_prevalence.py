"""`biigma predict`: probabilities where classes are more or less common than in the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import typer

from biigma_cli.cli.boundary import note
from biigma_cli.cli.prevalence import parse_shares, told_shares, whole_shares

if TYPE_CHECKING:
    from biigma_cli.metrics import Floats
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
    return parse_shares(text)


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
        shares = whole_shares(named, info.classes, info.malignant, prior.shares, info.name)
        note(
            f"probabilities where {told_shares(info.classes, shares)}; the model's validation "
            f"images are {told_shares(info.classes, prior.shares)}"
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
