"""What `biigma train` shows, on a terminal and elsewhere, and what it keeps in the run's log."""

from __future__ import annotations

import errno
import fcntl
import inspect
import io
import os
import pty
import re
import resource
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biigma_cli.cli import training_display
from biigma_cli.cli.training_display import (
    Item,
    Pace,
    TrainingDisplay,
    digits,
    epoch_items,
    figure_items,
    fit,
)
from biigma_cli.engine.events import EpochEvent, NoteEvent, PhaseEvent, StepEvent

TERMS = {"ce": 0.8258, "ce_hybrid": 0.8298, "independence": 0.00529, "l2": 0.00143}


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The display's clock; the terminal has 80 columns, whatever the tests run in."""
    clock = Clock()
    monkeypatch.setattr(training_display, "monotonic", clock)
    for name in ("NO_COLOR", "FORCE_COLOR", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return clock


def at(step: int, *, epoch: int = 1, epochs: int = 4, steps: int = 10, kernel: float = 0.549,
       loss: float = 1.658) -> StepEvent:  # fmt: skip
    """A step."""
    return StepEvent(
        epoch=epoch, epochs=epochs, step=step, steps=steps, images_per_s=20.53, lr=2.9e-4,
        loss=loss, terms=TERMS, kernel_mean=kernel, head_cosine=0.0517, memory_bytes=2_112_000_000,
    )  # fmt: skip


def after(epoch: int, *, epochs: int = 4, f1: float = 0.711, best: bool = True,
          kernel: float = 0.55) -> EpochEvent:  # fmt: skip
    """The end of an epoch."""
    row: dict[str, float | int] = {
        "epoch": epoch, "side": 160, "lr": 1e-4, "images_per_s": 20.0915, "loss": 1.50107,
        **TERMS, "kernel_mean": kernel, "head_cosine": 0.04, "val_accuracy": 0.826216,
        "val_macro_f1": f1, "val_macro_recall": 0.6992, "val_macro_precision": 0.728,
        "val_log_loss": 0.536088, "seconds": 354.684,
    }  # fmt: skip
    return EpochEvent(epoch=epoch, epochs=epochs, row=row, best=best)


def checking(done: int, total: int = 100) -> PhaseEvent:
    """Validation."""
    return PhaseEvent(phase="validation", done=done, total=total)


class Terminal:
    """What a terminal would show after this text; everything ever scrolled up is kept."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = [""]
        self.row = self.column = 0
        self.cursor = True
        self.wrapped = 0
        self.colours: set[str] = set()

    def feed(self, text: str) -> Terminal:
        """Show more."""
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append("")
            elif part.startswith("\x1b"):
                self.control(part[2:-1], part[-1])
            else:
                for character in part:
                    self.put(character)
        return self

    def put(self, character: str) -> None:
        """One character, on the next line where this one is full."""
        if self.column == self.width:
            self.wrapped += 1
            self.feed("\n")
        line = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def control(self, number: str, letter: str) -> None:
        """A control sequence; one that is not known fails the test."""
        if letter == "A":
            self.row = max(0, self.row - int(number or 1))
        elif letter == "K":
            assert number == "2"
            self.rows[self.row] = ""
        elif letter in "hl":
            assert number == "?25"
            self.cursor = letter == "h"
        else:
            assert letter == "m"
            self.colours |= {n for n in number.split(";") if re.fullmatch(r"[349]\d", n)}

    @property
    def text(self) -> str:
        """What is to be seen."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n")


# -- plain form ------------------------------------------------------------------------------


