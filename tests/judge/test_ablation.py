"""Rows as settings, runs on disk recognised or refused, and the judging of another test part."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from biigma_cli.config import DataConfig, from_dict, preset, to_toml
from biigma_cli.data.datasets import load_synthetic
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import make_split
from biigma_cli.engine.lock import held
from biigma_cli.errors import CheckpointMismatch, DataError, UsageError
from biigma_cli.judge import ablation
from biigma_cli.judge.ablation import (
    check_settings,
    collect,
    judge_other_test,
    setting_differences,
    stored_judgement,
    stored_weights,
)
from biigma_cli.judge.candidate import Answers, Candidate
from biigma_cli.judge.study import (
    RECIPE_ROWS,
    ROWS,
    SHORTCUT_ROWS,
    TABLE2_ROWS,
    Planned,
    Study,
    make_study,
    plan,
    row_config,
    train_arguments,
    twins,
)
from biigma_cli.report.published import TABLE2
from tests.conftest import call

# --- rows and settings -----------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Table 2 whole, with three seeds."""
    return make_study("table2", folder=tmp_path / "study")


def flat(study: Study, name: str, seed: int = 1) -> dict[str, object]:
    """A row's settings by key."""
    row = next(r for r in ROWS[study.kind] if r.name == name)
    values = row_config(study, row, seed).to_dict()
    return {f"{s}.{k}": v for s, part in values.items() for k, v in part.items()}


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("baseline", {"model.mica": False, "model.sampling": False}),
        ("no-mica", {"model.mica": False}),
        ("no-sampling", {"model.sampling": False}),
        ("no-independence", {"model.criterion": "none"}),
        ("heads-1", {"model.heads": 1}),
        ("heads-4", {"model.heads": 4}),
        ("sigma-0.5", {"model.sigma": 0.5}),
        ("sigma-2", {"model.sigma": 2.0}),
        ("cosine", {"model.criterion": "cosine"}),
        ("full", {}),
        ("cka", {"model.criterion": "cka"}),
        ("adaptive", {"model.bandwidth": "median"}),
        ("standardised", {"model.saliency": "standardised"}),
    ],
)
def test_a_row_changes_what_it_says(study: Study, row: str, changed: dict[str, object]) -> None:
    """And nothing else; training and split have the row's seed."""
    base = preset("paper-light").to_dict()
    wanted = {f"{s}.{k}": v for s, part in base.items() for k, v in part.items()}
    wanted |= {"train.seed": 3, "data.split_seed": 3, **changed}
    assert flat(study, row, 3) == wanted


def test_rows_are_those_of_the_paper() -> None:
    """Every published row is one of ours; what is ours alone comes last."""
    names = [row.name for row in TABLE2_ROWS]
    assert names[: len(TABLE2["isic18"])] == list(TABLE2["isic18"])
    assert names[len(TABLE2["isic18"]) :] == ["cka", "adaptive", "standardised"]
    assert [row.name for row in SHORTCUT_ROWS] == [
        "baseline", "mica-only", "sampling-only", "full", "other-backgrounds",
    ]  # fmt: skip


def test_equal_rows_share_runs(tmp_path: Path, study: Study) -> None:
    """The preset's own sigma and heads are `full`; with another preset, others are."""
    assert {k: v for k, v in twins(study).items() if k != v} == {
        "heads-3": "full", "sigma-1": "full",
    }  # fmt: skip
    other = make_study("table2", folder=tmp_path, settings=["model.sigma=2", "model.heads=4"])
    assert {k: v for k, v in twins(other).items() if k != v} == {
        "heads-4": "full", "sigma-2": "full",
    }  # fmt: skip
    light = make_study("table2", folder=tmp_path, preset_name="light")
    same = {k for k, v in twins(light).items() if v == "full"}
    assert {"full", "cka", "adaptive", "standardised"} <= same
    assert not {k for k in same if k.startswith("sigma")}
    assert len(plan(study)) == 3 * 15


def test_a_sigma_is_one_that_counts(tmp_path: Path) -> None:
    """With a preset that has none, a row that names one is of the criterion that has it."""
    light = make_study("table2", folder=tmp_path, preset_name="light")
    settings = [flat(light, f"sigma-{s}") for s in ("0.5", "2")]
    for values, sigma in zip(settings, (0.5, 2.0), strict=True):
        assert values["model.sigma"] == sigma
        assert values["model.criterion"] == "hsic"
        assert values["model.bandwidth"] == "fixed"


