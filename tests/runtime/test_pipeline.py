"""Many images through a session: order, faults, bounds, and models that are not what they say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from biigma_cli.core.header import EXPORTED
from biigma_cli.data.preprocess import RESIZE_RULES, load_image
from biigma_cli.errors import BiigmaError, ModelFileError
from biigma_cli.runtime import pipeline
from biigma_cli.runtime.inputs import Source
from biigma_cli.runtime.pipeline import classify, model_id, turned
from biigma_cli.runtime.session import Predictor
from biigma_cli.storage import available_cpus, cgroup_cpus
from tests.data.samples import encode, noise

SIDE = 16
CODES = ["MEL", "NV", "BCC"]


def toy_model(path: Path, *, scale: float = 1.0, **changes: Any) -> Path:
    """A model of one layer in the form of an export: classes by the mean of red, green and blue.

    Its upper half counts twice, so that turning the picture changes the answer. `changes` overwrite
    metadata; None leaves a key out.
    """
    weight = np.zeros((SIDE, SIDE, 3), np.float32)
    weight[:] = scale / (40 * SIDE * SIDE)
    weight[: SIDE // 2] *= 2
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "weight"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axes"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])
            for name in ("probabilities", "logits")
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    values: dict[str, Any] = {
        "classes": CODES,
        "class_names": ["melanoma", "melanocytic nevus", "basal cell carcinoma"],
        "malignant": [True, False, True],
        "preprocessing": {"side": SIDE, "resize": RESIZE_RULES["squash"]},
        "licence": "CC0-1.0",
        "split": {},
        **changes,
    }
    stored = {
        "biigma_format": EXPORTED,
        **{k: json.dumps(v) for k, v in values.items() if v is not None},
    }
    for key, value in stored.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The toy model in a session."""
    return Predictor(toy_model(tmp_path_factory.mktemp("toy") / "toy.onnx"), device="cpu")


def pictures(n: int) -> list[Source]:
    """Pictures that all differ, as bytes."""
    return [Source(str(i), encode(noise(20, 20, seed=i))) for i in range(n)]


def flat(batches: Iterator[list[pipeline.Result]]) -> list[pipeline.Result]:
    """All results."""
    return [r for batch in batches for r in batch]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("workers", [1, 4])
def test_every_source_is_answered_in_order(
    predictor: Predictor, batch_size: int, workers: int
) -> None:
    """Damaged ones among good ones; the answers are those of each image alone."""
    sources = pictures(11)
    sources[0] = Source("0", b"no image")
    sources[4] = Source("4", sources[4].content[:60])  # type: ignore[arg-type]
    sources[5] = Source("5", Path("nowhere.png"))
    sources[10] = Source("10", Path("shut"), "no permission to open the folder shut")
    done = flat(classify(predictor, sources, batch_size=batch_size, workers=workers))
    assert [r.name for r in done] == [str(i) for i in range(11)]
    assert [r.name for r in done if r.error] == ["0", "4", "5", "10"]
    for source, result in zip(sources, done, strict=True):
        if result.error is None:
            assert isinstance(source.content, bytes)
            alone = load_image(source.content, SIDE)
            assert np.array_equal(result.pixels, alone)  # type: ignore[arg-type]
            wanted = predictor(alone[None]).probabilities_BY[0]
            np.testing.assert_allclose(result.probabilities_Y, wanted, atol=1e-6)