def test_plain_lines(clock: Clock, tmp_path: Path) -> None:
    """A line for each epoch and note, and one every 30 s in between; nothing else."""
    out = io.StringIO()
    with TrainingDisplay(tmp_path, stream=out) as display:
        display(NoteEvent(text="8012 train images"))
        for done in (0, 1000, 2000):
            clock.now += 16
            display(PhaseEvent(phase="decoding", done=done, total=8012))
        for epoch in (1, 2):
            for step in range(1, 11):
                clock.now += 4
                display(at(step, epoch=epoch))
            for done in (0, 50, 100):
                clock.now += 10
                display(checking(done))
            clock.now += 10
            display(after(epoch, best=epoch == 1, kernel=0.55 if epoch == 1 else 0.0123))
    step = (
        "step {}/10: loss 1.658 (ce 0.826, ce_hybrid 0.830, independence 0.00529, l2 0.00143), "
        "kernel 0.549, 20.5 images/s, epoch {} left, run {} left"
    )
    figures = (
        "160 px  loss 1.501  val:  macro-F1 0.7110  accuracy 0.8262  balanced 0.6992  "
        "log loss 0.5361  "
    )
    assert out.getvalue().splitlines() == [
        "8012 train images",
        "decoding: 1000/8012 images",
        # 6 steps of 4 s in this epoch and 30 after it; validation's time is not known yet
        "epoch 1/4, " + step.format(4, "> 0:24", "> 2:24"),
        "epoch 1/4, validation: 0/100 images",
        f"epoch 1/4  {figures}20.1 images/s  5:55  best",
        # 2 steps and 40 s of validation, and 2 epochs of 40 + 40 s
        "epoch 2/4, " + step.format(8, "0:48", "3:28"),
        "epoch 2/4, validation: 100/100 images",
        f"epoch 2/4  {figures}kernel 0.0123 saturated  20.1 images/s  5:55",
    ]


def test_plain_is_rare(clock: Clock, tmp_path: Path) -> None:
    """One progress line in 30 s, however many steps; none before."""
    out = io.StringIO()
    display = TrainingDisplay(tmp_path, stream=out)
    for step in range(1, 2401):
        clock.now += 0.125
        display(at(step, steps=5000))
    assert len(out.getvalue().splitlines()) == 10


def test_control_characters(clock: Clock, tmp_path: Path) -> None:
    """What a file name may hold does not reach the terminal or the log."""
    out = io.StringIO()
    with TrainingDisplay(tmp_path, stream=out) as display:
        display(NoteEvent(text="a\x1b[31mb\nc\udc80d"))
    assert out.getvalue() == "a [31mb c d\n"
    assert (tmp_path / "train.log").read_text(encoding="utf-8")[20:] == out.getvalue()


def test_without_mica(clock: Clock, tmp_path: Path) -> None:
    """Nothing is said of heads that are not there."""
    out = io.StringIO()
    bare = {"epoch": 1, "epochs": 1, "steps": 9, "images_per_s": 4123.0, "lr": 1e-3, "loss": 0.5}
    with TrainingDisplay(tmp_path, stream=out) as display:
        display(StepEvent(**bare, step=1))  # type: ignore[arg-type]
        clock.now += 31
        display(StepEvent(**bare, step=2))  # type: ignore[arg-type]
        display(EpochEvent(epoch=1, epochs=1, row={"loss": 0.5}, best=False))
    assert out.getvalue().splitlines() == [
        "epoch 1/1, step 2/9: loss 0.500, 4,123 images/s, epoch > 3:37 left, run > 3:37 left",
        "epoch 1/1  loss 0.500",
    ]


# -- time left -------------------------------------------------------------------------------


@given(
    steps=st.integers(1, 40),
    start=st.integers(0, 39),
    step_s=st.floats(0.01, 100),
    tail_s=st.floats(0.01, 1000),
    first_s=st.floats(0, 1000),
)
def test_steady_pace(steps: int, start: int, step_s: float, tail_s: float, first_s: float) -> None:
    """At a steady pace every estimate after a whole validation is the truth, after any resume.

    The first step takes longer (compilation), which must not be extrapolated.
    """
    pace, now, epochs = Pace(), 0.0, 4
    epoch_s = steps * step_s + tail_s
    start %= steps
    for epoch in range(1, epochs + 1):
        for step in range(start + 1 if epoch == 1 else 1, steps + 1):
            now += step_s
            if epoch == 1 and step == start + 1:
                now += first_s
            pace.step(at(step, epoch=epoch, epochs=epochs, steps=steps), now)
            here, run = pace.seconds_left(now)
            if epoch == 1:
                if step == start + 1:
                    assert here is None  # one step, with the compilation: nothing to go by
                    assert run is None
                else:
                    assert here == pytest.approx((steps - step) * step_s, abs=1e-6)
                    assert run == pytest.approx(here + 3 * steps * step_s, abs=1e-6)
                assert pace.left(now)[0].startswith("> ") == (step > start + 1)
            else:
                assert here == pytest.approx((steps - step) * step_s + tail_s, abs=1e-6)
                assert run == pytest.approx(here + (epochs - epoch) * epoch_s, abs=1e-6)
        pace.phase(checking(0), now)
        now += tail_s / 2
        pace.phase(checking(50), now)
        here, run = pace.seconds_left(now)
        assert here == pytest.approx(tail_s / 2, abs=1e-6)
        if epoch > 1 and run is not None:
            assert run == pytest.approx(tail_s / 2 + (epochs - epoch) * epoch_s, abs=1e-6)
        now += tail_s / 2
        pace.epoch(now)
        if epoch > 1:
            assert pace.seconds_left(now) == (0, pytest.approx((epochs - epoch) * epoch_s))


