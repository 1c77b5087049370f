"""What `biigma train` shows: a live panel on a terminal, plain lines elsewhere, and `train.log`."""

from __future__ import annotations

import csv
import math
import os
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, strftime
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TextIO

from biigma_cli.cli.progress import clock, is_dumb
from biigma_cli.data.sources import human
from biigma_cli.engine.events import EpochEvent, Event, PhaseEvent, StepEvent

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

SATURATED = 0.05
NO_SPREAD = 0.98
REFRESH_S = 0.125
PLAIN_S = 30.0
# A drawing may take this share of the time at most: on a GPU every pause of Python counts.
DRAWING_SHARE = 0.005
SMOOTH_STEPS = 20
LABEL = 12

FIGURES = {
    "val_macro_f1": "macro-F1",
    "val_accuracy": "accuracy",
    "val_macro_recall": "balanced",
    "val_log_loss": "log loss",
}
Row = dict[str, float | int]


class Item(NamedTuple):
    """A piece of a line; where a line is too narrow, the highest `rank` goes first."""

    name: str
    value: str
    rank: int = 0
    style: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.value}" if self.name and self.value else self.name or self.value


class TrainingDisplay:
    """Shows a training's events on stderr and keeps epochs and notes in the run's `train.log`.

    On a terminal the panel stays at the bottom, and epochs and notes scroll up above it; leaving
    the context, for whatever reason, takes the panel away and gives the cursor back. Elsewhere,
    and on a dumb terminal, there is a line per epoch and note, and one every 30 s in between.
    Losses and kernel figures of the panel are running means over about 20 steps. A terminal that
    goes away, or a log that cannot be written, never stops the training.

    Args:
        run: run folder; the log begins once it exists.
        live: whether to draw the panel; None draws it where `stream` is a terminal.
        stream: where to write; stderr by default.
    """

    def __init__(
        self, run: Path, *, live: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.live = (self.stream.isatty() if live is None else live) and not is_dumb()
        self._run = run
        self._log = _Log(run / "train.log")
        self._screen: Live | None = None
        self._gone = False  # nobody reads the stream any more
        self._next = 0.0 if self.live else monotonic() + PLAIN_S
        self._pace = Pace()
        self._ended: EpochEvent | None = None  # until the next epoch's first step
        self._means: dict[str, float] = {}
        self._count = 0
        self._recalled = False
        self._select = "macro_f1"
        self._latest: Row = {}
        self._best: Row = {}

    def __enter__(self) -> Self:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, force_terminal=True, force_interactive=True)
            # No thread refreshes it: that would take turns with the training's own.
            self._screen = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                get_renderable=self._panel,
                # Results that go to a file or a pipe stay there.
                redirect_stdout=self.stream is sys.stderr and sys.stdout.isatty(),
                redirect_stderr=self.stream is sys.stderr,
            )
            self._screen.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self._write_log()

    def _close(self) -> None:
        """Take the panel away; from here on there are plain lines."""
        screen, self._screen = self._screen, None
        if screen is not None:
            with suppress(OSError):
                screen.stop()

    def __call__(self, event: Event) -> None:
        now = monotonic()
        if isinstance(event, StepEvent):
            self._on_step(event, now)
        elif isinstance(event, PhaseEvent):
            self._pace.phase(event, now)
        elif isinstance(event, EpochEvent):
            self._on_epoch(event, now)
            return
        else:
            self._keep(_printable(event.text))
            return
        if now >= self._next:
            self._show(now)

    def _on_step(self, event: StepEvent, now: float) -> None:
        if not self._recalled:
            self._recall(event.epoch)
        # An event may stand for several steps, as where reading a loss would stall a GPU.
        before = self._pace.at
        new = 1  # after a resume, others did the steps before
        if before is not None:
            new = event.step - (before.step if before.epoch == event.epoch else 0)
        self._count += new
        share = min(1.0, new / min(self._count, SMOOTH_STEPS))
        self._pace.step(event, now)
        self._ended = None
        values = {"loss": event.loss, **event.terms}
        if event.kernel_mean is not None:
            values["kernel_mean"] = event.kernel_mean
        if event.head_cosine is not None:
            values["head_cosine"] = event.head_cosine
        old = self._means
        self._means = {
            name: old[name] + share * (value - old[name])
            if name in old and math.isfinite(old[name])
            else value
            for name, value in values.items()
        }

    def _on_epoch(self, event: EpochEvent, now: float) -> None:
        if not self._recalled:
            self._recall(event.epoch)
        self._pace.epoch(now)
        self._ended = event
        self._latest = {**event.row, "epoch": event.epoch}
        if event.best:
            self._best = self._latest
        self._next = now + (REFRESH_S if self.live else PLAIN_S)
        text = shown = _joined(epoch_items(event, self._select))
        if self._screen is not None:
            width = self._screen.console.width
            items = epoch_items(event, self._select, decimals=4 if width >= 100 else 3)
            shown = _joined(fit(items, width))
        self._keep(text, shown, bold=event.best)

    def _recall(self, epoch: int) -> None:
        """How an epoch is chosen, and figures of those finished before this process began."""
        self._recalled = True
        with suppress(OSError, ValueError, KeyError, TypeError):
            settings = tomllib.loads((self._run / "config.toml").read_text(encoding="utf-8"))
            self._select = str(settings["train"]["select"])
        if epoch <= 1:
            return
        with suppress(OSError, ValueError, KeyError, TypeError, csv.Error):
            text = (self._run / "metrics.csv").read_text(encoding="utf-8")
            rows: list[Row] = []
            for read in csv.DictReader(text.splitlines()):
                row: Row = {k: float(v) for k, v in read.items() if v}
                row["epoch"] = int(row["epoch"])
                if row["epoch"] < epoch:
                    rows.append(row)
            if not rows:
                return
            self._latest = rows[-1]
            if self._select == "last":
                self._best = rows[-1]
            elif self._select == "log_loss":
                self._best = min(rows, key=lambda row: row["val_log_loss"])
            else:
                self._best = max(rows, key=lambda row: row["val_macro_f1"])

    # -- output ------------------------------------------------------------------------------

    def _keep(self, text: str, shown: str | None = None, *, bold: bool = False) -> None:
        """A line that stays, dated in the log; `shown` is a shorter form for the terminal."""
        self._write_log(text)
        self._say(shown if shown is not None else text, bold=bold)

    def _write_log(self, text: str = "") -> None:
        trouble = self._log.write(text)
        if trouble:
            self._say(trouble)

    def _say(self, text: str, *, bold: bool = False) -> None:
        if self._gone:
            return
        try:
            if self._screen is not None:
                from rich.text import Text

                style = "bold" if bold else ""
                self._screen.console.print(Text(text, style), soft_wrap=True)
            else:
                self.stream.write(text + "\n")
                self.stream.flush()
        except OSError as error:
            self._lost(error)

    def _show(self, now: float) -> None:
        """Draw the panel, or say where things stand."""
        if self._gone:
            self._next = math.inf
        elif self._screen is not None:
            try:
                self._screen.refresh()
            except OSError as error:
                self._lost(error)
            after = monotonic()
            self._next = after + max(REFRESH_S, min(1.0, (after - now) / DRAWING_SHARE))
        else:
            self._next = now + PLAIN_S
            text = self._progress_line(now)
            if text:
                self._say(text)

    def _lost(self, error: OSError) -> None:
        self._gone = True
        self._close()
        self._log.write(f"nothing more can be shown ({error.strerror or error}); training goes on")

    # -- plain form --------------------------------------------------------------------------

    def _progress_line(self, now: float) -> str:
        work, step = self._pace.work, self._pace.at
        if work is not None and work.phase != "validation":
            if work.done == work.total:
                return ""
            return f"{work.phase}: {work.done}/{work.total} images"
        if step is None:
            return f"validation: {work.done}/{work.total} images" if work is not None else ""
        epoch = f"epoch {step.epoch}/{step.epochs}"
        if work is not None:
            return f"{epoch}, validation: {work.done}/{work.total} images"
        means = self._means
        terms = ", ".join(f"{name} {digits(means[name], 3)}" for name in step.terms)
        parts = [f"loss {_loss(means['loss'])}" + (f" ({terms})" if terms else "")]
        if "kernel_mean" in means:
            kernel = means["kernel_mean"]
            parts.append(f"kernel {digits(kernel, 3)} {_trouble(kernel)}".rstrip())
        parts.append(f"{_rate(step.images_per_s)} images/s")
        parts += [
            f"{name} {left}"
            for name, left in zip(("epoch", "run"), self._pace.left(now), strict=True)
            if left
        ]
        return f"{epoch}, step {step.step}/{step.steps}: {', '.join(parts)}"

    # -- live form ---------------------------------------------------------------------------

    def _panel(self) -> Text:
        from rich.text import Text

        if self._screen is None:
            return Text()
        options = self._screen.console.options
        draw = _Lines(options.max_width, ascii_only=options.ascii_only)
        pace, now = self._pace, monotonic()
        work = pace.work
        if work is not None and work.phase != "validation":
            rate = pace.work_rate(now)
            speed = [Item("", f"{_rate(rate)} images/s")] if rate else []
            left = f"{clock((work.total - work.done) / rate)} left" if rate else ""
            draw.row(work.phase, [Item("", f"{work.done}/{work.total} images"), *speed])
            draw.bars([("images", work.done / max(work.total, 1), left)])
        else:
            self._draw_progress(draw, now)
            self._draw_figures(draw)
        return Text("\n", no_wrap=True, overflow="crop", end="").join(draw.lines)

    def _draw_progress(self, draw: _Lines, now: float) -> None:
        step, work, ended = self._pace.at, self._pace.work, self._ended
        epoch_left, run_left = self._pace.left(now)
        if work is not None:
            where = [Item("", f"epoch {step.epoch}/{step.epochs}")] if step is not None else []
            draw.row("validating", [*where, Item("", f"{work.done}/{work.total} images")])
            bars = [("images", work.done / max(work.total, 1), epoch_left)]
            if step is not None:
                bars.append(("run", step.epoch / step.epochs, run_left))
        elif ended is not None:
            last = ended.epoch == ended.epochs
            what = "all epochs done" if last else f"epoch {ended.epoch}/{ended.epochs} done"
            draw.row("finishing" if last else "training", [Item("", what)])
            left = "" if last else run_left
            bars = [("epoch", 1.0, ""), ("run", ended.epoch / ended.epochs, left)]
        elif step is not None:
            where = [Item("", f"epoch {step.epoch}/{step.epochs}")]
            draw.row("training", [*where, Item("", f"step {step.step}/{step.steps}")])
            share = step.step / step.steps
            run = (step.epoch - 1 + share) / step.epochs
            bars = [("epoch", share, epoch_left), ("run", run, run_left)]
        else:
            return
        draw.bars(bars)

    def _draw_figures(self, draw: _Lines) -> None:
        step, means = self._pace.at, self._means
        if step is not None:
            memory = [Item("memory", human(step.memory_bytes))] if step.memory_bytes else []
            speed = Item("", f"{_rate(step.images_per_s)} images/s")
            draw.row("speed", [speed, Item("lr", f"{step.lr:.2e}"), *memory])
            terms = [Item(name, digits(means[name], 3)) for name in step.terms]
            draw.row("loss", [Item("", _loss(means["loss"]), style="bold"), *terms])
        if "kernel_mean" in means:
            kernel = means["kernel_mean"]
            alarm = "bold yellow" if kernel < SATURATED or kernel > NO_SPREAD else ""
            items = [Item("kernel", digits(kernel, 3), style=alarm)]
            if alarm:
                items.append(Item("", _trouble(kernel), style=alarm))
            if "head_cosine" in means:
                items.append(Item("cosine", digits(means["head_cosine"], 3)))
            draw.row("heads", items)
        draw.row("validation", figure_items(self._latest, self._select), shorten=True)
        draw.row("best", figure_items(self._best, self._select), shorten=True, style="bold")