def test_the_papers_full_row_of_2017(tmp_path: Path) -> None:
    """It has sigma 2, and so has ours, unless another is asked for; its command says so."""
    study = make_study("table2", folder=tmp_path, dataset="isic17")
    assert flat(study, "full")["model.sigma"] == 2
    assert {k: v for k, v in twins(study).items() if k != v} == {
        "heads-3": "full", "sigma-2": "full",
    }  # fmt: skip
    assert "model.sigma=2" in study.given
    asked = make_study("table2", folder=tmp_path, dataset="isic17", settings=["model.sigma=1"])
    assert flat(asked, "full")["model.sigma"] == 1
    assert flat(make_study("table2", folder=tmp_path, dataset="isic19"), "full")["model.sigma"] == 1


def test_strong_augmentation_is_on(tmp_path: Path) -> None:
    """With a preset that has none, the row that says it has it."""
    study = make_study("recipe", folder=tmp_path, preset_name="paper-isic18")
    assert flat(study, "strong-augment")["train.augment"] is True
    assert flat(study, "full")["train.augment"] is False


def test_plan_is_seed_by_seed(tmp_path: Path) -> None:
    """The reference first, so that partial work can be compared."""
    study = make_study("table2", folder=tmp_path, rows="cosine,full,baseline", seeds="7,2")
    assert [p.path.name for p in plan(study)] == [
        "full-s7", "baseline-s7", "cosine-s7", "full-s2", "baseline-s2", "cosine-s2",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["table2", "shortcut"])
