"""`biigma predict`: classify images with an exported model, without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biigma_cli.cli.boundary import boundary, note

if TYPE_CHECKING:
    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.errors import ImageError
    from biigma_cli.report.records import Prediction
    from biigma_cli.runtime.session import Predictor

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
DISCLAIMER = "for research use only, not a medical device"


@boundary
def predict(
    paths: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="An exported .onnx file, or the name of a shipped model."),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="table, json, jsonl or csv.")] = "table",
    topk: Annotated[int, typer.Option("--topk", min=1, help="Classes to name per image.")] = 3,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead; - is stdout.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Images run together.")
    ] = 16,
) -> None:
    """Classify dermoscopic images.

    A damaged file among others costs its own row: the rest is answered, and the exit code is 5.
    """
    from biigma_cli.errors import ImageError, PartialFailure, UsageError
    from biigma_cli.report import records
    from biigma_cli.runtime.session import Predictor, find_model
    from biigma_cli.storage import atomic_write_text, check_writable

    if format_ not in records.FORMATS:
        raise UsageError(
            f"unknown --format {format_!r}", fix=f"choose one of: {', '.join(records.FORMATS)}"
        )
    target = None if output is None or str(output) == "-" else output
    if target is not None:
        check_writable(target)
    files = list(_expand(paths))
    predictor = Predictor(find_model(model), device=device)
    info = predictor.info
    if device == "auto" and predictor.provider != "CPUExecutionProvider":
        note(f"running on {predictor.provider}")
    names = dict(zip(info.classes, info.class_names, strict=True))
    results: list[Prediction] = []
    alone: ImageError | None = None
    failed = 0
    for item, error in _classify(predictor, files, batch_size):
        results.append(item)
        if error is not None:
            failed += 1
            alone = error
    if alone is not None and len(files) == 1:
        raise alone
    if failed and failed == len(files):
        for item in results:
            note(f"error: {item.error}")
        raise ImageError(f"none of {failed} images could be read", fix="see the lines above")

    if format_ == "json":
        import json

        plain = [records.to_dict(i, names, info.name, topk=topk) for i in results]
        text = json.dumps(
            {
                "model": {
                    "name": info.name,
                    "protocol": info.metadata.get("protocol"),
                    "licence": info.metadata["licence"],
                    "provider": predictor.provider,
                    "temperature": info.temperature,
                },
                "disclaimer": DISCLAIMER,
                "predictions": plain,
            },
            indent=2,
            ensure_ascii=False,
        )
        text += "\n"
    elif format_ == "jsonl":
        text = "".join(records.jsonl_row(i, names, info.name, topk=topk) for i in results)
    elif format_ == "csv":
        rows = (records.csv_row(i, info.classes, info.name) for i in results)
        text = records.csv_header(info.classes) + "".join(rows)
    else:
        from biigma_cli.report.tables import prediction_table, render, table_width

        malignant = dict(zip(info.classes, info.malignant, strict=True))
        colour = target is None and sys.stdout.isatty()
        table = prediction_table(results, names, malignant, topk)
        text = render(table, width=table_width(tty=colour), colour=colour)
    if target is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        atomic_write_text(target, text)
    sure = "" if info.temperature is None else f", calibrated (T = {info.temperature:.3f})"
    note(f"model {info.name} on {predictor.provider}{sure}; {DISCLAIMER}")
    if failed:
        raise PartialFailure(
            f"{len(files) - failed} ok, {failed} failed", fix="the error column says why"
        )


def _expand(paths: list[Path]) -> Iterator[Path]:
    """Files as given; folders as the images below them, in order."""
    from biigma_cli.errors import DataError

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise DataError(
                f"no image in the folder {path}",
                fix=f"looked for {', '.join(sorted(SUFFIXES))}, also in folders below it",
            )
        yield from inside


def _classify(
    predictor: Predictor, files: list[Path], batch_size: int
) -> Iterator[tuple[Prediction, ImageError | None]]:
    """An answer or an error for each file, in order."""
    import numpy as np

    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.preprocess import load_image, map_threads
    from biigma_cli.errors import ImageError
    from biigma_cli.report.records import Prediction, prediction
    from biigma_cli.storage import available_cpus

    info = predictor.info

    def decode(path: Path) -> Pixels | ImageError:
        try:
            return load_image(path, info.side, rule=info.rule)
        except ImageError as error:
            return error

    decoded = map_threads(decode, files, threads=available_cpus(), ahead=4 * batch_size)
    done = 0
    with Progress("classifying", "images") as progress:
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            loaded = [next(decoded) for _ in chunk]
            good = [image for image in loaded if not isinstance(image, ImageError)]
            rows = iter(predictor(np.stack(good)).probabilities_BY) if good else iter(())
            for path, image in zip(chunk, loaded, strict=True):
                if isinstance(image, ImageError):
                    yield (
                        Prediction(
                            path=str(path), probabilities=None, malignant=None, error=image.message
                        ),
                        image,
                    )
                else:
                    item = prediction(str(path), next(rows), info.classes, info.malignant)
                    yield item, None
            done += len(chunk)
            if len(files) > batch_size:
                progress(done, len(files))
