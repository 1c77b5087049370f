"""Which execution providers can be had, why not the others, and sessions that use them."""

from __future__ import annotations

import ctypes
import importlib.machinery
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biigma_cli.errors import DeviceError, UsageError
from biigma_cli.runtime import providers
from biigma_cli.runtime.pipeline import check_model
from biigma_cli.runtime.providers import (
    PROVIDERS,
    Choice,
    Driver,
    Fault,
    choose,
    missing_libraries,
    needed_libraries,
    nvidia_driver,
    parse_device,
    preload,
)
from biigma_cli.runtime.session import Predictor, _own_cache
from tests.runtime.test_pipeline import SIDE, toy_model

GPU = Driver(2, (13, 0), "", 0)
ALL = [PROVIDERS["tensorrt"], PROVIDERS["cuda"], PROVIDERS["coreml"], PROVIDERS["cpu"]]


def fake_ort(available: list[str], *, cuda: str = "13.0", name: str = "onnxruntime") -> Any:
    """As much of the module as is asked."""
    return SimpleNamespace(
        __name__=name,
        __version__="1.31.1",
        cuda_version=cuda,
        get_available_providers=lambda: available,
        preload_dlls=lambda: print("Failed to load libcurand.so.10"),
    )


def elf(*needed: str) -> bytes:
    """The least of a shared library: one segment, its dynamic section, names."""
    strings = b"\0" + b"".join(n.encode() + b"\0" for n in needed)
    base, table = 0x1000, 64 + 2 * 56
    at = [1 + sum(len(n) + 1 for n in needed[:i]) for i in range(len(needed))]
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in at)
    dynamic += struct.pack("<QQQQ", 5, base + table, 0, 0)
    start = table + len(strings)
    size = start + len(dynamic)
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14)
    head += struct.pack("<HH", 56, 2) + bytes(64 - 58)
    load = struct.pack("<IIQQQQQQ", 1, 0, 0, base, base, size, size, 8)
    pointed = struct.pack("<IIQQQQQQ", 2, 0, start, base + start, 0, len(dynamic), 0, 8)
    return head + load + pointed + strings + dynamic


def test_engines_are_of_one_model_alone() -> None:
    """TensorRT's cache does not mix up models of one graph and other weights."""
    wanted = choose(fake_ort(ALL), "auto", gpu=lambda: False).providers
    own = "light@0123456789ab"
    assert _own_cache(wanted, own) == list(wanted)
    engines = ("T", {"trt_engine_cache_path": str(Path("cache", "tensorrt")), "device_id": "1"})
    ((name, options), other) = _own_cache([engines, ("C", {})], own)
    assert (name, options["device_id"], other) == ("T", "1", ("C", {}))
    assert Path(options["trt_engine_cache_path"]) == Path("cache", "tensorrt", own)
    assert "light" not in engines[1]["trt_engine_cache_path"]


@pytest.mark.parametrize(
    ("device", "parsed"),
    [("auto", ("auto", 0)), ("cuda", ("cuda", 0)), ("cuda:3", ("cuda", 3)),
     ("tensorrt:1", ("tensorrt", 1)), ("openvino", ("openvino", 0))],
)  # fmt: skip
def test_devices(device: str, parsed: tuple[str, int]) -> None:
    """Names, and GPUs by number."""
    assert parse_device(device) == parsed


