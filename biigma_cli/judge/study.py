"""What an ablation consists of: rows, seeds, settings, and the runs that they make.

A study is rows times seeds. Each (row, seed) is an ordinary run in `FOLDER/ROW-sSEED`, the very one
that `biigma train` with `train_arguments` makes, so the two can take turns. Rows are paired: the
seed is that of the split (of the drawn data in the shortcut test) and of the training.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from biigma_cli.config import (
    Config,
    from_dict,
    parse_assignments,
    preset,
    resolve,
)
from biigma_cli.data.splits import own_parts_meant
from biigma_cli.errors import UsageError
from biigma_cli.report.ablation import Measure
from biigma_cli.taxonomy import SYNTHETIC

Kind = Literal["table2", "recipe", "shortcut"]


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
_OTHER_BACKGROUNDS = "train.backgrounds=0.5"

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
        Row(
            name=f"sigma-{s}",
            title=f"sigma = {s}",
            # Without these two, a preset of another criterion has no sigma.
            settings=("model.criterion=hsic", "model.bandwidth=fixed", f"model.sigma={s}"),
        )
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
    # What the sampling of feature vectors stands for, done to the pictures.
    Row(
        name="other-backgrounds",
        title="baseline on other backgrounds",
        settings=(_NO_MICA, _NO_SAMPLING, _OTHER_BACKGROUNDS),
    ),
)

#: Each choice of our own recipe taken back, or another put in its place.
RECIPE_ROWS = (
    Row(name="full", title="full"),
    Row(
        name="adam",
        title="Adam, no weight decay",
        settings=("train.optimizer=adam", "train.weight_decay=0"),
    ),
    # At a third of the peak: the mean rate of the schedule is about that.
    Row(
        name="constant-rate",
        title="constant rate",
        settings=("train.schedule=constant", "train.lr=0.0003"),
    ),
    Row(name="no-average", title="no averaged weights", settings=("train.ema=0",)),
    Row(name="no-augment", title="no augmentation", settings=("train.augment=false",)),
    Row(
        name="strong-augment",
        title="strong augmentation",
        settings=("train.augment=true", "train.augment_strength=strong"),
    ),
    Row(name="other-backgrounds", title="other backgrounds", settings=(_OTHER_BACKGROUNDS,)),
    Row(name="mix", title="with mixup and cutmix", settings=("train.mix=both",)),
    Row(name="no-smoothing", title="no label smoothing", settings=("loss.label_smoothing=0",)),
    Row(name="no-dropout", title="no dropout", settings=("model.dropout=0",)),
    Row(
        name="inverse-weights",
        title="inverse class weights",
        settings=("loss.class_weights=inverse",),
    ),
    Row(
        name="balanced-sampling",
        title="balanced sampling, no weights",
        settings=("loss.class_weights=none", "train.balance=0.5"),
    ),
    Row(
        name="fixed-sigma",
        title="HSIC, sigma 1, biased",
        settings=(
            "model.criterion=hsic", "model.bandwidth=fixed", "model.estimator=biased",
            "loss.independence=1",
        ),
    ),
    Row(name="plain-saliency", title="plain saliency", settings=("model.saliency=plain",)),
)  # fmt: skip

ROWS: dict[Kind, tuple[Row, ...]] = {
    "table2": TABLE2_ROWS,
    "recipe": RECIPE_ROWS,
    "shortcut": SHORTCUT_ROWS,
}
#: Bandwidth of the paper's `full` row where it is not the presets' 1.
PAPER_SIGMA = {"isic17": 2.0}
#: Recipe that `full` is, where none is asked for.
PRESETS: dict[Kind, str] = {"table2": "paper-light", "recipe": "light", "shortcut": "paper-light"}
#: What a seed sets, beside `train.seed`.
SEED_KEYS: dict[Kind, str] = {
    "table2": "data.split_seed",
    "recipe": "data.split_seed",
    "shortcut": "data.synthetic_seed",
}
#: The synthetic set is small: more epochs, the hybrid branch after a quarter of them.
_SHORTCUT_SETTINGS = ("train.epochs=8", "train.sampling_start_epoch=2")
_SHORTCUT_CONDITIONS = (
    Condition(name="biased", title="validation part, biased as in training", part="val"),
    Condition(name="unbiased", title="test part, bias gone", part="test"),
    Condition(
        name="reversed", title="test part, bias reversed", part="test", test_background="reversed"
    ),
)
FIGURES = {"macro_f1": "macro-F1", "accuracy": "accuracy", "macro_recall": "balanced accuracy"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is ablated, and where.

    Attributes:
        kind: `table2`, `recipe` or `shortcut`.
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
        name = "baseline" if self.kind == "shortcut" else "full"
        return next(row for row in ROWS[self.kind] if row.name == name)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Macro-F1 first; in the shortcut test accuracy under each condition first."""
        if self.kind != "shortcut":
            return tuple(
                Measure(name=n, title=title, main=n == "macro_f1") for n, title in FIGURES.items()
            )
        return tuple(
            Measure(
                name=f"{c.name}_{figure}",
                title=f"{FIGURES[figure]}, {c.name}",
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
    preset_name: str | None = None,
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
        preset_name: recipe that `full` is; None takes that of `PRESETS`.
        settings: assignments laid over the preset, as `biigma train --set` takes them.
        weights: backbone weights; None takes the preset's.
        rows: names, separated by commas; "" takes all.
        seeds: whole numbers, separated by commas.
        part: that Table 2 is judged on. A recipe is always judged on validation, since choices
            are made by it; the shortcut test has parts of its own.

    Raises `UsageError` for unknown rows (with the nearest), for seeds that are none, and for
    settings that cannot be or that the study sets itself.
    """
    chosen_rows, chosen_seeds = _pick_rows(kind, rows), _pick_seeds(seeds)
    own = [SEED_KEYS[kind], "train.seed", "data.dataset", "model.weights"]
    options = ["--seeds", "--seeds", "--dataset", "--weights"]
    preset_name = preset_name or PRESETS[kind]
    words = ["--preset", preset_name]
    # No epoch is chosen, so that nothing but the row differs.
    assignments = ["train.select=last"] if kind == "recipe" else []
    part = "val" if kind == "recipe" else part
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
    if kind == "table2" and name in PAPER_SIGMA and "sigma" not in given.get("model", {}):
        # The paper's `full` of that data set: its published rows are told against it.
        sigma = f"model.sigma={PAPER_SIGMA[name]:g}"
        assignments.append(sigma)
        given.setdefault("model", {})["sigma"] = PAPER_SIGMA[name]
    base = resolve(given, start, planned=start.train)
    if "protocol" not in given["data"] and own_parts_meant(name):
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, protocol="official"))
    for text in (*assignments, *settings):
        words += ["--set", text]
    conditions: tuple[Condition, ...] = _SHORTCUT_CONDITIONS
    if kind != "shortcut":
        conditions = (Condition(name="", title=f"{part} part", part=part),)
    study = Study(
        kind=kind, folder=folder, rows=chosen_rows, seeds=chosen_seeds, base=base,
        given=tuple(words), conditions=conditions,
    )  # fmt: skip
    plan(study)  # every row's settings are checked now
    return study


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
    seeded = (f"train.seed={seed}", f"{SEED_KEYS[study.kind]}={seed}")
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
    return tuple(planned_run(study, by_name[name], seed) for seed in study.seeds for name in first)


def planned_run(study: Study, row: Row, seed: int) -> Planned:
    path = study.folder / f"{row.name}-s{seed}"
    return Planned(row=row, seed=seed, path=path, config=row_config(study, row, seed))


def train_arguments(study: Study, planned: Planned) -> tuple[str, ...]:
    """Words that make `biigma` train exactly this run."""
    key, seed = SEED_KEYS[study.kind], str(planned.seed)
    words = ["train", *study.given, "--seed", seed, "--set", f"{key}={seed}"]
    for text in planned.row.settings:
        words += ["--set", text]
    return (*words, "--runs", str(study.folder), "--name", planned.path.name)
