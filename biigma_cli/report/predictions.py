"""Predictions as they are written: table, JSON, JSON lines or CSV, row after row.

Nothing here holds more than a block of rows, so a million answers cost no more memory than ten.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

import numpy as np

from biigma_cli.data.answers import BEFORE, BEHIND, SUSPICIOUS
from biigma_cli.data.preprocess import shown
from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.storage import (
    check_writable,
    is_special,
    is_there,
    lock,
    make_readable,
    stdout_closed,
    write_error,
)

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
RESUMABLE = ("csv", "jsonl", "parquet")
CANNOT_SAY = "can't say"
NOT_DERMOSCOPY = "not dermoscopy"
DISCLAIMER = "for research use only, not a medical device"
#: Rows of one drawn table.
BLOCK = 200
# Columns in which a file's block is drawn at least: below that the terminal wraps.
_NARROWEST = 24
# Times a part is opened anew because another run has just given it its name.
_CLAIMS = 10
# Standard output by name.
_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_YES_NO = {True: "yes", False: "no", None: ""}
# How a line of JSON begins.
_BEGIN = b'{"path": "'
# No row of ours is longer; what is longer is another kind of file.
_MAX_ROW = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one file, or why there is none.

    Attributes:
        path: as the user gave it; bytes that are no UTF-8 as Python's surrogates.
        label: code of the most probable class, `CANNOT_SAY`, `NOT_DERMOSCOPY`, or "" where there
            is an error.
        probabilities: by class code, in class order; None where there is an error.
        malignant: summed probability of the malignant and pre-malignant classes; None where a
            class is not known to be either.
        suspicious: whether that reaches the limit asked for; None where none was, and for an image
            that is flagged.
        novelty: how far the image is from the training images, 1 the limit; None where the model
            does not say.
        note: what a user should know of the file.
        error: what was wrong with it.
        picture: file that shows the answer's maps; "" where none was asked for.
    """

    path: str
    label: str = ""
    probabilities: Mapping[str, float] | None = None
    malignant: float | None = None
    suspicious: bool | None = None
    novelty: float | None = None
    note: str = ""
    error: str = ""
    picture: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the image is none of the kind that the model knows."""
        return is_novel(self.novelty)

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable classes, best first; of equals, the first in class order."""
        items = sorted((self.probabilities or {}).items(), key=lambda item: -item[1])
        return items[:k]


def is_novel(novelty: float | None) -> bool:
    """Whether an image is further from the training images than the limit."""
    return novelty is not None and novelty > 1


def flagged_note(count: int, of: int) -> str:
    """What is said of images that are flagged, of all that could be read."""
    return f"{count} of {of} flagged as {NOT_DERMOSCOPY}: unlike the images it was trained on"


