"""What is wrong with an installation: each check says what it found, why it matters, what to do.

Whatever loads native code (ONNX Runtime, the CUDA libraries, OpenVINO) runs in a process of its
own: one that is killed or hangs is then a finding, too.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from biigma_cli.errors import AGAIN

FORMAT = "biigma-doctor-1"
State = Literal["ok", "warning", "problem"]
Facts = dict[str, Any]

# Seconds after which the process with the native code is ended.
PATIENCE = 180.0
# Bytes: less free space is a problem, or a warning.
LITTLE_ROOM, SOME_ROOM = 100e6, 3e9
# Bytes of memory that `biigma predict` should have.
SOME_MEMORY = 1e9
# How many recorded images are looked for, per data set.
SAMPLE = 64
OURS = "biigma"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        name: of the check.
        state: `ok`, `warning` (it works, with a loss) or `problem` (something will not work).
        found: what is there.
        why: why that matters; empty where it is ok.
        fix: what to do; empty where there is nothing to do.
        facts: the same for machines.
    """

    name: str
    state: State
    found: str
    why: str = ""
    fix: str = ""
    facts: Facts = field(default_factory=dict)


Checks = list[Check]


def diagnose(
    *, start: Callable[[], subprocess.Popen[bytes]] | None = None
) -> Generator[Check, None, None]:
    """All checks, as they are done. Raises nothing, whatever is broken.

    Args:
        start: starts the process that runs `probe`; default: this Python.
    """
    try:
        process: subprocess.Popen[bytes] | Exception = (start or _start_probe)()
    except Exception as error:
        process = error
    try:
        for name, check in _PLAIN:
            yield from _guarded(name, check)
        native = _Native(process)
        for name, judge in _NATIVE:
            yield from _guarded(name, functools.partial(judge, native))
    finally:
        if not isinstance(process, Exception):
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _guarded(name: str, check: Callable[[], Checks]) -> Checks:
    try:
        return check()
    except Exception as error:  # a finding like others
        return [
            Check(
                name=name,
                state="problem",
                found=f"could not be looked at: {_told(error)}",
                why="a package it needs is broken, or this is a fault of biigma",
                fix=f"run: {AGAIN}",
            )
        ]


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _python() -> Checks:
    facts = {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "executable": sys.executable,
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
    }
    found = (
        f"{facts['implementation']} {facts['version']}, {facts['bits']} bit, {facts['machine']}, "
        f"{facts['executable']}"
    )
    if sys.version_info < (3, 11) or facts["bits"] != 64:
        return [
            Check(
                name="python", state="problem", found=found, facts=facts,
                why="biigma needs Python 3.11 or newer, of 64 bit",
                fix="make an environment with such a Python",
            )
        ]  # fmt: skip
    return [Check(name="python", state="ok", found=found, facts=facts)]


def version_of(package: str) -> str | None:
    """An installed distribution's version; None where there is none or its record is damaged."""
    try:
        return str(metadata.version(package) or "") or None
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Checks:
    """What biigma's own metadata requires, against what is installed."""
    from biigma_cli import __version__

    try:
        wanted = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        return [
            Check(
                name="packages", state="warning", found=f"biigma {__version__}, not installed",
                why="it runs from a folder, so nothing says which packages it needs",
                fix="run in that folder: pip install -e .",
            )
        ]  # fmt: skip
    faults, versions = [], {OURS: __version__}
    for line in wanted:
        told = re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(;.*)?", line)
        # With a condition: an extra, or ONNX Runtime, which has a check of its own.
        if told is None or told[3]:
            continue
        name, bounds = told[1], told[2].strip()
        version = version_of(name)
        versions[name] = version or ""
        if version is None:
            faults.append(f"{name} is missing")
        elif not _satisfies(version, bounds):
            faults.append(f"{name} is {version}, not {bounds}")
    count = len(versions) - 1 - sum(f.endswith("is missing") for f in faults)
    about = f"biigma {__version__}, {count} packages; torch {versions.get('torch') or 'missing'}"
    if faults:
        return [
            Check(
                name="packages", state="problem", found=f"{about}; {', '.join(faults)}",
                why="commands that need them fail", fix=f"run: {AGAIN}", facts=versions,
            )
        ]  # fmt: skip
    return [Check(name="packages", state="ok", found=about, facts=versions)]


