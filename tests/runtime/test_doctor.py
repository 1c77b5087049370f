"""Checks of an installation: each finding, and that nothing broken can end them."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from biigma_cli.data.manifest import Manifest, Record, save_manifest
from biigma_cli.errors import ModelFileError
from biigma_cli.runtime import doctor, providers, session
from biigma_cli.runtime.doctor import Check, diagnose, look_at_model
from tests.runtime.test_pipeline import toy_model

ORT = {
    "version": "1.31.1", "package": "onnxruntime-gpu", "cuda": "13.0", "file": "x",
    "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}  # fmt: skip
GPU = {"gpus": 1, "cuda": [13, 0], "fault": "", "code": 0}
NO_GPU = {"gpus": 0, "cuda": None, "fault": "there is no NVIDIA driver", "code": None}
MODEL = {"classes": ["MEL", "NV"], "side": 160, "sha256": "ab" * 32}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def the(checks: list[Check]) -> Check:
    """The only one; one that is not ok says why and what to do."""
    (check,) = checks
    if check.state != "ok":
        assert check.why
        assert check.fix
    json.dumps(check.facts)
    return check


def versions(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    """Let these distributions be installed, and no other."""

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)


def test_python() -> None:
    """The one that runs."""
    assert the(doctor._python()).state == "ok"


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too old is a problem."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert the(doctor._python()).state == "problem"


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """All there; one missing and one too old; biigma itself not installed."""
    lines = [
        "numpy>=2.0", "torch (>=2.11)", "pydicom>=3.0; extra == 'dicom'",
        "onnxruntime>=1.22; sys_platform != 'linux'",
    ]  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    versions(monkeypatch, {"numpy": "2.10.1", "torch": "2.11.0+cu132"})
    good = the(doctor._packages())
    assert (good.state, set(good.facts)) == ("ok", {"biigma", "numpy", "torch"})
    versions(monkeypatch, {"torch": "2.9.1"})
    bad = the(doctor._packages())
    assert bad.state == "problem"
    assert "numpy is missing, torch is 2.9.1, not >=2.11" in bad.found

    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    assert the(doctor._packages()).state == "warning"


@pytest.mark.parametrize(
    ("installed", "state", "fix"),
    [
        ({"onnxruntime-gpu": "1.31.1"}, "ok", ""),
        ({}, "problem", "pip install onnxruntime"),
        ({"onnxruntime-gpu": "1.31.1", "onnxruntime": "1.30.0"}, "problem",
         "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"),
        ({"onnxruntime": "1.31.1", "onnxruntime-openvino": "1.24.1"}, "problem",
         "pip uninstall -y onnxruntime onnxruntime-openvino && pip install onnxruntime"),
    ],
)  # fmt: skip
def test_wheels(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], state: str, fix: str
) -> None:
    """One ONNX Runtime, none, two."""
    versions(monkeypatch, installed)
    check = the(doctor._wheels())
    assert check.state == state
    assert check.fix.removeprefix("run: ") == fix
    assert check.facts == installed


def machine(root: Path, **files: str) -> Path:
    """A tree with `proc` and `sys`; `__` stands for a slash, `_dot_` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory(tmp_path: Path) -> None:
    """Both versions of control groups, the least limit, none, and too little."""
    root = machine(
        tmp_path,
        proc__meminfo="MemTotal:       16000000 kB\nMemAvailable:   8000000 kB\nx\n",
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__memory_dot_max="5000000000\n",
        sys__fs__cgroup__a__b__memory_dot_max="max\n",
    )
    check = the(doctor._memory(root))
    assert check.state == "ok"
    assert check.facts == {"total": 16_384_000_000, "available": 8_192_000_000,
                           "limit": 5_000_000_000}  # fmt: skip
    machine(root, sys__fs__cgroup__a__memory_dot_max="500000000\n")
    assert the(doctor._memory(root)).state == "warning"
    machine(root, proc__self__cgroup="4:cpu,cpuacct:/x\n7:memory:/x\n")
    limit = root / "sys/fs/cgroup/memory/x/memory.limit_in_bytes"
    limit.parent.mkdir(parents=True)
    limit.write_text("9223372036854771712\n")
    assert the(doctor._memory(root)).facts["limit"] is None
    limit.write_text("2000000000\n")
    assert the(doctor._memory(root)).facts["limit"] == 2_000_000_000
    assert doctor.cgroup_memory(tmp_path / "nowhere") is None


