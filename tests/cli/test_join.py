"""`biigma join`: the mean of several networks in one file, and what it refuses to join."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from biigma_cli.cli.explain_models import maps_of
from biigma_cli.config import FIRST_CENTRE
from biigma_cli.core.digest import KEY
from biigma_cli.core.weights import load_checkpoint, save_checkpoint
from biigma_cli.data.images import Part
from biigma_cli.errors import ModelFileError
from biigma_cli.runtime import input_check, join
from biigma_cli.runtime.calibration import softmax
from biigma_cli.runtime.session import Answer, Predictor
from tests.conftest import TINY, Outcome, call, unsealed


def export(run: Path, path: Path, *more: str) -> Path:
    """`biigma export onnx`, with a check for so small a data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_check, "FEWEST", 5)
        done = call("export", "onnx", "--run", run, "-o", path, "--images", "8", *more)
    assert done.code == 0, done.err
    return path


@pytest.fixture(scope="module")
def models(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny network, one like it with other weights, and one on another trunk."""
    folder = tmp_path_factory.mktemp("join")
    moved = folder / "moved"
    shutil.copytree(tiny_run, moved)
    stored = load_checkpoint(moved / "weights" / "best.safetensors")
    noise = torch.Generator().manual_seed(0)
    tensors = {
        k: v + 0.2 * v.std() * torch.randn(v.shape, generator=noise) if v.ndim > 1 else v
        for k, v in stored.tensors.items()
    }
    meta = {**stored.meta, "command": "biigma train moved"}
    save_checkpoint(moved / "weights" / "best.safetensors", tensors, meta)
    done = call(
        *TINY, "--set", "model.trunk=efficientnet_lite0", "--epochs", "1", "--name", "lite",
        "--runs", folder / "runs", "--set", "train.sampling_start_epoch=0",
    )  # fmt: skip
    assert done.code == 0, done.err
    return {
        "tiny": export(tiny_run, folder / "tiny.onnx"),
        "moved": export(moved, folder / "moved.onnx"),
        "lite": export(
            folder / "runs" / "lite", folder / "lite.onnx", "--precision", "fp16-weights"
        ),
    }


@pytest.fixture(scope="module")
def part(tiny_run: Path) -> Part:
    """The validation part."""
    from biigma_cli.cli.export import _part

    found = _part(load_checkpoint(tiny_run / "weights" / "best.safetensors"), "val", None)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def pair(models: dict[str, Path]) -> tuple[Path, Outcome]:
    """Two of one trunk, joined."""
    path = models["tiny"].with_name("pair.onnx")
    done = call("join", models["tiny"], models["moved"], "-o", path, "--card",
                path.with_suffix(".md"))  # fmt: skip
    assert done.code == 0, done.err
    return path, done


@pytest.fixture(scope="module")
def mixed(models: dict[str, Path]) -> Path:
    """Two of different trunks, joined."""
    path = models["tiny"].with_name("mixed.onnx")
    done = call("join", models["tiny"], models["lite"], "-o", path)
    assert done.code == 0, done.err
    return path


def asked(path: Path, part: Part) -> Answer:
    """Its answers for the validation part."""
    return Predictor(path, device="cpu")(part.pixels)


def about(path: Path) -> dict[str, Any]:
    """Its metadata."""
    return Predictor(path, device="cpu").info.metadata


def test_it_is_the_mean(pair: tuple[Path, Outcome], models: dict[str, Path], part: Part) -> None:
    """Of logits, evidence and M; the probabilities are calibrated anew; biases add up as before."""
    one, two = asked(models["tiny"], part), asked(models["moved"], part)
    both = asked(pair[0], part)
    assert about(pair[0])[KEY] != about(models["tiny"])[KEY]
    assert np.abs(one.logits_BY - two.logits_BY).max() > 0.1
    mean = (one.logits_BY + two.logits_BY) / 2
    np.testing.assert_allclose(both.logits_BY, mean, atol=1e-4)
    for name in ("evidence_BYHW", "saliency_BHW"):
        first, second, joined = (getattr(a, name) for a in (one, two, both))
        np.testing.assert_allclose(joined, (first + second) / 2, atol=1e-4)
    temperature = Predictor(pair[0], device="cpu").info.temperature
    assert temperature is not None
    np.testing.assert_allclose(
        both.probabilities_BY, softmax(mean.astype(np.float64) / temperature), atol=1e-4
    )
    assert one.novelty_B is not None
    assert two.novelty_B is not None
    assert both.novelty_B is not None
    limit = about(pair[0])["input_check"]["threshold"]
    np.testing.assert_allclose(
        both.novelty_B * limit, (one.novelty_B + two.novelty_B) / 2, rtol=1e-4
    )
    assert about(pair[0])["input_check"]["validation"]["flagged"] == (both.novelty_B > 1).mean()
    assert both.evidence_BYHW is not None
    rest = both.logits_BY - both.evidence_BYHW.sum((2, 3))
    np.testing.assert_allclose(rest, np.broadcast_to(rest[0], rest.shape), atol=1e-3)


def test_other_trunks_lie_on_an_even_grid(mixed: Path, models: dict[str, Path], part: Part) -> None:
    """Evidence keeps its sum, M its range, and each goes half a cell towards the other's."""
    one, two, both = (asked(p, part) for p in (models["tiny"], models["lite"], mixed))
    np.testing.assert_allclose(both.logits_BY, (one.logits_BY + two.logits_BY) / 2, atol=1e-4)
    sums = [a.evidence_BYHW.sum((2, 3)) for a in (one, two, both)]
    np.testing.assert_allclose(sums[2], (sums[0] + sums[1]) / 2, atol=1e-3)
    side = Predictor(mixed, device="cpu").info.side
    wanted = []
    for answer, trunk in ((one, "mobilenet_v2"), (two, "efficientnet_lite0")):
        share = join.shares(2, side, FIRST_CENTRE[trunk])
        wanted.append(np.einsum("byhw,hi,wj->byij", answer.evidence_BYHW, share, share))
    np.testing.assert_allclose(both.evidence_BYHW, sum(wanted) / 2, atol=1e-3)
    assert 0 < both.saliency_BHW.min() < both.saliency_BHW.max() < 1
    assert about(mixed)["config"]["model"]["trunk"] == "mobilenet_v2+efficientnet_lite0"
    # No shift of the grid is known for such a trunk, so it is drawn as the even one it is.
    assert maps_of(Predictor(mixed, device="cpu")).first_centre is None


@pytest.mark.parametrize("trunk", [None, *FIRST_CENTRE])
@pytest.mark.parametrize("cells", [1, 2, 5, 7])
def test_shares(trunk: str | None, cells: int) -> None:
    """All is shared out; the centre of what lies well inside stays where it was."""
    side = 32 * cells
    first = None if trunk is None else FIRST_CENTRE[trunk]
    share = join.shares(cells, side, first)
    np.testing.assert_allclose(share.sum(1), 1)
    assert share.min() >= 0
    assert (share.sum(0) > 0).all()
    centres = 32 * (np.arange(cells) + 0.5)
    own = (16 if first is None else first) + 32 * np.arange(cells)
    inside = (own >= 16) & (own <= side - 16)
    np.testing.assert_allclose((share @ centres)[inside], own[inside])


def test_a_user_sees(pair: tuple[Path, Outcome], models: dict[str, Path]) -> None:
    """Figures of each and of the mean, the size, the proof, and what to do next."""
    path, done = pair
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.strip()}
    assert {"tiny", "moved", "joined"} <= set(rows)
    stated = {m["name"]: m["validation"] for m in about(path)["members"]}
    assert [f"{v:.4f}" for v in stated["moved"].values()] == rows["moved"]
    assert "same decision" in done.out
    assert "2 networks" in done.out
    assert f"biigma eval --model {path}" in done.err
    # One file that any ONNX Runtime takes.
    names = [o.name for o in onnxruntime.InferenceSession(path).get_outputs()]
    assert names == ["probabilities", "logits", "evidence", "saliency", "novelty"]
    shown = call("models", path)
    assert "the mean of 2 networks: tiny, moved" in shown.out
    answered = call("predict", sorted(path.parent.parent.rglob("*.jpg"))[0], "--model", path,
                    "--format", "json")  # fmt: skip
    assert answered.code == 0, answered.err