def _satisfies(version: str, bounds: str) -> bool:
    """Lower bounds only, which are all that biigma's metadata has."""
    for bound in re.findall(r">=\s*([\d.]+)", bounds):
        if _numbers(version) < _numbers(bound):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in found[0].split(".")] if found else []
    return tuple([*numbers, 0, 0, 0][: max(3, len(numbers))])


def _wheels() -> Checks:
    from biigma_cli.runtime.providers import reinstall, wheels

    found = wheels()
    text = ", ".join(f"{n} {v}" for n, v in found.items()) or "none"
    if len(found) == 1:
        return [Check(name="onnxruntime wheel", state="ok", found=text, facts=dict(found))]
    return [
        Check(
            name="onnxruntime wheel",
            state="problem",
            found=text,
            why="they overwrite each other's files: providers vanish, or the import fails"
            if found
            else "predict cannot run without it",
            fix=f"run: {reinstall(found)}" if found else "run: pip install onnxruntime",
            facts=dict(found),
        )
    ]


def _processors(root: Path = Path("/")) -> Checks:
    from biigma_cli.storage import available_cpus, cgroup_cpus

    quota = cgroup_cpus(root)
    facts = {"machine": os.cpu_count(), "usable": available_cpus(), "quota": quota}
    text = f"{facts['usable']} of {facts['machine']} cores"
    if quota is not None:
        text += f", a control group allows {quota:g} cores' worth of time"
    if quota is not None and quota < 1:
        return [
            Check(
                name="processors", state="warning", found=text, facts=facts,
                why="with less than one core everything is slow", fix="raise the CPU limit",
            )
        ]  # fmt: skip
    return [Check(name="processors", state="ok", found=text, facts=facts)]


def _memory(root: Path = Path("/")) -> Checks:
    from biigma_cli.data.sources import human

    total, available = memory(root)
    limit = cgroup_memory(root)
    if limit is not None and total is not None and limit >= total:
        limit = None
    facts = {"total": total, "available": available, "limit": limit}
    if total is None:
        return [Check(name="memory", state="ok", found="not known on this system", facts=facts)]
    text = human(total)
    text += "" if available is None else f", {human(available)} available"
    text += "" if limit is None else f", a control group allows {human(limit)}"
    least = min(n for n in (total, available, limit) if n is not None)
    if least < SOME_MEMORY:
        return [
            Check(
                name="memory", state="warning", found=text, facts=facts,
                why=f"less than {human(SOME_MEMORY)} may end a command half-way",
                fix="end other programs, raise the limit, or use a smaller --batch-size",
            )
        ]  # fmt: skip
    return [Check(name="memory", state="ok", found=text, facts=facts)]


def memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Bytes of memory in all, and available, where the system says."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
        except (AttributeError, OSError, ValueError):  # Windows has none of these
            return None, None
    sizes = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def cgroup_memory(root: Path = Path("/")) -> int | None:
    """Bytes that control groups (v2's `memory.max`, v1's limit) allow this process, if they say.

    The least over its group and those around it. Version 1 says "no limit" by a huge number.
    """
    from biigma_cli.storage import cgroup_folders

    limits = []
    for group in cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                limits.append(int((group / name).read_text(encoding="utf-8")))
            except (OSError, ValueError):  # `max` is no number: no limit
                continue
    return min(limits, default=None)