def prediction(
    path: str,
    probabilities_Y: Sequence[float],
    labels: Labels,
    *,
    abstain_below: float | None = None,
    suspicious_from: float | None = None,
    own_Y: Sequence[float] | None = None,
    novelty: float | None = None,
    note: str = "",
) -> Prediction:
    """A record from one row of probabilities.

    Args:
        abstain_below: where no class reaches it, the answer is `CANNOT_SAY`; the figures stay.
        suspicious_from: what is as malignant as this is suspicious, whatever the answer.
        own_Y: probabilities that this is held against, where they are others.
        novelty: where it is above 1, the answer is `NOT_DERMOSCOPY`, and nothing is said of
            suspicion; the figures stay.
    """
    values = [float(p) for p in probabilities_Y]
    best = max(range(len(values)), key=values.__getitem__)
    unsure = abstain_below is not None and values[best] < abstain_below
    malignant = labels.malignancy(values)
    suspicious = None
    if malignant is not None and suspicious_from is not None and not is_novel(novelty):
        own = malignant if own_Y is None else labels.malignancy(own_Y)
        suspicious = own is not None and own >= suspicious_from
    return Prediction(
        path=path,
        label=NOT_DERMOSCOPY if is_novel(novelty) else CANNOT_SAY if unsure else labels.codes[best],
        probabilities=dict(zip(labels.codes, values, strict=True)),
        malignant=malignant,
        suspicious=suspicious,
        novelty=novelty,
        note=note,
    )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A model's classes: codes in the order of the probabilities, full names, malignancy."""

    codes: tuple[str, ...]
    names: tuple[str, ...]
    malignant: tuple[bool | None, ...]

    def malignancy(self, probabilities_Y: Sequence[float]) -> float | None:
        """Summed probability of the malignant classes; None where a class may be either."""
        if None in self.malignant:
            return None
        return sum(p for p, m in zip(probabilities_Y, self.malignant, strict=True) if m)

    def name(self, code: str) -> str | None:
        """Full name of a class; None for what is none."""
        return self.names[self.codes.index(code)] if code in self.codes else None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What every record says of its making.

    Attributes:
        model: `NAME@` and the first digits of the file's SHA-256.
        version: of biigma.
        provider: of ONNX Runtime, such as `CPUExecutionProvider`.
        settings: what else changes the answers, such as `{"tta": 8}`.
    """

    model: str
    version: str
    provider: str
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def asks_suspicion(self) -> bool:
        """Whether images are called suspicious or not."""
        return "suspicious_from" in self.settings


class Writer(Protocol):
    """Records to text: `head` first, then rows in pieces, `tail` last."""

    def head(self) -> str: ...
    def rows(self, items: Sequence[Prediction]) -> str: ...
    def tail(self, answered: int, failed: int) -> str: ...


class CsvWriter:
    """One line per file; the probabilities of all classes are columns."""

    def __init__(self, labels: Labels, made: Provenance) -> None:
        self.labels = labels
        self.made = made
        self.asked = made.asks_suspicion
        behind = [BEHIND[0], *[SUSPICIOUS] * self.asked, *BEHIND[1:]]
        self.columns = [*BEFORE, *labels.codes, *behind]
        settings = " ".join(f"{k}={v:.12g}" for k, v in made.settings.items())
        self._made = [made.model, made.version, made.provider, settings]

    def head(self) -> str:
        """The header line."""
        return csv_lines([self.columns])

    def rows(self, items: Sequence[Prediction]) -> str:
        """A line each; figures are empty where there is an error."""
        return csv_lines([self._cells(i) for i in items])

    def tail(self, answered: int, failed: int) -> str:  # noqa: ARG002
        """Nothing."""
        return ""

    def _cells(self, item: Prediction) -> list[str]:
        if item.probabilities is None:
            figures = [""] * len(self.labels.codes)
        else:
            figures = [f"{p:.6f}" for p in item.probabilities.values()]
        malignant = "" if item.malignant is None else f"{item.malignant:.6f}"
        novelty = "" if item.novelty is None else f"{item.novelty:.3f}"
        told = [item.note, item.error]
        suspicious = [_YES_NO[item.suspicious]] * self.asked
        before = [item.path, item.label, malignant]
        return [*before, *figures, novelty, *suspicious, *told, *self._made]

    def read(self, record: str) -> tuple[str, str]:
        """Path of a written row and its label, "" for a failure. `ValueError`: another's row."""
        cells = next(csv.reader(io.StringIO(record, newline="")))
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells, not {len(self.columns)}")
        _, model, _, _, settings = cells[-5:]
        _same_making("model", model, self.made.model)
        _same_making("settings", settings, self._made[-1])
        return cells[0], cells[1]


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines of CSV."""
    lines = []
    for row in rows:
        text = io.StringIO()
        # A carriage return is quoted only where the row's end holds one.
        csv.writer(text, lineterminator="\r\n").writerow(row)
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


class JsonlWriter:
    """One JSON object per line."""

    def __init__(self, labels: Labels, made: Provenance, topk: int) -> None:
        self.labels = labels
        self.made = made
        self.topk = topk

    def head(self) -> str:
        """Nothing."""
        return ""

    def rows(self, items: Sequence[Prediction]) -> str:
        """A line each."""
        return "".join(json.dumps(self.to_dict(item), ensure_ascii=False) + "\n" for item in items)

    def tail(self, answered: int, failed: int) -> str:  # noqa: ARG002
        """Nothing."""
        return ""

    def to_dict(self, item: Prediction) -> dict[str, Any]:
        """One object: the answer, every class, and what made it."""
        answer: dict[str, Any] = {"path": item.path}
        if item.probabilities is None:
            answer["error"] = item.error
        else:
            top = item.top(self.topk)
            answer |= {
                "label": item.label,
                "name": self.labels.name(item.label),
                "probability": round(item.top(1)[0][1], 6),
                "malignant_probability": None
                if item.malignant is None
                else round(item.malignant, 6),
                "top": [{"label": c, "probability": round(p, 6)} for c, p in top],
                "probabilities": {c: round(p, 6) for c, p in item.probabilities.items()},
            }
            if item.novelty is not None:
                answer["novelty"] = round(item.novelty, 3)
            if self.made.asks_suspicion:
                answer[SUSPICIOUS] = item.suspicious
        if item.note:
            answer["note"] = item.note
        if item.picture:
            answer["picture"] = item.picture
        return answer | {
            "model": self.made.model,
            "version": self.made.version,
            "provider": self.made.provider,
            "settings": dict(self.made.settings),
        }

    def read(self, record: str) -> tuple[str, str]:
        """Path of a written row and its label, "" for a failure. `ValueError`: another's row."""
        row = json.loads(record)
        if not isinstance(row, dict) or not isinstance(row.get("path"), str):
            raise ValueError("no record of a prediction")
        _same_making("model", row.get("model"), self.made.model)
        _same_making("settings", row.get("settings"), dict(self.made.settings))
        if "error" not in row:
            codes = row.get("probabilities")
            if not isinstance(codes, dict) or tuple(codes) != self.labels.codes:
                raise ValueError(f"other classes: {codes!r:.200}")
            if len(row.get("top", ())) != min(self.topk, len(self.labels.codes)):
                raise ValueError("another --topk")
        return row["path"], "" if "error" in row else str(row.get("label"))