# -- time left -------------------------------------------------------------------------------


@dataclass
class Pace:
    """Time left, from what epochs took here: their steps, and what follows the last step.

    The process's first step is not counted, since it holds compilation and warm-up, nor are steps
    that another process did before a resume. Finished epochs weigh as much as a quarter of the
    current one, so the estimate begins with what epochs took and follows a change within one.
    """

    step_s: float | None = None  # seconds a step in finished epochs, newer ones weigh more
    weight: float = 0.0  # epochs behind `step_s`, at most 1
    tail_s: float | None = None  # seconds from the last step to the end of the epoch
    began: float | None = None  # when counting began in this epoch
    ended: float | None = None  # when the latest step of this epoch ended
    first: int = 0  # steps of this epoch that are not counted
    at: StepEvent | None = None  # the latest step, maybe of the epoch before
    work: PhaseEvent | None = None  # work that is going on, since `work_began` with `work_first`
    work_began: float = 0.0
    work_first: int = 0

    def step(self, event: StepEvent, now: float) -> None:
        """Count a step."""
        if self.began is None:
            self.began, self.first = now, event.step
        self.at, self.ended, self.work = event, now, None

    def phase(self, event: PhaseEvent, now: float) -> None:
        """Count other work."""
        old = self.work
        same = old is not None and (old.phase, old.total) == (event.phase, event.total)
        if not same or (old is not None and event.done < old.done):
            self.work_began, self.work_first = now, event.done
        self.work = event

    def epoch(self, now: float) -> None:
        """Count the end of an epoch."""
        if self.ended is not None and self.began is not None and self.at is not None:
            tail = now - self.ended
            self.tail_s = tail if self.tail_s is None else (self.tail_s + tail) / 2
            counted = self.at.step - self.first
            if counted > 0:
                new, share = (self.ended - self.began) / counted, counted / self.at.steps
                old = self.weight * (self.step_s or 0.0)
                self.step_s = (old + share * new) / (self.weight + share)
                self.weight = min(1.0, self.weight + share)
        self.began, self.ended, self.first, self.work = now, None, 0, None

    def work_rate(self, now: float) -> float:
        """Images a second of the work that is going on; 0 where unknown."""
        done = self.work.done - self.work_first if self.work is not None else 0
        return done / (now - self.work_began) if done > 0 and now > self.work_began else 0.0

    def per_step(self) -> float | None:
        """Seconds a step; None before two steps were seen."""
        spent, counted, earlier = 0.0, 0, 0.0
        if self.at is not None and self.began is not None and self.ended is not None:
            spent, counted = self.ended - self.began, self.at.step - self.first
        if self.at is not None and self.step_s is not None:
            earlier = self.at.steps / 4
            spent += earlier * self.step_s
        return spent / (counted + earlier) if counted + earlier else None

    def seconds_left(self, now: float) -> tuple[float | None, float | None]:
        """Seconds left in this epoch and in the run; None where nothing was measured yet."""
        if self.at is None:
            return None, None
        per_step, tail = self.per_step(), self.tail_s
        here: float | None = None
        if self.work is not None:
            rate = self.work_rate(now)
            if tail is None and rate:  # no whole validation was seen yet
                tail = self.work.total / rate
            if tail is not None:
                here = tail * (1 - self.work.done / max(self.work.total, 1))
        elif self.ended is None:  # between two epochs
            here = 0.0
        elif per_step is not None:
            steps = (self.at.steps - self.at.step) * per_step
            here = max(0.0, steps - (now - self.ended)) + (tail or 0.0)
        epochs = self.at.epochs - self.at.epoch
        if here is None or (epochs and per_step is None):
            return here, None
        return here, here + epochs * (self.at.steps * (per_step or 0.0) + (tail or 0.0))

    def left(self, now: float) -> tuple[str, str]:
        """As `seconds_left`, in words; `>` where no validation was measured yet."""
        over = "> " if self.tail_s is None and self.work is None else ""
        epoch, run = ("" if s is None else f"{over}{clock(s)} left" for s in self.seconds_left(now))
        return epoch, run