def test_what_it_says_of_itself(pair: tuple[Path, Outcome], models: dict[str, Path]) -> None:
    """Members, commands of all, data of all; nothing of the first member's figures."""
    said = about(pair[0])
    assert [m["name"] for m in said["members"]] == ["tiny", "moved"]
    assert said["members"][0]["id"] == Predictor(models["tiny"], device="cpu").id
    assert said["metrics"] == {}
    assert said["command"].startswith("biigma join tiny.onnx moved.onnx")
    assert "biigma train moved" in [a["command"] for a in said["ancestors"]]
    assert said["export"]["precision"] == "fp32"
    assert said["split"] == about(models["tiny"])["split"]
    assert str(pair[0].parent) not in json.dumps(said)
    card = pair[0].with_suffix(".md").read_text(encoding="utf-8")
    assert "The mean of 2 BIIGMA-Nets on mobilenet_v2 in one file" in card
    assert f"# moved: exported as {Predictor(models['moved'], device='cpu').id}" in card
    assert card.index("biigma train moved") < card.index("# moved: ") < card.index("biigma join")
    assert "## Figures\n\n## Limits" in card


def test_its_figures_are_kept(pair: tuple[Path, Outcome], tmp_path: Path) -> None:
    """`eval --store` puts them into a card that has none yet, test behind validation."""
    path = Path(shutil.copy(pair[0], tmp_path))
    card = Path(shutil.copy(pair[0].with_suffix(".md"), tmp_path))
    for split in ("val", "test"):
        done = call("eval", "--model", path, "--split", split, "--store", "--resamples", "40")
        assert done.code == 0, done.err
    text = card.read_text(encoding="utf-8")
    assert text.index("## Figures") < text.index("### val part") < text.index("### test part")
    assert text.index("### test part") < text.index("## Limits")
    assert set(about(path)["metrics"]) == {"val", "test"}