class JsonWriter:
    """One JSON document, written as a stream: what made it, the records, how many failed."""

    def __init__(self, lines: JsonlWriter, model: Mapping[str, Any]) -> None:
        self.lines = lines
        self.model = model
        self.first = True

    def head(self) -> str:
        """Everything up to the first record."""
        head = {"model": dict(self.model), "disclaimer": DISCLAIMER}
        text = json.dumps(head, indent=2, ensure_ascii=False)
        return text.removesuffix("\n}") + ',\n  "predictions": ['

    def rows(self, items: Sequence[Prediction]) -> str:
        """Records, one a line."""
        text = ""
        for item in items:
            record = json.dumps(self.lines.to_dict(item), ensure_ascii=False)
            text += ("\n    " if self.first else ",\n    ") + record
            self.first = False
        return text

    def tail(self, answered: int, failed: int, *, cut: bool = False) -> str:
        """The rest; `cut` where not all were answered."""
        summary = {"answered": answered, "failed": failed} | ({"interrupted": True} if cut else {})
        return f'\n  ],\n  "summary": {json.dumps(summary)}\n}}\n'


class TableWriter:
    """Tables for people, each of up to `BLOCK` files; a block per file where they are too wide."""

    def __init__(self, labels: Labels, topk: int, *, colour: bool) -> None:
        self.labels = labels
        self.topk = topk
        self.colour = colour
        self.waiting: list[Prediction] = []
        self.since = 0.0

    def head(self) -> str:
        """Nothing."""
        return ""

    def rows(self, items: Sequence[Prediction]) -> str:
        """Tables, once there are enough rows for one."""
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting += items
        text = ""
        while len(self.waiting) >= BLOCK:
            text += self._draw(self.waiting[:BLOCK])
            del self.waiting[:BLOCK]
        return text

    def tail(self, answered: int, failed: int) -> str:  # noqa: ARG002
        """The last table."""
        return self.due(0)

    def due(self, seconds: float) -> str:
        """A table of all rows that wait, where one does so since `seconds`."""
        if not self.waiting or time.monotonic() - self.since < seconds:
            return ""
        text = self._draw(self.waiting)
        self.waiting = []
        return text

    def _draw(self, items: Sequence[Prediction]) -> str:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        from biigma_cli.report.tables import fit, render, table_width

        width = table_width(tty=self.colour)
        malignant = dict(zip(self.labels.codes, self.labels.malignant, strict=True))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        # Nothing is ever cut off: names fold, and the minimum widths keep a long one from taking
        # all. Together they fit 80 columns, but for notes beside what is suspicious.
        table.add_column("file", min_width=12)
        table.add_column("answer", min_width=14)
        table.add_column("p", justify="right", no_wrap=True)
        table.add_column("malignant", justify="right", no_wrap=True)
        judged = any(i.suspicious is not None for i in items)
        if judged:
            table.add_column("suspicious", no_wrap=True)
        if self.topk > 1:
            table.add_column("next", min_width=12)
        noted = any(i.note for i in items)
        if noted:
            table.add_column("note", min_width=10)
        for item in items:
            if item.probabilities is None:
                table.add_row(Text(shown(item.path)), Text(item.error, style="red"))
                continue
            (code, p), *rest = item.top(self.topk)
            if item.label == code:
                style = "bold red" if malignant[code] else "bold"
                answer = Text.assemble((code, style), f"  {self.labels.name(code)}")
            else:
                answer = Text.assemble((item.label, "bold"), (f"  ({code}?)", "dim"))
            row = [
                Text(shown(item.path)),
                answer,
                Text(f"{p:.1%}"),
                Text("?" if item.malignant is None else f"{item.malignant:.1%}"),
            ]
            if judged:
                row.append(Text(_YES_NO[item.suspicious], style="bold red" * bool(item.suspicious)))
            if self.topk > 1:
                row.append(Text(", ".join(f"{c} {q:.1%}" for c, q in rest), style="dim"))
            if noted:
                row.append(Text(item.note, style="dim"))
            table.add_row(*row)
        if fit(table, width):
            return render(table, width=width, colour=self.colour)
        blocks: list[Table | str] = []
        heads = [Text(str(c.header), style="dim") for c in table.columns]
        for cells in zip(*(c.cells for c in table.columns), strict=True):
            block = Table.grid(padding=(0, 2, 0, 0))
            for head, cell in zip(heads, cells, strict=True):
                if str(cell):
                    block.add_row(head, cell)
            blocks += [block, ""]
        return render(*blocks, width=max(width, _NARROWEST), colour=self.colour)


