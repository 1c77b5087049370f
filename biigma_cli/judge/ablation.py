"""The paper's ablation (Table 2) and the shortcut test: many runs, trained and judged alike.

A study is rows times seeds. Each (row, seed) is an ordinary run in `FOLDER/ROW-sSEED`, the very one
that `biigma train` with `train_arguments` makes, so the two can take turns. Rows are paired: the
seed is that of the split (of the drawn data in the shortcut test) and of the training.

The shortcut test judges one run on two synthetic data sets that differ in their test part alone:
`judge_other_test` proves from the images' hashes that all that training could see is the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import torch

from biigma_cli.config import (
    Config,
    DataConfig,
    from_dict,
    parse_assignments,
    preset,
    stretch_phases,
)
from biigma_cli.data.datasets import load_dataset
from biigma_cli.data.manifest import Manifest, load_manifest
from biigma_cli.data.splits import brings_own_split, make_split
from biigma_cli.engine import train as engine
from biigma_cli.engine.checkpoints import RunFiles
from biigma_cli.engine.events import Event
from biigma_cli.engine.interrupt import StopRequest
from biigma_cli.errors import (
    CheckpointMismatch,
    DataError,
    RunBusy,
    TrainingDiverged,
    UsageError,
)
from biigma_cli.judge.candidate import Candidate, Progress, open_candidate
from biigma_cli.judge.judgement import Judgement, judge, split_of
from biigma_cli.report.ablation import Ablation, AblationRow, Measure, RunFigures
from biigma_cli.report.published import TABLE2, TABLE2_PROTOCOL
from biigma_cli.report.runs import RunInfo, read_run
from biigma_cli.storage import without_folders, write_json
from biigma_cli.taxonomy import SYNTHETIC, TAXONOMIES

Kind = Literal["table2", "shortcut"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe: settings laid over the study's own, as `--set` takes them."""

    name: str
    title: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What runs are judged on.

    Attributes:
        name: first part of its measures' names; "" where it is the only one.
        title: for people.
        part: of the split.
        test_background: of the synthetic test part, where it is not the run's own.
    """

    name: str
    title: str
    part: str
    test_background: Literal["", "independent", "reversed"] = ""

    @property
    def file(self) -> str:
        """Where a run keeps the judgement: of its own parts, where `biigma eval` does."""
        other = f"-{self.test_background}" if self.test_background else ""
        return f"eval-{self.part}{other}.json"


_NO_MICA, _NO_SAMPLING = "model.mica=false", "model.sampling=false"

#: The rows of Table 2 in its order, then ours. `full` is the preset as it is.
TABLE2_ROWS = (
    Row(name="baseline", title="baseline", settings=(_NO_MICA, _NO_SAMPLING)),
    Row(name="no-mica", title="without MICA", settings=(_NO_MICA,)),
    Row(name="no-sampling", title="without vector sampling", settings=(_NO_SAMPLING,)),
    Row(name="no-independence", title="without independence", settings=("model.criterion=none",)),
    *(
        Row(name=f"heads-{k}", title=f"heads = {k}", settings=(f"model.heads={k}",))
        for k in (1, 2, 3, 4)
    ),
    *(
        Row(name=f"sigma-{s}", title=f"sigma = {s}", settings=(f"model.sigma={s}",))
        for s in ("0.5", "1", "2", "4")
    ),
    Row(name="cosine", title="cosine similarity", settings=("model.criterion=cosine",)),
    Row(name="full", title="full"),
    Row(name="cka", title="CKA (ours)", settings=("model.criterion=cka",)),
    Row(name="adaptive", title="adaptive bandwidth (ours)", settings=("model.bandwidth=median",)),
    Row(
        name="standardised",
        title="standardised saliency (ours)",
        settings=("model.saliency=standardised",),
    ),
)

SHORTCUT_ROWS = (
    Row(name="baseline", title="baseline", settings=(_NO_MICA, _NO_SAMPLING)),
    Row(name="mica-only", title="MICA only", settings=(_NO_SAMPLING,)),
    Row(name="sampling-only", title="sampling only", settings=(_NO_MICA,)),
    Row(name="full", title="full"),
)

ROWS: dict[Kind, tuple[Row, ...]] = {"table2": TABLE2_ROWS, "shortcut": SHORTCUT_ROWS}
#: What a seed sets, beside `train.seed`.
_SEED_KEYS = {"table2": "data.split_seed", "shortcut": "data.synthetic_seed"}
#: The synthetic set is small: more epochs, the hybrid branch after a quarter of them.
_SHORTCUT_SETTINGS = ("train.epochs=8", "train.sampling_start_epoch=2")
_SHORTCUT_CONDITIONS = (
    Condition(name="biased", title="validation part, biased as in training", part="val"),
    Condition(name="unbiased", title="test part, bias gone", part="test"),
    Condition(
        name="reversed", title="test part, bias reversed", part="test", test_background="reversed"
    ),
)
_FIGURES = {"macro_f1": "macro-F1", "accuracy": "accuracy", "macro_recall": "balanced accuracy"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is ablated, and where.

    Attributes:
        kind: `table2` or `shortcut`.
        folder: its runs and tables lie here.
        rows: the chosen ones, in the order of `ROWS`.
        seeds: the chosen ones.
        base: settings of the row that changes nothing.
        given: words of the `biigma train` command that give `base`.
        conditions: what runs are judged on.
    """

    kind: Kind
    folder: Path
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    base: Config
    given: tuple[str, ...]
    conditions: tuple[Condition, ...]

    @property
    def reference(self) -> Row:
        """The row that others are compared with: `full`, in the shortcut test `baseline`."""
        name = "full" if self.kind == "table2" else "baseline"
        return next(row for row in ROWS[self.kind] if row.name == name)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Table 2: macro-F1 first; the shortcut test: accuracy under each condition first."""
        if self.kind == "table2":
            return tuple(
                Measure(name=n, title=title, main=n == "macro_f1") for n, title in _FIGURES.items()
            )
        return tuple(
            Measure(
                name=f"{c.name}_{figure}",
                title=f"{_FIGURES[figure]}, {c.name}",
                main=figure == "accuracy",
            )
            for figure in ("accuracy", "macro_f1")
            for c in self.conditions
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a study: `config` is that of `row` with `seed`."""

    row: Row
    seed: int
    path: Path
    config: Config


