"""`biigma eval --robustness`: checks, the work, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biigma_cli.cli.boundary import note

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.data.manifest import Manifest
    from biigma_cli.judge import Candidate
    from biigma_cli.judge.robustness import Robustness

Bar = Callable[[str, str], Callable[[int, int], None]]


def check_options(asked: bool, images: int | None, figure: Path | None, sheet: Path | None) -> None:
    """Raise `UsageError` before the work for options that cannot be."""
    from biigma_cli.cli.targets import check_ending
    from biigma_cli.errors import UsageError
    from biigma_cli.report.style import picture_kind
    from biigma_cli.storage import check_writable

    given = {
        "--robustness-images": images,
        "--robustness-figure": figure,
        "--robustness-sheet": sheet,
    }
    for option, value in given.items():
        if value is not None and not asked:
            raise UsageError(f"{option} without --robustness", fix="add --robustness")
    if figure is not None:
        picture_kind(figure, "robustness.svg")
    check_ending("--robustness-sheet", sheet, ".png")
    for target in (figure, sheet):
        if target is not None:
            check_writable(target)


def check_masks(asked: bool, manifest: Manifest) -> None:
    """Raise `DataError` before the work where no image can have a background to change."""
    if asked and not any(record.mask for record in manifest.records):
        from biigma_cli.data.perturb.masks import no_mask

        raise no_mask(len(manifest.records), manifest.dataset)


def measure(
    asked: bool,
    models: tuple[Candidate, Candidate | None],
    manifest: Manifest,
    part: str,
    *,
    images: int | None,
    resamples: int,
    bar: Bar,
) -> Robustness | None:
    """Perturb and judge, with progress; None where it was not asked for."""
    if not asked:
        return None
    from biigma_cli.judge.robustness import judge_robustness

    candidate, second = models
    return judge_robustness(
        candidate, manifest, part, against=second, images=images, resamples=resamples,
        reading=bar("reading masks", "masks"), perturbing=bar("perturbing", "pictures"), warn=note,
    )  # fmt: skip


def plain(result: Robustness | None) -> dict[str, Any]:
    """What JSON gets: the key `robustness`, or nothing."""
    return {} if result is None else {"robustness": result.to_dict()}


def notes(result: Robustness | None) -> list[str]:
    """What was left out, a line each."""
    if result is None:
        return []
    from biigma_cli.data.perturb import PERTURBATIONS

    told = []
    if result.missing:
        told.append(f"robustness: images of the part without a lesion mask: {result.missing}")
    if result.unusable:
        told.append(
            "robustness: masks left out, empty, with next to no background beside or pictures: "
            f"{result.unusable}"
        )
    return told + [
        f"robustness: no {PERTURBATIONS[name].title}, for {count} images: left out of that row"
        for name, count in result.no_donor.items()
        if count
    ]


def draw(
    result: Robustness | None,
    candidate: Candidate,
    manifest: Manifest,
    *,
    figure: Path | None,
    sheet: Path | None,
) -> list[Path]:
    """Draw what was asked for; the paths written."""
    if result is None:
        return []
    from biigma_cli.report.robustness import SheetImage, draw_robustness, draw_sheet, outlined

    if figure is not None:
        own, other = result.own, result.against
        names = [_short(o.model) for o in (own, other) if o is not None]
        if len(set(names)) < len(names):
            names = [f"{n} ({k})" for k, n in enumerate(names, start=1)]
        outcomes = [o for o in (own, other) if o is not None]
        draw_robustness(
            {n: o.effects for n, o in zip(names, outcomes, strict=True)},
            figure,
            title="Answers that stay when the picture changes",
            subtitle=f"{names[0] if other is None else manifest.dataset}, {result.part} part, "
            f"{len(result.ids)} images of {result.lesions} lesions"
            + ("; bars: 95% intervals" if result.resamples else ""),
        )
    if sheet is not None:
        from biigma_cli.judge.robustness import examples

        draw_sheet(
            [
                SheetImage(e.title, e.scene.pixels, outlined(e.scene.pixels, e.scene.level),
                           e.pictures)
                for e in examples(result, candidate, manifest)
            ],
            sheet,
        )  # fmt: skip
    return [path for path in (figure, sheet) if path is not None]


def items(result: Robustness | None, codes: tuple[str, ...]) -> list[Table | str]:
    """What the terminal shows."""
    if result is None:
        return []
    from biigma_cli.report.robustness import class_table, effect_table

    own, other = result.own, result.against
    few = len(result.ids) < result.usable
    chosen = f"{len(result.ids)}{f' of {result.usable}' if few else ''} images with a mask"
    what = "lesions" if result.lesions < len(result.ids) else "images"
    how = f"95% intervals, {result.resamples} resamples of {what}\n" if result.resamples else ""
    shown: list[Table | str] = [
        effect_table(
            own.effects,
            title=f"robustness: {chosen}, {result.lesions} lesions\n{how}"
            f"unperturbed: accuracy {own.accuracy:.3f}, balanced {own.balanced_accuracy:.3f}",
        ),
        *_remarks(result),
        class_table(own.effects, codes),
    ]
    if other is not None:
        shown.append(
            effect_table(
                own.effects,
                title=f"minus {other.model} (paired differences), which has unperturbed: accuracy "
                f"{other.accuracy:.3f}, balanced {other.balanced_accuracy:.3f}",
                differences=result.differences,
            )
        )
    return shown


def _remarks(result: Robustness) -> list[str]:
    """How the controls and donors are to be read."""
    own = result.own
    removed = next(e for e in own.effects if e.name == "lesion-removed")
    lines = [
        "accuracy lost in points; painted beside the lesion, never over it, but for hair.",
    ]
    if removed.overall.unchanged.value is not None:
        lines += [
            "Lesion removed: here answers should change. "
            f"{removed.overall.unchanged.value:.1%} stay; {removed.by_chance:.1%} would if",
            "answers with and without the lesion had nothing to do with each other.",
        ]
    pull = own.pull.answers
    if pull.value is not None:
        span = (
            "" if pull.low is None else f" ({100 * pull.low:+.1f}..{100 * (pull.high or 0):+.1f})"
        )
        shift = own.pull.probability.value or 0.0
        lines += [
            "Donor, other class: answers naming the donor's class "
            f"{100 * pull.value:+.1f} points{span},",
            f"mean p(donor's class) {shift:+.3f}.",
        ]
    return lines


def _short(model: str) -> str:
    return "/".join(Path(model).parts[-3:])
