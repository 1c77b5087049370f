"""The paper's ablation (Table 2) and the shortcut test: many runs, trained and judged alike.

The shortcut test judges one run on two synthetic data sets that differ in their test part alone:
`judge_other_test` proves from the images' hashes that all that training could see is the same.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch

from biigma_cli.config import (
    Config,
    DataConfig,
    from_dict,
)
from biigma_cli.data.datasets import load_dataset
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import make_split
from biigma_cli.engine import train as engine
from biigma_cli.engine.checkpoints import RunFiles
from biigma_cli.engine.events import Event
from biigma_cli.engine.interrupt import StopRequest
from biigma_cli.errors import (
    CheckpointMismatch,
    DataError,
    RunBusy,
    TrainingDiverged,
)
from biigma_cli.judge.candidate import Candidate, Progress, open_candidate
from biigma_cli.judge.judgement import Judgement, judge, split_of, still_holds
from biigma_cli.judge.study import (
    FIGURES,
    ROWS,
    Condition,
    Planned,
    Row,
    Study,
    plan,
    planned_run,
    train_arguments,
    twins,
)
from biigma_cli.report.ablation import Ablation, AblationRow, RunFigures
from biigma_cli.report.published import TABLE2, TABLE2_PROTOCOL
from biigma_cli.report.runs import RunInfo, read_run
from biigma_cli.storage import without_folders, write_json

# --- what is there already -------------------------------------------------------------------


def setting_differences(planned: Planned) -> list[str]:
    """Settings in which the run on disk is not the planned one; empty where there is none.

    Weights that are files go by their name, since runs may have been made from another folder; the
    normalisation follows from them.
    """
    info = read_run(planned.path)
    wanted = {
        f"{s}.{k}": v for s, part in planned.config.to_dict().items() for k, v in part.items()
    }
    told = []
    for key, value in wanted.items():
        there = info.settings.get(key, value)
        if key == "model.normalisation" and value == "auto":
            continue
        if key == "model.weights" and _name(there) == _name(value):
            continue
        if there != value:
            told.append(f"{key}: {there} there, {value} here")
    return told


def _name(path: Any) -> str:
    return PurePath(str(path)).name


def check_settings(planned: Sequence[Planned]) -> None:
    """Raise `CheckpointMismatch` that lists every run on disk with other settings."""
    told = [f"{p.path}: {difference}" for p in planned for difference in setting_differences(p)]
    if told:
        raise CheckpointMismatch(
            "runs of that name were made with other settings:\n  " + "\n  ".join(told),
            fix="give the same settings (--set, --weights), or another --name",
        )


def stored_weights(folder: Path) -> str | None:
    """Backbone weights of a run in the study's folder; None where there is none."""
    for path in sorted(folder.glob("*-s*/config.toml")):
        weights = read_run(path.parent).settings.get("model.weights")
        if weights is not None:
            return str(weights)
    return None


def _mark_failed(path: Path, reason: str) -> None:
    write_json(path / "ablation.json", {"failed": reason, "written": _written(path)})


def _written(path: Path) -> int:
    """When the run's settings were written, in ns: at each start of a training in it."""
    try:
        return (path / "config.toml").stat().st_mtime_ns
    except OSError:
        return 0


def failure(path: Path) -> str:
    """Why a run's training failed; "" where it did not, or was gone on with since."""
    try:
        known = json.loads((path / "ablation.json").read_text(encoding="utf-8"))
        return str(known["failed"]) if known["written"] == _written(path) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def progress_of(info: RunInfo) -> str:
    """`2 of 4 epochs`."""
    return f"{info.epochs_done} of {info.epochs_planned} epochs"


# --- training --------------------------------------------------------------------------------


