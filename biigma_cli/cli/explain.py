"""`biigma explain`: where in a picture the answer comes from, and the saliency map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import JsonOption

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.errors import DataError
    from biigma_cli.report.overlay import Frame, Layer
    from biigma_cli.runtime.session import Answer

    Floats = npt.NDArray[np.floating]

WHAT = ("both", "evidence", "saliency")
FORMATS = ("png", "svg")
# Pixels of a picture's longer side as it is drawn.
DRAWN = 720
BATCH = 8

EVIDENCE_NOTE = (
    "The evidence is exact for the features that are averaged: with the bias it sums to the logit. "
    "But each position sees far more of the picture than the spot it is drawn on."
)
SALIENCY_NOTE = (
    "M guides the background sampling in training; it is the same for every class and does not "
    "explain the answer."
)


@boundary
def explain(
    paths: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")
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
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the pictures.")
    ] = Path("explained"),
    format_: Annotated[str, typer.Option("--format", help="png or svg.")] = "png",
    maps: Annotated[
        Path | None,
        typer.Option("--maps", metavar="DIR", help="Also write the raw maps there, as NAME.npz."),
    ] = None,
    json_: JsonOption = False,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu or cuda; for a checkpoint cuda:N or mps too.")
    ] = "auto",
) -> None:
    """Show what the answer for each image is made of, as a picture beside it.

    The evidence map is exact: the network's last layer is linear and averages over positions, so
    what the positions add, and the bias, sum to the logit. Where a position lies is less exact: it
    sees far more of the image than the spot it is drawn on. The saliency map M guides the sampling
    of backgrounds in training; it is the same for every class and does not explain the answer.

    A damaged file among others costs its own line: the rest is drawn, and the exit code is 5.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.errors import DataError, ImageError, PartialFailure, UsageError
    from biigma_cli.report.predictions import DISCLAIMER
    from biigma_cli.runtime.session import find_model

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
    inputs = _inputs(paths, [output] if maps is None else [output, maps])
    masks = _masks(inputs, mask)
    targets = _targets(inputs, output, maps, format_)
    _check_targets(targets, [*inputs, *(m for m in masks if m is not None)])
    if run is not None:
        from biigma_cli.cli.evaluate import best_checkpoint

        path = best_checkpoint(run)
    elif model is not None and Path(model).suffix == ".safetensors":
        path = Path(model)
    else:
        path = find_model(model)
    asked = _open_checkpoint(path, device) if path.suffix == ".safetensors" else None
    asked = asked or _open_onnx(path, device)
    what = _possible(asked, what)
    chosen = _chosen(asked, class_, contrast)

    records: list[dict[str, Any]] = []
    lines: list[str] = []
    failures: list[DataError] = []
    with Progress("explaining", "images") as progress:
        answered = _answers(asked, inputs, masks)
        for done, (item, target) in enumerate(zip(answered, targets, strict=True), 1):
            if isinstance(item, DataError):
                failures.append(item)
                records.append({"path": str(inputs[done - 1]), "error": item.message})
            else:
                found = _explain(asked, item, what, chosen)
                _draw(asked, found, target.picture)
                if target.maps is not None:
                    _save_maps(asked, found, target.maps)
                records.append(_record(asked, found, target))
                lines.append(_line(asked, found, target))
            if len(inputs) > 1:
                progress(done, len(inputs))
    if failures and len(inputs) == 1:
        raise failures[0]
    for error in failures:
        note(f"error: {error.message}")
    if len(failures) == len(inputs):
        raise ImageError(
            f"none of {len(inputs)} images could be explained", fix="see the lines above"
        )
    if json_:
        import json

        told = {"model": asked.facts, "disclaimer": DISCLAIMER, "explanations": records}
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo("\n".join(lines))
    note(f"model {asked.name}; {DISCLAIMER}")
    if failures:
        raise PartialFailure(
            f"{len(lines)} ok, {len(failures)} failed", fix="the lines above say why"
        )


# --- files -----------------------------------------------------------------------------------


class _Target(NamedTuple):
    """Where an image's picture and raw maps go."""

    picture: Path
    maps: Path | None


def _inputs(arguments: Sequence[str], outputs: Sequence[Path]) -> list[Path]:
    """Files as given; of folders the images below them, but not what was drawn there before."""
    from biigma_cli.errors import DataError
    from biigma_cli.runtime.inputs import expand

    ours = {folder.absolute() for folder in outputs}
    found = []
    for source in expand(arguments, warn=note):
        path = Path(source.name)
        if source.name in arguments or not ours & set(path.absolute().parents):
            found.append(path)
    if not found:
        raise DataError("no image there but those in the output folder", fix="name other images")
    return found