def _data_folder() -> Checks:
    from biigma_cli.data.sources import human
    from biigma_cli.storage import home

    folder = home()
    facts: Facts = {"path": str(folder), "exists": folder.is_dir()}
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    fault = ""
    if not there.is_dir():
        fault = f"{there} is no folder"
    elif not facts["exists"]:
        if not os.access(there, os.W_OK | os.X_OK):
            fault = f"it cannot be made: {there} cannot be written"
    else:
        try:
            with tempfile.TemporaryFile(dir=folder, prefix=".doctor-") as file:
                file.write(b"biigma")
                file.flush()
        except OSError as error:
            fault = f"it cannot be written: {error.strerror or error}"
    if fault:
        return [
            Check(
                name="data folder", state="problem", found=f"{folder}: {fault}", facts=facts,
                why="data sets, decoded images and published weights are kept there",
                fix="change its permissions, or set BIIGMA_HOME to a folder you may write to",
            )
        ]  # fmt: skip
    facts["free"] = shutil.disk_usage(there).free
    text = f"{folder}, {human(facts['free'])} free"
    text += "" if facts["exists"] else " (made when it is needed)"
    if facts["free"] < SOME_ROOM:
        little = facts["free"] < LITTLE_ROOM
        return [
            Check(
                name="data folder", state="problem" if little else "warning", found=text,
                why="nothing more can be kept there" if little else "too little for a data set "
                "and its decoded images",
                fix="free some space (biigma cache clear), or set BIIGMA_HOME elsewhere",
                facts=facts,
            )
        ]  # fmt: skip
    return [Check(name="data folder", state="ok", found=text, facts=facts)]


