"""Every setting, its default and its checks, in frozen dataclasses; TOML in and out; no torch.

The defaults of `ModelConfig` and `LossConfig` are the paper's (BIIGMA-Net, MICCAI 2025); where the
paper is silent or contradicts itself, `docs/paper_map.md` gives the reading taken and why. Presets
are plain functions at the end of this file.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from biigma_cli.errors import UsageError

Trunk = Literal[
    "densenet121",
    "mobilenet_v2",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "inception_v3",
]
Criterion = Literal["hsic", "cka", "cosine", "none"]
Normalisation = Literal["auto", "imagenet", "unit", "symmetric"]
#: Of an exported file.
Precision = Literal["fp32", "fp16", "fp16-weights", "int8-weights", "int8-all-weights", "int8"]

#: Precision of an exported file -> what it is called.
PRECISIONS: dict[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "fp16-weights": "float16 weights",
    "int8-weights": "int8 weights",
    "int8-all-weights": "int8 weights, all",
    "int8": "int8",
}


def precision_title(name: str) -> str:
    """A precision in words; those of joined networks can differ."""
    titles: dict[str, str] = {"mixed": "mixed precisions"}
    titles.update(PRECISIONS.items())
    return titles.get(name, name)


# (mean, std) of pixels scaled to [0, 1]; `unit` is the paper's x / 255.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

#: Trunk -> where in the input, in its pixels from the edge, the receptive field of a map's first
#: row and column is centred. The next ones follow at the map's stride, 32. A stride-2 convolution
#: of kernel 3 and padding 1 looks at 2i - 1 to 2i + 1, so each moves the centre up and to the left:
#: in MobileNetV2 and the padded Inception-v3 five of them make it half a cell. In DenseNet-121
#: 2 x 2 pools undo all of it but 1.5 pixels, which are left out. M is taken to lie there, too: its
#: early taps are centred up to 12 pixels further in MobileNetV2, so this is right where pruning
#: leaves channels of the last alone. EfficientNet-Lite pads on the other side: half a cell down and
#: to the right.
FIRST_CENTRE: dict[str, float] = {
    "densenet121": 16.0,
    "mobilenet_v2": 0.5,
    "efficientnet_lite0": 31.5,
    "efficientnet_lite1": 31.5,
    "efficientnet_lite2": 31.5,
    "inception_v3": 0.5,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Attributes:
        trunk: convolutional backbone; the paper's is `densenet121`, `mobilenet_v2` and
            `efficientnet_lite0` are light, `inception_v3` is a good teacher.
        weights: backbone weights: `imagenet` (torchvision's download; for EfficientNet-Lite those
            of the package `TRUNK_pytorch_model`), `none`, or a local file: safetensors named as
            torchvision or that package does, or a checkpoint or an exported model (a shipped one by
            its name), whose trunk is taken.
        normalisation: `auto` follows the weights (that of the published ones, `imagenet` or, for
            Inception-v3 and EfficientNet-Lite, `symmetric`; what the file states for a file; `unit`
            for none); `unit` is the paper's x / 255.
        mica: multi-head channel attention (2.1); off gives global pooling + linear.
        heads: K, the number of projection heads.
        projection_channels: channels D of a head; 0 keeps the trunk's C, as in the paper.
        se_reduction: reduction of the squeeze-and-excitation block in each head.
        criterion: independence criterion between heads (Eq. 1-3).
        bandwidth: `fixed` uses `sigma`; `median` takes each head's median distance, detached.
        sigma: bandwidth of the RBF kernel exp(-d^2 / (2 sigma^2)).
        estimator: `biased` is Eq. 2; `unbiased` leaves out each position's likeness to itself.
        pairs: `ordered_mean` sums ordered pairs and divides by K^2 (Eq. 3); `unordered_sum` is the
            released code's.
        saliency: `plain` is Eq. 5; `standardised` has zero mean and unit variance per image
            before the sigmoid.
        adapters: what brings a tap to the last block's size: `conv_max` (paper), `max` or `avg`
            (pooling only, as in the released code).
        adapter_channels: output channels of each adapter's 1x1 convolution.
        prune: `low_variance` removes channels under the mean variance (text, figure and code);
            `high_variance` is the formula as printed; `none` keeps all.
        sampling: background vector sampling (2.2), from `train.sampling_start_epoch` on.
        draw: `replacement` draws from the non-zero vectors of B; `permutation` shuffles all
            positions of the batch once, as the released code does.
        dropout: dropout before the linear head.
    """

    trunk: Trunk = "densenet121"
    weights: str = "imagenet"
    normalisation: Normalisation = "auto"
    mica: bool = True
    heads: int = 3
    projection_channels: int = 0
    se_reduction: int = 16
    criterion: Criterion = "hsic"
    bandwidth: Literal["fixed", "median"] = "fixed"
    sigma: float = 1.0
    estimator: Literal["biased", "unbiased"] = "biased"
    pairs: Literal["ordered_mean", "unordered_sum"] = "ordered_mean"
    saliency: Literal["plain", "standardised"] = "plain"
    adapters: Literal["conv_max", "max", "avg"] = "conv_max"
    adapter_channels: int = 256
    prune: Literal["low_variance", "high_variance", "none"] = "low_variance"
    sampling: bool = True
    draw: Literal["replacement", "permutation"] = "replacement"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check(
            self,
            heads=(1, 64),
            projection_channels=(0, 8192),
            se_reduction=(1, 1024),
            adapter_channels=(1, 4096),
        )
        if not 0 < self.sigma < math.inf:
            raise UsageError(f"model.sigma is {self.sigma}", fix="give a bandwidth above 0")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"model.dropout is {self.dropout}", fix="give a value in [0, 1)")

    @property
    def baseline(self) -> bool:
        """Trunk + global pooling + linear, nothing of the paper (Table 2, first row)."""
        return not self.mica and not self.sampling


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Eq. 3, 8 and 9, each term with its weight.

    Attributes:
        class_weights: `inverse` data-set frequency (paper), its square root, inverse frequency
            `batch`-wise (released code), or `none`; normalised to mean 1 over the samples.
        original: weight of the cross-entropy on the original branch.
        hybrid: weight of the cross-entropy on the hybrid branch.
        independence: weight of the criterion.
        l2: lambda of Eq. 3, on the heads' projection weights.
        l2_form: `mean_square` of the weights, or the raw `norm`.
        map_distance: weight of the released code's RMS distance between M and the product of the
            heads' maps; the paper never mentions it.
        consistency_kl: weight of KL(original || hybrid), likewise.
        label_smoothing: 0 in the paper.
        distillation: weight of KL(teachers || branch) on each branch, on top of its own weight;
            needs `train.teachers`.
        temperature: T of the distillation; its term is scaled by T^2.
    """

    class_weights: Literal["inverse", "inverse_sqrt", "batch", "none"] = "inverse"
    original: float = 1.0
    hybrid: float = 1.0
    independence: float = 1.0
    l2: float = 1.0
    l2_form: Literal["mean_square", "norm"] = "mean_square"
    map_distance: float = 0.0
    consistency_kl: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise UsageError(f"loss.{f.name} is {value}", fix="give a number of 0 or more")
        if not self.temperature:
            raise UsageError("loss.temperature is 0", fix="give a number above 0, such as 2")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError("loss.label_smoothing is outside [0, 1)", fix="try 0.1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it is split and resized.

    Attributes:
        dataset: name of a recorded data set, or `synthetic`.
        side: side of the square image, in pixels; a multiple of 32.
        resize: `squash` (aspect ratio given up: the paper's), `crop` (short side, centre kept) or
            `pad` (long side, on black).
        protocol: `lesion` keeps all images of a lesion (and byte-identical images) on one side;
            `paper` splits by image, 80:20, as published, and so leaks lesions; `official` takes
            the publisher's own parts, validation cut from train where there is none.
        join_duplicates: keep known near-duplicates with different lesion ids on one side, too
            (`data.duplicates`), with `lesion` and where `official` cuts validation.
        extra: other recorded data sets whose training parts join the training part; never
            validation or test (`data.extra`).
        test_fraction: share of all images in the test part; not for `official`.
        val_fraction: share of all images in the validation part, cut from the rest.
        split_seed: seed of the split.
        synthetic_count: images of the synthetic set.
        synthetic_seed: its seed.
        background_bias: probability that class and background artefact are made to agree in its
            training and validation parts.
        test_background: artefacts of its test part, `independent` of the class or `reversed`.
    """

    dataset: str = "isic18"
    side: int = 224
    resize: Literal["squash", "crop", "pad"] = "squash"
    protocol: Literal["lesion", "paper", "official"] = "lesion"
    join_duplicates: bool = True
    extra: tuple[str, ...] = ()
    test_fraction: float = 0.2
    val_fraction: float = 0.1
    split_seed: int = 0
    synthetic_count: int = 2000
    synthetic_seed: int = 0
    background_bias: float = 0.0
    test_background: Literal["independent", "reversed"] = "independent"

    def __post_init__(self) -> None:
        _check_side(self.side, "data.side")
        _check(
            self,
            synthetic_count=(70, 1_000_000),
            synthetic_seed=(0, 2**63 - 1),
            split_seed=(-(2**63), 2**63 - 1),
        )
        if not 0 <= self.background_bias <= 1:
            raise UsageError(
                f"data.background_bias is {self.background_bias}",
                fix="give a probability between 0 and 1",
            )
        twice = {name for name in self.extra if self.extra.count(name) > 1}
        if self.dataset in self.extra or twice:
            raise UsageError(
                f"data.extra names {', '.join(sorted(twice or {self.dataset}))} twice",
                fix="name other data sets than data.dataset, each once",
            )
        if "synthetic" in self.extra:
            raise UsageError(
                "data.extra names the synthetic data set", fix="name recorded data sets"
            )
        for name in ("test_fraction", "val_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise UsageError(
                    f"data.{name} is {getattr(self, name)}", fix="give a share between 0 and 0.5"
                )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation.

    Attributes:
        epochs: passes over the training part.
        batch_size: images a step.
        optimizer: `adam` (paper) or `adamw`.
        lr: learning rate; the peak where a schedule is used.
        weight_decay: for `adamw`; not applied to norms and biases.
        schedule: `constant` (paper), or `one_cycle` (warm-up, then cosine to zero).
        warmup_fraction: share of all steps that warm up, with `one_cycle`.
        sampling_start_epoch: full epochs before the hybrid branch joins (paper: 20).
        ema: decay of the weights' moving average that is evaluated; 0 turns it off.
        balance: exponent b of sampling with replacement, each image drawn in proportion to
            (images of its class)^-b; 0 takes every image once an epoch, 1 all classes alike.
        augment: random flips, rotation, scale, shift, aspect and colour on the device.
        augment_strength: `standard`, or `strong`: wider, with dark corners, blur, lower resolution,
            sharpening, noise and JPEG.
        backgrounds: share of the images that stand, lesion and all its pixels unchanged, on the
            background of another training image, whose own lesion is painted over; needs lesion
            masks. Images without one, and those of `data.extra`, stay as they are.
        mix: blend pairs of a batch: `mixup`, `cutmix`, `both` (one or the other), or `none`.
        mix_alpha: alpha of the Beta distribution of the blending share.
        mix_probability: share of the images that are blended.
        sides: side per phase for progressive resizing, e.g. `[96, 128, 160]`; empty keeps
            `data.side` throughout. The last must be `data.side`.
        side_epochs: epochs of each phase in `sides`.
        grad_clip: largest gradient norm; 0 turns it off.
        select: epoch that is kept: best `macro_f1` or `log_loss` on validation, or the `last`.
        checkpoint_minutes: minutes between checkpoints within an epoch.
        compile: torch.compile for the trunk: `default`, or `graphs` (CUDA graphs); `no` is off.
        sync_bn: batch norm over the batches of all processes.
        gather_background: draw background vectors from the batches of all processes, so that B is
            the global batch's; else each process has its own B.
        precision: `auto` takes bf16 where the device has it, else fp32.
        teachers: checkpoints of runs on the same split, exported models of such runs or names of
            shipped ones, whose mean answer is distilled into the network, with weight
            `loss.distillation`.
        teacher_view: what the teachers see: the `same` view as the network; a `clean` one, with
            its geometry and colours but on its own background, without dark corners, blur, lower
            resolution, sharpening, noise and JPEG; or each image `once`, as it is and at their own
            side, before the first epoch: cheap where teachers cost much.
        init: checkpoint of a run on the same split to start from; empty starts from the backbone
            weights.
        seed: seed of weights, order, augmentation and background draws.
    """

    epochs: int = 100
    batch_size: int = 32
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "one_cycle"] = "constant"
    warmup_fraction: float = 0.15
    sampling_start_epoch: int = 20
    ema: float = 0.0
    balance: float = 0.0
    augment: bool = False
    augment_strength: Literal["standard", "strong"] = "standard"
    backgrounds: float = 0.0
    mix: Literal["none", "mixup", "cutmix", "both"] = "none"
    mix_alpha: float = 0.4
    mix_probability: float = 0.5
    sides: tuple[int, ...] = ()
    side_epochs: tuple[int, ...] = ()
    grad_clip: float = 0.0
    select: Literal["macro_f1", "log_loss", "last"] = "macro_f1"
    checkpoint_minutes: float = 10.0
    compile: Literal["no", "default", "graphs"] = "no"
    sync_bn: bool = False
    gather_background: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    teachers: tuple[str, ...] = ()
    teacher_view: Literal["same", "clean", "once"] = "same"
    init: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            self,
            epochs=(1, 100_000),
            batch_size=(2, 65_536),
            sampling_start_epoch=(0, 100_000),
            seed=(-(2**63), 2**63 - 1),  # what torch takes
        )
        for name in ("weight_decay", "grad_clip", "balance", "checkpoint_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(
                    f"train.{name} is {getattr(self, name)}", fix="give a number of 0 or more"
                )
        if self.balance > 4:  # (images of a class)^-b must stay a number
            raise UsageError(f"train.balance is {self.balance}", fix="1 draws all classes alike")
        if not 0 <= self.warmup_fraction < 1:
            raise UsageError(
                f"train.warmup_fraction is {self.warmup_fraction}", fix="give a share in [0, 1)"
            )
        if not 0 < self.lr < math.inf:
            raise UsageError(f"train.lr is {self.lr}", fix="give a learning rate above 0")
        if not 0 < self.mix_alpha < math.inf:
            raise UsageError(f"train.mix_alpha is {self.mix_alpha}", fix="give a number above 0")
        for name in ("mix_probability", "backgrounds"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"train.{name} is {getattr(self, name)}",
                    fix="give a probability between 0 and 1",
                )
        if not 0 <= self.ema < 1:
            raise UsageError(f"train.ema is {self.ema}", fix="give a decay in [0, 1)")
        for side in self.sides:
            _check_side(side, "train.sides")
        if len(self.sides) != len(self.side_epochs) or (
            self.sides and (sum(self.side_epochs) != self.epochs or min(self.side_epochs) < 1)
        ):
            raise UsageError(
                f"train.sides {list(self.sides)} and train.side_epochs {list(self.side_epochs)} "
                f"do not fit {self.epochs} epochs",
                fix="give one number of epochs per side; together they make train.epochs",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.train.sides and self.train.sides[-1] != self.data.side:
            raise UsageError(
                f"train.sides ends at {self.train.sides[-1]}, data.side is {self.data.side}",
                fix="end train.sides with data.side",
            )
        side = min((self.data.side, *self.train.sides))
        if self.model.mica and self.model.estimator == "unbiased" and side < 64:
            raise UsageError(
                f"model.estimator=unbiased needs 4 positions, side {side} gives 1",
                fix="use a side of 64 or more, or model.estimator=biased",
            )
        lacking: dict[str, str] = {}  # what cannot be, and its fix
        if self.loss.map_distance and not (self.model.mica and self.model.sampling):
            lacking["loss.map_distance needs model.mica and model.sampling"] = (
                "set loss.map_distance to 0, or model.mica and model.sampling to true"
            )
        if self.loss.consistency_kl and not self.model.sampling:
            lacking["loss.consistency_kl needs model.sampling"] = (
                "set loss.consistency_kl to 0, or model.sampling to true"
            )
        if self.loss.distillation and not self.train.teachers:
            lacking["loss.distillation needs train.teachers"] = (
                "set loss.distillation to 0, or name trained models in train.teachers"
            )
        if self.train.teachers and not self.loss.distillation:
            lacking["train.teachers needs a loss.distillation above 0"] = (
                "set loss.distillation, to 1 for instance, or leave train.teachers out"
            )
        if lacking:
            raise UsageError("; ".join(lacking), fix="; ".join(lacking.values()))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dict, fit for JSON and TOML."""
        plain = dataclasses.asdict(self)
        for section in plain.values():
            section.update({k: list(v) for k, v in section.items() if isinstance(v, tuple)})
        return plain


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "loss": LossConfig,
    "data": DataConfig,
    "train": TrainConfig,
}