def _targets(inputs: Sequence[Path], output: Path, maps: Path | None, kind: str) -> list[_Target]:
    """A name of its own for each input: its stem, numbered where another has the same."""
    stems = [path.stem for path in inputs]
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
            _Target(output / f"{name}.{kind}", None if maps is None else maps / f"{name}.npz")
        )
    return targets


def _check_targets(targets: Sequence[_Target], sources: Sequence[Path]) -> None:
    """Raises `UsageError` where something cannot be written or would replace what is read."""
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import check_writable

    read = {path.resolve() for path in sources}
    for target in targets:
        for path in target:
            if path is None:
                continue
            if path.resolve() in read:
                raise UsageError(f"{path} would be replaced", fix="choose another folder with -o")
            check_writable(path)


def _masks(inputs: Sequence[Path], mask: Path | None) -> list[Path | None]:
    """The mask of each image; one that a folder lacks is found missing when it is read."""
    from biigma_cli.errors import UsageError

    if mask is None:
        return [None] * len(inputs)
    if not mask.is_dir():
        if len(inputs) > 1:
            raise UsageError(
                f"one mask for {len(inputs)} images",
                fix="give --mask the folder of their masks, called NAME_segmentation.png",
            )
        return [mask]
    found: list[Path | None] = []
    for path in inputs:
        names = (f"{path.stem}_segmentation.png", f"{path.stem}.png")
        there = [mask / name for name in names if (mask / name).is_file()]
        found.append(there[0] if there else mask / names[0])
    return found


class _Loaded(NamedTuple):
    """One image as the network and as the reader sees it.

    Attributes:
        pixels: `(S, S, 3)` for the network.
        picture: `(H, W, 3)`, upright, at most `DRAWN` pixels long.
        frame: where the one lies on the other.
        lesion_HW: mask in the picture's shape, or None.
        lesion_SS: share of lesion in each of the network's pixels, or None.
    """

    path: Path
    pixels: Pixels
    picture: Pixels
    frame: Frame
    lesion_HW: npt.NDArray[np.bool_] | None
    lesion_SS: Floats | None


def _load(path: Path, mask: Path | None, asked: _Model) -> _Loaded:
    """Raises `ImageError` for a bad image, `DataError` for a mask that cannot be its."""
    import numpy as np
    from PIL import Image

    from biigma_cli.config import FIRST_CENTRE
    from biigma_cli.data.masks import cell_edges, lay_lesion, read_lesion
    from biigma_cli.data.preprocess import load_image, upright_size
    from biigma_cli.errors import DataError
    from biigma_cli.report.overlay import Frame

    pixels = load_image(path, asked.side, rule=asked.rule)
    size = upright_size(path)
    frame = Frame(size, asked.side, asked.rule, FIRST_CENTRE.get(asked.trunk))
    picture = _picture(path, size)
    if mask is None:
        return _Loaded(path, pixels, picture, frame, None, None)
    lesion = read_lesion(mask, str(mask))
    edges = cell_edges(asked.side, asked.side)
    laid = lay_lesion(lesion, size, asked.side, asked.rule, (edges, edges))
    if laid.cover_hw is None:
        raise DataError(
            f"the mask {mask} has another shape than its image: {laid.shape}",
            fix="give the mask of the whole image, at any scale, turned as it is shown",
        )
    if not laid.cover_hw.any():
        raise DataError(
            f"the mask {mask} shows no lesion in what the network sees of the image",
            fix="give a mask in which the lesion is white",
        )
    tall, wide = picture.shape[:2]
    shown = np.asarray(Image.fromarray(lesion).resize((wide, tall), Image.Resampling.NEAREST))
    return _Loaded(path, pixels, picture, frame, shown, laid.cover_hw)


def _picture(path: Path, size: tuple[int, int]) -> Pixels:
    """The whole image, its longer side at most `DRAWN` pixels."""
    from biigma_cli.data.preprocess import load_image

    side = min(DRAWN, max(size))
    padded = load_image(path, side, rule="pad")
    width, height = (max(1, round(length * side / max(size))) for length in size)
    left, top = (side - width) // 2, (side - height) // 2
    return padded[top : top + height, left : left + width]


