"""Run folders as they lie on disk: what was set, how far it came, what it reached."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biigma_cli.config import Config, fill_older
from biigma_cli.errors import DataError, UsageError
from biigma_cli.storage import is_there

# Figures of the validation part in `metrics.csv`, without their `val_`, and of judged parts.
FIGURES = ("macro_f1", "accuracy", "macro_recall", "log_loss")
SORT_KEYS = ("date", "name", "epochs", "seconds", *FIGURES)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What `biigma eval` left of one part.

    Attributes:
        n: images.
        figures: `accuracy`, `macro_f1`, `macro_recall`, `macro_precision`, as fractions.
        intervals: their 95% bootstrap intervals, low and high.
    """

    n: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run folder.

    Attributes:
        name: name of the folder.
        path: the folder, as it was given.
        problem: what is damaged or missing in it, "" where nothing is; all else that could be
            read is filled in nevertheless.
        finished: it has done all of its epochs. One that is not may be running or interrupted:
            the folder does not tell.
        epochs_done: whole epochs in `metrics.csv`.
        epochs_planned: None where the settings cannot be read.
        settings: `section.key` to value, with the defaults of keys that the run's version did not
            know yet.
        protocol: how the split was drawn, in words where the run has finished.
        data_hash: hash of the data set; "" where unknown.
        split_hash: hash of the split; "" where unknown.
        best_epoch: the epoch that is kept, 1-based; None before the first has ended.
        validation: figures at that epoch, by the names of `FIGURES` and `macro_precision`.
        judged: what `biigma eval` left, by part (`val`, `test`).
        seconds: of training and validation together; None before the first epoch has ended.
        parameters: of the network; None where it has not finished.
        rows: `metrics.csv`, one dict an epoch; an empty cell is absent.
        modified: when its latest file was written, in seconds since the epoch; files of
            `biigma eval` do not count.
    """

    name: str
    path: Path
    problem: str = ""
    finished: bool = False
    epochs_done: int = 0
    epochs_planned: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    protocol: str = ""
    data_hash: str = ""
    split_hash: str = ""
    best_epoch: int | None = None
    validation: dict[str, float] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)
    seconds: float | None = None
    parameters: int | None = None
    rows: tuple[dict[str, float], ...] = ()
    modified: float = 0.0

    @property
    def state(self) -> str:
        """`finished`, `unfinished` or, where no settings can be read, `damaged`."""
        if not self.settings:
            return "damaged"
        return "finished" if self.finished else "unfinished"

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.settings.get("data.dataset", ""))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows, fit for JSON: what is not finite becomes None."""
        return {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "problem": self.problem,
            "epochs_done": self.epochs_done,
            "epochs_planned": self.epochs_planned,
            "dataset": self.dataset,
            "trunk": self.settings.get("model.trunk"),
            "side": self.settings.get("data.side"),
            "split_seed": self.settings.get("data.split_seed"),
            "protocol": self.protocol,
            "data_hash": self.data_hash,
            "split_hash": self.split_hash,
            "best_epoch": self.best_epoch,
            "validation": {k: _finite(v) for k, v in self.validation.items()},
            "judged": {
                part: {
                    "n": j.n,
                    "figures": {k: _finite(v) for k, v in j.figures.items()},
                    "intervals": {k: list(map(_finite, v)) for k, v in j.intervals.items()},
                }
                for part, j in self.judged.items()
            },
            "seconds": _finite(self.seconds),
            "parameters": self.parameters,
            "settings": self.settings,
        }


def list_runs(runs: Path) -> list[RunInfo]:
    """Every folder below `runs`, the newest last, but for those of `groups_of_runs`.

    Raises `UsageError` where there is no such folder. A folder that is no run, or a damaged one,
    becomes a `RunInfo` with a `problem`.
    """
    return sort_runs([read_run(p) for p in _folders(runs) if not _runs_inside(p)], "date")


def groups_of_runs(runs: Path) -> dict[Path, list[RunInfo]]:
    """Folders below `runs` that are no run but hold some, as `biigma ablate` makes them; by name.

    Raises `UsageError` as `list_runs` does.
    """
    inside = {folder: _runs_inside(folder) for folder in sorted(_folders(runs))}
    return {folder: [read_run(p) for p in paths] for folder, paths in inside.items() if paths}