# -- the log ---------------------------------------------------------------------------------


class _Log:
    """Dated lines in a file whose folder may not exist yet and whose disk may be full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[str] = []
        self.failed = False

    def write(self, text: str = "") -> str:
        """Append a line, and those that wait; returns what to say at the first failure, or ''."""
        if text:
            self.waiting.append(strftime("%Y-%m-%d %H:%M:%S ") + text + "\n")
        if not self.waiting or not self.path.parent.is_dir():
            return ""
        size = None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                size = file.tell()
                file.writelines(self.waiting)
        except OSError as error:
            if size is not None:
                # Half a line would run into the next one.
                with suppress(OSError):
                    os.truncate(self.path, size)
            del self.waiting[:-1000]
            if self.failed:
                return ""
            self.failed = True
            return f"{self.path} cannot be written ({error.strerror or error}); training goes on"
        self.waiting.clear()
        return ""


# -- words and numbers -----------------------------------------------------------------------


def digits(value: float, count: int) -> str:
    """A number with `count` significant digits, and with its trailing zeros."""
    return f"{value:#.{count}g}".rstrip(".")


def _loss(value: float) -> str:
    return digits(value, 4 if value >= 1 else 3)  # of the same width


def epoch_items(event: EpochEvent, select: str = "macro_f1", *, decimals: int = 4) -> list[Item]:
    """Line of an epoch: where, training loss, validation figures, speed."""
    row = event.row
    number = str(event.epoch).rjust(len(str(event.epochs)))
    items = [Item("epoch", f"{number}/{event.epochs}")]
    if "side" in row:
        items.append(Item("", f"{row['side']:.0f} px", 9))
    if "loss" in row:
        items.append(Item("loss", _loss(row["loss"]), 3))
    figures = figure_items(row, select, decimals=decimals)[:-1]
    if figures:
        items.append(Item("", "val:", 9))
        items += [f._replace(rank=r) for f, r in zip(figures, (1, 4, 5, 8), strict=False)]
    if row.get("kernel_mean", 1.0) < SATURATED:
        items.append(Item("kernel", digits(row["kernel_mean"], 3) + " saturated", 6))
    if "images_per_s" in row:
        items.append(Item("", f"{_rate(row['images_per_s'])} images/s", 8))
    if "seconds" in row:
        items.append(Item("", clock(row["seconds"]), 7))
    return [*items, Item("", "best" if event.best else "    ", 2)]


def figure_items(row: Row, select: str = "macro_f1", *, decimals: int = 4) -> list[Item]:
    """Validation figures of an epoch, the one that chooses first, and the epoch's number."""
    names = sorted((n for n in FIGURES if n in row), key=lambda n: n != f"val_{select}")
    if not names:
        return []
    items = [
        Item(FIGURES[name], f"{row[name]:.{decimals}f}", rank)
        for name, rank in zip(names, (0, 2, 3, 4), strict=False)
    ]
    return [*items, Item("epoch", f"{row.get('epoch', 0):.0f}", 1)]


