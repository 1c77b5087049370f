"""`biigma explain`: where in a picture the answer comes from, and the saliency map."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biigma_cli.cli.boundary import Ended, boundary, ended_by_signals, note
from biigma_cli.cli.explain_models import Asked, chosen, open_checkpoint, open_onnx, possible
from biigma_cli.cli.explain_output import Telling
from biigma_cli.cli.explain_records import Loaded, Target, load, path_of, save_maps
from biigma_cli.cli.options import InputCheckOption, JsonOption, KeepBorderOption, given_path
from biigma_cli.cli.stdin import any_of, is_stdin, open_stdin

if TYPE_CHECKING:
    from biigma_cli.errors import DataError
    from biigma_cli.report.explanation import Explanation
    from biigma_cli.runtime.inputs import Source
    from biigma_cli.runtime.session import Answer

WHAT = ("both", "evidence", "saliency")
FORMATS = ("png", "svg")
BATCH = 8


@boundary
def explain(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Images, or folders of images; - is stdin: an image, or a list.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Exported .onnx, name of a shipped model, or checkpoint."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; its best checkpoint is asked.")
    ] = None,
    what: Annotated[str, typer.Option("--what", help="evidence, saliency or both.")] = "both",
    class_: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="CODE", help="Class to show the evidence for.  [default: the answer]"
        ),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            "--contrast",
            metavar="CODE,CODE",
            help="Show why the first class rather than the second: the difference of the two.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="PATH",
            help="Lesion mask of the image, or folder of NAME.png or NAME_segmentation.png: "
            "outlined, and what lies inside is counted.",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", parser=given_path, help="Folder for the pictures."
        ),
    ] = Path("explained"),
    format_: Annotated[str, typer.Option("--format", help="png or svg.")] = "png",
    maps: Annotated[
        Path | None,
        typer.Option(
            "--maps",
            metavar="DIR",
            parser=given_path,
            help="Also write the raw maps there, as NAME.npz.",
        ),
    ] = None,
    keep_border: KeepBorderOption = False,
    input_check: InputCheckOption = True,
    json_: JsonOption = False,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu or cuda; for a checkpoint cuda:N or mps too.")
    ] = "auto",
) -> None:
    """Show what the answer for an image is made of, as a picture.

    The evidence map is exact: the network's last layer is linear and averages over positions, so
    what the positions add, and the bias, sum to the logit. Where a position lies is less exact: it
    sees far more of the image than the spot it is drawn on. The saliency map M guides the sampling
    of backgrounds in training; it is the same for every class and does not explain the answer.

    A damaged file among others costs its own line: the rest is drawn, and the exit code is 5.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.engine.interrupt import stop_on_signals
    from biigma_cli.errors import DataError, ImageError, PartialFailure, UsageError
    from biigma_cli.report.explanation import draw_explanation
    from biigma_cli.report.predictions import DISCLAIMER, flagged_note
    from biigma_cli.runtime.session import find_network

    if what not in WHAT:
        raise UsageError(f"unknown --what {what!r}", fix=f"choose one of: {', '.join(WHAT)}")
    if format_ not in FORMATS:
        raise UsageError(f"unknown --format {format_!r}", fix="choose png or svg")
    if run is not None and model is not None:
        raise UsageError("both --run and --model are given", fix="leave one of them out")
    if class_ is not None and contrast is not None:
        raise UsageError("both --class and --contrast are given", fix="leave one of them out")
    if what == "saliency" and (class_ or contrast):
        raise UsageError(
            "the saliency map is the same for every class",
            fix="leave out --class and --contrast, or --what saliency",
        )
    context.with_resource(ended_by_signals())
    inputs = _inputs(paths, [output] if maps is None else [output, maps])
    masks = _masks(inputs, mask)
    targets = _targets(inputs, output, maps, format_)
    read = [s.content for s in inputs if isinstance(s.content, Path)]
    read += [m for m in masks if isinstance(m, Path)]
    _check_targets(targets, read, stdin=paths == ["-"])
    if run is not None:
        from biigma_cli.cli.run_folders import best_checkpoint, run_folder

        path = best_checkpoint(run_folder(run))
    else:
        path = find_network(model)
    asked = open_checkpoint(path, device) if path.suffix == ".safetensors" else None
    asked = asked or open_onnx(path, device)
    what = possible(asked, what)
    classes = chosen(asked, class_, contrast)

    model_name = "/".join(Path(asked.name).parts[-3:])
    flagged = 0
    with stop_on_signals() as stop, Progress("explaining", "images") as progress:
        telling = Telling(asked.facts, len(inputs), as_json=json_, clear=progress.clear)
        answered = _answers(asked, inputs, masks, keep_border=keep_border)
        try:
            for source, item, target in zip(inputs, answered, targets, strict=True):
                if stop:
                    break
                if isinstance(item, DataError):
                    telling.fail(path_of(source), item)
                else:
                    image, answer = item
                    found = _explain(asked, answer, what, classes, checked=input_check)
                    best = found.codes[found.top[0]]
                    flagged += found.label != best
                    draw_explanation(
                        found, image.picture, image.frame, target.picture, title=image.title,
                        model=model_name, answer="" if found.label == best else found.label,
                        lesion_HW=image.lesion_HW, note=image.note,
                    )  # fmt: skip
                    if target.maps is not None:
                        save_maps(found, image.frame, image.part, target.maps)
                    telling.answer(found, image, target)
                if len(inputs) > 1:
                    progress(telling.explained + telling.failed, len(inputs))
                if stop:  # before more are read
                    break
            telling.end(even_if_empty=bool(stop))
        except BaseException as error:
            if not isinstance(error, OSError):  # the reader has gone, or the disk is full
                telling.end(even_if_empty=isinstance(error, KeyboardInterrupt))
            raise
        finally:
            answered.close()
    if telling.failed == len(inputs) and not stop:
        if telling.failure is not None and len(inputs) == 1:
            raise telling.failure
        raise ImageError(
            f"none of {len(inputs)} images could be explained", fix="see the lines above"
        )
    if flagged:
        note(flagged_note(flagged, telling.explained))
    note(f"model {asked.name}; {DISCLAIMER}")
    if stop.signum is not None:
        note(f"{telling.explained} of {len(inputs)} images explained")
        raise KeyboardInterrupt if stop.signum == signal.SIGINT else Ended(stop.signum)
    if telling.failed:
        raise PartialFailure(
            f"{telling.explained} ok, {telling.failed} failed", fix="the lines above say why"
        )