def _folders(runs: Path) -> list[Path]:
    try:
        return [p for p in runs.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except FileNotFoundError:
        raise UsageError(
            f"there is no folder {runs}", fix="train a run with 'biigma train', or give --runs"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{runs} cannot be listed: {error.strerror or error}", fix="check --runs"
        ) from error


def _runs_inside(folder: Path) -> list[Path]:
    """The runs in a folder that is none itself."""
    if is_there(folder / "config.toml"):
        return []
    return sorted(path.parent for path in folder.glob("*/config.toml"))


def sort_runs(runs: Sequence[RunInfo], key: str) -> list[RunInfo]:
    """Sorted by one of `SORT_KEYS`, the best, largest or newest last; runs without it come first.

    Raises `UsageError` for another key.
    """
    if key not in SORT_KEYS:
        raise UsageError(f"unknown --sort {key!r}", fix=f"choose one of: {', '.join(SORT_KEYS)}")

    def rank(run: RunInfo) -> tuple[bool, float, str]:
        value: float | None
        if key == "date":
            value = run.modified
        elif key == "name":
            value = 0.0
        elif key == "epochs":
            value = run.epochs_done
        elif key == "seconds":
            value = run.seconds
        else:
            value = run.validation.get(key)
            if value is not None and key == "log_loss":
                value = -value
        known = value is not None and not math.isnan(value)
        return known, value if known and value is not None else 0.0, run.name

    return sorted(runs, key=rank)


def read_run(path: Path) -> RunInfo:
    """What a run folder holds; never raises: what cannot be read is told in `problem`.

    `split.json` is opened only where neither summary nor judgement has the split's hashes.
    """
    problems: list[str] = []

    def attempt(read: Any, name: str, empty: Any) -> Any:
        try:
            return read(path / name)
        except FileNotFoundError:
            return empty
        except DataError as error:
            problems.append(error.message)
            return empty

    name = path.name or path.resolve().name
    settings: dict[str, Any] | None = attempt(_read_settings, "config.toml", None)
    if settings is None and not problems:
        inside = len(_runs_inside(path))
        why = f"it holds {inside} runs" if inside else "it has no config.toml"
        return RunInfo(name=name, path=path, problem=f"no run: {why}")
    settings = settings or {}
    rows: tuple[dict[str, float], ...] = attempt(read_metrics, "metrics.csv", ())
    summary: dict[str, Any] = attempt(_read_object, "summary.json", {})
    judged: dict[str, Judged] = {}
    hashes: list[dict[str, Any]] = [_dict(summary.get("split"))]
    for part in ("val", "test"):
        content = attempt(_read_object, f"eval-{part}.json", {})
        found = _judged(content)
        if found is not None:
            judged[part] = found
            hashes.append(content)
        elif content:
            problems.append(f"eval-{part}.json lacks figures")
    if not any("split_hash" in h for h in hashes):
        hashes.append(attempt(_read_object, "split.json", {}))
    stated = [str(h["split_hash"]) for h in hashes if "split_hash" in h]
    if len(set(stated)) > 1:
        problems.append("its files speak of different splits")

    best = _best_epoch(rows, summary, str(settings.get("train.select")))
    chosen = next((r for r in rows if r["epoch"] == best), {})
    planned = settings.get("train.epochs")
    done = int(rows[-1]["epoch"]) if rows else 0
    seconds = _number(summary.get("seconds"))
    if seconds is None and rows:
        seconds = sum(r.get("seconds", 0.0) for r in rows)
    parameters = summary.get("parameters")
    return RunInfo(
        name=name,
        path=path,
        problem="; ".join(problems),
        finished=bool(summary) and (not isinstance(planned, int) or done >= planned),
        epochs_done=done,
        epochs_planned=planned if type(planned) is int else None,
        settings=settings,
        protocol=str(summary.get("protocol") or settings.get("data.protocol", "")),
        data_hash=_first(hashes, "data_hash"),
        split_hash=_first(hashes, "split_hash"),
        best_epoch=best,
        validation={k.removeprefix("val_"): v for k, v in chosen.items() if k.startswith("val_")},
        judged=judged,
        seconds=seconds,
        parameters=parameters if type(parameters) is int else None,
        rows=rows,
        modified=_modified(path),
    )


def read_metrics(path: Path) -> tuple[dict[str, float], ...]:
    """`metrics.csv`: one dict of numbers an epoch, `epoch` among them; empty cells are left out.

    Raises `FileNotFoundError`, or `DataError` naming the line that is no such row.
    """
    rows: list[dict[str, float]] = []

    def damaged(what: str) -> DataError:
        return _damaged(f"{path.name}, line {reader.line_num}: {what}")

    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="")
            if "epoch" not in (reader.fieldnames or ()):
                raise _damaged(f"{path.name} has no column 'epoch'")
            for record in reader:
                if None in record.values() or "" in record:
                    raise damaged("not one cell a column")
                row = {}
                for column, cell in record.items():
                    if cell == "":
                        continue
                    try:
                        row[column] = float(cell)
                    except ValueError:
                        raise damaged(f"{column} is {cell[:20]!r}") from None
                epoch = row.get("epoch", 0.0)
                if not epoch.is_integer() or epoch <= (rows[-1]["epoch"] if rows else 0.0):
                    raise damaged("epochs are not in order")
                rows.append(row)
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(f"{path.name} cannot be read: {error}") from error
    return tuple(rows)