def test_processors(tmp_path: Path) -> None:
    """A quota below one core is worth a warning."""
    root = machine(
        tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_dot_max="150000 100000\n"
    )
    assert the(doctor._processors(root)).facts["quota"] == 1.5
    machine(root, sys__fs__cgroup__cpu_dot_max="50000 100000\n")
    assert the(doctor._processors(root)).state == "warning"


def test_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writable, not there yet (and not made), little room, a read-only disk, a file."""
    assert the(doctor._data_folder()).state in ("ok", "warning")  # by the disk there is
    assert not list(folder.iterdir())
    for free, state in ((1e12, "ok"), (1e9, "warning"), (1e6, "problem")):
        usage = SimpleNamespace(free=int(free))
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert the(doctor._data_folder()).state == state
    folder.rmdir()
    later = the(doctor._data_folder())
    assert later.facts["exists"] is False
    assert not folder.exists()
    folder.mkdir()

    def read_only(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", read_only)
    check = the(doctor._data_folder())
    assert check.state == "problem"
    assert "Read-only" in check.found
    folder.rmdir()
    folder.write_text("")
    assert "is no folder" in the(doctor._data_folder()).found


def test_data_sets(folder: Path, tmp_path: Path) -> None:
    """None; one that is whole, partial, without its images, damaged."""
    assert "none is recorded" in the(doctor._data_sets()).found
    records = tuple(
        Record(image_id=f"a{i}", path=f"a{i}.jpg", label="A", lesion_id="", digest="0")
        for i in range(3)
    )
    for record in records:
        (tmp_path / record.path).write_bytes(b"x")
    whole: dict[str, Any] = {
        "dataset": "mine", "root": tmp_path, "records": records, "licence": "CC0-1.0",
        "citation": "", "codes": ("A", "B"),
    }  # fmt: skip
    path = save_manifest(Manifest(**whole))
    check = the(doctor._data_sets())
    assert (check.name, check.state, check.facts["images"]) == ("data set mine", "ok", 3)
    save_manifest(Manifest(**whole, missing=2))
    assert "2 missing" in the(doctor._data_sets()).found
    (tmp_path / "a1.jpg").unlink()
    check = the(doctor._data_sets())
    assert (check.state, check.facts["gone"]) == ("problem", ["a1.jpg"])
    path.write_text("{")
    check = the(doctor._data_sets())
    assert check.state == "problem"
    assert "biigma datasets remove mine" in check.fix


def test_cache(folder: Path) -> None:
    """Empty, and with an entry that was never finished."""
    assert the(doctor._cache()).facts["entries"] == 0
    entry = folder / "cache" / "isic18-64-squash-0123456789ab"
    entry.mkdir(parents=True)
    (entry / "pixels.npy").write_bytes(bytes(2000))
    check = the(doctor._cache())
    assert (check.state, check.facts["bytes"]) == ("warning", 2000)


def test_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings are shown without passwords; what cannot work is a problem."""
    variables = ("BIIGMA_MIRROR", "BIIGMA_OFFLINE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
                 "SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "HTTP_PROXY",
                 "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")  # fmt: skip
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    assert "not offline" in the(doctor._network()).found
    monkeypatch.setenv("BIIGMA_OFFLINE", "1")
    monkeypatch.setenv("BIIGMA_MIRROR", "https://me:secret@mirror.example/isic")
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("http_proxy", "me:secret@proxy.example:3128")
    check = the(doctor._network())
    assert check.state == "ok"
    assert check.facts["offline"] is True
    assert check.facts["mirror"] == "https://mirror.example/isic"
    assert check.facts["proxies"]["http"] == "proxy.example:3128"
    assert "secret" not in f"{check}"
    monkeypatch.setenv("BIIGMA_MIRROR", "ftp://me:secret@mirror.example")
    check = the(doctor._network())
    assert check.state == "problem"
    assert "secret" not in f"{check}"
    monkeypatch.delenv("BIIGMA_MIRROR")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    assert "gone.pem, which is not there" in the(doctor._network()).found
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))  # goes before it
    assert the(doctor._network()).state == "ok"