# --- models ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Model:
    """An exported model or a checkpoint.

    Attributes:
        form: of its saliency map; None where it has none.
        evidence: whether it gives that.
        facts: for the JSON.
        run: `(B, S, S, 3)` to its answer.
    """

    name: str
    classes: tuple[str, ...]
    side: int
    rule: str
    trunk: str
    form: str | None
    evidence: bool
    facts: dict[str, Any]
    run: Callable[[Pixels], Answer] = field(repr=False)


def _open_onnx(path: Path, device: str) -> _Model:
    """Without torch."""
    from biigma_cli.runtime.session import Predictor, stated

    predictor = Predictor(path, device=device)
    info = predictor.info
    outputs = {output.name for output in predictor.session.get_outputs()}
    return _Model(
        name=info.name,
        classes=info.classes,
        side=info.side,
        rule=info.rule,
        trunk=stated(info, "config", "model", "trunk"),
        form=stated(info, "config", "model", "saliency") if "saliency" in outputs else None,
        evidence="evidence" in outputs,
        facts={
            "name": info.name,
            "protocol": info.metadata.get("protocol"),
            "licence": info.metadata["licence"],
            "provider": predictor.provider,
            "temperature": info.temperature,
        },
        run=predictor,
    )


def _open_checkpoint(path: Path, device: str) -> _Model:
    """With torch."""
    import numpy as np

    from biigma_cli.core.weights import load_checkpoint
    from biigma_cli.engine.device import pick_device
    from biigma_cli.judge import open_candidate
    from biigma_cli.runtime.session import Answer

    torch_device = pick_device(device)
    candidate = open_candidate(path, torch_device)
    checkpoint = load_checkpoint(path)
    settings = checkpoint.config.model
    form = settings.saliency if settings.sampling else None

    def run(pixels: Pixels) -> Answer:
        found = candidate.maps(pixels, lambda *_: None)
        raised = np.exp(found.logits_nY - found.logits_nY.max(1, keepdims=True))
        return Answer(
            raised / raised.sum(1, keepdims=True),
            found.saliency[form] if form is not None else None,
            found.logits_nY,
            found.evidence_nYhw,
        )

    return _Model(
        name=candidate.name,
        classes=candidate.classes,
        side=candidate.data.side,
        rule=candidate.data.resize,
        trunk=settings.trunk,
        form=form,
        evidence=True,
        facts={
            "name": candidate.name,
            "protocol": checkpoint.meta.get("protocol"),
            "licence": checkpoint.meta.get("licence"),
            "provider": str(torch_device),
            "temperature": None,
        },
        run=run,
    )


def _possible(asked: _Model, what: str) -> str:
    """What of it the model can show. Raises `ModelFileError` where it lacks what was asked for."""
    from biigma_cli.errors import ModelFileError

    if what != "saliency" and not asked.evidence:
        raise ModelFileError(
            f"{asked.name} gives no evidence: it was exported by an earlier version",
            fix="export its run again with 'biigma export onnx', ask the run itself with --run, or "
            "draw the saliency map alone with --what saliency",
        )
    if what != "evidence" and asked.form is None:
        if what == "saliency":
            raise ModelFileError(
                f"{asked.name} has no saliency map: it was trained without sampling",
                fix="draw the evidence with --what evidence, or choose another model",
            )
        note(f"{asked.name} has no saliency map (trained without sampling): evidence alone")
        return "evidence"
    return what


def _chosen(asked: _Model, class_: str | None, contrast: str | None) -> tuple[int, ...]:
    """Indices of the classes asked for: none, one, or two to compare."""
    from biigma_cli.errors import UsageError

    option = "--class" if contrast is None else "--contrast"
    codes = contrast.split(",") if contrast is not None else [class_] if class_ is not None else []
    if contrast is not None and len(codes) != 2:
        raise UsageError(
            f"--contrast {contrast!r} does not name two classes",
            fix=f"name them as in --contrast {','.join(asked.classes[:2])}",
        )
    found = []
    for code in (c.strip() for c in codes):
        known = next((c for c in (code, code.upper()) if c in asked.classes), None)
        if known is None:
            raise UsageError(
                f"{option}: the model has no class {code!r}",
                fix=f"choose from: {', '.join(asked.classes)}",
            )
        found.append(asked.classes.index(known))
    if len(found) == 2 and found[0] == found[1]:
        raise UsageError(f"--contrast {contrast!r} names one class twice", fix="name two classes")
    return tuple(found)


# --- explanations ----------------------------------------------------------------------------