# --- files -----------------------------------------------------------------------------------


def _inputs(arguments: Sequence[str], outputs: Sequence[Path]) -> list[Source]:
    """Files as given; of folders the images below them, but not what was drawn there before."""
    from biigma_cli.errors import DataError, UsageError
    from biigma_cli.runtime.inputs import expand, read_stdin

    if "-" in arguments:
        if len(arguments) > 1:
            raise UsageError("- stands for stdin, alone", fix="give - or names of files")
        return list(any_of(read_stdin(open_stdin())))
    ours = {folder.absolute() for folder in outputs}
    found = []
    for source in expand(arguments, warn=note):
        if source.name in arguments or not ours & set(Path(source.name).absolute().parents):
            found.append(source)
    if not found:
        raise DataError("no image there but those in the output folder", fix="name other images")
    return found


def _targets(inputs: Sequence[Source], output: Path, maps: Path | None, kind: str) -> list[Target]:
    """A name of its own for each input: its stem, numbered where another has the same."""
    from biigma_cli.cli.predict_pictures import STEM
    from biigma_cli.storage import cut_name

    stems = [
        "stdin" if isinstance(s.content, bytes) else cut_name(s.content.stem, STEM) for s in inputs
    ]
    # Case is ignored, as file systems may.
    own = {stem.casefold() for stem in stems}
    taken: set[str] = set()
    targets = []
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in taken or (number > 1 and name.casefold() in own):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        targets.append(
            Target(output / f"{name}.{kind}", None if maps is None else maps / f"{name}.npz")
        )
    return targets