class Answered:
    """Which files an interrupted output has answered, 9 bytes each.

    Paths are kept as 64-bit hashes: among ten million, the chance that one is taken for another
    is 3e-6. A path that comes twice must be answered twice.
    """

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        #: Errors that were taken out, to be tried again.
        self.dropped = 0
        self._hashes = array("Q")
        self._sorted: np.ndarray[Any, np.dtype[np.uint64]] | None = None
        self._taken = bytearray()

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def failed(self) -> int:
        """Rows that are errors."""
        return self.labels[""]

    def add(self, path: str, label: str) -> None:
        """One row that was read; its label is "" where it is an error."""
        self._hashes.append(_hash(path))
        self.labels[label] += 1

    def take(self, path: str) -> bool:
        """Whether there is a row for `path` that was not taken yet; it is then taken."""
        if not self._hashes:
            return False
        if self._sorted is None:
            self._sorted = np.sort(np.frombuffer(self._hashes, np.uint64))
            self._taken = bytearray(len(self._sorted))
        value = np.uint64(_hash(path))
        place = int(self._sorted.searchsorted(value))
        while place < len(self._sorted) and self._sorted[place] == value:
            if not self._taken[place]:
                self._taken[place] = 1
                return True
            place += 1
        return False


class Conversion(NamedTuple):
    """How a file is made of its part, from the first path at the second, and the part of it."""

    to: Callable[[Path, Path], None]
    back: Callable[[Path, Path], None]


