"""Settings: defaults, checks, TOML, assignments and presets."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.config import (
    PRESETS,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
    fit_sampling_start,
    from_dict,
    parse_assignments,
    preset,
    read_toml,
    resolve,
    stretch_phases,
    to_toml,
    without_effect,
)
from biigma_cli.errors import EXIT_USAGE, UsageError

# With a teacher, and something that it does.
TAUGHT = {"train": {"teachers": ["t"]}, "loss": {"distillation": 1.0}}


def test_defaults_are_the_papers() -> None:
    """The network, the loss and the optimisation as published."""
    config = Config()
    m, t = config.model, config.train
    assert (m.trunk, m.heads, m.projection_channels, m.se_reduction) == ("densenet121", 3, 0, 16)
    assert (m.criterion, m.bandwidth, m.sigma, m.pairs) == ("hsic", "fixed", 1.0, "ordered_mean")
    assert m.estimator == "biased"
    assert (m.saliency, m.adapters, m.prune) == ("plain", "conv_max", "low_variance")
    assert (m.draw, m.dropout) == ("replacement", 0.0)
    assert config.loss == LossConfig(
        original=1, hybrid=1, independence=1, l2=1, map_distance=0, consistency_kl=0
    )
    assert (t.epochs, t.optimizer, t.lr, t.schedule) == (100, "adam", 1e-4, "constant")
    assert (t.sampling_start_epoch, t.ema, t.augment) == (20, 0.0, False)
    assert (config.data.side, config.data.protocol) == (224, "lesion")


def test_configs_are_frozen() -> None:
    """A run's settings cannot change under it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.heads = 4  # type: ignore[misc]


def test_baseline_is_neither_mica_nor_sampling() -> None:
    """The property of Table 2's first row."""
    assert ModelConfig(mica=False, sampling=False).baseline
    assert not ModelConfig(mica=False).baseline
    assert not ModelConfig(sampling=False).baseline


# --- nested values -----------------------------------------------------------------------------


def test_unknown_keys_are_reported_at_once_with_the_nearest() -> None:
    """Every mistake in one message: keys, sections and values."""
    with pytest.raises(UsageError) as info:
        from_dict(
            {
                "model": {"sigme": 2.0, "headz": 4, "trunk": "densenet"},
                "trian": {"epochs": 3},
                "dta": 1,
                "train": {"learning": 1},
                "data": {"qqqq": 1},
            }
        )
    text = info.value.message
    assert "unknown key model.sigme (nearest: model.sigma)" in text
    assert "unknown key model.headz (nearest: model.heads)" in text
    assert "model.trunk = 'densenet': expected one of densenet121, mobilenet_v2" in text
    assert "did you mean 'densenet121'?" in text
    assert "unknown key trian.epochs (nearest: train.epochs)" in text
    assert "unknown key dta" in text
    assert "unknown key train.learning" in text
    assert "unknown key data.qqqq" in text
    assert info.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("model", "heads", "three", "a whole number"),
        ("model", "heads", 3.0, "a whole number"),
        ("model", "heads", True, "a whole number"),
        ("model", "sigma", "1.0", "a number"),
        ("model", "sigma", True, "a number"),
        ("model", "mica", 1, "true or false"),
        ("model", "weights", 3, "text"),
        ("model", "criterion", "HSIC", "one of hsic, cka, cosine, none"),
        ("model", "criterion", None, "one of hsic"),
        ("train", "sides", 96, "a list of whole numbers"),
        ("train", "sides", [96, 1.5], "a list of whole numbers"),
        ("train", "sides", ["96"], "a list of whole numbers"),
    ],
)
def test_ill_typed_values(section: str, key: str, value: Any, expected: str) -> None:
    """The message names the key, the value and what is wanted."""
    with pytest.raises(UsageError) as info:
        from_dict({section: {key: value}})
    assert f"{section}.{key} = {value!r}: expected {expected}" in info.value.message


def test_section_must_be_a_section() -> None:
    """A value where a table belongs."""
    with pytest.raises(UsageError, match="model: expected a section"):
        from_dict({"model": 3})


def test_whole_numbers_serve_as_numbers() -> None:
    """`sigma = 2` is 2.0."""
    sigma = from_dict({"model": {"sigma": 2}}).model.sigma
    assert sigma == 2.0
    assert type(sigma) is float