def _answers(
    asked: _Model, inputs: Sequence[Path], masks: Sequence[Path | None]
) -> Iterator[tuple[_Loaded, Answer] | DataError]:
    """For each file, in order, its answer (a batch of one) or what was wrong with it."""
    import numpy as np

    from biigma_cli.data.preprocess import map_threads
    from biigma_cli.errors import DataError, ModelFileError
    from biigma_cli.runtime.session import Answer
    from biigma_cli.storage import available_cpus

    def load(item: tuple[Path, Path | None]) -> _Loaded | DataError:
        try:
            return _load(*item, asked)
        except DataError as error:
            return error

    pairs = zip(inputs, masks, strict=True)
    loaded = map_threads(load, pairs, threads=available_cpus(), ahead=2 * BATCH)
    for start in range(0, len(inputs), BATCH):
        chunk = [next(loaded) for _ in inputs[start : start + BATCH]]
        good = [item for item in chunk if isinstance(item, _Loaded)]
        answer = asked.run(np.stack([item.pixels for item in good])) if good else None
        row = 0
        for item in chunk:
            if answer is None or not isinstance(item, _Loaded):
                assert isinstance(item, DataError)
                yield item
                continue
            one = Answer(*(part if part is None else part[row : row + 1] for part in answer))  # type: ignore[arg-type]
            row += 1
            if not np.isfinite(one.logits_BY).all():
                raise ModelFileError(
                    f"{asked.name} gives NaN or infinity for {item.path}", fix="train it again"
                )
            yield item, one


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What one image's answer is made of.

    Attributes:
        top: class indices, most probable first.
        evidence_Yhw: None where it was not asked for, as is `saliency_hw`.
        classes: index of the class explained, or of the two that are compared.
        map_hw: their evidence, or None.
        logit, bias: of the class, or the first's less the second's.
    """

    image: _Loaded
    probabilities_Y: Floats
    logits_Y: Floats
    top: list[int]
    evidence_Yhw: Floats | None
    saliency_hw: Floats | None
    classes: tuple[int, ...]
    map_hw: Floats | None
    logit: float
    bias: float


def _explain(
    asked: _Model, item: tuple[_Loaded, Answer], what: str, chosen: tuple[int, ...]
) -> _Found:
    import numpy as np

    image, answer = item
    probabilities, logits = answer.probabilities_BY[0], answer.logits_BY[0].astype(np.float64)
    top = [int(i) for i in np.argsort(-probabilities, kind="stable")]
    classes = chosen or (top[0],)
    evidence = map_hw = None
    logit = bias = 0.0
    if what != "saliency":
        assert answer.evidence_BYHW is not None
        evidence = answer.evidence_BYHW[0].astype(np.float64)
        sign = dict(zip(classes, (1, -1), strict=False))
        map_hw = np.sum([s * evidence[c] for c, s in sign.items()], axis=0)
        logit = float(sum(s * logits[c] for c, s in sign.items()))
        # What the positions do not add: exported models do not hold it apart.
        bias = logit - float(map_hw.sum())
    saliency = (
        answer.saliency_BHW[0] if what != "evidence" and answer.saliency_BHW is not None else None
    )
    return _Found(
        image=image, probabilities_Y=probabilities, logits_Y=logits, top=top, evidence_Yhw=evidence,
        saliency_hw=saliency, classes=classes, map_hw=map_hw, logit=logit, bias=bias,
    )  # fmt: skip


def _draw(asked: _Model, found: _Found, target: Path) -> None:
    from biigma_cli.report.overlay import Layer, draw_overlay
    from biigma_cli.report.predictions import DISCLAIMER
    from biigma_cli.runtime.inputs import shown
    from biigma_cli.taxonomy import lesion_class

    codes = [asked.classes[c] for c in found.classes]
    layers: list[Layer] = []
    notes = []
    if found.map_hw is not None:
        rows, columns = found.map_hw.shape
        if len(codes) == 2:
            title = f"{codes[0]} rather than {codes[1]}"
            of = f"logit {codes[0]} - logit {codes[1]}"
        else:
            title, of = f"Evidence for {codes[0]}", f"the logit of {codes[0]}"
        layers.append(
            Layer(
                title=f"{title}: {found.map_hw.sum():+.2f}, bias {found.bias:+.2f}",
                legend=f"adds to {of}, per position of {rows} x {columns}",
                map_hw=found.map_hw,
                signed=True,
            )
        )
        notes.append(EVIDENCE_NOTE)
    if found.saliency_hw is not None:
        layers.append(
            Layer(
                title=f"Saliency map, {asked.form}",
                legend="M of Eq. 5, in (0, 1), no unit",
                map_hw=found.saliency_hw,
                signed=False,
            )
        )
        notes.append(SALIENCY_NOTE)
    notes.append(f"{DISCLAIMER.capitalize()}.")
    best = asked.classes[found.top[0]]
    draw_overlay(
        found.image.picture,
        layers,
        found.image.frame,
        target,
        title=shown(found.image.path.name),
        subtitle=f"Answer: {best}, {lesion_class(best).name}, {_percent(found, found.top[0])}. "
        f"Model {shown('/'.join(Path(asked.name).parts[-3:]))}",
        probabilities=[
            f"{asked.classes[c]}  {_percent(found, c)}  {lesion_class(asked.classes[c]).name}"
            for c in found.top[:3]
        ],
        notes=notes,
        lesion_HW=found.image.lesion_HW,
    )


def _save_maps(asked: _Model, found: _Found, target: Path) -> None:
    import io

    import numpy as np

    from biigma_cli.report.overlay import square_box
    from biigma_cli.storage import atomic_write_bytes

    frame = found.image.frame
    arrays: dict[str, Any] = {
        "classes": np.array(asked.classes),
        "probabilities": found.probabilities_Y,
        "logits": found.logits_Y,
        "size": np.array(frame.size),
        "square": np.array(square_box(frame)),
    }
    if frame.first_centre is not None:
        arrays["first_centre"] = np.array(frame.first_centre)
    if found.evidence_Yhw is not None:
        arrays["evidence"] = found.evidence_Yhw
    if found.saliency_hw is not None:
        arrays["saliency"] = found.saliency_hw
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    atomic_write_bytes(target, file.getvalue())


def _record(asked: _Model, found: _Found, target: _Target) -> dict[str, Any]:
    """One image's JSON."""
    import numpy as np

    from biigma_cli.report.overlay import inside
    from biigma_cli.taxonomy import lesion_class

    best = asked.classes[found.top[0]]
    record: dict[str, Any] = {
        "path": str(found.image.path),
        "picture": str(target.picture),
        "maps": None if target.maps is None else str(target.maps),
        "label": best,
        "name": lesion_class(best).name,
        "probability": round(float(found.probabilities_Y[found.top[0]]), 6),
        "probabilities": {
            c: round(float(p), 6) for c, p in zip(asked.classes, found.probabilities_Y, strict=True)
        },
    }
    lesion = found.image.lesion_SS
    if lesion is not None:
        record["lesion_area"] = float(lesion.mean())
    if found.map_hw is not None:
        values = found.map_hw
        own: dict[str, Any] = {
            "class": asked.classes[found.classes[0]],
            "against": asked.classes[found.classes[1]] if len(found.classes) == 2 else None,
            "logit": found.logit,
            "bias": found.bias,
            "sum": float(values.sum()),
            "for": float(values[values > 0].sum()),
            "against_it": float(values[values < 0].sum()),
            "positions": list(values.shape),
        }
        if lesion is not None:
            on = inside(lesion, found.image.frame, values.shape)
            own["inside"] = float((values * on).sum())
            own["outside"] = float((values * (1 - on)).sum())
            own["share_inside"] = float((np.abs(values) * on).sum() / np.abs(values).sum())
        record["evidence"] = own
    if found.saliency_hw is not None:
        values = found.saliency_hw.astype(np.float64)
        own = {
            "form": asked.form,
            "low": float(values.min()),
            "mean": float(values.mean()),
            "high": float(values.max()),
            "positions": list(values.shape),
        }
        if lesion is not None:
            on = inside(lesion, found.image.frame, values.shape)
            own["share_inside"] = float((values * on).sum() / values.sum())
        record["saliency"] = own
    return record


def _line(asked: _Model, found: _Found, target: _Target) -> str:
    """One image's line."""
    from biigma_cli.runtime.inputs import shown

    codes = [asked.classes[c] for c in found.classes]
    words = f"{shown(str(found.image.path))}: {asked.classes[found.top[0]]} "
    words += _percent(found, found.top[0])
    if found.map_hw is not None:
        words += (
            f"; evidence for {' rather than '.join(codes)} {found.map_hw.sum():+.3f}, "
            f"bias {found.bias:+.3f}, logit{'s apart' if len(codes) == 2 else ''} "
            f"{found.logit:+.3f}"
        )
    return f"{words}; {shown(str(target.picture))}"


def _percent(found: _Found, index: int) -> str:
    return f"{found.probabilities_Y[index]:.1%}"