def test_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is no fault, and how to get it is said."""
    versions(monkeypatch, {"pydicom": "3.0.2"})
    found = {c.name: c for c in doctor._extras()}
    assert {c.state for c in found.values()} == {"ok"}
    assert found["pydicom"].found == "3.0.2"
    assert "pip install openvino" in found["openvino"].found


def native(*, end: str = "", errors: dict[str, tuple[str, str]] | None = None, **facts: Any) -> Any:
    """What a process could have found."""
    found = doctor._Native(RuntimeError("not started"))
    found.end, found.errors, found.facts = end, errors or {}, facts
    return found


def test_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole; with another wheel's files; not to be imported; ended by a signal."""
    versions(monkeypatch, {"onnxruntime-gpu": "1.31.1"})
    assert "built for CUDA 13.0" in the(doctor._judge_onnxruntime(native(onnxruntime=ORT))).found
    mixed = {**ORT, "package": "onnxruntime"}
    check = the(doctor._judge_onnxruntime(native(onnxruntime=mixed)))
    assert (check.state, "overwritten" in check.why) == ("problem", True)
    failed = native(errors={"onnxruntime": ("ImportError: DLL load failed", "")})
    assert "DLL load failed" in the(doctor._judge_onnxruntime(failed)).found
    assert "SIGILL" in the(doctor._judge_onnxruntime(native(end="ended by SIGILL"))).found


@pytest.mark.parametrize(
    ("driver", "ort", "torch", "state", "told"),
    [
        (NO_GPU, ORT, "13.2", "ok", "not used"),
        ({**NO_GPU, "code": 100}, ORT, "13.2", "ok", "not used"),
        ({**NO_GPU, "code": 803, "fault": "of different versions"}, ORT, "13.2", "warning",
         "different versions"),
        (GPU, ORT, "13.2", "ok", "driver for CUDA up to 13.0"),
        (GPU, ORT, None, "ok", "torch for none"),
        (GPU, ORT, "12.8", "warning", "torch for 12.8"),
        ({**GPU, "cuda": [12, 4]}, ORT, "12.8", "problem", "up to 12.4"),
        (GPU, {**ORT, "providers": []}, "13.2", "warning", "no CUDA provider"),
    ],
)  # fmt: skip
def test_cuda(
    monkeypatch: pytest.MonkeyPatch, driver: Any, ort: Any, torch: str | None, state: str, told: str
) -> None:
    """The three CUDA versions against one another."""
    monkeypatch.setattr(doctor, "torch_cuda", lambda: torch)
    check = the(doctor._judge_cuda(native(onnxruntime=ort, driver=driver)))
    assert check.state == state
    assert told in check.found


def test_cuda_unknown() -> None:
    """A driver that crashes is a problem; without ONNX Runtime there is nothing to say."""
    crashed = native(onnxruntime=ORT, errors={"driver": ("ended by SIGSEGV", "")})
    assert "SIGSEGV" in the(doctor._judge_cuda(crashed)).found
    assert doctor._judge_cuda(native()) == doctor._judge_libraries(native()) == []


def test_cuda_libraries() -> None:
    """Missing ones matter where there is a GPU."""
    facts = {"missing": {"libcurand.so.10": "gone"}, "fix": "get it"}
    here = native(onnxruntime=ORT, driver=GPU, libraries=facts)
    check = the(doctor._judge_libraries(here))
    assert (check.state, check.fix) == ("problem", "get it")
    assert "libcurand.so.10" in check.found
    idle = native(onnxruntime=ORT, driver=NO_GPU, libraries=facts)
    assert the(doctor._judge_libraries(idle)).state == "ok"
    none = {"missing": {}, "fix": ""}
    whole = native(onnxruntime=ORT, driver=GPU, libraries=none)
    assert the(doctor._judge_libraries(whole)).state == "ok"
    crashed = native(onnxruntime=ORT, driver=GPU, errors={"libraries": ("ended by SIGBUS", "")})
    assert the(doctor._judge_libraries(crashed)).state == "problem"


@pytest.mark.parametrize(
    ("line", "version"),
    [("cuda: Optional[str] = '13.2'", "13.2"), ("cuda = \"12.4\"", "12.4"),
     ("cuda: Optional[str] = None", None), ("", None)],
)  # fmt: skip
def test_torch_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, version: str | None
) -> None:
    """Read from the file that torch has it in."""
    (tmp_path / "version.py").write_text(f"__version__ = '2'\n{line}\nhip: Optional[str] = '6'\n")
    found = SimpleNamespace(locate_file=lambda name: tmp_path)
    monkeypatch.setattr(metadata, "distribution", lambda name: found)
    assert doctor.torch_cuda() == version
    (tmp_path / "version.py").unlink()
    assert doctor.torch_cuda() is None