class Output:
    """Where the text goes: stdout, or a file that takes its name only once it is whole.

    CSV and JSON lines are gathered in `NAME.part` beside the target, and what is in it stays there
    when the work is cut short, for `resume`; of the other forms nothing stays. That part is locked
    from the beginning to the end, so that no two runs write to it.

    As a context manager it drops what was not finished.

    Args:
        target: None is stdout. Anything but a plain file (`/dev/null`, a named pipe) is written
            to as it is.
        keep: whether a part is worth keeping.
        resume: an older part is no fault: `resume` will be called.
        convert: makes the file of the part, once that is whole; default the part is the file.

    Attributes:
        begun: whether there is something of an interrupted run to go on with.
        answered_at: when what it goes on with was last written, in seconds since the epoch.

    Raises:
        UsageError: the target cannot be written, another process is writing it, or another part
            lies there and `resume` is off.
    """

    def __init__(
        self,
        target: Path | None,
        *,
        keep: bool = False,
        resume: bool = False,
        convert: Conversion | None = None,
    ) -> None:
        self.keep = keep
        self.convert = convert
        if (target is None or str(target) in _STDOUT) and stdout_closed():
            raise BiigmaError("standard output is closed", fix="name a file with -o")
        # A pipe behind /dev/stdout has no path of its own.
        self.target = target
        if target is not None and not is_special(target):
            self.target = Path(os.path.realpath(target))
        self.part: Path | None = None
        self.file: io.FileIO | None = None
        self.begun = False
        self.answered_at = 0.0
        self._whole = 0
        self._made: list[Path] = []
        if self.target is None:
            return
        if is_special(self.target):
            if not os.access(self.target, os.W_OK):
                raise UsageError(f"cannot write {target}", fix="choose a place you may write to")
        else:
            check_writable(self.target)
            name = f"{self.target.name}.part" if keep else f".{self.target.name}.{os.getpid()}~"
            self.part = self.target.with_name(name)
            if keep:
                self._claim(resume=resume)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def _claim(self, *, resume: bool) -> None:
        """Open the part and lock it."""
        assert self.target is not None
        assert self.part is not None
        folders = (self.part.parent, *self.part.parent.parents)
        self._made = [folder for folder in folders if not is_there(folder)]
        with _writing(self.target), contextlib.ExitStack() as undone:
            undone.callback(self._remove_folders)
            self.part.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_CLAIMS):
                # Unbuffered: a row is on its way to the disk when the next is begun.
                file = undone.enter_context(self.part.open("ab", buffering=0))
                if not lock(file):
                    break
                if not _is_at(file, self.part):
                    file.close()  # another has just finished it or dropped it
                    continue
                self._whole = file.seek(0, os.SEEK_END)
                if self._whole and not resume:
                    raise UsageError(
                        f"{self.part} holds the answers of an interrupted run",
                        fix="add --resume to go on with them, or delete it",
                    )
                self.file = file
                undone.pop_all()
                return
        raise UsageError(
            f"another biigma predict is writing {self.target}",
            fix="wait for it, or choose another -o",
        )

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def resume(self, writer: CsvWriter | JsonlWriter, *, retry: bool = False) -> Answered:
        """Cut what is torn off an interrupted output, and say what it has answered.

        With `retry`, rows that are errors are taken out, and are only counted, as `dropped`.

        Raises:
            DataError: a row that is another model's, or other settings' or columns'.
        """
        answered = Answered()
        if self.target is None or self.part is None or self.file is None:
            raise UsageError("nothing to resume", fix="name the file with -o")
        with _writing(self.part):
            if self._whole or self.target.exists():
                self.answered_at = (self.part if self._whole else self.target).stat().st_mtime
            if self._whole and not retry:
                self._whole = whole = _scan(self.part, writer, answered)
                self.file.truncate(whole)
            elif self._whole or self.target.exists():
                # The old file stays until the new one is whole.
                source = named = self.part if self._whole else self.target
                temporary = self.part.with_name(f".{self.part.name}~")
                undone = self.part.with_name(f".{self.part.name}~~")
                try:
                    if self.convert is not None and not self._whole:
                        self.convert.back(source, undone)
                        source = undone
                    with temporary.open("wb") as file:
                        whole = _scan(source, writer, answered, into=file, retry=retry, name=named)
                    self._exchange(temporary)
                finally:
                    temporary.unlink(missing_ok=True)
                    undone.unlink(missing_ok=True)
            else:
                return answered
            self.begun = whole > 0
        return answered

    def _exchange(self, new: Path) -> None:
        """Put another file in the part's place, locked as it is."""
        assert self.part is not None
        assert self.file is not None
        file = new.open("ab", buffering=0)
        lock(file)
        if os.name == "nt":  # where no open file is replaced, and none is locked
            file.close()
            self.file.close()
        new.replace(self.part)
        if os.name == "nt":
            file = self.part.open("ab", buffering=0)
        self.file.close()
        self.file, self._whole = file, file.seek(0, os.SEEK_END)

    def write(self, text: str) -> None:
        """Append text, and flush it. Raises `BiigmaError` where the file's disk is full."""
        # Bytes of names that are no UTF-8 become \\udcXX: in JSON that is the escape itself.
        data = text.encode("utf-8", "backslashreplace")
        if self.target is None:
            stream = getattr(sys.stdout, "buffer", None)
            if stream is None:
                sys.stdout.write(data.decode())
            else:
                stream.write(data)
            sys.stdout.flush()
            return
        with _writing(self.target):
            if self.file is None:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                self.file = (self.part or self.target).open("wb", buffering=0)
            view = memoryview(data)
            while view:
                view = view[self.file.write(view) :]
            self._whole += len(data)

    def finish(self) -> None:
        """Everything is written: give the file its name."""
        if self.target is None:
            return
        with _writing(self.target):
            if self.file is None:
                return
            if self.part is not None:
                os.fsync(self.file.fileno())
            if self.part is None or os.name == "nt":  # where no open file is renamed
                self.file.close()
            if self.part is not None and self.convert is not None:
                whole = self.part.with_name(f".{self.target.name}.{os.getpid()}~")
                try:
                    self.convert.to(self.part, whole)
                    make_readable(whole)
                    whole.replace(self.target)
                finally:
                    whole.unlink(missing_ok=True)
                self.part.unlink()
            elif self.part is not None:
                make_readable(self.part)
                self.part.replace(self.target)
            # Held until here: from now on a part of that name is another's.
            self.file.close()
            self.file = self.part = None

    def drop(self) -> Path | None:
        """The work was cut short: the part that stays, if any."""
        file, part = self.file, self.part
        self.file = self.part = None
        if file is None:
            return None
        kept = None
        with contextlib.suppress(OSError):
            if part is not None and not file.closed:
                file.truncate(self._whole)  # no row torn by a full disk stays
        if os.name == "nt":  # where no open file is deleted
            file.close()
        if part is not None and self.keep and self._whole:
            kept = part
        elif part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._remove_folders()
        with contextlib.suppress(OSError):
            file.close()
        return kept

    def discard(self) -> None:
        """Nothing was begun: leave no part."""
        self.keep = False
        self.drop()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(path, error) from error


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _scan(
    path: Path,
    writer: CsvWriter | JsonlWriter,
    answered: Answered,
    *,
    into: BinaryIO | None = None,
    retry: bool = False,
    name: Path | None = None,
) -> int:
    """Read an interrupted output; bytes up to the end of its last whole row.

    Args:
        into: takes a copy of the whole rows.
        retry: but not of the errors, which then count as not answered.
        name: what to call it; default `path`.
    """
    name = name or path
    head = writer.head()
    whole = number = 0
    with path.open("rb") as file:
        if head:
            first = file.readline(_MAX_ROW)
            if not first.endswith(b"\n") and head.encode().startswith(first):
                return 0  # torn in the header
            if first != head.encode():
                raise _other_columns(name, first, head)
            whole = len(first)
            if into is not None:
                into.write(first)
        for record in _records(file, quotes=bool(head)):
            number += 1
            if not record.endswith(b"\n") and (head or record.startswith(_BEGIN[: len(record)])):
                break  # torn
            try:
                image, label = writer.read(record.decode("utf-8"))
            except (ValueError, csv.Error) as error:
                raise DataError(
                    f"{name}, answer {number}: {shown(str(error))}",
                    fix="resume with the same model and settings, or choose another -o",
                ) from error
            whole += len(record)
            if retry and not label:
                answered.dropped += 1
                continue
            answered.add(image, label)
            if into is not None:
                into.write(record)
    return whole


def _other_columns(name: Path, first: bytes, head: str) -> DataError:
    """The error for a CSV with another header."""
    text = first.decode(errors="replace")
    if text.removeprefix("\ufeff").rstrip("\r\n") == head.rstrip("\n"):
        return DataError(
            f"{name} has been saved by another program: its lines end otherwise, or it begins with "
            "a byte order mark",
            fix="resume with the file as it was written, or choose another -o",
        )
    return DataError(
        f"{name} has other columns: {shown(text.strip()[:300])}",
        fix="resume with the same model and --format, or choose another -o",
    )


def _records(file: BinaryIO, *, quotes: bool) -> Iterator[bytes]:
    """Rows with their line ends; with `quotes`, a row goes on while a quotation is open."""
    record = b""
    while line := file.readline(_MAX_ROW):
        record += line
        if len(record) > _MAX_ROW:
            break
        if not (quotes and record.count(b'"') % 2):
            yield record
            record = b""
    if record:
        # Torn within a quotation, so whatever ends it is no end of a row.
        yield record.rstrip(b"\n")


def _same_making(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{what} {found or 'none'}, not {wanted or 'none'}")


def _hash(path: str) -> int:
    import hashlib

    raw = path.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
