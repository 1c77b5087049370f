"""The trunk of an exported model, to begin a training with.

An export folds a batch norm into the convolution before it, so that its file holds neither the
norm's scale nor the statistics of its inputs. Both come back in two steps: norms that add a bias
and nothing else, then, from some images, the statistics, with the scale that cancels them. The
network computes the same all the while; only now it can be trained. Norms with no convolution
before them, such as most of DenseNet's, are in the file as they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biigma_cli.core.digest import check_content
from biigma_cli.core.header import EXPORTED
from biigma_cli.errors import ModelFileError
from biigma_cli.storage import models_dir

if TYPE_CHECKING:
    import onnx

# The inputs of ONNX's BatchNormalization after its image, by torch's names.
_NORM = ("weight", "bias", "running_mean", "running_var")


def exported_file(weights: str) -> Path | None:
    """The exported model that `model.weights` names; None where it names something else.

    Args:
        weights: an `.onnx` file or the name of a shipped model, among other things.
    """
    if Path(weights).suffix == ".onnx":
        return Path(weights)
    shipped = models_dir() / f"{weights}.onnx"
    named = Path(weights).name == weights and not Path(weights).exists()
    return shipped if named and shipped.is_file() else None


def read_metadata(path: Path) -> dict[str, Any]:
    """What an exported model says of itself. Raises `ModelFileError` where it cannot be read."""
    return _metadata(_read(path), path)


def trunk_state(path: Path, trunk: nn.Module, name: str) -> dict[str, Tensor]:
    """The trunk's tensors; batch norms that were folded add a bias alone.

    Args:
        trunk: one of that kind, for the names.
        name: of the kind, as in `config.ModelConfig.trunk`.

    Raises:
        ModelFileError: the file is damaged, not ours, of another trunk, in int8, or lacks a
            tensor.
    """
    proto = _read(path)
    said = _metadata(proto, path)
    own = said["config"]["model"]["trunk"]
    if "members" in said:
        names = ", ".join(str(member["name"]) for member in said["members"])
        raise ModelFileError(
            f"{path} holds several networks joined, {names}: it has no one trunk",
            fix="begin with one of them",
        )
    if own != name:
        raise ModelFileError(
            f"{path} has the trunk {own}, not {name}",
            fix=f"choose it with --set model.trunk={own}",
        )
    precision = said.get("export", {}).get("precision", "fp32")
    if precision.startswith("int8"):
        raise ModelFileError(
            f"{path} is in int8: its weights are rounded too far to be trained on",
            fix="take one in float32 or float16",
        )
    held = {i.name: i for i in proto.graph.initializer}
    # Weights in float16 may have become float32 again on their way to where they are used.
    cast = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "Cast"}
    convolutions = [
        [cast.get(name, name) for name in node.input]
        for node in proto.graph.node
        if node.op_type == "Conv"
    ]
    biases = {names[1]: names[2] for names in convolutions if len(names) > 2}
    whole = {
        cast.get(node.input[1], node.input[1]): [cast.get(n, n) for n in node.input[1:5]]
        for node in proto.graph.node
        if node.op_type == "BatchNormalization"
    }
    state: dict[str, Tensor] = {}
    before = ""
    for name, module in trunk.named_modules():
        weight = f"model.trunk.{name}.weight"
        if isinstance(module, nn.Conv2d):
            before = name
            if weight in held:  # else it is missed where the trunk is filled
                state[f"{name}.weight"] = _tensor(held[weight], path)
        elif isinstance(module, nn.BatchNorm2d) and held.keys() >= set(whole.get(weight, [""])):
            for part, tensor in zip(_NORM, whole[weight], strict=True):
                state[f"{name}.{part}"] = _tensor(held[tensor], path)
        elif isinstance(module, nn.BatchNorm2d):
            bias, before = biases.get(f"model.trunk.{before}.weight"), ""
            if bias not in held:
                raise ModelFileError(
                    f"{path} does not hold the norm {name}, nor a convolution with it folded in",
                    fix="begin with the run's checkpoint, weights/best.safetensors",
                )
            tensor = _tensor(held[bias], path)
            state |= {
                f"{name}.weight": torch.full_like(tensor, (1 + module.eps) ** 0.5),
                f"{name}.bias": tensor,
                f"{name}.running_mean": torch.zeros_like(tensor),
                f"{name}.running_var": torch.ones_like(tensor),
            }
    return state


@torch.no_grad()
def settle_norms(trunk: nn.Module, image_B3SS: Tensor) -> None:
    """Give batch norms that add a bias alone the statistics of what these images bring them.

    What the trunk computes in eval mode stays the same; in training it now is what it was.

    Args:
        image_B3SS: as the trunk takes them; all go through at once.
    """
    norms = [
        m
        for m in trunk.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and _adds_bias_alone(m)
    ]
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var_C, mean_C = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
        found[norm] = mean_C, var_C

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    was_training = trunk.training
    try:
        trunk.eval().forward(image_B3SS)  # itself: a compiled one would not call the hooks
    finally:
        trunk.train(was_training)
        for hook in hooks:
            hook.remove()
    for norm in norms:
        mean_C, var_C = found[norm]
        norm.bias.add_(mean_C)
        norm.weight.copy_((var_C + norm.eps).sqrt())
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean_C)
        norm.running_var.copy_(var_C)


def _adds_bias_alone(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """As `trunk_state` leaves those that were folded; no norm that was trained is so."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    return bool((mean == 0).all() and (var == 1).all())


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    if not path.is_file():
        raise ModelFileError(f"no model at {path}", fix="check model.weights")
    try:
        content = path.read_bytes()
        check_content(path, content)
        return onnx.load_from_string(content)
    except ModelFileError:
        raise
    except Exception as error:  # protobuf's own is another in each of its implementations
        raise ModelFileError(
            f"{path} is not a readable ONNX model: {error}", fix="export it again"
        ) from error


def _metadata(proto: onnx.ModelProto, path: Path) -> dict[str, Any]:
    values = {entry.key: entry.value for entry in proto.metadata_props}
    if values.pop("biigma_format", None) != EXPORTED:
        raise ModelFileError(
            f"{path} was not exported by biigma", fix="use a model made by 'biigma export onnx'"
        )
    try:
        said = {key: json.loads(value) for key, value in values.items()}
        for key in ("trunk", "normalisation"):
            said["config"]["model"][key]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} has damaged metadata: {error}", fix="export it again"
        ) from error
    return said


def _tensor(held: onnx.TensorProto, path: Path) -> Tensor:
    from onnx import numpy_helper

    try:
        if held.data_location:  # in another file, which could lie anywhere
            raise ValueError("it lies in another file")
        return torch.from_numpy(numpy_helper.to_array(held).copy()).float()
    except (ValueError, TypeError) as error:
        raise ModelFileError(
            f"{path} has a damaged tensor, {held.name}: {error}", fix="export it again"
        ) from error