def test_values_lie_over_the_base() -> None:
    """Only what is given changes."""
    base = preset("light")
    changed = from_dict({"model": {"heads": 2}}, base)
    assert changed == dataclasses.replace(base, model=dataclasses.replace(base.model, heads=2))
    assert from_dict({}, base) == base
    assert from_dict({}) == Config()


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 31, 33, 100, -32, 225])
def test_bad_sides(side: int) -> None:
    """A side is a positive multiple of 32, in both places."""
    with pytest.raises(UsageError, match=f"data.side is {side}") as info:
        DataConfig(side=side)
    assert "multiple of 32" in info.value.fix
    with pytest.raises(UsageError, match=f"train.sides is {side}"):
        TrainConfig(sides=(side,), side_epochs=(100,))


@pytest.mark.parametrize("side", [32, 96, 160, 224, 512])
def test_good_sides(side: int) -> None:
    """Multiples of 32 pass."""
    assert DataConfig(side=side).side == side


def test_phases_must_fit() -> None:
    """One number of epochs per side, together all epochs, ending at the data's side."""
    with pytest.raises(UsageError, match="side_epochs"):
        TrainConfig(epochs=10, sides=(96, 128), side_epochs=(10,))
    with pytest.raises(UsageError, match="do not fit 10 epochs"):
        TrainConfig(epochs=10, sides=(96, 128), side_epochs=(4, 5))
    phases = TrainConfig(epochs=9, sides=(96, 128), side_epochs=(4, 5))
    with pytest.raises(UsageError, match=r"ends at 128, data\.side is 224"):
        Config(train=phases)
    assert Config(train=phases, data=DataConfig(side=128)).train.side_epochs == (4, 5)


@pytest.mark.parametrize(
    ("values", "what", "fix"),
    [
        (
            {"loss": {"map_distance": 1.0}, "model": {"mica": False}},
            "loss.map_distance needs model.mica and model.sampling",
            "set loss.map_distance to 0, or model.mica and model.sampling to true",
        ),
        (
            {"loss": {"consistency_kl": 1.0}, "model": {"sampling": False}},
            "loss.consistency_kl needs model.sampling",
            "set loss.consistency_kl to 0, or model.sampling to true",
        ),
        (
            {"loss": {"distillation": 1.0}},
            "loss.distillation needs train.teachers",
            "set loss.distillation to 0, or name trained models in train.teachers",
        ),
        (
            {"train": {"teachers": ["t"]}},
            "train.teachers needs a loss.distillation above 0",
            "set loss.distillation, to 1 for instance, or leave train.teachers out",
        ),
        (
            {"loss": {"consistency_kl": 1, "distillation": 1}, "model": {"sampling": False}},
            "loss.consistency_kl needs model.sampling; loss.distillation needs train.teachers",
            "set loss.consistency_kl to 0, or model.sampling to true; "
            "set loss.distillation to 0, or name trained models in train.teachers",
        ),
    ],
)
def test_what_needs_another_setting(values: dict[str, Any], what: str, fix: str) -> None:
    """A setting without what it works on is refused; the fix speaks of that very setting."""
    with pytest.raises(UsageError) as info:
        from_dict(values)
    assert (info.value.message, info.value.fix) == (what, fix)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "heads", 0),
        ("model", "heads", 65),
        ("model", "projection_channels", -1),
        ("model", "se_reduction", 0),
        ("model", "adapter_channels", 0),
        ("model", "sigma", 0.0),
        ("model", "sigma", -1.0),
        ("model", "sigma", NAN),
        ("model", "dropout", 1.0),
        ("model", "dropout", -0.1),
        ("loss", "original", -1.0),
        ("loss", "consistency_kl", -0.5),
        ("loss", "label_smoothing", 1.0),
        ("data", "test_fraction", 0.0),
        ("data", "val_fraction", 0.5),
        ("train", "epochs", 0),
        ("train", "batch_size", 1),
        ("train", "lr", 0.0),
        ("train", "lr", NAN),
        ("train", "ema", 1.0),
        ("train", "backgrounds", 1.1),
        ("train", "backgrounds", NAN),
        ("train", "mix_probability", -0.1),
    ],
)
def test_values_out_of_range(section: str, key: str, value: Any) -> None:
    """Each is refused by name, with a fix."""
    with pytest.raises(UsageError, match=key) as info:
        from_dict({section: {key: value}})
    assert info.value.fix


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("model", {"sigma": INF}),
        ("loss", {"hybrid": NAN}),
        ("loss", {"l2": INF}),
        ("train", {"lr": INF}),
        ("train", {"weight_decay": -0.1}),
        ("train", {"grad_clip": -1.0}),
        ("train", {"warmup_fraction": 1.5}),
        ("train", {"epochs": 10, "sides": [96, 224], "side_epochs": [-2, 12]}),
        ("train", {"epochs": 10, "sides": [96, 224], "side_epochs": [0, 10]}),
    ],
)
def test_values_that_cannot_train(section: str, values: dict[str, Any]) -> None:
    """TOML knows nan and inf; a negative decay, clip or phase makes no sense."""
    with pytest.raises(UsageError):
        from_dict({section: values})