def _check(section: object, **bounds: tuple[int, int]) -> None:
    for name, (low, high) in bounds.items():
        if not low <= getattr(section, name) <= high:
            raise UsageError(
                f"{name} is {getattr(section, name)}", fix=f"give a whole number {low}..{high}"
            )


def _check_side(side: int, name: str) -> None:
    if side < 32 or side % 32:
        raise UsageError(f"{name} is {side}", fix="give a multiple of 32, such as 224")


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as `hint`, or `ValueError` saying what is expected."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint_text = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"expected one of {', '.join(choices)}{hint_text}")
        return value
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)) or not all(type(v) is item for v in value):
            kinds = {int: "whole numbers", str: "texts in quotes"}
            raise ValueError(f"expected a list of {kinds[item]}")
        return tuple(value)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError("expected a smaller number") from None
    if type(value) is not hint:
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        raise ValueError(f"expected {kind.get(hint.__name__, 'text')}")
    return value


def from_dict(values: dict[str, Any], base: Config | None = None) -> Config:
    """`base` (default: all defaults) with nested `values` laid over it.

    Raises `UsageError` that lists every unknown or ill-typed key at once, with the nearest valid
    key.
    """
    base = base or Config()
    known = {f"{name}.{f.name}" for name, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        given = values.get(name, {})
        if not isinstance(given, dict):
            problems.append(f"{name}: expected a section")
            continue
        hints = typing.get_type_hints(cls)
        good = {}
        for key, value in given.items():
            if key not in hints:
                problems.append(_unknown(f"{name}.{key}", known))
                continue
            try:
                good[key] = _coerce(value, hints[key])
            except ValueError as error:
                problems.append(f"{name}.{key} = {value!r}: {error}")
        sections[name] = (getattr(base, name), good)
    for name, given in values.items():
        if name not in SECTIONS:
            keys = [f"{name}.{key}" for key in given] if isinstance(given, dict) else [str(name)]
            problems += [_unknown(key, known) for key in keys]
    if problems:
        raise UsageError(
            "the configuration has mistakes:\n  " + "\n  ".join(problems),
            fix="keys and defaults are listed by 'biigma train --show-config'",
        )
    return Config(**{n: dataclasses.replace(old, **new) for n, (old, new) in sections.items()})


def _unknown(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.4)
    return f"unknown key {key}" + (f" (nearest: {near[0]})" if near else "")


def fill_older(values: dict[str, Any]) -> dict[str, Any]:
    """A stored run's values, with what older versions did where they did not say."""
    data = {"join_duplicates": False, **values.get("data", {})}
    return {**values, "data": data}


def parse_assignments(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Turn `section.key=value` texts into nested values, each value read as TOML, else as text."""
    values: dict[str, dict[str, Any]] = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise UsageError(
                f"--set {text!r} is no assignment", fix="write --set section.key=value"
            )
        try:
            value = tomllib.loads(f"v = {raw}")["v"]
        except ValueError:  # no TOML, or a number of thousands of digits
            value = raw.strip()
        values.setdefault(section, {})[name] = value
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """Nested values of a TOML file. Raises `UsageError` where it cannot be read or parsed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", fix="check --config") from error
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise UsageError(f"{path} is not valid TOML: {error}", fix="mend that line") from error


def to_toml(config: Config) -> str:
    """The resolved config as TOML."""
    import tomli_w

    return tomli_w.dumps(config.to_dict())


# --- presets ---------------------------------------------------------------------------------


def _paper(dataset: str, sigma: float) -> Config:
    return Config(model=ModelConfig(sigma=sigma), data=DataConfig(dataset=dataset))


def paper_isic17() -> Config:
    """The paper's ISIC-17 recipe (three classes): as `paper_isic18`, with sigma 2.

    Cost: 2,150 images an epoch are here, 8 hours of two CPU cores for 100 epochs at the published
    split. Result: not run yet.
    """
    return _paper("isic17", 2.0)


def paper_isic18() -> Config:
    """The paper's ISIC-18 recipe: DenseNet-121 at 224, Adam 1e-4, 100 epochs, sigma 1, K = 3.

    Batch 32, inverse-frequency class weights, background sampling after 20 epochs; augmentation is
    not stated, so there is none. Kept on the lesion-safe protocol; add `--protocol paper` for the
    published split. Cost: 100 epochs at about 40 ms an image on two CPU cores are 80 hours; meant
    for a GPU. Result: not run yet.
    """
    return _paper("isic18", 1.0)


def paper_isic19() -> Config:
    """The paper's ISIC-19 recipe: as `paper_isic18`, sigma 1.

    Cost: 25,331 images, 2.5 times that of `paper_isic18`. Result: not run yet.
    """
    return _paper("isic19", 1.0)


def light() -> Config:
    """BIIGMA-Net on MobileNetV2 at 160: the recipe of the shipped model.

    Cost: 112,000 image passes, about 95 minutes on one CPU core for HAM10000. Result: see the model
    card in `models/`.
    """
    return Config(
        model=ModelConfig(
            trunk="mobilenet_v2",
            projection_channels=384,
            criterion="cka",
            bandwidth="median",
            estimator="unbiased",
            saliency="standardised",
            adapter_channels=64,
            dropout=0.2,
        ),
        loss=LossConfig(class_weights="inverse_sqrt", independence=0.2, label_smoothing=0.05),
        data=DataConfig(side=160),
        train=TrainConfig(
            epochs=16,
            batch_size=64,
            optimizer="adamw",
            lr=1e-3,
            weight_decay=0.05,
            schedule="one_cycle",
            sampling_start_epoch=4,
            ema=0.99,
            augment=True,
            grad_clip=5.0,
        ),
    )


def paper_light() -> Config:
    """The paper's network as written, small enough to be ablated on a CPU: MobileNetV2 at 128.

    Fixed sigma 1, biased HSIC, plain saliency, K = 3, with the optimisation of `light` in 4 epochs,
    the hybrid branch from the second on; the last epoch counts, so that nothing is chosen. Cost:
    28,000 image passes, about 15 minutes on one CPU core for HAM10000. Result: the ablation in
    `docs/results.md`.
    """
    base = light()
    return dataclasses.replace(
        base,
        model=ModelConfig(
            trunk="mobilenet_v2", projection_channels=384, adapter_channels=64, dropout=0.2
        ),
        loss=dataclasses.replace(base.loss, independence=1.0),
        data=DataConfig(side=128),
        train=dataclasses.replace(base.train, epochs=4, sampling_start_epoch=1, select="last"),
    )


def plain_light() -> Config:
    """A plain fine-tune to compare `light` with: its recipe whole, nothing of the paper.

    Same trunk, weights, side, epochs, class weights, smoothing, dropout, average and augmentation;
    global pooling + linear in place of MICA, no sampling, no independence loss.
    """
    base = light()
    return dataclasses.replace(
        base,
        model=ModelConfig(
            trunk="mobilenet_v2", mica=False, sampling=False, criterion="none", dropout=0.2
        ),
        loss=dataclasses.replace(base.loss, independence=0.0, l2=0.0),
    )


def best() -> Config:
    """Ours on the paper's trunk: DenseNet-121 at 224 with the optimisation of `light`.

    Each choice, and what taking it back did to log loss and macro AUC on HAM10000's validation part
    (`biigma ablate --recipe`: the light trunk at 128, 4 epochs, one seed; less log loss is better):

    - AdamW with weight decay; Adam without: +0.027, -0.005
    - CKA with an adaptive bandwidth; HSIC with sigma 1: +0.027, -0.006
    - square-root class weights; inverse ones: +0.228, -0.028. Balanced sampling: -0.033, +0.005,
      so that is taken here
    - label smoothing; none: +0.022, -0.008
    - standardised saliency; plain: -0.007, +0.002
    - augmentation; none: -0.022, -0.004, and +0.076 macro-F1. Strong: +0.087, -0.016. Kept all the
      same: 4 epochs are too few to overfit, 40 are not (a guess, not measured)
    - no mixing of images; mixup and cutmix: +0.057, -0.004
    - averaged weights; none: -0.004, -0.001
    - dropout 0.2; none: -0.011, -0.003
    - a warm-up and a cosine; a constant rate: -0.028, +0.005. Kept on the same guess

    Cost: 40 epochs at about 40 ms an image on two CPU cores are 3 hours per 7,000 images and 10
    epochs; meant for a GPU. Result: not run yet on this trunk; runs on the light one stand in
    `docs/results.md`.
    """
    base = light()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model, trunk="densenet121", projection_channels=0, adapter_channels=256
        ),
        loss=dataclasses.replace(base.loss, class_weights="none"),
        data=DataConfig(side=224),
        train=dataclasses.replace(
            base.train, epochs=40, sampling_start_epoch=8, select="log_loss", balance=0.5
        ),
    )