@pytest.mark.parametrize("device", ["", "mps", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_unknown_devices(device: str) -> None:
    """Anything else is a usage error that lists the names."""
    with pytest.raises(UsageError, match="unknown device") as caught:
        parse_device(device)
    assert "openvino" in caught.value.fix


def test_needed_libraries(tmp_path: Path) -> None:
    """Names are read in order; no other file gives any."""
    path = tmp_path / "lib.so"
    path.write_bytes(elf("libc.so.6", "libcurand.so.10"))
    assert needed_libraries(path) == ("libc.so.6", "libcurand.so.10")
    path.write_bytes(b"MZ" + bytes(100))
    assert needed_libraries(path) == ()


@settings(deadline=None)
@given(st.data())
def test_damaged_libraries(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut short or with wrong bytes: an answer, never an exception."""
    path = tmp_path_factory.getbasetemp() / "damaged.so"
    content = bytearray(elf("libc.so.6", "libm.so.6"))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert isinstance(needed_libraries(path), tuple)


@pytest.mark.skipif(sys.platform != "linux", reason="shared libraries are looked up on Linux")
def test_missing_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loader does not find is named; the rest is not."""
    capi = tmp_path / "fake_ort" / "capi"
    capi.mkdir(parents=True)
    (capi.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    ort = fake_ort(ALL, name="fake_ort")
    absent = "libonnxruntime_providers_cuda.so"
    assert missing_libraries(ort, "cuda") == {absent: "it is not in the onnxruntime package"}
    (capi / absent).write_bytes(elf("libc.so.6", "libcuda.so.1", "libnowhere.so.7"))
    missing = missing_libraries(ort, "cuda")
    assert "cannot open shared object" in missing["libnowhere.so.7"]
    assert not {"libc.so.6", "libcuda.so.1"} & set(missing)
    fault = providers.libraries_fault(ort, "cuda")
    assert fault is not None
    assert "built for CUDA 13.0, lacks libnowhere.so.7" in fault.cause
    assert "onnxruntime-gpu[cuda,cudnn]" in fault.fix
    (capi / "libonnxruntime_providers_tensorrt.so").write_bytes(elf("libnvinfer.so.99"))
    fault = providers.libraries_fault(ort, "tensorrt")
    assert fault is not None
    assert fault.fix.endswith("tensorrt-cu13")


def test_preload_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """What ONNX Runtime prints would stand among the results."""
    assert preload(fake_ort(ALL)) == "Failed to load libcurand.so.10"
    broken = fake_ort(ALL)
    broken.preload_dlls = lambda: 1 / 0
    assert "division" in preload(broken)
    assert capsys.readouterr().out == ""


class FakeCuda:
    """The driver's library."""

    def __init__(self, code: int, gpus: int, version: int) -> None:
        self.code, self.gpus, self.version = code, gpus, version

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0


@pytest.mark.parametrize(
    ("code", "gpus", "told"),
    [(100, 0, "finds no GPU"), (803, 0, "different versions"), (999, 0, "error 999"),
     (0, 0, "finds no GPU")],
)  # fmt: skip
def test_driver_faults(monkeypatch: pytest.MonkeyPatch, code: int, gpus: int, told: str) -> None:
    """Each answer of the driver is said in words."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda(code, gpus, 12040))
    driver = nvidia_driver()
    assert (driver.gpus, driver.cuda) == (0, (12, 4))
    assert told in driver.fault
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ("CUDA_VISIBLE_DEVICES is ''" in nvidia_driver().fault) == (code in (0, 100))


def test_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that works, none, one that cannot be loaded, and something else of its name."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCuda(0, 2, 13010))
    assert nvidia_driver() == Driver(2, (13, 1), "", 0)
    for text, told in (("cannot open shared object file", "missing"), ("wrong ELF", "broken: ")):

        def fails(name: str, text: str = text) -> None:
            raise OSError(f"{name}: {text}")

        monkeypatch.setattr(ctypes, "CDLL", fails)
        assert told in nvidia_driver().fault
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert "is no NVIDIA driver" in nvidia_driver().fault


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which CUDA works; what is done to it is undone."""
    monkeypatch.setattr(providers, "nvidia_driver", lambda: GPU)
    monkeypatch.setattr(providers, "missing_libraries", lambda ort, name: {})
    return monkeypatch


def names(choice: Choice) -> list[str]:
    """The providers in order."""
    return [name for name, _ in choice.providers]


def test_choice_with_a_gpu(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked for comes first and must run; `auto` may fall back."""
    gpu.setenv("BIIGMA_HOME", str(tmp_path))
    auto, cuda, trt = (choose(fake_ort(ALL), n, i) for n, i in
                       (("auto", 0), ("cuda", 1), ("tensorrt", 1)))  # fmt: skip
    assert names(auto) == names(cuda) == [PROVIDERS["cuda"], PROVIDERS["cpu"]]
    assert (auto.required, cuda.required) == ("", PROVIDERS["cuda"])
    assert cuda.providers[0][1] == {"device_id": "1"}
    assert cuda.place == trt.place == ("cuda", 1)
    assert names(trt) == [PROVIDERS["tensorrt"], PROVIDERS["cuda"], PROVIDERS["cpu"]]
    assert trt.providers[0][1]["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert choose(fake_ort(ALL), "coreml").required == PROVIDERS["coreml"]
    assert names(choose(fake_ort(ALL), "cpu")) == [PROVIDERS["cpu"]]
    assert not list(tmp_path.iterdir())


def test_auto_without_a_gpu() -> None:
    """The CPU, and nothing is loaded for CUDA."""
    ort = fake_ort(ALL)
    ort.preload_dlls = lambda: pytest.fail("loaded")
    assert choose(ort, "auto", gpu=lambda: False) == choose(ort, "cpu")
    assert choose(fake_ort([PROVIDERS["cpu"]]), "auto", gpu=lambda: True) == choose(ort, "cpu")


def refused(ort: Any, name: str, index: int = 0) -> DeviceError:
    """The error."""
    with pytest.raises(DeviceError) as caught:
        choose(ort, name, index)
    assert caught.value.exit_code == 4
    assert "--device cpu" in caught.value.fix
    return caught.value


def test_refusals(gpu: pytest.MonkeyPatch) -> None:
    """Each says its cause: no such provider, no GPU of that number, old driver, library, driver."""
    bare = fake_ort([PROVIDERS["cpu"]], cuda="")
    gpu.setattr(providers, "wheels", lambda: {"onnxruntime": "1"})
    for name, title in (("cuda", "CUDA"), ("tensorrt", "TensorRT"), ("coreml", "CoreML")):
        assert f"has no {title} provider" in refused(bare, name).message
    gpu.setattr(providers, "wheels", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    error = refused(bare, "cuda")
    assert "overwrite each other" in error.message
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in error.fix
    assert "has 2 CUDA devices" in refused(fake_ort(ALL), "cuda", 2).message
    gpu.setattr(providers, "missing_libraries", lambda ort, name: {"libcurand.so.10": "gone"})
    assert "lacks libcurand.so.10: gone" in refused(fake_ort(ALL), "cuda").message
    gpu.setattr(providers, "nvidia_driver", lambda: Driver(1, (12, 4), "", 0))
    old = refused(fake_ort(ALL), "cuda").message
    assert "built for CUDA 13.0" in old
    assert "up to 12.4" in old
    gpu.setattr(providers, "nvidia_driver", lambda: Driver(0, None, "it sleeps", 802))
    assert refused(fake_ort(ALL), "tensorrt").message == "no CUDA device: it sleeps"


def test_openvino_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is its package."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
    assert "pip install openvino" in refused(fake_ort(ALL), "openvino").fix


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    return toy_model(tmp_path_factory.mktemp("toy") / "toy.onnx")


def pixels(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def test_bound_inputs_and_outputs(toy: Path) -> None:
    """By IO binding the answers are the same: new sizes, the same size again, a turned view."""
    predictor = Predictor(toy, device="cpu")
    batches = [pixels(3), pixels(3, 1), pixels(1, 2), pixels(3, 3)[:, ::-1]]
    plain = [predictor(batch).probabilities_BY for batch in batches]
    predictor._place = ("cpu", 0)
    for batch, expected in zip(batches, plain, strict=True):
        np.testing.assert_array_equal(predictor(batch.copy()).probabilities_BY, expected)
    assert not np.array_equal(plain[0], plain[1])


def test_silent_fallback_is_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for CUDA, got the CPU: an error. With `auto`: the CPU, and why."""
    cpu = ((PROVIDERS["cpu"], {}),)
    asked = Choice(providers=cpu, required=PROVIDERS["cuda"], place=("cuda", 0))
    monkeypatch.setattr(providers, "choose", lambda *a, **k: asked)
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider"):
        Predictor(toy, device="cuda")
    any_will_do = Choice(providers=cpu, place=("cuda", 0))
    monkeypatch.setattr(providers, "choose", lambda *a, **k: any_will_do)
    monkeypatch.setattr(providers, "find_fault", lambda *a, **k: Fault("no libcurand", "get it"))
    predictor = Predictor(toy)
    assert (predictor.provider, predictor.fallback) == (PROVIDERS["cpu"], "no libcurand")
    assert np.isfinite(predictor(pixels(2)).probabilities_BY).all()


def fake_openvino(model: Path) -> ModuleType:
    """A module whose compiled model is answered by ONNX Runtime."""
    session = Predictor(model, device="cpu").session
    outputs = [o.name for o in session.get_outputs()]

    def infer(inputs: Any) -> dict[str, Any]:
        return dict(zip(outputs, session.run(outputs, inputs), strict=True))

    def infer_one(inputs: Any) -> dict[str, Any]:
        assert len(inputs["image"]) == 1
        return infer(inputs)

    def reshape(shapes: dict[str, list[int]]) -> None:
        assert shapes["image"][0] == 1

    def read_model(path: str) -> Any:
        assert Path(path) == model
        return SimpleNamespace(reshape=reshape)

    def compile_model(graph: Any, device: str, settings: dict[str, Any]) -> Any:
        assert (graph.reshape, device) == (reshape, "CPU")
        assert settings["INFERENCE_PRECISION_HINT"] == "f32"
        return SimpleNamespace(
            create_infer_request=lambda: SimpleNamespace(infer=infer_one),
            get_property=lambda name: 2,
        )

    module = ModuleType("openvino")
    module.__spec__ = importlib.machinery.ModuleSpec("openvino", None)
    module.Core = lambda: SimpleNamespace(read_model=read_model, compile_model=compile_model)  # type: ignore[attr-defined]
    return module


def test_openvino(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used like a session; where it fails, that is a device error."""
    module = fake_openvino(toy)
    monkeypatch.setitem(sys.modules, "openvino", module)
    predictor = Predictor(toy, device="openvino")
    check_model(predictor)
    assert predictor.provider == "OpenVINO"
    expected = Predictor(toy, device="cpu")(pixels(3))
    np.testing.assert_allclose(predictor(pixels(3)).logits_BY, expected.logits_BY, atol=1e-5)
    module.Core = lambda: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match=r"OpenVINO cannot run toy\.onnx: division by zero"):
        Predictor(toy, device="openvino")


def test_real_openvino(toy: Path) -> None:
    """The package itself, where it is installed."""
    pytest.importorskip("openvino")
    predictor = Predictor(toy, device="openvino")
    expected = Predictor(toy, device="cpu")
    for batch in (pixels(1), pixels(4, 1)):
        found, wanted = predictor(batch).probabilities_BY, expected(batch).probabilities_BY
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.gpu
def test_real_cuda(toy: Path) -> None:
    """On a GPU: bound inputs, the answers of the CPU."""
    if not providers.has_gpu():
        pytest.skip("no GPU")
    predictor = Predictor(toy, device="cuda")
    expected = Predictor(toy, device="cpu")
    assert predictor.provider == PROVIDERS["cuda"]
    for batch in (pixels(4), pixels(4, 1), pixels(2, 2)):
        found, wanted = predictor(batch).probabilities_BY, expected(batch).probabilities_BY
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_batch_size() -> None:
    assert providers.batch_size("CPUExecutionProvider") == 8
    assert providers.batch_size("OpenVINO") == 8
    assert providers.batch_size("CUDAExecutionProvider") == 64