def complete(
    study: Study,
    planned: Planned,
    manifest: Manifest,
    *,
    device: torch.device,
    stop: StopRequest | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> str:
    """Train a missing run, go on with an interrupted one, leave a finished one.

    Returns "" where the run is now finished; else why it is not: it diverged (now or before, which
    is kept in its folder), or another process has it.

    Raises:
        Interrupted: on a request to stop; a checkpoint was written.
        BiigmaError: whatever else `engine.train` raises.
    """
    info = read_run(planned.path)
    if info.finished:
        return ""
    if failure(planned.path):
        return f"failed: {failure(planned.path)}"
    files = RunFiles(planned.path)
    resume = files.last.is_file() or files.previous.is_file()
    config = from_dict(_read_settings(info)) if resume else planned.config
    words = (without_folders(w) for w in ("biigma", *train_arguments(study, planned)))
    try:
        engine.train(
            config, manifest, planned.path, device=device, resume=resume,
            command=" ".join(words), stop=stop, on_event=on_event,
        )  # fmt: skip
    except RunBusy:
        return f"{progress_of(info)}, in use by another training"
    except TrainingDiverged as error:
        _mark_failed(planned.path, error.message)
        return f"failed: {error.message}"
    finally:
        gc.collect()  # the network's and the data's memory, before the next run takes its own
    return ""


def _read_settings(info: RunInfo) -> dict[str, dict[str, Any]]:
    """A run's flat settings as sections, keys of other versions left out."""
    known = Config().to_dict()
    sections: dict[str, dict[str, Any]] = {}
    for key, value in info.settings.items():
        section, _, name = key.partition(".")
        if name in known.get(section, {}):
            sections.setdefault(section, {})[name] = value
    return sections


# --- judging ---------------------------------------------------------------------------------


def stored_judgement(planned: Planned, condition: Condition) -> dict[str, Any] | None:
    """What was judged before, where it is of the run's present checkpoint and split; else None."""
    path, best = planned.path / condition.file, planned.path / "weights" / "best.safetensors"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        split = json.loads((planned.path / "summary.json").read_text(encoding="utf-8"))["split"]
        known = stored["trained_on"] if condition.test_background else stored
        good = still_holds(known, path, best, split)
        good &= all(isinstance(stored[name], float) for name in FIGURES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(stored) if good else None


def judge_run(
    planned: Planned,
    condition: Condition,
    *,
    device: torch.device,
    load: Callable[[DataConfig], Manifest] = load_dataset,
    decoding: Progress = lambda *_: None,
    running: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge a finished run and keep the result in its folder; one that is there is taken.

    Without bootstrap: the spread over seeds is what counts here.

    Raises as `judge` and `judge_other_test` do.
    """
    stored = stored_judgement(planned, condition)
    if stored is not None:
        return stored
    candidate = open_candidate(planned.path / "weights" / "best.safetensors", device)
    manifest = load(planned.config.data)
    more: dict[str, Any] = {}
    if condition.test_background:
        data = dataclasses.replace(planned.config.data, test_background=condition.test_background)
        judged = judge_other_test(
            candidate, manifest, load(data), decoding=decoding, running=running, warn=warn
        )
        more["trained_on"] = {k: candidate.split[k] for k in ("data_hash", "split_hash")}
    else:
        judged = judge(
            candidate, manifest, condition.part, resamples=0, decoding=decoding, running=running,
            warn=warn,
        )  # fmt: skip
    result = {**judged.to_dict(), **more}
    write_json(planned.path / condition.file, result)
    return result


def judge_other_test(
    candidate: Candidate,
    trained: Manifest,
    other: Manifest,
    *,
    decoding: Progress = lambda *_: None,
    running: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Judgement:
    """Judge on the test part of `other`, a data set that is `trained` but for its test images.

    `judge` refuses another data set, as its test images may be among those that were seen. Here
    that is excluded: `candidate` must have been trained on `trained`; both data sets must split
    into the same ids; and every image of the train and validation parts must have the same label,
    lesion and file content (BLAKE2b) in both. The judgement's split is that of `other`.

    Raises `CheckpointMismatch` where any of that does not hold, and as `judge` does.
    """
    split = split_of(candidate, trained)
    stored = candidate.split
    twin = make_split(
        other,
        DataConfig(
            dataset=other.dataset, protocol=split.protocol,  # type: ignore[arg-type]
            join_duplicates=split.join_duplicates, test_fraction=stored["test_fraction"],
            val_fraction=stored["val_fraction"], split_seed=stored["seed"],
        ),
    )  # fmt: skip
    mine, theirs = trained.by_id(), other.by_id()
    same = split.split_hash == twin.split_hash and all(
        (mine[i].label, mine[i].lesion_id, mine[i].digest)
        == (theirs[i].label, theirs[i].lesion_id, theirs[i].digest)
        for i in (*split.train, *split.val)
    )
    if not same:
        raise CheckpointMismatch(
            f"the train and validation parts of {other.dataset} ({other.variant}) are not those "
            f"that {candidate.name} was trained on",
            fix="draw both data sets with the same version: remove them from the data folder",
        )
    moved = dataclasses.replace(candidate, split=twin.summary())
    return judge(moved, other, "test", resamples=0, decoding=decoding, running=running, warn=warn)


# --- results ---------------------------------------------------------------------------------


def collect(study: Study, notes: Mapping[Path, str] | None = None) -> Ablation:
    """All figures that are on disk.

    Args:
        notes: why a run is not finished, by its folder, where that is known better than from disk.

    Raises `DataError` where nothing was judged yet.
    """
    own = twins(study)
    by_name = {row.name: row for row in ROWS[study.kind]}
    published = TABLE2.get(study.base.data.dataset, {}) if study.kind == "table2" else {}
    found: dict[tuple[str, int], tuple[RunFigures | None, str]] = {}
    protocols: dict[str, None] = {}

    def read(name: str, seed: int) -> tuple[RunFigures | None, str]:
        key = (own[name], seed)
        if key not in found:
            planned = planned_run(study, by_name[own[name]], seed)
            found[key] = _read_figures(study, planned, (notes or {}).get(planned.path, ""))
        return found[key]

    def row_of(row: Row) -> AblationRow:
        runs, lacking = [], {}
        for seed in study.seeds:
            figures, why = read(row.name, seed)
            if figures is None:
                lacking[seed] = why
                continue
            runs.append(figures)
        return AblationRow(
            name=row.name,
            title=row.title,
            runs=tuple(runs),
            same_as=own[row.name] if own[row.name] != row.name else "",
            lacking=lacking,
            published=published.get(row.name, {}),
        )

    rows = tuple(row_of(row) for row in study.rows)
    if not any(row.runs for row in rows):
        reasons = {why for row in rows for why in row.lacking.values()}
        failed = any(why.startswith("failed") for why in reasons)
        raise DataError(
            f"no finished run in {study.folder}: {'; '.join(sorted(reasons))}",
            fix="see what failed, and change the settings under another --name"
            if failed
            else "train them: leave --no-train out",
        )
    for planned in plan(study):
        for condition in study.conditions:
            stored = stored_judgement(planned, condition)
            if stored is not None:
                protocols[str(stored["protocol"])] = None
    base = study.base
    what = {
        "table2": f"Ablation (Table 2) on {base.data.dataset}",
        "recipe": f"Choices of the recipe on {base.data.dataset}",
        "shortcut": f"Shortcut test, background bias {base.data.background_bias:g}",
    }
    drawn = "drawn data" if study.kind == "shortcut" else "split"
    judged = "; ".join(c.title for c in study.conditions)
    return Ablation(
        title=what[study.kind],
        setup=f"{base.model.trunk} at {base.data.side}, {base.train.epochs} epochs; judged on: "
        f"{judged}",
        protocols=tuple(sorted(protocols)),
        seeds=study.seeds,
        measures=study.measures,
        reference=row_of(study.reference),
        rows=rows,
        published_protocol=TABLE2_PROTOCOL if any(r.published for r in rows) else "",
        seed_note=f"A seed is that of the {drawn} and of the training; rows share it. ",
    )


def _read_figures(study: Study, planned: Planned, note: str) -> tuple[RunFigures | None, str]:
    info = read_run(planned.path)
    if not info.finished:
        failed = failure(planned.path)
        if note or failed:
            return None, note or f"failed: {failed}"
        if info.settings:
            return None, f"unfinished, {progress_of(info)}"
        return None, "not trained"
    values: dict[str, float] = {}
    for condition in study.conditions:
        stored = stored_judgement(planned, condition)
        if stored is None:
            return None, "not judged"
        prefix = f"{condition.name}_" if condition.name else ""
        values |= {f"{prefix}{name}": float(stored[name]) for name in FIGURES}
    last = info.rows[-1] if info.rows else {}
    return RunFigures(
        seed=planned.seed,
        values=values,
        kernel_mean=last.get("kernel_mean"),
        head_cosine=last.get("head_cosine"),
        seconds=info.seconds,
    ), ""