def _data_sets() -> Checks:
    from biigma_cli.data.datasets import statuses
    from biigma_cli.taxonomy import DERIVED

    checks = []
    for status in statuses():
        if status.state == "not here" or status.name in DERIVED:
            continue
        name = f"data set {status.name}"
        manifest = status.manifest
        if manifest is None:
            checks.append(
                Check(
                    name=name, state="problem", found=f"{status.state}: {status.problem}",
                    why="commands that need it fail",
                    fix=f"record it again, or: biigma datasets remove {status.name}",
                )
            )  # fmt: skip
            continue
        count = len(manifest.records)
        facts = {
            "root": str(manifest.root), "images": count, "missing": manifest.missing,
            "state": status.state, "data_hash": manifest.data_hash,
        }  # fmt: skip
        text = f"{status.state}, {count} images in {manifest.root}"
        looked = manifest.records[:: max(1, count // SAMPLE)]
        gone = [r.path for r in looked if not (manifest.root / r.path).is_file()]
        if gone:
            checks.append(
                Check(
                    name=name, state="problem", facts={**facts, "gone": gone},
                    found=f"{text}; {len(gone)} of {len(looked)} looked for are gone: {gone[0]}",
                    why="training and judging on it fail", fix="bring them back, or record it anew",
                )
            )  # fmt: skip
        elif manifest.missing:
            checks.append(
                Check(
                    name=name, state="warning", found=f"{text}, {manifest.missing} missing",
                    why="figures on a partial copy are not those of the whole", facts=facts,
                    fix=f"see: biigma download {status.name} --help",
                )
            )  # fmt: skip
        else:
            checks.append(Check(name=name, state="ok", found=text, facts=facts))
    none = Check(
        name="data sets", state="ok", found="none is recorded; for training: biigma download isic18"
    )
    return checks or [none]


def _cache() -> Checks:
    from biigma_cli.data.cache import cache_entries, cache_root
    from biigma_cli.data.sources import human

    entries = cache_entries()
    size = sum(e.size for e in entries)
    broken = [e for e in entries if not e.images]
    facts = {
        "path": str(cache_root()), "entries": len(entries), "bytes": size, "unfinished": len(broken)
    }  # fmt: skip
    text = f"{len(entries)} decoded data sets, {human(size)} in {cache_root()}"
    if broken:
        return [
            Check(
                name="cache", state="warning", found=f"{text}; {len(broken)} unfinished or damaged",
                why=f"they take {human(sum(e.size for e in broken))} and serve nothing, unless one "
                "is being made just now",
                fix="run: biigma cache clear", facts=facts,
            )
        ]  # fmt: skip
    return [Check(name="cache", state="ok", found=text, facts=facts)]


def _network() -> Checks:
    """Settings only: no connection is opened."""
    from urllib.request import getproxies

    from biigma_cli.data.sources import base_urls, without_password
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import is_offline

    def masked(url: str) -> str:
        try:
            # Without a scheme, what comes before the @ would not be known for a password.
            return without_password(url if "//" in url else f"//{url}").removeprefix("//")
        except ValueError:
            return "not an address"

    offline = is_offline()
    mirror = os.environ.get("BIIGMA_MIRROR") or ""
    proxies = {k: v if k == "no" else masked(v) for k, v in sorted(getproxies().items()) if v}
    trust = {
        name: os.environ[name]
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
        if os.environ.get(name)
    }
    shown = masked(mirror) if mirror else ""
    facts: Facts = {
        "offline": offline, "mirror": shown, "proxies": proxies,
        "certificates": trust,
    }  # fmt: skip
    parts = ["offline (BIIGMA_OFFLINE)"] if offline else []
    parts += [f"mirror {shown}"] if mirror else []
    parts += [f"{kind} proxy {url}" for kind, url in proxies.items() if kind != "no"]
    parts += [f"{name} is {path}" for name, path in trust.items()]
    text = ", ".join(parts) or "no mirror, no proxy, not offline"
    try:
        base_urls()
    except UsageError as error:
        found = error.message.replace(mirror, shown)
        return [
            Check(
                name="network", state="problem", found=found, why="downloads fail", fix=error.fix,
                facts=facts,
            )
        ]  # fmt: skip
    first = list(trust.items())[:1]  # the one that counts, in this order
    absent = [f"{name} is {path}" for name, path in first if not Path(path).exists()]
    if absent:
        return [
            Check(
                name="network", state="problem", found=f"{', '.join(absent)}, which is not there",
                why="every download over https fails", fix="correct the variable, or unset it",
                facts=facts,
            )
        ]  # fmt: skip
    return [Check(name="network", state="ok", found=f"{text} (none tried)", facts=facts)]


def _extras() -> Checks:
    wanted = {
        "pydicom": "DICOM files: pip install 'biigma[dicom]'",
        "openvino": "--device openvino: pip install openvino",
        "tensorboard": "train's TensorBoard records: pip install 'biigma[tensorboard]'",
    }
    checks = []
    for name, gives in wanted.items():
        version = version_of(name)
        found = version or f"not installed; it is for {gives}"
        checks.append(Check(name=name, state="ok", found=found, facts={"version": version}))
    return checks


# ---- what a process of its own looks at ----


def _start_probe() -> subprocess.Popen[bytes]:
    # The path as it is here: `-c` would put the working folder first.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from biigma_cli.runtime.doctor import probe; probe()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def probe() -> None:
    """Look at what is native, and write each finding to stdout as a line of JSON."""
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print, too

    def say(line: Facts) -> None:
        os.write(out, json.dumps(line).encode() + b"\n")

    try:
        for step, look in _steps():
            say({"step": step})
            try:
                say({"step": step, "facts": look()})
            except Exception as error:
                say({"step": step, "error": _told(error), "fix": getattr(error, "fix", "")})
    except Exception as error:  # of an import that the models need
        say({"step": "models", "error": _told(error)})


def _steps() -> Iterator[tuple[str, Callable[[], Facts]]]:
    yield "onnxruntime", look_at_onnxruntime
    yield "driver", look_at_driver
    from biigma_cli.runtime.session import DEFAULT_MODEL, find_model, shipped_models

    shipped = shipped_models()
    if shipped and DEFAULT_MODEL not in [path.stem for path in shipped]:
        yield f"model {DEFAULT_MODEL}", lambda: look_at_model(find_model(DEFAULT_MODEL))
    for path in shipped:
        yield f"model {path.stem}", functools.partial(look_at_model, path)
    if os.environ.get("BIIGMA_MODEL"):
        yield "model $BIIGMA_MODEL", lambda: look_at_model(find_model(None))
    yield "libraries", look_at_libraries
    if version_of("openvino") is not None:
        yield "openvino", look_at_openvino


def look_at_onnxruntime() -> Facts:
    """What the installed ONNX Runtime is. Raises whatever its import raises."""
    import onnxruntime as ort

    return {
        "version": ort.__version__,
        "package": getattr(ort, "package_name", ""),
        "cuda": getattr(ort, "cuda_version", "") or "",
        "providers": list(ort.get_available_providers()),
        "file": str(ort.__file__),
    }


def look_at_driver() -> Facts:
    """What the NVIDIA driver says."""
    from biigma_cli.runtime.providers import nvidia_driver

    return nvidia_driver()._asdict()


def look_at_libraries() -> Facts:
    """Shared libraries that the CUDA provider lacks, and why."""
    import onnxruntime as ort

    from biigma_cli.runtime.providers import libraries_fault, missing_libraries, preload

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return {"missing": {}, "fix": ""}
    preload(ort)
    fault = libraries_fault(ort, "cuda")
    return {"missing": missing_libraries(ort, "cuda"), "fix": fault.fix if fault else ""}


def look_at_openvino() -> Facts:
    """Its version and devices. Raises whatever its import raises."""
    import importlib

    openvino = importlib.import_module("openvino")
    return {"version": openvino.__version__, "devices": list(openvino.Core().available_devices)}


def look_at_model(path: Path) -> Facts:
    """Load a model, and ask it about a grey image.

    Raises `ModelFileError` where it cannot be loaded or its answer is no distribution.
    """
    import hashlib

    import numpy as np

    from biigma_cli.errors import ModelFileError
    from biigma_cli.runtime.pipeline import check_model
    from biigma_cli.runtime.session import Predictor

    again = "install biigma again, or export the model again"
    predictor = Predictor(path, device="cpu")
    check_model(predictor)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    info = predictor.info
    grey = np.full((1, info.side, info.side, 3), 128, np.uint8)
    row = predictor(grey).probabilities_BY[0].astype(np.float64)
    if not np.isfinite(row).all():
        raise ModelFileError(f"{path} gives no number for a grey image", fix=again)
    if (row < 0).any() or abs(row.sum() - 1) > 1e-3:
        raise ModelFileError(
            f"the probabilities of {path} for a grey image sum to {row.sum():.4f}", fix=again
        )
    return {
        "path": str(path), "sha256": digest, "bytes": path.stat().st_size,
        "classes": list(info.classes), "side": info.side, "provider": predictor.provider,
        "grey": [round(float(p), 6) for p in row],
    }  # fmt: skip


class _Native:
    """What the process that ran `probe` found."""

    def __init__(self, process: subprocess.Popen[bytes] | Exception) -> None:
        self.facts: dict[str, Facts] = {}
        self.errors: dict[str, tuple[str, str]] = {}
        if isinstance(process, Exception):
            self.end = f"no process could be started: {_told(process)}"
            return
        self.end = ""
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            self.end = f"it did not come back within {PATIENCE:g} s"
        except Exception as error:
            self.end = _told(error)
            return
        last = ""
        for line in out.decode(errors="replace").splitlines():
            try:
                found = json.loads(line)
                last = found["step"]
            except (ValueError, KeyError, TypeError):
                continue
            if "facts" in found:
                self.facts[last] = found["facts"]
            elif "error" in found:
                self.errors[last] = (str(found["error"]), str(found.get("fix", "")))
        if process.returncode and not self.end:
            self.end = f"the process ended by {_ending(process.returncode)}"
        if self.end and last and last not in self.facts and last not in self.errors:
            self.errors[last] = (self.end, "")


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _judge_onnxruntime(native: _Native) -> Checks:
    facts = native.facts.get("onnxruntime")
    if facts is None:
        cause, _ = native.errors.get("onnxruntime", (native.end or "it was not looked at", ""))
        return [
            Check(
                name="onnxruntime", state="problem", found=f"cannot be used: {cause}",
                why="predict, explain and eval of exported models cannot run",
                fix="install it again, alone (see onnxruntime wheel)",
            )
        ]  # fmt: skip
    built = f", built for CUDA {facts['cuda']}" if facts["cuda"] else ""
    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in facts["providers"])
    text = f"{facts['version']}{built}; providers in it: {providers}"
    named = facts["package"]
    if named and version_of(named) is None:
        return [
            Check(
                name="onnxruntime", state="problem", found=f"{text}; its files are {named}'s",
                why=f"{named} is not installed: another wheel's files were overwritten",
                fix=f"run: pip install --force-reinstall {named}", facts=facts,
            )
        ]  # fmt: skip
    return [Check(name="onnxruntime", state="ok", found=text, facts=facts)]


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its files without importing it."""
    try:
        folder = Path(str(metadata.distribution("torch").locate_file("torch")))
        text = (folder / "version.py").read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _judge_cuda(native: _Native) -> Checks:
    from biigma_cli.runtime.providers import NO_DEVICE, cuda_major

    ort = native.facts.get("onnxruntime")
    if ort is None:
        return []
    driver = native.facts.get("driver")
    if driver is None:
        cause, _ = native.errors.get("driver", (native.end or "it was not looked at", ""))
        return [
            Check(
                name="cuda", state="problem", found=f"the NVIDIA driver cannot be asked: {cause}",
                why="nothing can run on the GPU", fix="install the driver again, and restart",
            )
        ]  # fmt: skip
    torch = torch_cuda()
    gpus, runs = int(driver["gpus"]), driver["cuda"]
    facts = {"driver": driver, "onnxruntime": ort["cuda"], "torch": torch}
    newest = f"{runs[0]}.{runs[1]}" if runs else "unknown"
    text = f"onnxruntime for {ort['cuda'] or 'none'}, torch for {torch or 'none'}"
    if not gpus:
        broken = driver["code"] not in (None, NO_DEVICE) or "broken" in driver["fault"]
        found = f"{driver['fault']}; {text}"
        if broken:
            return [
                Check(
                    name="cuda", state="warning", found=found, facts=facts,
                    why="the GPU cannot be used", fix="restart, or install the driver again",
                )
            ]  # fmt: skip
        return [Check(name="cuda", state="ok", found=f"not used: {found}", facts=facts)]
    text = f"{gpus} GPUs, driver for CUDA up to {newest}; {text}"
    if "CUDAExecutionProvider" not in ort["providers"]:
        return [
            Check(
                name="cuda", state="warning", found=f"{text}; onnxruntime has no CUDA provider",
                why="predict leaves the GPU idle", facts=facts,
                fix="run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
            )
        ]  # fmt: skip
    wanted = {"onnxruntime": cuda_major(ort["cuda"]), "torch": cuda_major(torch)}
    old = [n for n, major in wanted.items() if runs and major and major > runs[0]]
    if old:
        return [
            Check(
                name="cuda", state="problem", found=text, facts=facts,
                why=f"the driver is too old for {' and '.join(old)}",
                fix=f"update the driver, or install builds for CUDA {runs[0]}",
            )
        ]  # fmt: skip
    if wanted["onnxruntime"] and wanted["torch"] and len(set(wanted.values())) > 1:
        return [
            Check(
                name="cuda", state="warning", found=text, facts=facts,
                why="torch's CUDA libraries do not serve onnxruntime: it needs its own",
                fix='run: pip install "onnxruntime-gpu[cuda,cudnn]"',
            )
        ]  # fmt: skip
    return [Check(name="cuda", state="ok", found=text, facts=facts)]


def _judge_libraries(native: _Native) -> Checks:
    ort = native.facts.get("onnxruntime")
    if ort is None or "CUDAExecutionProvider" not in ort["providers"]:
        return []
    gpus = int(native.facts.get("driver", {}).get("gpus", 0))
    facts = native.facts.get("libraries")
    if facts is None:
        cause, fix = native.errors.get("libraries", (native.end or "not looked at", ""))
        return [
            Check(
                name="cuda libraries", state="problem" if gpus else "warning",
                found=f"cannot be loaded: {cause}", why="the GPU cannot be used for predict",
                fix=fix or 'run: pip install --force-reinstall "onnxruntime-gpu[cuda,cudnn]"',
            )
        ]  # fmt: skip
    missing = list(facts["missing"])
    if not missing:
        return [Check(name="cuda libraries", state="ok", found="all are found", facts=facts)]
    if not gpus:
        text = f"{', '.join(missing)} missing; not needed without a GPU"
        return [Check(name="cuda libraries", state="ok", found=text, facts=facts)]
    return [
        Check(
            name="cuda libraries", state="problem", found=f"missing: {', '.join(missing)}",
            why="ONNX Runtime's CUDA provider cannot start: predict falls back to the CPU",
            fix=facts["fix"], facts=facts,
        )
    ]  # fmt: skip


def _judge_openvino(native: _Native) -> Checks:
    if "openvino" in native.errors:
        return [
            Check(
                name="openvino runtime", state="problem",
                found=f"cannot be used: {native.errors['openvino'][0]}",
                why="--device openvino fails",
                fix="run: pip install --force-reinstall openvino, or uninstall it",
            )
        ]  # fmt: skip
    facts = native.facts.get("openvino")
    if facts is None:
        return []
    text = f"{facts['version']}, devices: {', '.join(facts['devices']) or 'none'}"
    return [Check(name="openvino runtime", state="ok", found=text, facts=facts)]


def _judge_models(native: _Native) -> Checks:
    checks = []
    for step in dict.fromkeys((*native.facts, *native.errors)):
        if not step.startswith("model "):
            continue
        facts = native.facts.get(step)
        if facts is None:
            cause, fix = native.errors[step]
            checks.append(
                Check(
                    name=step, state="problem", found=cause.removeprefix("ModelFileError: "),
                    why="predict cannot use it", fix=fix or f"run: {AGAIN}",
                )
            )  # fmt: skip
            continue
        text = (
            f"{len(facts['classes'])} classes, side {facts['side']}, SHA-256 "
            f"{facts['sha256'][:12]}..., a grey image is answered"
        )
        checks.append(Check(name=step, state="ok", found=text, facts=facts))
    if any(c.name != "model $BIIGMA_MODEL" for c in checks):
        return checks
    if "onnxruntime" not in native.facts:
        why, fix = "they cannot be tried without ONNX Runtime", "mend that first"
    elif native.end or "models" in native.errors:
        why, fix = native.errors.get("models", (native.end, ""))[0], f"run: {AGAIN}"
    else:
        why, fix = "none is shipped, so predict needs --model", f"run: {AGAIN}"
    return [*checks, Check(name="models", state="problem", found="none", why=why, fix=fix)]


_PLAIN: tuple[tuple[str, Callable[[], Checks]], ...] = (
    ("python", _python),
    ("packages", _packages),
    ("onnxruntime wheel", _wheels),
    ("processors", _processors),
    ("memory", _memory),
    ("data folder", _data_folder),
    ("data sets", _data_sets),
    ("cache", _cache),
    ("network", _network),
    ("extras", _extras),
)
_NATIVE: tuple[tuple[str, Callable[[_Native], Checks]], ...] = (
    ("onnxruntime", _judge_onnxruntime),
    ("cuda", _judge_cuda),
    ("cuda libraries", _judge_libraries),
    ("openvino runtime", _judge_openvino),
    ("models", _judge_models),
)