def fit(items: list[Item], width: int) -> list[Item]:
    """The items of the lowest ranks that fit a line, two spaces between them; at least one."""
    chosen: set[int] = set()
    room = width + 2
    for i in sorted(range(len(items)), key=lambda i: items[i].rank):
        room -= len(str(items[i])) + 2
        if room < 0 and chosen:
            break
        chosen.add(i)
    return [item for i, item in enumerate(items) if i in chosen]


def _joined(items: list[Item]) -> str:
    return "  ".join(map(str, items)).rstrip()


def _trouble(kernel_mean: float) -> str:
    """What a kernel's mean means where the independence loss cannot work."""
    if kernel_mean < SATURATED:
        return "saturated: no gradient"
    return "no spread: no gradient" if kernel_mean > NO_SPREAD else ""


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}"


def _printable(text: str) -> str:
    """One line without control characters, such as a file name may hold."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


class _Lines:
    """Lines of the panel for a width: a label, and what belongs to it."""

    def __init__(self, width: int, *, ascii_only: bool) -> None:
        self.width = width
        self.glyphs = ("#", "-") if ascii_only else ("━", "─")
        self.lines: list[Text] = []

    def row(self, label: str, items: list[Item], *, shorten: bool = False, style: str = "") -> None:
        """A line of items; those too many go to further lines, or with `shorten` are left out."""
        from rich.text import Text

        if not items:
            return
        if shorten:
            items = fit(items, self.width - LABEL)
        line, used = Text.assemble((label.ljust(LABEL), "cyan")), LABEL
        for item in items:
            needed = len(str(item)) + (2 if used > LABEL else 0)
            if used > LABEL and used + needed > self.width:
                self.lines.append(line)
                line, used = Text(" " * LABEL), LABEL
                needed -= 2
            if used > LABEL:
                line.append("  ")
            if item.name:
                line.append(item.name + " ", "dim")
            line.append(item.value, item.style or style)
            used += needed
        self.lines.append(line)

    def bars(self, bars: list[tuple[str, float, str]]) -> None:
        """Bars of the same length: label, share done, time left."""
        from rich.text import Text

        # Room for hours even while there are none: a bar should not change its length.
        longest = max(len("> 1:00:00 left"), *(len(left) for *_, left in bars))
        length = self.width - LABEL - 7 - longest
        full, empty = self.glyphs
        for label, share, left in bars:
            share = min(max(share, 0.0), 1.0)
            line = Text.assemble((label.ljust(LABEL), "cyan"))
            if length >= 5:
                done = int(share * length)
                line.append(full * done, "green")
                line.append(empty * (length - done), "dim")
            line.append(f" {int(100 * share):3}%  {left.rjust(longest)}".rstrip())
            self.lines.append(line)