# --- TOML and assignments ----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_toml_round_trip(name: str, tmp_path: Path) -> None:
    """A preset written and read again is itself, over any base."""
    config = preset(name)
    assert from_dict(tomllib.loads(to_toml(config))) == config
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert from_dict(read_toml(path), preset("light")) == config


def test_toml_file_problems(tmp_path: Path) -> None:
    """Missing, not UTF-8 and not TOML; each names the file."""
    with pytest.raises(UsageError, match=r"cannot read .*gone\.toml"):
        read_toml(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(UsageError, match=r"cannot read .*latin\.toml"):
        read_toml(tmp_path / "latin.toml")
    (tmp_path / "bad.toml").write_text("[model\nheads = 3")
    with pytest.raises(UsageError, match=r"bad\.toml is not valid TOML"):
        read_toml(tmp_path / "bad.toml")


def test_parse_assignments() -> None:
    """Values are TOML where they can be, else text; the last one counts."""
    parsed = parse_assignments(
        [
            "model.heads=4",
            " model.sigma = 2.5 ",
            "model.mica=false",
            "model.trunk=mobilenet_v2",
            "model.weights=/a/b=c.safetensors",
            "train.sides=[96, 128]",
            "data.dataset='isic19'",
            "model.heads=2",
        ]
    )
    assert parsed == {
        "model": {
            "heads": 2,
            "sigma": 2.5,
            "mica": False,
            "trunk": "mobilenet_v2",
            "weights": "/a/b=c.safetensors",
        },
        "train": {"sides": [96, 128]},
        "data": {"dataset": "isic19"},
    }


def test_assignments_reach_the_config() -> None:
    """Every text of `--set` ends up typed."""
    config = from_dict(parse_assignments(["model.sigma=2", "loss.l2=0", "data.protocol=paper"]))
    assert (config.model.sigma, config.loss.l2, config.data.protocol) == (2.0, 0.0, "paper")


@pytest.mark.parametrize("text", ["model.heads", "heads=3", "=3", ""])
def test_bad_assignments(text: str) -> None:
    """No section or no value: the right form is shown."""
    with pytest.raises(UsageError, match="is no assignment") as info:
        parse_assignments([text])
    assert "section.key=value" in info.value.fix


# --- presets -----------------------------------------------------------------------------------


def test_preset_names() -> None:
    """An unknown one is answered with the nearest and the list."""
    with pytest.raises(UsageError, match="did you mean 'light'") as info:
        preset("lite")
    assert all(name in info.value.fix for name in PRESETS)


def test_presets_are_what_they_say() -> None:
    """The paper's recipe is the defaults; the plain fine-tune has nothing of the paper."""
    paper = preset("paper-isic18")
    assert paper == Config(data=DataConfig(dataset="isic18"))
    plain, light = preset("plain-light"), preset("light")
    assert plain.model.baseline
    assert plain.model.criterion == "none"
    # The comparison is of the network alone: everything else is the same.
    assert plain.model.trunk == light.model.trunk
    assert plain.model.dropout == light.model.dropout
    assert (plain.train, plain.data) == (light.train, light.data)
    assert dataclasses.replace(light.loss, independence=0.0, l2=0.0) == plain.loss
    assert not light.model.baseline


PHASED = dataclasses.replace(
    preset("light").train, epochs=16, sides=(96, 128, 160), side_epochs=(4, 5, 7)
)


@pytest.mark.parametrize("epochs", range(1, 41))
def test_stretched_phases_fit(epochs: int) -> None:
    """Any number of epochs: the phases still add up, in order, ending at the same side."""
    stretched = stretch_phases(PHASED, epochs)
    base = dataclasses.replace(preset("light"), train=PHASED)
    fitted = from_dict({"train": {"epochs": epochs, **stretched}}, base).train
    assert fitted.sides[-1] == 160
    assert list(fitted.sides) == sorted(fitted.sides)
    assert min(fitted.side_epochs) > 0


def test_stretching_nothing() -> None:
    """No phases, or no number of epochs to stretch to: nothing to change."""
    assert stretch_phases(TrainConfig(), 7) == {}
    assert stretch_phases(PHASED, "7") == {}
    assert stretch_phases(PHASED, 0) == {}
    assert stretch_phases(PHASED, 16) == {"sides": [96, 128, 160], "side_epochs": [4, 5, 7]}


def test_what_hangs_on_the_epochs() -> None:
    """One step for train and ablate: phases and sampling start are fitted unless given."""
    base = dataclasses.replace(preset("light"), train=PHASED)
    given: dict[str, dict[str, object]] = {"train": {"epochs": 4}}
    fitted = resolve(given, base, planned=PHASED).train
    assert (fitted.sides, fitted.side_epochs) == ((96, 128, 160), (1, 1, 2))
    assert fitted.sampling_start_epoch == 1
    assert given == {"train": {"epochs": 4}}
    kept = {"epochs": 4, "sides": [160], "side_epochs": [4], "sampling_start_epoch": 4}
    chosen = resolve({"train": kept}, base, planned=PHASED).train
    assert (chosen.sides, chosen.side_epochs, chosen.sampling_start_epoch) == ((160,), (4,), 4)
    late = resolve(given, base, planned=PHASED, start_given=True).train
    assert late.sampling_start_epoch == 4
    assert resolve({}, base, planned=PHASED) == base


def test_a_bias_is_for_drawn_backgrounds() -> None:
    """Refused for another data set, however it was given; 0 is none."""
    base = preset("light")
    for dataset, bias in (("synthetic", 0.9), ("isic17", 0.0)):
        given = {"data": {"dataset": dataset, "background_bias": bias}}
        assert resolve(given, base, planned=base.train).data.background_bias == bias
    from_file = from_dict({"data": {"background_bias": 0.9}}, base)
    with pytest.raises(UsageError, match=r"data\.background_bias .* not for isic18"):
        resolve({}, from_file, planned=base.train)
    # A run of an older version may hold it.
    assert from_dict(from_file.to_dict()) == from_file


@pytest.mark.parametrize(
    ("key", "idle", "useful", "why"),
    [
        ("train.augment_strength", {"train": {"augment": False}}, {}, "train.augment is off"),
        ("train.weight_decay", {"train": {"optimizer": "adam"}}, {}, "train.optimizer is adam"),
        ("train.warmup_fraction", {"train": {"schedule": "constant"}}, {},
         "train.schedule is constant"),
        ("train.mix_alpha", {}, {"train": {"mix": "both"}}, "train.mix is none"),
        ("train.mix_probability", {}, {"train": {"mix": "cutmix"}}, "train.mix is none"),
        ("train.teacher_view", {}, TAUGHT, "train.teachers is empty"),
        ("loss.temperature", {}, TAUGHT, "train.teachers is empty"),
        ("data.test_fraction", {"data": {"protocol": "official"}}, {},
         "data.protocol is official"),
        ("model.sigma", {}, {"model": {"bandwidth": "fixed"}}, "model.bandwidth is median"),
        ("model.sigma", {"model": {"criterion": "none", "bandwidth": "fixed"}},
         {"model": {"bandwidth": "fixed"}}, "model.criterion is none"),
        ("model.sigma", {"model": {"criterion": "cosine", "bandwidth": "fixed"}},
         {"model": {"bandwidth": "fixed"}}, "model.criterion is cosine"),
        ("model.sigma", {"model": {"mica": False, "bandwidth": "fixed"}},
         {"model": {"bandwidth": "fixed"}}, "model.mica is off"),
    ],
)  # fmt: skip
def test_settings_without_effect(
    key: str, idle: dict[str, Any], useful: dict[str, Any], why: str
) -> None:
    """Told where they were given and another setting makes them do nothing."""
    base = preset("light")
    given = ("train.epochs", key, "model.heads")
    assert without_effect(from_dict(idle, base), given) == [f"{key} ({why})"]
    assert without_effect(from_dict(useful, base), given) == []
    assert without_effect(from_dict(idle, base), given[::2]) == []


@pytest.mark.parametrize(
    ("name", "epochs", "start"),
    [("light", 16, 4), ("light", 8, 4), ("light", 5, 4), ("light", 4, 1), ("light", 1, 0),
     ("paper-isic18", 20, 4), ("paper-light", 1, 0)],
)  # fmt: skip
def test_a_hybrid_branch_that_joins_in_time(name: str, epochs: int, start: int) -> None:
    """Fewer epochs than its start: it joins as early in proportion; else nothing changes."""
    planned = preset(name).train
    short = from_dict({"train": {"epochs": epochs}}, preset(name))
    fitted = fit_sampling_start(short, planned, explicit=False)
    assert fitted.train == dataclasses.replace(short.train, sampling_start_epoch=start)
    assert fit_sampling_start(short, planned, explicit=True) is short
    off = from_dict({"model": {"sampling": False}}, short)
    assert fit_sampling_start(off, planned, explicit=False) is off