def _check_targets(targets: Sequence[Target], sources: Sequence[Path], *, stdin: bool) -> None:
    """Raises `UsageError` where something cannot be written or would replace what is read."""
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import check_writable, real_path

    read = {real_path(path) for path in sources}
    for target in targets:
        for path in target:
            if path is None:
                continue
            if real_path(path) in read or (stdin and is_stdin(path)):
                raise UsageError(f"{path} would be replaced", fix="choose another folder with -o")
            check_writable(path)


def _masks(inputs: Sequence[Source], mask: Path | None) -> list[Path | DataError | None]:
    """The mask of each image, or that the folder has none."""
    from biigma_cli.errors import DataError, UsageError
    from biigma_cli.storage import is_file, is_folder

    if mask is None:
        return [None] * len(inputs)
    if not is_folder(mask):
        if len(inputs) > 1:
            raise UsageError(
                f"one mask for {len(inputs)} images",
                fix="give --mask the folder of their masks, called NAME_segmentation.png",
            )
        return [mask]
    found: list[Path | DataError | None] = []
    for source in inputs:
        path = source.content
        if isinstance(path, bytes):
            raise UsageError(
                "an image on stdin has no name to find its mask by",
                fix=f"give --mask the mask itself, not the folder {mask}",
            )
        names = (f"{path.stem}_segmentation.png", f"{path.stem}.png")
        there = next((mask / name for name in names if is_file(mask / name)), None)
        lacking = DataError(
            f"{mask} holds no mask of {path}: neither {' nor '.join(names)}",
            fix="add it, or leave --mask out",
        )
        found.append(there or lacking)
    return found


# --- answers ---------------------------------------------------------------------------------


def _answers(
    asked: Asked,
    inputs: Sequence[Source],
    masks: Sequence[Path | DataError | None],
    *,
    keep_border: bool,
) -> Generator[tuple[Loaded, Answer] | DataError, None, None]:
    """For each file, in order, its answer (a batch of one) or what was wrong with it."""
    import numpy as np

    from biigma_cli.data.preprocess import map_threads
    from biigma_cli.errors import DataError, ModelFileError
    from biigma_cli.runtime.session import Answer
    from biigma_cli.storage import available_cpus

    def read(item: tuple[Source, Path | DataError | None]) -> Loaded | DataError:
        source, mask = item
        if isinstance(mask, DataError):
            return mask
        try:
            return load(source, mask, asked.shows, keep_border=keep_border)
        except DataError as error:
            return error

    pairs = zip(inputs, masks, strict=True)
    loaded = map_threads(read, pairs, threads=available_cpus(), ahead=2 * BATCH)
    for start in range(0, len(inputs), BATCH):
        chunk = [next(loaded) for _ in inputs[start : start + BATCH]]
        good = [item for item in chunk if isinstance(item, Loaded)]
        answer = asked.run(np.stack([item.pixels for item in good])) if good else None
        row = 0
        for item in chunk:
            if answer is None or not isinstance(item, Loaded):
                assert isinstance(item, DataError)
                yield item
                continue
            one = Answer(*(part if part is None else part[row : row + 1] for part in answer))  # type: ignore[arg-type]
            row += 1
            if not all(
                np.isfinite(p).all() for p in (one.logits_BY, one.novelty_B) if p is not None
            ):
                raise ModelFileError(
                    f"{asked.name} gives NaN or infinity for {item.name}", fix="train it again"
                )
            yield item, one


def _explain(
    asked: Asked, answer: Answer, what: str, classes: tuple[int, ...], *, checked: bool
) -> Explanation:
    from biigma_cli.report.explanation import explanation

    evidence, saliency, novelty = answer.evidence_BYHW, answer.saliency_BHW, answer.novelty_B
    return explanation(
        asked.classes,
        answer.probabilities_BY[0],
        answer.logits_BY[0],
        None if what == "saliency" or evidence is None else evidence[0],
        None if what == "evidence" or saliency is None else saliency[0],
        form=asked.shows.form,
        chosen=classes,
        novelty=float(novelty[0]) if checked and novelty is not None else None,
    )