def make_study(
    kind: Kind,
    *,
    folder: Path,
    preset_name: str = "paper-light",
    dataset: str | None = None,
    settings: Sequence[str] = (),
    weights: str | None = None,
    background_bias: float = 0.9,
    rows: str = "",
    seeds: str = "1,2,3",
    part: str = "test",
) -> Study:
    """Resolve what was asked for; nothing is read but, for a user's own data set, its record.

    Args:
        settings: assignments laid over the preset, as `biigma train --set` takes them.
        weights: backbone weights; None takes the preset's.
        rows: names, separated by commas; "" takes all.
        seeds: whole numbers, separated by commas.
        part: that Table 2 is judged on; the shortcut test has its own.

    Raises `UsageError` for unknown rows (with the nearest), for seeds that are none, and for
    settings that cannot be or that the study sets itself.
    """
    chosen_rows, chosen_seeds = _pick_rows(kind, rows), _pick_seeds(seeds)
    own = [_SEED_KEYS[kind], "train.seed", "data.dataset", "model.weights"]
    options = ["--seeds", "--seeds", "--dataset", "--weights"]
    words = ["--preset", preset_name]
    assignments: list[str] = []
    if kind == "shortcut":
        if dataset not in (None, SYNTHETIC.dataset):
            raise UsageError(
                f"the shortcut test needs the synthetic data set, not {dataset}",
                fix="leave --dataset out",
            )
        dataset = SYNTHETIC.dataset
        assignments += [
            f"data.background_bias={background_bias}", "data.test_background=independent",
            *_SHORTCUT_SETTINGS,
        ]  # fmt: skip
        own += ["data.background_bias", "data.test_background"]
        options += ["--background-bias", "--background-bias"]
    for text in settings:
        key = text.partition("=")[0].strip()
        if key in own:
            raise UsageError(
                f"--set {text} is not for an ablation", fix=f"use {options[own.index(key)]}"
            )
    start = preset(preset_name)
    name = dataset or start.data.dataset
    words += ["--dataset", name]
    if weights is not None:
        words += ["--weights", weights]
    given = parse_assignments([*assignments, *settings])
    given.setdefault("data", {})["dataset"] = name
    if weights is not None:
        given.setdefault("model", {})["weights"] = weights
    train = given.setdefault("train", {})
    if "epochs" in train and "sides" not in train:
        train |= stretch_phases(start.train, train["epochs"])
    base = from_dict(given, start)
    if "protocol" not in given["data"] and _brings_own(name):
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, protocol="official"))
    for text in (*assignments, *settings):
        words += ["--set", text]
    conditions: tuple[Condition, ...] = _SHORTCUT_CONDITIONS
    if kind == "table2":
        conditions = (Condition(name="", title=f"{part} part", part=part),)
    study = Study(
        kind=kind, folder=folder, rows=chosen_rows, seeds=chosen_seeds, base=base,
        given=tuple(words), conditions=conditions,
    )  # fmt: skip
    plan(study)  # every row's settings are checked now
    return study