@pytest.mark.parametrize(
    ("how", "most"), [("fp16-weights", 0.56), ("int8-weights", 0.35), ("int8-all-weights", 0.35)]
)
def test_smaller(
    models: dict[str, Path], pair: tuple[Path, Outcome], part: Part, tmp_path: Path, how: str,
    most: float,
) -> None:  # fmt: skip
    """Stored in fewer bits, with nearly the same answers, and it says what that costs."""
    path = tmp_path / "small.onnx"
    done = call("join", models["tiny"], models["moved"], "-o", path, "--precision", how, "--force")
    assert done.code == 0, done.err
    assert path.stat().st_size < most * pair[0].stat().st_size
    small, full = asked(path, part), asked(pair[0], part)
    assert 0 < np.abs(small.logits_BY - full.logits_BY).max() < 0.2 * np.ptp(full.logits_BY)
    assert about(path)["export"]["precision"] == how
    assert "on " in done.out
    assert "points" in done.out


def test_each_its_own_precision(models: dict[str, Path], tmp_path: Path) -> None:
    """In the order of the models; halves become int8, too."""
    path = tmp_path / "m.onnx"
    done = call(
        "join", models["tiny"], models["lite"], "-o", path, "--precision", "as-is",
        "--precision", "int8-weights", "--force",
    )  # fmt: skip
    assert done.code == 0, done.err
    said = about(path)
    assert [m["precision"] for m in said["members"]] == ["fp32", "int8-weights"]
    assert said["export"]["precision"] == "mixed"
    kinds = {
        i.name: i.data_type
        for i in onnx.load(path).graph.initializer
        if i.name.endswith("head.conv.weight") or i.name.endswith("features.18.0.weight")
    }
    assert sorted(kinds.values()) == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT8]


def test_exports_by_their_run(models: dict[str, Path], tmp_path: Path) -> None:
    """`RUN/model.onnx` is called by its run; what one of them lacks is left out, and said."""
    one, two = tmp_path / "a" / "model.onnx", tmp_path / "b" / "model.onnx"
    for path, model in ((one, models["tiny"]), (two, models["moved"])):
        path.parent.mkdir()
        shutil.copy(model, path)
    proto = unsealed(two)
    (place,) = (i for i, o in enumerate(proto.graph.output) if o.name == "novelty")
    del proto.graph.output[place]
    (check,) = (p for p in proto.metadata_props if p.key == "input_check")
    proto.metadata_props.remove(check)
    onnx.save(proto, two)
    out = tmp_path / "m.onnx"
    done = call("join", one, two, "-o", out)
    assert done.code == 0, done.err
    assert "no novelty: not all of the models give it" in done.err
    assert "no input check" in done.out
    said = about(out)
    assert [m["name"] for m in said["members"]] == ["a", "b"]
    assert {"a", "b"} <= {entry["run"] for entry in said["ancestors"]}
    assert "input_check" not in said


