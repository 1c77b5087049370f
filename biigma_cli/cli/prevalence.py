"""`--prevalence`: class shares as a command line gives them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

import typer

#: Of the commands that judge.
JudgedPrevalenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prevalence",
        metavar="CODE=SHARE,...",
        help="Also the figures where classes have such shares, as MEL=0.01,BCC=0.02 or "
        "malignant=0.03, PPV and NPV among them; the other classes share the rest as in the data.",
    ),
]
#: All malignant and pre-malignant classes together.
MALIGNANT = "malignant"
_EXAMPLE = "write it as MEL=0.01,BCC=0.02, shares from 0 to 1"


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Shares by class code, of an option that may be given several times.

    Raises `UsageError` where it cannot be.
    """
    from biigma_cli.errors import UsageError

    named: dict[str, float] = {}
    for item in (item for text in texts for item in _items(text)):
        code, equals, share = (part.strip() for part in item.rpartition("="))
        try:
            value = float(share) + 0.0  # -0 is 0
        except ValueError:
            value = float("nan")
        if not code or not equals or not 0 <= value <= 1:
            raise UsageError(f"--prevalence: {item.strip()!r} is no share of a class", fix=_EXAMPLE)
        if code in named:
            raise UsageError(f"--prevalence names {code} twice", fix="name each class once")
        named[code] = value
    return named


def _items(text: str) -> list[str]:
    """Split at the commas behind a share; others belong to a class code."""
    items: list[str] = []
    for piece in text.split(","):
        if items and "=" not in items[-1]:
            items[-1] += f",{piece}"
        else:
            items.append(piece)
    return items


def whole_shares(
    named: dict[str, float],
    codes: Sequence[str],
    malignant: Sequence[bool | None],
    own: Sequence[float],
    name: str,
) -> tuple[float, ...]:
    """Shares of all classes, where the named ones have theirs; see `metrics.complete_shares`.

    Args:
        named: as of `parse_shares`.
        malignant: of each class.
        own: shares in the data.
        name: whose classes they are, to show.

    Raises:
        UsageError: there is no such class, or the shares are too many or too few.
    """
    from biigma_cli.errors import UsageError
    from biigma_cli.metrics import complete_shares

    try:
        return complete_shares(own, _by_index(named, codes, malignant, own, name))
    except ValueError as error:
        raise UsageError(
            f"--prevalence: {error}", fix="give shares that sum to 1, or leave classes out"
        ) from None


def check_images(
    codes: Sequence[str], shares: Sequence[float], images: Sequence[int], where: str
) -> None:
    """Raise `UsageError` where a class has a share of the whole, but no image to judge by."""
    from biigma_cli.errors import UsageError

    for code, share, count in zip(codes, shares, images, strict=True):
        if share > 0 and not count:
            raise UsageError(
                f"--prevalence: {where} has no image of {code}, which would be {share:.2%} of all",
                fix=f"add {code}=0, and give the other classes shares",
            )


def told_shares(codes: Sequence[str], shares: Sequence[float]) -> str:
    """In words."""
    return ", ".join(f"{c} {s:.2%}" for c, s in zip(codes, shares, strict=True))


def _by_index(
    named: dict[str, float],
    codes: Sequence[str],
    malignant: Sequence[bool | None],
    own: Sequence[float],
    name: str,
) -> dict[int, float]:
    from biigma_cli.errors import UsageError
    from biigma_cli.metrics import malignant_classes
    from biigma_cli.runtime.limits import check_tells_malignant

    if MALIGNANT in named and MALIGNANT not in codes:
        check_tells_malignant(name, codes, malignant, f"--prevalence {MALIGNANT}")
        if len(named) > 1:
            raise UsageError(
                f"--prevalence: {MALIGNANT} goes with no other class", fix="name either"
            )
        theirs = {i: s for i, s in enumerate(own) if malignant[i]}
        total = sum(theirs.values())
        if not total and named[MALIGNANT]:
            raise UsageError(
                f"--prevalence: {name} has no malignant image", fix="judge images of both kinds"
            )
        return {i: s * named[MALIGNANT] / total if total else 0.0 for i, s in theirs.items()}
    for code in named:
        if code not in codes:
            known = [*codes, MALIGNANT] if malignant_classes(malignant) is not None else codes
            folded = {known_code.casefold(): known_code for known_code in known}
            near = difflib.get_close_matches(code.casefold(), folded, n=1)
            raise UsageError(
                f"--prevalence: {name} has no class {code!r}",
                fix=f"did you mean {folded[near[0]]}?"
                if near
                else f"choose from: {', '.join(known)}",
            )
    return {list(codes).index(code): share for code, share in named.items()}