def test_validation_counts() -> None:
    """Epochs of 10 steps of 1 s and 20 s of validation: the run's end counts all of them."""
    pace, now = Pace(), 0.0
    for step in range(1, 11):
        now += 1
        pace.step(at(step), now)
    pace.epoch(now + 20)
    now += 20
    for step in range(1, 6):
        now += 1
        pace.step(at(step, epoch=2), now)
    assert pace.left(now) == ("0:25 left", "1:25 left")
    assert pace.left(now + 3) == ("0:22 left", "1:22 left")  # no step for 3 s


def test_change_of_pace() -> None:
    """Larger images take twice as long: the estimate follows within the epoch, not at once."""
    pace, now = Pace(), 0.0
    for step in range(1, 101):
        now += 1
        pace.step(at(step, epochs=2, steps=100), now)
    pace.epoch(now)
    seen = []
    for step in range(1, 101):
        now += 2
        pace.step(at(step, epoch=2, epochs=2, steps=100), now)
        seen.append(pace.per_step())
    assert seen == sorted(seen)  # type: ignore[type-var]
    assert seen[0] == pytest.approx((2 + 25) / 26)
    assert seen[-1] == pytest.approx((200 + 25) / 125)


def test_short_part_counts_little() -> None:
    """Two slow steps after a resume are outweighed by the first whole epoch."""
    pace, now = Pace(), 0.0
    for step in (98, 99, 100):
        now += 30
        pace.step(at(step, epochs=9, steps=100), now)
    pace.epoch(now)
    for step in range(1, 101):
        now += 1
        pace.step(at(step, epoch=2, epochs=9, steps=100), now)
    pace.epoch(now)
    assert pace.step_s == pytest.approx((0.02 * 30 + 1) / 1.02)


def test_resumed_in_validation(clock: Clock, tmp_path: Path) -> None:
    """No step was seen: no time is guessed, nothing fails, and the next epoch is measured."""
    out = io.StringIO()
    with TrainingDisplay(tmp_path, stream=out) as display:
        clock.now += 31
        display(checking(10))
        clock.now += 31
        display(checking(60))
        display(after(1))
        clock.now += 4
        display(at(1, epoch=2))
        clock.now += 28
        display(at(8, epoch=2))
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["validation: 10/100 images", "validation: 60/100 images"]
    assert lines[3].endswith("epoch > 0:08 left, run > 1:28 left")


# -- live form, into a buffer ----------------------------------------------------------------


def live_screen(clock: Clock, run: Path, events: list[object], width: int = 80) -> Terminal:
    """The terminal after these events, one second apart, the display still on."""
    out = io.StringIO()
    os.environ["COLUMNS"] = str(width)
    with TrainingDisplay(run, live=True, stream=out) as display:
        for event in events:
            clock.now += 1
            display(event)  # type: ignore[arg-type]
        return Terminal(width).feed(out.getvalue())


def test_panel(clock: Clock, tmp_path: Path) -> None:
    """Everything is there, once, below the lines that stay."""
    events = [
        NoteEvent(text="training on cpu"),
        *(at(s) for s in range(1, 11)), checking(0), checking(100), after(1),
        *(at(s, epoch=2) for s in range(1, 11)), checking(0), checking(100),
        after(2, f1=0.6999, best=False), *(at(s, epoch=3) for s in range(1, 5)),
    ]  # fmt: skip
    screen = live_screen(clock, tmp_path, events)
    assert screen.text.splitlines() == [
        "training on cpu",
        "epoch 1/4  loss 1.501  macro-F1 0.711  accuracy 0.826  balanced 0.699  best",
        "epoch 2/4  loss 1.501  macro-F1 0.700  accuracy 0.826  balanced 0.699",
        "training    epoch 3/4  step 4/10",
        f"epoch       {'━' * 18}{'─' * 29}  40%       0:09 left",
        f"run         {'━' * 28}{'─' * 19}  60%       0:22 left",
        "speed       20.5 images/s  lr 2.90e-04  memory 2.1 GB",
        "loss        1.658  ce 0.826  ce_hybrid 0.830  independence 0.00529  l2 0.00143",
        "heads       kernel 0.549  cosine 0.0517",
        "validation  macro-F1 0.6999  accuracy 0.8262  balanced 0.6992  epoch 2",
        "best        macro-F1 0.7110  accuracy 0.8262  balanced 0.6992  epoch 1",
    ]
    assert screen.wrapped == 0
    assert not screen.cursor