def test_the_shell_makes_the_same_run(
    tmp_path: Path, kind: ablation.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`biigma train` with the words shown resolves to the very settings of each row."""
    settings = ["train.batch_size=16", "loss.independence=0.5"]
    study = make_study(kind, folder=tmp_path, settings=settings, weights="none", seeds="5")
    for planned in plan(study):
        shown = call(*train_arguments(study, planned), "--show-config")
        assert shown.code == 0, shown.err
        there = from_dict(tomllib.loads(shown.out))
        if kind == "shortcut":  # set where the data set is known
            there = dataclasses.replace(
                there, data=dataclasses.replace(there.data, protocol="official")
            )
        assert there == planned.config


def test_shortcut_settings(tmp_path: Path) -> None:
    """Biased training data, drawn anew for each seed, with their own parts."""
    study = make_study("shortcut", folder=tmp_path, background_bias=0.7)
    first, second = (row_config(study, SHORTCUT_ROWS[0], seed).data for seed in (1, 2))
    assert (first.background_bias, first.test_background) == (0.7, "independent")
    assert (first.synthetic_seed, second.synthetic_seed) == (1, 2)
    assert first.protocol == "official"
    assert study.reference.name == "baseline"
    assert study.base.train.sampling_start_epoch * 4 == study.base.train.epochs
    assert [c.file for c in study.conditions] == [
        "eval-val.json", "eval-test.json", "eval-test-reversed.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": "baselin,full"}, ("baselin", "baseline")),
        ({"rows": "sigma-3"}, ("sigma-3", "sigma-0.5, sigma-1, sigma-2")),
        ({"seeds": "1,x"}, ("1,x", "--seeds")),
        ({"seeds": "-1"}, ("-1",)),
        ({"seeds": ""}, ("--seeds",)),
        ({"settings": ["train.seed=4"]}, ("train.seed", "--seeds")),
        ({"settings": ["data.split_seed=4"]}, ("data.split_seed", "--seeds")),
        ({"settings": ["model.weights=none"]}, ("--weights",)),
        ({"settings": ["model.head=4"]}, ("model.heads",)),
        ({"preset_name": "paper-ligt"}, ("paper-light",)),
    ],
)
def test_refused(tmp_path: Path, options: dict[str, object], words: tuple[str, ...]) -> None:
    """Unknown rows, seeds that are none, settings that the study sets itself."""
    with pytest.raises(UsageError) as refused:
        make_study("table2", folder=tmp_path, **options)  # type: ignore[arg-type]
    for word in words:
        assert word in f"{refused.value.message} {refused.value.fix}"


def test_shortcut_refuses_other_data(tmp_path: Path) -> None:
    """Only the synthetic set has a dial."""
    with pytest.raises(UsageError, match="synthetic"):
        make_study("shortcut", folder=tmp_path, dataset="isic18")


def test_rows_of_the_recipe(tmp_path: Path) -> None:
    """Each differs from `full` in what it names and nothing else; all are judged on validation."""
    study = make_study("recipe", folder=tmp_path, seeds="4", part="test")
    assert [c.part for c in study.conditions] == ["val"]
    assert study.reference.name == "full"
    assert study.base.train.select == "last"
    full = row_config(study, study.reference, 4).to_dict()
    light = preset("light").to_dict()
    assert full["model"] == light["model"]
    assert (full["train"]["seed"], full["data"]["split_seed"]) == (4, 4)
    for row in RECIPE_ROWS[1:]:
        own = row_config(study, row, 4).to_dict()
        changed = {f"{s}.{k}" for s in own for k in own[s] if own[s][k] != full[s][k]}
        named = {text.partition("=")[0] for text in row.settings}
        if row.name == "strong-augment":  # which must be on to be strong, and is
            named.remove("train.augment")
        assert changed == named, row.name
    assert set(twins(study).values()) == {row.name for row in RECIPE_ROWS}
    assert "--preset light" in " ".join(train_arguments(study, plan(study)[0]))


# --- runs on disk ----------------------------------------------------------------------------


def begin(planned: Planned, *changes: str) -> None:
    """A run folder that has only begun, its settings changed by `old -> new`."""
    planned.path.mkdir(parents=True)
    text = to_toml(planned.config)
    for old, new in (change.split(" -> ") for change in changes):
        assert old in text
        text = text.replace(old, new)
    (planned.path / "config.toml").write_text(text)


def test_same_settings_are_recognised(study: Study) -> None:
    """Resolved normalisation and another folder of the same weights are no difference."""
    made = make_study("table2", folder=study.folder, weights="../w/net.safetensors")
    planned = plan(made)[0]
    begin(planned, 'normalisation = "auto" -> normalisation = "symmetric"')
    assert setting_differences(planned) == []
    there = plan(make_study("table2", folder=study.folder, weights="/else/net.safetensors"))[0]
    assert setting_differences(there) == []
    assert setting_differences(plan(study)[0]) == [
        "model.weights: ../w/net.safetensors there, imagenet here"
    ]
    assert stored_weights(study.folder) == "../w/net.safetensors"
    assert stored_weights(study.folder / "none") is None


def test_other_settings_are_refused(study: Study) -> None:
    """All runs that differ, each with what differs."""
    first, second, third = plan(study)[:3]
    begin(first, "lr = 0.001 -> lr = 0.002")
    begin(second, "heads = 3 -> heads = 2", "epochs = 4 -> epochs = 5")
    begin(third)
    with pytest.raises(CheckpointMismatch) as refused:
        check_settings(plan(study))
    lines = refused.value.message.splitlines()[1:]
    assert [line.strip() for line in lines] == [
        f"{first.path}: train.lr: 0.002 there, 0.001 here",
        f"{second.path}: model.heads: 2 there, 3 here",
        f"{second.path}: train.epochs: 5 there, 4 here",
    ]
    assert refused.value.exit_code == 3


def test_a_run_in_other_hands_is_left_alone(study: Study) -> None:
    """What another training holds is passed over, and nothing of it is touched."""
    planned = plan(study)[0]
    begin(planned)
    manifest = Manifest(dataset="isic18", root=Path(), records=(), licence="", citation="")
    with held(planned.path):
        before = {p: p.stat().st_mtime_ns for p in planned.path.rglob("*")}
        why = ablation.complete(study, planned, manifest, device=torch.device("cpu"))
        assert why == "0 of 4 epochs, in use by another training"
        assert {p: p.stat().st_mtime_ns for p in planned.path.rglob("*")} == before


def test_nothing_to_tabulate(study: Study) -> None:
    """No table of nothing."""
    with pytest.raises(DataError, match="no finished run"):
        collect(study)


def finish(planned: Planned, f1: float) -> None:
    """A finished and judged run, without its training."""
    if not planned.path.exists():
        begin(planned)
    split = {"data_hash": "d", "split_hash": f"s{planned.seed}"}
    (planned.path / "weights").mkdir()
    (planned.path / "weights" / "best.safetensors").write_bytes(b"")
    (planned.path / "metrics.csv").write_text(
        "epoch,kernel_mean,head_cosine,seconds\n3,0.5,0.5,10\n4,0.01,0.2,10\n"
    )
    (planned.path / "summary.json").write_text(
        json.dumps({"split": split, "seconds": 20.0, "best_epoch": 4})
    )
    judged = {**split, "protocol": f"seed {planned.seed}", "n": 9}
    judged |= {"macro_f1": f1, "accuracy": f1 + 0.1, "macro_recall": f1 + 0.2}
    (planned.path / "eval-test.json").write_text(json.dumps(judged))


def test_collect(tmp_path: Path) -> None:
    """Values by row and seed, shared runs under both names, what is lacking and why."""
    study = make_study("table2", folder=tmp_path, rows="baseline,no-mica,sigma-1,full", seeds="1,2")
    by_name = {p.path.name: p for p in plan(study)}
    finish(by_name["full-s1"], 0.5)
    finish(by_name["full-s2"], 0.6)
    finish(by_name["baseline-s1"], 0.4)
    begin(by_name["baseline-s2"])
    found = collect(study, {by_name["no-mica-s1"].path: "failed: the loss is nan"})
    rows = {row.name: row for row in found.rows}
    assert rows["full"].values("macro_f1") == {1: 0.5, 2: 0.6}
    assert rows["sigma-1"].runs == rows["full"].runs
    assert rows["sigma-1"].same_as == "full"
    assert rows["baseline"].values("accuracy") == {1: pytest.approx(0.5)}
    assert rows["baseline"].lacking == {2: "unfinished, 0 of 4 epochs"}
    assert rows["no-mica"].lacking == {1: "failed: the loss is nan", 2: "not trained"}
    run = rows["full"].runs[0]
    assert (run.kernel_mean, run.head_cosine, run.seconds) == (0.01, 0.2, 20.0)
    assert found.counts == (3, 6)
    assert found.protocols == ("seed 1", "seed 2")
    assert rows["baseline"].published["macro_f1"] == 0.7256
    assert "80:20" in found.published_protocol


def test_the_reference_need_not_be_asked_for(tmp_path: Path) -> None:
    """Differences from `full` where its runs are there, though it is not shown."""
    study = make_study("table2", folder=tmp_path, rows="baseline", seeds="1")
    whole = make_study("table2", folder=tmp_path, rows="baseline,full", seeds="1")
    for planned, f1 in zip(plan(whole), (0.5, 0.4), strict=True):
        finish(planned, f1)
    found = collect(study)
    assert [row.name for row in found.rows] == ["baseline"]
    assert found.reference.values("macro_f1") == {1: 0.5}


def test_a_judgement_of_something_else_does_not_count(tmp_path: Path) -> None:
    """Of an older checkpoint, of another split, or damaged: it is judged anew."""
    study = make_study("table2", folder=tmp_path, seeds="1")
    planned, condition = plan(study)[0], study.conditions[0]
    finish(planned, 0.5)
    path = planned.path / condition.file
    whole = path.read_text()
    assert stored_judgement(planned, condition) is not None
    for text in (whole.replace('"s1"', '"s9"'), whole[:-9], "[]", whole.replace("macro_f1", "f")):
        path.write_text(text)
        assert stored_judgement(planned, condition) is None
    path.write_text(whole)
    newer = path.stat().st_mtime + 5
    os.utime(planned.path / "weights" / "best.safetensors", (newer, newer))
    assert stored_judgement(planned, condition) is None


# --- another test part -----------------------------------------------------------------------

DATA = DataConfig(
    dataset="synthetic", side=32, protocol="official", synthetic_count=70, background_bias=1.0
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Manifest]:
    """The set with the bias gone from its test part, and with it reversed there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIIGMA_HOME", str(tmp_path_factory.mktemp("synthetic")))
        reversed_ = dataclasses.replace(DATA, test_background="reversed")
        return load_synthetic(DATA), load_synthetic(reversed_)


def guesser(manifest: Manifest) -> Candidate:
    """A model that answers by the mean colour, as if trained on that set."""

    def run(pixels: np.ndarray, progress: object) -> Answers:
        rng = np.random.default_rng(0)
        logit = pixels.mean((1, 2)) / 32 @ rng.normal(size=(3, 7))
        return Answers((np.exp(logit) / np.exp(logit).sum(1, keepdims=True)).astype(np.float32))

    def no_maps(pixels: object, progress: object) -> None:
        raise NotImplementedError

    return Candidate(
        name="guesser", classes=manifest.taxonomy.codes,
        malignant=tuple(c.malignant for c in manifest.taxonomy.classes),
        trunk="mobilenet_v2", data=DATA,
        split=make_split(manifest, DATA).summary(), run=run, maps=no_maps,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_other_test_part_is_judged(pair: tuple[Manifest, Manifest]) -> None:
    """The same images but for their background; the judgement names the data it is of."""
    trained, other = pair
    judged = judge_other_test(guesser(trained), trained, other)
    assert judged.split.data_hash == other.data_hash != trained.data_hash
    assert "in the test part reversed" in judged.split.title
    assert judged.ids == make_split(trained, DATA).test
    own = judge_other_test(guesser(trained), trained, trained)
    assert own.ids == judged.ids
    assert not np.array_equal(own.proba_nY, judged.proba_nY)


def test_other_training_images_are_refused(pair: tuple[Manifest, Manifest]) -> None:
    """One image that training saw and that differs is enough: content, label, or part."""
    trained, other = pair
    model = guesser(trained)
    seen = next(i for i, r in enumerate(other.records) if r.part == "val")
    for change in ({"digest": "0" * 32}, {"lesion_id": "SYL_x"}, {"part": "test"}):
        records = list(other.records)
        records[seen] = dataclasses.replace(records[seen], **change)
        changed = dataclasses.replace(other, records=tuple(records))
        with pytest.raises(CheckpointMismatch, match="not those"):
            judge_other_test(model, trained, changed)
    # And the model must have been trained on the first of the two.
    with pytest.raises(CheckpointMismatch, match="trained on another data"):
        judge_other_test(guesser(other), trained, other)