PRESETS = {
    "best": best,
    "paper-isic17": paper_isic17,
    "paper-isic18": paper_isic18,
    "paper-isic19": paper_isic19,
    "paper-light": paper_light,
    "light": light,
    "plain-light": plain_light,
}


def preset(name: str) -> Config:
    """A preset by name. Raises `UsageError` naming the known ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        raise UsageError(
            f"unknown preset {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
            fix=f"choose one of: {', '.join(PRESETS)}",
        )
    return PRESETS[name]()


def resolve(
    given: dict[str, dict[str, Any]],
    base: Config,
    *,
    planned: TrainConfig,
    start_given: bool = False,
) -> Config:
    """`base` with the settings given, and what hangs on the number of epochs fitted to it.

    Args:
        given: section, then key: value.
        base: settings for whatever is not given.
        planned: the preset's, whose sampling start was meant for its own epochs.
        start_given: `base` has its sampling start from the user, so it stays.

    Raises:
        UsageError: an unknown section or key, or a value that is not allowed.
    """
    train = given.get("train", {})
    if "epochs" in train and "sides" not in train:
        given = {**given, "train": {**train, **stretch_phases(base.train, train["epochs"])}}
    config = from_dict(given, base)
    # Not in `Config`: runs of older versions may hold it.
    if config.data.background_bias and config.data.dataset != "synthetic":
        raise UsageError(
            "data.background_bias (--background-bias) is for the synthetic data set, not for "
            f"{config.data.dataset}",
            fix="leave it out, or choose --dataset synthetic",
        )
    return fit_sampling_start(
        config, planned, explicit=start_given or "sampling_start_epoch" in train
    )


def without_effect(config: Config, given: Iterable[str]) -> list[str]:
    """Of the settings `given`, each as `section.key`, those that do nothing here, and why."""
    model, train = config.model, config.train
    why: dict[str, str] = {}
    if not model.mica:
        why["model.sigma"] = "model.mica is off"
    elif model.criterion not in ("hsic", "cka"):
        why["model.sigma"] = f"model.criterion is {model.criterion}"
    elif model.bandwidth != "fixed":
        why["model.sigma"] = f"model.bandwidth is {model.bandwidth}"
    if not train.augment:
        why["train.augment_strength"] = "train.augment is off"
    if train.optimizer == "adam" and train.weight_decay:
        why["train.weight_decay"] = "train.optimizer is adam"
    if train.schedule == "constant":
        why["train.warmup_fraction"] = "train.schedule is constant"
    if train.mix == "none":
        why["train.mix_alpha"] = why["train.mix_probability"] = "train.mix is none"
    if not train.teachers:
        why["train.teacher_view"] = why["loss.temperature"] = "train.teachers is empty"
    if config.data.protocol == "official":
        why["data.test_fraction"] = "data.protocol is official"
    return [f"{key} ({why[key]})" for key in given if key in why]


def fit_sampling_start(config: Config, planned: TrainConfig, *, explicit: bool) -> Config:
    """`config` with a hybrid branch that joins within its epochs, as early as in `planned`.

    Without, the saliency adapters would keep their random weights, and nobody be told.

    Args:
        planned: whose start and epochs the start was meant for.
        explicit: whether the start was asked for as it is; then it stays.
    """
    train = config.train
    if explicit or not config.model.sampling or train.sampling_start_epoch < train.epochs:
        return config
    start = planned.sampling_start_epoch * train.epochs // planned.epochs
    return dataclasses.replace(config, train=dataclasses.replace(train, sampling_start_epoch=start))


def stretch_phases(train: TrainConfig, epochs: Any) -> dict[str, list[int]]:
    """`sides` and `side_epochs` of `train` rescaled to another number of epochs.

    Empty where there are no phases; phases that shrink to nothing are dropped, the last stays.
    """
    if not train.sides or not isinstance(epochs, int) or epochs < 1:
        return {}
    done, scaled = 0, []
    for i in range(len(train.sides)):
        end = round(sum(train.side_epochs[: i + 1]) * epochs / train.epochs)
        scaled.append(end - done)
        done = end
    if not scaled[-1]:  # at least one epoch at the final side
        biggest = max(range(len(scaled)), key=lambda i: scaled[i])
        scaled[biggest] -= 1
        scaled[-1] += 1
    kept = [(s, e) for s, e in zip(train.sides, scaled, strict=True) if e]
    return {"sides": [s for s, _ in kept], "side_epochs": [e for _, e in kept]}