def test_models() -> None:
    """Good, damaged, crashed, none, and none without ONNX Runtime."""
    both = native(
        onnxruntime=ORT,
        errors={"model b": ("ModelFileError: b.onnx is damaged", "export it")},
        **{"model a": MODEL},
    )
    good, bad = doctor._judge_models(both)
    assert (good.state, good.facts["sha256"]) == ("ok", "ab" * 32)
    assert (bad.state, bad.found, bad.fix) == ("problem", "b.onnx is damaged", "export it")
    assert "none is shipped" in the(doctor._judge_models(native(onnxruntime=ORT))).why
    assert "ONNX Runtime" in the(doctor._judge_models(native())).why
    broken = native(onnxruntime=ORT, errors={"models": ("ImportError: numpy", "")})
    assert "numpy" in the(doctor._judge_models(broken)).why


def test_a_missing_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other models are there, so somebody took it away: predict would fail."""
    toy_model(tmp_path / "other.onnx")
    monkeypatch.setattr(session, "models_dir", lambda: tmp_path)
    monkeypatch.delenv("BIIGMA_MODEL", raising=False)
    steps = dict(doctor._steps())
    assert f"model {session.DEFAULT_MODEL}" in steps
    with pytest.raises(ModelFileError, match=session.DEFAULT_MODEL):
        steps[f"model {session.DEFAULT_MODEL}"]()
    toy_model(tmp_path / f"{session.DEFAULT_MODEL}.onnx")
    assert [s for s, _ in doctor._steps()].count(f"model {session.DEFAULT_MODEL}") == 1


def test_look_at_model(tmp_path: Path) -> None:
    """Its sum, its answer to a grey image; without numbers it is refused."""
    facts = look_at_model(toy_model(tmp_path / "toy.onnx"))
    assert len(facts["sha256"]) == 64
    assert sum(facts["grey"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ModelFileError, match="no number"):
        look_at_model(toy_model(tmp_path / "nan.onnx", scale=float("inf")))
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "toy.onnx").read_bytes()[:300])
    with pytest.raises(ModelFileError, match=r"cut\.onnx"):
        look_at_model(tmp_path / "cut.onnx")


def running(script: str) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts a process that does this in the place of `probe`."""
    command = [sys.executable, "-I", "-S", "-c", script]
    return lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def ending(script: str) -> dict[str, Check]:
    """The findings about native code."""
    names = {"onnxruntime", "cuda", "cuda libraries", "openvino runtime", "models"}
    checks = list(diagnose(start=running(script)))
    return {c.name: c for c in checks if c.name in names or c.name.startswith("model ")}


def test_process_that_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step it was in is named, those before it count."""
    versions(monkeypatch, {"onnxruntime-gpu": "1.31.1"})
    script = (
        f"import os\nprint('noise')\nprint({json.dumps({'step': 'onnxruntime', 'facts': ORT})!r})\n"
        """print('{"step": "model a"}', flush=True)\nos.kill(os.getpid(), 4)"""
    )
    found = ending(script)
    assert found["onnxruntime"].state == "ok"
    assert "SIGILL" in found["model a"].found
    assert found["cuda"].state == "problem"


def test_process_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended."""
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    found = ending("import time\ntime.sleep(600)")
    assert "0.5 s" in found["onnxruntime"].found


def test_everything_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever each check raises is a finding; there is one for every check."""

    def fails(error: Exception) -> Callable[..., list[Check]]:
        def check(*_: Any) -> list[Check]:
            raise error

        return check

    errors = (ImportError("no numpy"), OSError(5, "I/O error"), RuntimeError(), KeyError("x\ny"))
    plain = tuple((f"check {i}", fails(e)) for i, e in enumerate(errors))
    monkeypatch.setattr(doctor, "_PLAIN", plain)
    monkeypatch.setattr(doctor, "_NATIVE", (("native", fails(SystemError("null"))),))
    checks = list(diagnose(start=fails(FileNotFoundError("no python"))))  # type: ignore[arg-type]
    assert [c.name for c in checks] == [*(n for n, _ in plain), "native"]
    assert {c.state for c in checks} == {"problem"}
    assert "ImportError: no numpy" in checks[0].found


def test_damaged_metadata(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of packages that cannot be read, and no Python to start: still findings only."""

    def broken(*_: Any) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    for name in ("version", "requires", "distribution"):
        monkeypatch.setattr(metadata, name, broken)
    monkeypatch.setattr(providers.sys, "executable", "/nowhere/python")
    checks = {c.name: c for c in diagnose()}
    assert checks["packages"].state == "problem"
    assert checks["onnxruntime wheel"].state == "problem"
    assert "no process could be started" in checks["onnxruntime"].found
    assert checks["data folder"].state in ("ok", "warning", "problem")