def config_differences(runs: Sequence[RunInfo]) -> list[tuple[str, ...]]:
    """Settings whose values differ: rows of `section.key` and its value in each run, as text.

    A key that only some runs have is `-` in the others; runs without settings are `-` throughout
    and make no difference of their own.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    table = []
    for key in keys:
        values = [run.settings.get(key, _ABSENT) for run in runs if run.settings]
        if any(v != values[0] for v in values):
            cells = (_text(run.settings[key]) if key in run.settings else "-" for run in runs)
            table.append((key, *cells))
    return table


def incomparable(runs: Sequence[RunInfo]) -> list[str]:
    """Why the runs' figures must not be compared; empty where they may be.

    Figures are of the same images only where data and split have the same hash.
    """
    for attribute, what in (("data_hash", "data"), ("split_hash", "split")):
        groups: dict[str, list[str]] = {}
        for run in runs:
            groups.setdefault(getattr(run, attribute), []).append(run.name)
        if len(groups) > 1:
            told = "; ".join(
                f"{', '.join(names)}: {value[:12] or 'unknown'}" for value, names in groups.items()
            )
            # Another data set is another split as well: one reason is enough.
            return [f"not the same {what}, so figures do not compare ({what} hash {told})"]
    return []


_ABSENT = object()


def _text(value: Any) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value) or "none"
    return str(value) if value != "" else '""'


def _damaged(message: str) -> DataError:
    return DataError(message, fix="put the file back, or remove the run folder")


def _read_settings(path: Path) -> dict[str, Any]:
    """Flat settings, filled up as a resumed run's are. Keys of other versions are kept."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # bad TOML and UTF-8 are ValueErrors
        raise _damaged(f"{path.name} cannot be read: {error}") from error
    if not values or not all(isinstance(section, dict) for section in values.values()):
        raise _damaged(f"{path.name} holds no settings of a run")
    filled = Config().to_dict()
    for section, entries in fill_older(values).items():
        filled[section] = {**filled.get(section, {}), **entries}
    return {f"{s}.{key}": value for s, entries in filled.items() for key, value in entries.items()}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise _damaged(f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(f"{path.name} holds no object")
    return value


def _judged(content: dict[str, Any]) -> Judged | None:
    n = content.get("n")
    names = ("accuracy", "macro_f1", "macro_recall", "macro_precision")
    figures = {k: v for k in names if (v := _number(content.get(k))) is not None}
    if type(n) is not int or not figures:
        return None
    intervals = {}
    for name in figures:
        span = _dict(_dict(content.get("intervals")).get(name))
        low, high = _number(span.get("low")), _number(span.get("high"))
        if low is not None and high is not None:
            intervals[name] = (low, high)
    return Judged(n=n, figures=figures, intervals=intervals)


def _best_epoch(
    rows: Sequence[dict[str, float]], summary: dict[str, Any], select: str
) -> int | None:
    """Training's own choice where it is told, else the first row that is best by `train.select`."""
    stated = summary.get("best_epoch")
    if type(stated) is int and any(r["epoch"] == stated for r in rows):
        return stated
    columns = {
        "macro_f1": ("val_macro_f1", 1), "log_loss": ("val_log_loss", -1), "last": ("epoch", 1),
    }  # fmt: skip
    column, sign = columns.get(select, columns["macro_f1"])
    scored = [r for r in rows if not math.isnan(r.get(column, math.nan))]
    if not scored:
        return None
    return int(max(scored, key=lambda r: sign * r[column])["epoch"])


def _modified(path: Path) -> float:
    """Time of the newest file that training writes."""
    times = [0.0]
    for name in ("config.toml", "metrics.csv", "summary.json"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _first(sources: Sequence[dict[str, Any]], key: str) -> str:
    return next((str(s[key]) for s in sources if s.get(key)), "")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or type(value) is bool:
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