@pytest.mark.parametrize("width", [10, 20])
def test_hardly_a_terminal(clock: Clock, tmp_path: Path, width: int) -> None:
    """What does not fit is cut off: the panel is still as high as it is drawn."""
    events = [PhaseEvent(phase="decoding", done=1, total=2), at(1), at(2), checking(1), after(1)]
    screen = live_screen(clock, tmp_path, [*events, at(1, epoch=2)], width)
    assert screen.wrapped == 0
    assert screen.text.count("\nspeed") == 1


@pytest.mark.parametrize("width", [40, 80, 120])
def test_widths(clock: Clock, tmp_path: Path, width: int) -> None:
    """No line is wider than the terminal, and none is lost."""
    events = [PhaseEvent(phase="decoding", done=n, total=8012) for n in (0, 4000)]
    first = live_screen(clock, tmp_path, [*events], width)
    assert first.wrapped == 0
    assert "4000/8012 images" in first.text
    events = [
        *(at(s, kernel=0.0123) for s in (1, 2)),
        after(1, kernel=0.0123),
        at(1, epoch=2, kernel=0.0123),
    ]
    screen = live_screen(clock, tmp_path, events, width)
    assert screen.wrapped == 0
    shown = screen.text
    for piece in ("training", "step 1/10", "20.5 images/s", "2.1 GB", "1.658", "l2 0.00143",
                  "0.0517", "independence", "0.0123", "saturated"):  # fmt: skip
        # A wide terminal has it in the epoch's line as well.
        assert shown.count(piece) == 1 + (width == 120 and piece in ("0.0123", "saturated")), piece
    assert shown.startswith("epoch 1/4")
    assert "validation" in shown
    assert "best" in shown


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (0.012, "kernel 0.0120  saturated: no gradient  cosine"),
        (0.3, "kernel 0.300  cosine"),
        (0.999, "kernel 0.999  no spread: no gradient  cosine"),
    ],
)
def test_kernel_in_words(clock: Clock, tmp_path: Path, kernel: float, words: str) -> None:
    """A kernel that teaches nothing is said so in words."""
    assert words in live_screen(clock, tmp_path, [at(1, kernel=kernel)]).text