def test_a_joined_model_gives_no_trunk(pair: tuple[Path, Outcome], tmp_path: Path) -> None:
    """It has several."""
    done = call(*TINY, "--weights", pair[0], "--name", "x", "--runs", tmp_path)
    assert done.code == ModelFileError("", fix="").exit_code
    assert "tiny, moved" in done.err


def refused(done: Outcome, path: Path, *words: str, code: int) -> None:
    """One error with its fix, and nothing written."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == done.err.count("fix:") == 1
    for word in words:
        assert word in done.err
    assert not path.exists()


def changed(path: Path, target: Path, **values: Any) -> Path:
    """A copy with other metadata."""
    proto = unsealed(path)
    for entry in proto.metadata_props:
        if entry.key in values:
            entry.value = json.dumps(values[entry.key])
    onnx.save(proto, target)
    return target


def test_refused(
    models: dict[str, Path], pair: tuple[Path, Outcome], toy: Path, tmp_path: Path
) -> None:
    """What has no mean."""
    out = tmp_path / "out.onnx"
    tiny, moved = models["tiny"], models["moved"]
    refused(call("join", tiny, "-o", out), out, "cannot be joined", code=2)
    refused(call("join", tiny, tiny, "-o", out), out, "named twice", code=2)
    refused(call("join", tiny, tmp_path / "no.onnx", "-o", out), out, "no model", code=3)
    refused(call("join", tiny, pair[0], "-o", out), out, "name its members", code=3)
    split = {**about(moved)["split"], "split_hash": "0" * 64}
    other = changed(moved, tmp_path / "split.onnx", split=split)
    refused(call("join", tiny, other, "-o", out), out, "different splits", code=3)
    classes = list(reversed(about(moved)["classes"]))
    other = changed(moved, tmp_path / "classes.onnx", classes=classes)
    refused(call("join", tiny, other, "-o", out), out, "classes differ", code=3)
    refused(call("join", tiny, toy, "-o", out), out, "toy.onnx does not say its", code=3)
    config = about(moved)["config"]
    config = {**config, "model": {**config["model"], "saliency": "plain"}}
    other = changed(moved, tmp_path / "form.onnx", config=config)
    refused(call("join", tiny, other, "-o", out), out, "maps are standardised and plain", code=3)
    refused(call("join", tiny, moved, "-o", out.with_suffix("")), out, "no .onnx file", code=2)
    refused(call("join", tiny, moved, "-o", out, "--card", out), out, "--card", code=2)
    before = moved.read_bytes()
    done = call("join", tiny, moved, "-o", moved)
    assert (done.code, "one of the networks it is made of" in done.err) == (2, True)
    assert moved.read_bytes() == before
    many = ("--precision", "as-is") * 3
    refused(call("join", tiny, moved, "-o", out, *many), out, "3 times for 2", code=2)
    refused(call("join", tiny, moved, "-o", out, "--precision", "int4"), out, "int4", code=2)
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "out.onnx"
    refused(call("join", tiny, moved, "-o", blocked), blocked, "file", code=2)


def test_other_data_are_refused(
    models: dict[str, Path], other_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation part must be that of the training."""
    monkeypatch.setenv("BIIGMA_HOME", str(other_home))
    out = tmp_path / "out.onnx"
    done = call("join", models["tiny"], models["moved"], "-o", out)
    refused(done, out, "trained on another data", code=3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_damaged_member(models: dict[str, Path], tmp_path: Path, share: float) -> None:
    """One that was cut off while it was copied is named, and nothing is written."""
    content = models["moved"].read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(content[: int(share * len(content))])
    out = tmp_path / "out.onnx"
    refused(call("join", models["tiny"], cut, "-o", out), out, "cut.onnx", code=3)


def test_interrupted(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before the file is whole: what was there stays, no piece of the new one."""
    out = tmp_path / "out.onnx"
    out.write_bytes(b"older")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(join, "atomic_write_bytes", stop)
    done = call("join", models["tiny"], models["moved"], "-o", out)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert out.read_bytes() == b"older"


def test_too_lossy(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than half a point lost writes nothing; --force does."""
    monkeypatch.setattr(join, "LARGEST_LOSS", -1.0)
    out = tmp_path / "out.onnx"
    words = ("join", models["tiny"], models["moved"], "-o", out, "--precision", "int8-weights")
    refused(call(*words), out, "loses too much", "--force", code=1)
    assert call(*words, "--force").code == 0
    assert out.is_file()
