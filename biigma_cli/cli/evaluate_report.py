"""What `biigma eval` says beyond its figures: published results, subgroups, the HTML report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biigma_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.data.manifest import Manifest
    from biigma_cli.judge import Candidate, Judgement
    from biigma_cli.judge.subgroups import Subgroups
    from biigma_cli.metrics import Reliability
    from biigma_cli.report.evaluation import Mistake

#: Mistakes that the report shows.
SHOWN = 24
PAGE = "index.html"


def check_report_folder(folder: Path) -> Path:
    """The page's path in `folder`, which must be new, empty, or hold an earlier report.

    Raises `UsageError` otherwise, or where it cannot be written.
    """
    from biigma_cli.report.evaluation.page import GENERATOR
    from biigma_cli.storage import check_writable

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder", fix="name a new folder for the report")
    page = folder / PAGE
    check_writable(page)
    if folder.is_dir() and any(folder.iterdir()) and not _is_report(page, GENERATOR):
        raise UsageError(
            f"{folder} holds other things than a report of ours", fix="name a new or empty folder"
        )
    return page


def _is_report(page: Path, generator: str) -> bool:
    try:
        with page.open("rb") as file:
            return f'content="{generator}"'.encode() in file.read(4096)
    except OSError:
        return False


def published_json(judged: Judgement) -> dict[str, Any]:
    """Published results of the data set, and how far they can be compared."""
    from biigma_cli.report.published import comparability, published_for

    rows = published_for(judged.split.dataset)
    return {
        "comparability": comparability(rows, judged.split.protocol, judged.part) if rows else "",
        "rows": [row.to_dict() for row in rows],
    }


def published_items(judged: Judgement) -> list[Table | str]:
    """The same for the terminal; nothing where nothing is published."""
    from biigma_cli.report.evaluation.tables import published_table
    from biigma_cli.report.published import comparability, published_for

    rows = published_for(judged.split.dataset)
    if not rows:
        return []
    own = f"{judged.split.title}; {judged.part} part"
    return [
        published_table(judged.assessment, rows, protocol=own, binary=judged.binary),
        textwrap.fill(comparability(rows, judged.split.protocol, judged.part), 80),
    ]


def subgroup_items(found: Subgroups) -> list[Table | str]:
    """Subgroups for the terminal."""
    from biigma_cli.report.evaluation.page import SUBGROUP_NOTE
    from biigma_cli.report.evaluation.tables import subgroup_tables

    items: list[Table | str] = []
    if found.rows:
        items += [*subgroup_tables(found.rows, asked=found.asked)]
        items.append(textwrap.fill(SUBGROUP_NOTE, 80))
    if found.absent:
        items.append(f"the data set as recorded here does not say: {', '.join(found.absent)}")
    return items


def write_report(
    page: Path,
    judged: Judgement,
    candidate: Candidate,
    manifest: Manifest,
    *,
    probabilities: str,
    reliability: Mapping[str, Reliability],
    subgroups: Subgroups,
    notes: list[str],
    saliency: Mapping[str, Any] | None = None,
    robustness: Mapping[str, Any] | None = None,
    heads: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Write the page, as a whole or not at all.

    Args:
        page: see `check_report_folder`.
        probabilities: which were judged, in words.
        reliability: diagrams by what they are of.
        notes: what else the reader must know.
        saliency: figures of the maps as plain values, if they were asked for.
        robustness: of images painted over, likewise.
        heads: how alike they are, likewise.
        progress: of the mistakes' maps, as of `Candidate.maps`.

    Raises:
        BiigmaError: the folder cannot be written, or the disk is full.
        DataError: an image is gone.
    """
    from biigma_cli.metrics import score_weight
    from biigma_cli.report.evaluation import EvaluationReport, evaluation_html
    from biigma_cli.storage import atomic_write_text, without_folders

    counted = score_weight(judged.ids)
    against = None
    if judged.against is not None:
        against = (_short(judged.against.model), judged.against.difference)
    text = evaluation_html(
        EvaluationReport(
            model=_short(judged.model),
            probabilities=probabilities,
            dataset=judged.split.dataset,
            part=judged.part,
            protocol=judged.split.protocol,
            title=judged.split.title,
            binary=judged.binary,
            assessment=judged.assessment,
            label_n=judged.label_n[counted],
            proba_nY=judged.proba_nY[counted],
            reliability=reliability,
            subgroups=subgroups.rows,
            asked=subgroups.asked,
            absent=subgroups.absent,
            mistakes=worst_mistakes(judged, candidate, manifest, progress=progress),
            against=against,
            abstention=[a.to_dict() for a in judged.abstention],
            malignancy=None if judged.malignancy is None else judged.malignancy.to_dict(),
            prevalence=None if judged.prevalence is None else judged.prevalence.to_dict(),
            saliency=saliency,
            robustness=robustness,
            heads=heads,
            provenance=_provenance(judged),
            licence=manifest.licence,
            citation=manifest.citation,
            notes=[without_folders(line) for line in notes],
        )
    )
    atomic_write_text(page, text)