def test_no_colour(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR there is none; done and to do differ by their shape."""
    events = [at(1, kernel=0.01), at(2, kernel=0.01), after(1), at(1, epoch=2)]
    coloured = live_screen(clock, tmp_path, events)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = live_screen(clock, tmp_path, events)
    assert coloured.colours
    assert not plain.colours
    assert plain.text == coloured.text


def test_dumb_terminal(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal without control sequences gets none."""
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    with TrainingDisplay(tmp_path, live=True, stream=out) as display:
        display(at(1))
        display(after(1))
    assert out.getvalue().startswith("epoch 1/4  160 px")
    assert "\x1b" not in out.getvalue()


def test_ascii(clock: Clock, tmp_path: Path) -> None:
    """Bars are drawn with what the terminal's encoding has."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with TrainingDisplay(tmp_path, live=True, stream=stream) as display:
        display(at(5))
    assert "#" * 23 + "-" * 24 + "  50%" in re.sub(r"\x1b\[[0-9]*m", "", raw.getvalue().decode())


def test_refreshes(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 8 a second, and fewer where drawing is slow."""
    counts = []
    for cost in (0.0, 0.002):
        with TrainingDisplay(tmp_path, live=True, stream=io.StringIO()) as display:
            assert display._screen is not None
            drawn = []

            def refresh(cost: float = cost, drawn: list[float] = drawn) -> None:
                clock.now += cost
                drawn.append(clock.now)

            monkeypatch.setattr(display._screen, "refresh", refresh)
            end = clock.now + 10
            while clock.now < end:
                clock.now += 0.001
                display(at(1))
            counts.append(len(drawn))
    assert 75 <= counts[0] <= 80
    assert 20 <= counts[1] <= 25


def test_running_means(clock: Clock, tmp_path: Path) -> None:
    """The panel's loss is a mean, of all steps at first; a NaN does not stay for ever."""
    steps = [at(1, loss=1.0), at(2, loss=2.0), at(3, loss=6.0)]
    assert "loss        3.000  ce" in live_screen(clock, tmp_path, steps).text
    steps = [at(1, loss=1.0), at(2, loss=float("nan")), at(3, loss=2.5)]
    assert "loss        2.500  ce" in live_screen(clock, tmp_path, steps).text


def test_several_steps_an_event(clock: Clock, tmp_path: Path) -> None:
    """An event weighs as many steps as it stands for."""
    steps = [at(1, steps=99, loss=1.0), at(4, steps=99, loss=5.0)]
    assert "loss        4.000  ce" in live_screen(clock, tmp_path, steps).text
    steps += [at(54, steps=99, loss=2.0)]
    assert "loss        2.000  ce" in live_screen(clock, tmp_path, steps).text


def test_term_that_joins(clock: Clock, tmp_path: Path) -> None:
    """A term that begins later, and one that ends, as the hybrid branch's."""
    late = StepEvent(
        epoch=2, epochs=4, step=1, steps=10, images_per_s=9, lr=1e-4, loss=1, terms={"kl": 0.25}
    )
    text = live_screen(clock, tmp_path, [at(9), at(10), late]).text
    assert re.search(r"^loss +1\.439  kl 0\.250$", text, re.M)
    assert "heads" not in text


# -- resume ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "best"),
    [("macro_f1", ("macro-F1 0.7000", 2)), ("log_loss", ("log loss 0.4000", 1)),
     ("last", ("macro-F1 0.6000", 3)), (None, ("macro-F1 0.7000", 2))],
)  # fmt: skip
def test_best_of_before(
    clock: Clock, tmp_path: Path, choice: str | None, best: tuple[str, int]
) -> None:
    """A resumed run shows the best of all its epochs, but of none that is done again."""
    (tmp_path / "metrics.csv").write_text(
        "epoch,val_macro_f1,val_log_loss,ce_hybrid\n"
        "1,0.5,0.4,\n2,0.7,0.5,\n3,0.6,0.6,0.8\n4,0.9,0.1,0.8\n"
    )
    if choice is not None:
        (tmp_path / "config.toml").write_text(f'[train]\nselect = "{choice}"\n')
    text = live_screen(clock, tmp_path, [at(7, epoch=4)]).text
    line = next(line for line in text.splitlines() if line.startswith("best"))
    assert line.startswith(f"best        {best[0]}")
    assert line.endswith(f"epoch {best[1]}")
    latest = next(line for line in text.splitlines() if line.startswith("validation"))
    assert latest.endswith("epoch 3")


@pytest.mark.parametrize("damaged", ["", "epoch\n", "epoch,val_macro_f1\n1,much\n", "\0"])
def test_damaged_metrics(clock: Clock, tmp_path: Path, damaged: str) -> None:
    """Figures that cannot be read are not shown; the training goes on."""
    (tmp_path / "metrics.csv").write_text(damaged)
    (tmp_path / "config.toml").write_text("not [toml")
    text = live_screen(clock, tmp_path, [at(7, epoch=4)]).text
    assert "step 7/10" in text
    assert "best" not in text


# -- a real terminal -------------------------------------------------------------------------

SCRIPT = """
from __future__ import annotations
import fcntl, sys, termios, time
from pathlib import Path
from biigma_cli.cli.training_display import TrainingDisplay
from biigma_cli.engine.events import EpochEvent, StepEvent

TERMS = {terms}
{events}
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that a typed Ctrl-C gets here
try:
    with TrainingDisplay(Path(sys.argv[1])) as display:
        for epoch in (1, 2):
            for step in range(1, 11):
                display(at(step, epoch=epoch))
                time.sleep(0.03)
            display(after(epoch))
        print("from a library", file=sys.stderr)
        print("a result")
        display(at(1, epoch=3))
        time.sleep(0.3)
        display(at(2, epoch=3))
        {end}
except (KeyboardInterrupt, ArithmeticError) as error:
    print("ended by", type(error).__name__, file=sys.stderr)
print("after it", file=sys.stderr)
"""