def _brings_own(dataset: str) -> bool:
    if dataset in TAXONOMIES:
        return dataset == SYNTHETIC.dataset
    return brings_own_split(load_manifest(dataset))


def _pick_rows(kind: Kind, text: str) -> tuple[Row, ...]:
    rows = ROWS[kind]
    names = [row.name for row in rows]
    asked = list(filter(None, map(str.strip, text.split(","))))
    unknown = [name for name in asked if name not in names]
    if unknown:
        near = [n for u in unknown for n in difflib.get_close_matches(u, names, n=1, cutoff=0.4)]
        raise UsageError(
            f"--rows: unknown {', '.join(unknown)}"
            + (f" (did you mean {', '.join(near)}?)" if near else ""),
            fix=f"choose from: {', '.join(names)}",
        )
    return tuple(row for row in rows if not asked or row.name in asked)


def _pick_seeds(text: str) -> tuple[int, ...]:
    try:
        found = [int(s) for s in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or max(found) >= 2**31:
        raise UsageError(f"--seeds {text!r} is no list of whole numbers", fix="write --seeds 1,2,3")
    return tuple(dict.fromkeys(found))


def row_config(study: Study, row: Row, seed: int) -> Config:
    """The settings of one run."""
    seeded = (f"train.seed={seed}", f"{_SEED_KEYS[study.kind]}={seed}")
    return from_dict(parse_assignments([*row.settings, *seeded]), study.base)


def twins(study: Study) -> dict[str, str]:
    """Each row's name to the row whose runs it has: itself, or one with the very same settings.

    With sigma 1 in the preset, `sigma-1` is `full`; `full` comes first wherever it is one of them.
    """
    everything = sorted(ROWS[study.kind], key=lambda row: row.name != "full")
    configs: dict[str, Config] = {}
    result = {}
    for row in everything:
        config = row_config(study, row, 0)
        same = next((name for name, other in configs.items() if other == config), row.name)
        configs.setdefault(same, config)
        result[row.name] = same
    return result


def plan(study: Study) -> tuple[Planned, ...]:
    """The runs to have, seed by seed, so that what is done first can be compared at once."""
    own = twins(study)
    by_name = {row.name: row for row in ROWS[study.kind]}
    names = dict.fromkeys(own[row.name] for row in study.rows)
    first = sorted(names, key=lambda name: name != study.reference.name)
    return tuple(_planned(study, by_name[name], seed) for seed in study.seeds for name in first)


def _planned(study: Study, row: Row, seed: int) -> Planned:
    path = study.folder / f"{row.name}-s{seed}"
    return Planned(row=row, seed=seed, path=path, config=row_config(study, row, seed))


def train_arguments(study: Study, planned: Planned) -> tuple[str, ...]:
    """Words that make `biigma` train exactly this run."""
    key, seed = _SEED_KEYS[study.kind], str(planned.seed)
    words = ["train", *study.given, "--seed", seed, "--set", f"{key}={seed}"]
    for text in planned.row.settings:
        words += ["--set", text]
    return (*words, "--runs", str(study.folder), "--name", planned.path.name)


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
        good = all(known[key] == split[key] for key in ("data_hash", "split_hash"))
        good &= path.stat().st_mtime_ns >= best.stat().st_mtime_ns
        good &= all(isinstance(stored[name], float) for name in _FIGURES)
    except (OSError, ValueError, KeyError, TypeError):
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
            planned = _planned(study, by_name[own[name]], seed)
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
        raise DataError(
            f"no finished run in {study.folder}", fix="train them: leave --no-train out"
        )
    for planned in plan(study):
        for condition in study.conditions:
            stored = stored_judgement(planned, condition)
            if stored is not None:
                protocols[str(stored["protocol"])] = None
    base = study.base
    what = {
        "table2": f"Ablation (Table 2) on {base.data.dataset}",
        "shortcut": f"Shortcut test, background bias {base.data.background_bias:g}",
    }
    drawn = "split" if study.kind == "table2" else "drawn data"
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
        values |= {f"{prefix}{name}": float(stored[name]) for name in _FIGURES}
    last = info.rows[-1] if info.rows else {}
    return RunFigures(
        seed=planned.seed,
        values=values,
        kernel_mean=last.get("kernel_mean"),
        head_cosine=last.get("head_cosine"),
        seconds=info.seconds,
    ), ""