def worst_mistakes(
    judged: Judgement,
    candidate: Candidate,
    manifest: Manifest,
    *,
    shown: int = SHOWN,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Mistake]:
    """The wrong answers of the greatest probability, with pictures."""
    import numpy as np
    from PIL import Image

    from biigma_cli.config import FIRST_CENTRE
    from biigma_cli.data.images import load_part
    from biigma_cli.data.preprocess import load_image, upright_size
    from biigma_cli.metrics import score_weight
    from biigma_cli.report.evaluation import Mistake, mistake_pictures, thumbnail_size
    from biigma_cli.report.overlay import Frame

    answer_n = judged.proba_nY.argmax(1)
    wrong = np.flatnonzero((answer_n != judged.label_n) & score_weight(judged.ids))
    # By falling probability, equals in the order of the part.
    chosen = wrong[np.argsort(-judged.proba_nY[wrong, answer_n[wrong]], kind="stable")][:shown]
    if not len(chosen):
        return []
    data = candidate.data
    ids = [judged.ids[i] for i in chosen]
    pixels = load_part(manifest, ids, data.side, rule=data.resize).pixels
    maps = candidate.maps(pixels, progress)
    first_centre = FIRST_CENTRE.get(candidate.trunk)
    records, codes = manifest.by_id(), judged.assessment.codes
    found = []
    for row, i in enumerate(chosen):
        truth, answer = int(judged.label_n[i]), int(answer_n[i])
        record = records[judged.ids[i]]
        file = manifest.root / record.path
        size = upright_size(file)
        small = thumbnail_size(size)
        square = Image.fromarray(load_image(file, max(small), name=record.image_id))
        evidence = maps.evidence_nYhw
        found.append(
            Mistake(
                image_id=record.image_id,
                lesion_id=record.lesion_id,
                truth=codes[truth],
                answer=codes[answer],
                p_truth=float(judged.proba_nY[i, truth]),
                p_answer=float(judged.proba_nY[i, answer]),
                pictures=mistake_pictures(
                    np.asarray(square.resize(small, Image.Resampling.LANCZOS)),
                    Frame(size, data.side, data.resize, first_centre),
                    image_id=record.image_id,
                    truth=codes[truth],
                    answer=codes[answer],
                    contrast_hw=None
                    if evidence is None
                    else evidence[row, answer] - evidence[row, truth],
                    saliency={form: m[row] for form, m in maps.saliency.items()},
                ),
            )
        )
    return found


def _short(model: str) -> str:
    """A model's name without anyone's folders."""
    from biigma_cli.storage import without_folders

    return without_folders(model)


def _provenance(judged: Judgement) -> dict[str, str]:
    from biigma_cli import __version__
    from biigma_cli.storage import without_folders

    found = {
        "model": _short(judged.model),
        "data set": judged.split.dataset,
        "protocol": judged.split.title,
        "part": judged.part,
        "data hash": judged.split.data_hash,
        "split hash": judged.split.split_hash,
        "intervals": f"{judged.assessment.bootstrap}, seed {judged.assessment.seed}"
        if judged.assessment.resamples
        else "none",
    }
    file = Path(judged.model)
    if file.is_file():
        with file.open("rb") as opened:
            found["SHA-256 of the model"] = hashlib.file_digest(opened, "sha256").hexdigest()
    versions = [f"biigma {__version__}", f"python {platform.python_version()}"]
    for name in ("torch", "onnxruntime", "onnxruntime-gpu", "numpy", "scikit-learn", "pillow"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    found["versions"] = ", ".join(versions)
    found["command"] = shlex.join(["biigma", *(without_folders(w) for w in sys.argv[1:])])
    return found