class Session(NamedTuple):
    """What was written to the terminal, to stdout where that is a pipe, and the exit code."""

    text: str
    out: str
    code: int


def in_terminal(run: Path, end: str, *, width: int = 80, keys: bytes = b"") -> Session:
    """The script on a terminal of its own, where `keys` are typed once it says `ready`."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    # Not imported from here: pytest and hypothesis take long to load.
    script = SCRIPT.format(
        terms=TERMS, events=inspect.getsource(at) + inspect.getsource(after), end=end
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run)],
        stdin=slave, stdout=subprocess.PIPE, stderr=slave, start_new_session=True,
        cwd=Path(__file__).parents[2], env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    said = b""
    while True:
        waiting = bool(keys) and b"ready" in said
        ready, _, _ = select.select([master], [], [], 0.5 if waiting else 60)
        if waiting and not ready:
            # Only now that all is read: Ctrl-C discards what is on its way to the terminal.
            os.write(master, keys)
            keys = b""
            continue
        assert ready, said
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        said += piece
    os.close(master)
    out, _ = process.communicate(timeout=60)
    return Session(said.decode(), out.decode(), process.returncode)


EPOCHS = [
    "epoch 1/4  loss 1.501  macro-F1 0.711  accuracy 0.826  balanced 0.699  best",
    "epoch 2/4  loss 1.501  macro-F1 0.711  accuracy 0.826  balanced 0.699  best",
    "from a library",
]


@pytest.mark.parametrize(
    ("end", "keys", "last"),
    [
        ("pass", b"", []),
        ("1 / 0", b"", ["ended by ZeroDivisionError"]),
        ("sys.stderr.write('ready\\n'); time.sleep(60)", b"\x03", ["ended by KeyboardInterrupt"]),
    ],
)
def test_terminal_restored(tmp_path: Path, end: str, keys: bytes, last: list[str]) -> None:
    """However it ends: the panel is gone, what was kept is there, and the cursor is back."""
    done = in_terminal(tmp_path, end, keys=keys)
    screen = Terminal(80).feed(done.text.replace("^C", ""))
    ready = ["ready"] if keys else []
    assert screen.text.splitlines() == [*EPOCHS, *ready, *last, "after it"]
    assert "epoch 3/4  step 2/10" in done.text.replace("\x1b[0m", "")
    assert screen.cursor
    assert screen.wrapped == 0
    assert done.out == "a result\n"
    assert done.code == 0


def test_panel_is_drawn_over(tmp_path: Path) -> None:
    """At every moment the panel is there once, and epochs above it."""
    done = in_terminal(tmp_path, "pass", width=44)
    screen, most = Terminal(44), 0
    for piece in re.split(r"(?<=\n)", done.text):
        screen.feed(piece)
        most = max(most, screen.text.count("images/s"))
    assert most == 1
    assert screen.wrapped == 0


# -- the log ---------------------------------------------------------------------------------


def test_log(clock: Clock, tmp_path: Path) -> None:
    """Dated lines from the first note on, once there is a folder; a second run is appended."""
    run = tmp_path / "run"
    for n in (1, 2):
        with TrainingDisplay(run, stream=io.StringIO()) as display:
            display(NoteEvent(text=f"start {n}"))
            assert run.exists() == (n == 2)
            run.mkdir(exist_ok=True)
            clock.now += 60
            display(at(n))
            display(after(n))
    lines = (run / "train.log").read_text(encoding="utf-8").splitlines()
    dates = [line[:19] for line in lines]
    for date in dates:
        time.strptime(date, "%Y-%m-%d %H:%M:%S")
    figures = "160 px  loss 1.501  val:  macro-F1 0.7110  accuracy 0.8262  balanced 0.6992"
    rest = "log loss 0.5361  20.1 images/s  5:55  best"
    assert [line[20:] for line in lines] == [
        "start 1", f"epoch 1/4  {figures}  {rest}", "start 2", f"epoch 2/4  {figures}  {rest}",
    ]  # fmt: skip


def test_log_of_the_live_form(clock: Clock, tmp_path: Path) -> None:
    """The log's lines are whole, however narrow the terminal."""
    live_screen(clock, tmp_path, [at(1), after(1)], 30)
    line = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert line.endswith("log loss 0.5361  20.1 images/s  5:55  best\n")
    assert "\x1b" not in line