def test_batches_are_full(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images come quickly the session gets whole batches; errors take no place in them."""
    monkeypatch.setattr(pipeline, "PATIENCE", 60.0)
    sources = pictures(12)
    sources.insert(1, Source("bad", b"no"))
    sizes = [len(b) for b in classify(predictor, sources, batch_size=4, workers=2)]
    assert sizes == [5, 4, 4]


def test_a_slow_stream_is_answered_as_it_comes(predictor: Predictor) -> None:
    """The next name comes only when the last was answered: nothing waits for a full batch."""
    answered = threading.Event()

    def slow() -> Iterator[Source]:
        for source in pictures(3):
            yield source
            assert answered.wait(60)
            answered.clear()

    names = []
    for batch in classify(predictor, slow(), batch_size=64, workers=1):
        names += [r.name for r in batch]
        answered.set()
    assert names == ["0", "1", "2"]


def test_only_so_much_is_taken_ahead(predictor: Predictor) -> None:
    """A million sources, of which only a few batches are taken beyond those handed out."""
    picture = encode(noise(20, 20))
    taken = 0

    def endless() -> Iterator[Source]:
        nonlocal taken
        for i in range(1_000_000):
            taken += 1
            yield Source(str(i), picture)

    results = classify(predictor, endless(), batch_size=4, workers=2)
    for handed_out in range(1, 6):
        next(results)
        assert taken <= 4 * handed_out + 3 * 4 + 2 * 2 + 4
    results.close()
    assert taken < 60


def test_batches_in_the_session_together(predictor: Predictor) -> None:
    """As many as are allowed and no more; answers come in order whichever is done first."""
    together = threading.Barrier(pipeline.IN_FLIGHT, timeout=60)
    lock = threading.Lock()
    inside = most = 0

    class Slow:
        info = predictor.info

        def __call__(self, pixels: Any) -> Any:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            together.wait()
            answer = predictor(pixels)
            with lock:
                inside -= 1
            return answer

    sources = pictures(4 * pipeline.IN_FLIGHT)
    done = flat(classify(Slow(), sources, batch_size=2, workers=2))  # type: ignore[arg-type]
    assert [r.name for r in done] == [s.name for s in sources]
    assert most == pipeline.IN_FLIGHT


@pytest.mark.parametrize("full", [False, True])
def test_nothing_runs_on_when_nobody_asks(predictor: Predictor, full: bool) -> None:
    """Closed before the end, with batches ready or with the next name still to come."""
    waiting = threading.Event()

    def endless() -> Iterator[Source]:
        for i in range(1_000_000):
            if not full and i == 2:
                waiting.wait(60)
            yield Source(str(i), encode(noise(20, 20)))

    before = {t.ident for t in threading.enumerate()}
    results = classify(predictor, endless(), batch_size=2, workers=2)
    next(results)
    results.close()
    waiting.set()
    for thread in threading.enumerate():
        if thread.ident not in before:
            thread.join(60)
            assert not thread.is_alive(), thread.name


def test_an_error_of_the_sources_comes_after_what_was_before_it(predictor: Predictor) -> None:
    """What was named before the list broke is answered."""

    def broken() -> Iterator[Source]:
        yield from pictures(3)
        raise BiigmaError("the list is torn")

    results = classify(predictor, broken(), batch_size=2)
    names = [r.name for batch in (next(results), next(results)) for r in batch]
    assert names == ["0", "1", "2"]
    with pytest.raises(BiigmaError, match="torn"):
        next(results)


def test_views_are_the_squares_eight() -> None:
    """Each once, the first as it is."""
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    views = {turned(pixels, v).tobytes() for v in range(pipeline.VIEWS)}
    assert len(views) == 8
    assert np.array_equal(turned(pixels, 0), pixels)
    for transposed in (pixels.transpose(0, 2, 1, 3), pixels[:, ::-1], pixels[:, :, ::-1]):
        assert np.ascontiguousarray(transposed).tobytes() in views


def test_tta_averages_probabilities(predictor: Predictor) -> None:
    """The mean of eight answers, and so the same however the picture is turned."""
    image = noise(SIDE, SIDE, seed=3)
    sources = [
        Source("a", encode(image)),
        Source("b", encode(image.transpose(Image.Transpose.ROTATE_90))),
        Source("c", encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))),
    ]
    plain = flat(classify(predictor, sources))
    turned_ = flat(classify(predictor, sources, tta=True))
    pixels = load_image(encode(image), SIDE)[None]
    each = [predictor(turned(pixels, v)).probabilities_BY[0] for v in range(8)]
    assert np.ptp([r.probabilities_Y for r in plain], axis=0).max() > 1e-3
    for result in turned_:
        np.testing.assert_allclose(result.probabilities_Y, np.mean(each, 0), atol=1e-6)


def test_no_number_is_an_error(tmp_path: Path) -> None:
    """A model that gives NaN costs rows, not the batch."""
    broken = Predictor(toy_model(tmp_path / "nan.onnx", scale=float("inf")), device="cpu")
    (result,) = flat(classify(broken, pictures(1)))
    assert result.probabilities_Y is None
    assert "no number" in str(result.error)


# --- models ----------------------------------------------------------------------------------


def test_model_id_is_of_the_content(tmp_path: Path) -> None:
    """The name and a digest of the bytes."""
    first = model_id(toy_model(tmp_path / "a.onnx"))
    assert first.startswith("a@")
    assert len(first) == len("a@") + 12
    assert Predictor(tmp_path / "a.onnx", device="cpu").id == first
    assert model_id(toy_model(tmp_path / "a.onnx", scale=2)) != first


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"preprocessing": {"side": 32, "resize": RESIZE_RULES["squash"]}}, "its input is"),
        ({"classes": ["MEL", "NV"]}, "3 outputs for 2 classes"),
        ({"malignant": [True]}, "different lengths"),
    ],
)
def test_metadata_that_does_not_fit_the_graph(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    """Found before the first image."""
    path = toy_model(tmp_path / "odd.onnx", **changes)
    with pytest.raises(ModelFileError, match=word):
        Predictor(path, device="cpu")


@pytest.mark.parametrize("key", ["classes", "preprocessing", "licence"])
def test_missing_metadata(tmp_path: Path, key: str) -> None:
    """The missing key is named."""
    with pytest.raises(ModelFileError, match=key):
        Predictor(toy_model(tmp_path / "odd.onnx", **{key: None}), device="cpu")


def test_an_opset_of_the_future(tmp_path: Path) -> None:
    """A model that this ONNX Runtime cannot run is refused with its words."""
    path = toy_model(tmp_path / "new.onnx")
    proto = onnx.load(path)
    proto.opset_import[0].version = 999
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match=r"new\.onnx is not a model ONNX Runtime can load"):
        Predictor(path, device="cpu")


def test_another_input(tmp_path: Path) -> None:
    """The right metadata on a graph that takes something else."""
    path = toy_model(tmp_path / "other.onnx")
    proto = onnx.load(path)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "picture"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match="inputs are picture, not image"):
        Predictor(path, device="cpu")


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "beside.bin"])
def test_weights_in_other_files_are_refused(tmp_path: Path, place: str) -> None:
    """Inside or outside the model's folder: nothing but the one file is ever read."""
    path = toy_model(tmp_path / "model.onnx")
    proto = onnx.load(path)
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    (tmp_path / "beside.bin").write_bytes(weight.tobytes())  # one that could be loaded
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match="another file"):
        model_id(path)
    with pytest.raises(ModelFileError, match="another file"):
        Predictor(path, device="cpu")


# --- cores -----------------------------------------------------------------------------------


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with control groups."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                       "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/host/path\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ("4:cpu,cpuacct:/x\n", {"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
                                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 3),
        ("1:cpu:/\n", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                       "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "garbage\n"}, None),
        ("0::/\n", {}, None),
    ],
)  # fmt: skip
def test_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], cores: float | None
) -> None:
    """The least quota of the group and those around it, of either version."""
    assert cgroup_cpus(machine(tmp_path, groups, files)) == cores


def test_cores_follow_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded up, never below one, never above what the affinity allows."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, wanted in ((None, 8), (0.2, 1), (1.5, 2), (100.0, 8)):
        monkeypatch.setattr("biigma_cli.storage.cgroup_cpus", lambda _, q=quota: q)
        assert available_cpus() == wanted