def test_last_note_is_kept(tmp_path: Path) -> None:
    """A folder that appears only at the end still gets its log."""
    run = tmp_path / "run"
    with TrainingDisplay(run, stream=io.StringIO()) as display:
        display(NoteEvent(text="early"))
        run.mkdir()
    assert (run / "train.log").read_text(encoding="utf-8").endswith(" early\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("live", [False, True])
def test_full_disk(clock: Clock, tmp_path: Path, live: bool) -> None:
    """It is said once, and the training goes on."""
    (tmp_path / "train.log").symlink_to("/dev/full")
    out = io.StringIO()
    with TrainingDisplay(tmp_path, live=live, stream=out) as display:
        for epoch in (1, 2, 3):
            display(after(epoch))
    assert out.getvalue().count("train.log cannot be written (No space left on device)") == 1
    assert out.getvalue().count("loss 1.501") == 3


def test_half_a_line(tmp_path: Path) -> None:
    """A line for which there is no room is taken back, and written once there is."""
    log = tmp_path / "train.log"
    out = io.StringIO()
    with TrainingDisplay(tmp_path, stream=out) as display:
        display(NoteEvent(text="one"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 5, hard))
        try:
            display(NoteEvent(text="two"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert log.read_text(encoding="utf-8").count("\n") == 1
        assert log.read_text(encoding="utf-8").endswith(" one\n")
        display(NoteEvent(text="three"))
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["one", "two", "three"]
    assert "File too large" in out.getvalue()


class Lost(io.StringIO):
    """A terminal that goes away."""

    lost = False

    def write(self, text: str) -> int:
        if self.lost:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("live", [False, True])
def test_terminal_goes_away(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    """The connection breaks: the training goes on, and so does its log."""
    stderr, out = sys.stderr, Lost()
    if live:
        monkeypatch.setattr(sys, "stderr", out)
    with TrainingDisplay(tmp_path, live=live, stream=out) as display:
        display(after(1))
        out.lost = True
        for epoch in (2, 3):
            clock.now += 60
            display(at(1, epoch=epoch))
            display(after(epoch))
            assert sys.stderr is (out if live else stderr)
    lines = [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert [line[:9] for line in lines if line.startswith("epoch")] == [
        "epoch 1/4", "epoch 2/4", "epoch 3/4",
    ]  # fmt: skip
    assert lines.count("nothing more can be shown (Input/output error); training goes on") == 1


def test_after_the_end(clock: Clock, tmp_path: Path) -> None:
    """An event after the display's end is a plain line."""
    out = io.StringIO()
    with TrainingDisplay(tmp_path, live=True, stream=out) as display:
        display(at(1))
    before = len(out.getvalue())
    display(NoteEvent(text="curves.png"))
    display(at(2))
    assert out.getvalue()[before:] == "curves.png\n"


# -- words and numbers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.65803, "1.658"), (0.9, "0.9000"), (12.3456, "12.35"), (1234.0, "1234"), (0.0, "0.000"),
     (0.00529, "0.005290"), (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_digits(value: float, text: str) -> None:
    """Four significant digits."""
    assert digits(value, 4) == text


def test_fit() -> None:
    """The least important pieces go first, and the order stays."""
    items = [Item("a", "1", 0), Item("b", "2", 3), Item("c", "3", 1), Item("d", "4", 2)]
    assert [i.name for i in fit(items, 18)] == ["a", "b", "c", "d"]
    assert [i.name for i in fit(items, 17)] == ["a", "c", "d"]
    assert [i.name for i in fit(items, 8)] == ["a", "c"]
    assert [i.name for i in fit(items, 1)] == ["a"]
    assert fit([], 10) == []


def test_chosen_figure_first() -> None:
    """What chooses the epoch is what a narrow terminal keeps."""
    row = after(3).row
    assert [i.name for i in figure_items(row)] == [
        "macro-F1", "accuracy", "balanced", "log loss", "epoch",
    ]  # fmt: skip
    assert [i.name for i in fit(figure_items(row, "log_loss"), 26)] == ["log loss", "epoch"]
    names = [i.name for i in epoch_items(after(3), "log_loss") if i.name]
    assert names[:3] == ["epoch", "loss", "log loss"]
