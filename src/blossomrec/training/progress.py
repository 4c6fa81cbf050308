"""How training shows itself: a live line on a terminal, lines elsewhere, or silence."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

# Seconds after which a training that runs into a file or pipe says that it is alive.
EVERY = 30.0


class Silence:
    """The display that shows nothing; the base of those that do."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the terminal as it was."""

    def start_epoch(self, epoch: int, steps: int, done: int) -> None:
        """Epoch ``epoch`` of ``steps`` steps begins, ``done`` of them already taken."""

    def advance(self, steps: int, events: int, loss: float) -> None:
        """So many more steps and events went by, the last with this loss."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""

    def finish_epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch ended; ``record`` is its line of the log."""


class Lines(Silence):
    """A line an epoch, and one after ``every`` seconds without a line, for files and pipes."""

    def __init__(self, console: Console, epochs: int, every: float = EVERY):
        self.console, self.epochs, self.every = console, epochs, every
        self._begun, self._steps, self._said = time.monotonic(), 0, time.monotonic()
        self._epoch, self._total, self._done = 1, 0, 0
        self._epoch_begun, self._events, self._loss = self._begun, 0, ""
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)

    def __enter__(self) -> Lines:
        self._teller.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._teller.join()

    def start_epoch(self, epoch: int, steps: int, done: int) -> None:
        self._epoch, self._total, self._done = epoch, steps, done
        self._epoch_begun, self._events, self._loss = time.monotonic(), 0, ""

    def advance(self, steps: int, events: int, loss: float) -> None:
        self._steps, self._done = self._steps + steps, self._done + steps
        self._events, self._loss = self._events + events, f"loss {loss:.4f}"

    def note(self, text: str) -> None:
        self._said = time.monotonic()
        # Training outlives the terminal, or whatever else read of it.
        with contextlib.suppress(OSError):
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def finish_epoch(self, record: Mapping[str, Any]) -> None:
        self.note(epoch_line(record, self.epochs))

    def status(self) -> str:
        """Where the epoch under way stands."""
        place = f"epoch {self._epoch}/{self.epochs}  step {self._done:,}/{self._total:,}"
        if self._total and self._done >= self._total:
            return f"{place}  validation"
        return f"{place}  {self._pace()}" if self._loss else place

    def _pace(self) -> str:
        """Loss, speed and time left."""
        speed = self._events / max(1e-9, time.monotonic() - self._epoch_begun)
        return f"{self._loss}  {compact(speed)} events/s  {duration(self._left())} left"

    def _left(self) -> float:
        # Validation and checkpoints are in the time of a step: that is what one waits for.
        each = (time.monotonic() - self._begun) / max(1, self._steps)
        return each * (self._total * (self.epochs - self._epoch + 1) - self._done)

    def _tell(self) -> None:
        # By a thread, since a step, a validation or a kernel being compiled can last minutes.
        while not self._over.wait(self._said + self.every - time.monotonic()):
            if time.monotonic() - self._said >= self.every:
                self.note(self.status())


class Live(Lines):
    """A bar for the epoch with loss, speed, time left and the last validation."""

    def __init__(self, console: Console, epochs: int):
        super().__init__(console, epochs)
        self._validation = ""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", epoch=f"1/{epochs}", text="")

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def start_epoch(self, epoch: int, steps: int, done: int) -> None:
        super().start_epoch(epoch, steps, done)
        self._bar.update(
            self._task, epoch=f"{epoch}/{self.epochs}", total=steps, completed=done, text=""
        )

    def advance(self, steps: int, events: int, loss: float) -> None:
        super().advance(steps, events, loss)
        self._bar.update(self._task, completed=self._done, text=self._pace() + self._validation)

    def finish_epoch(self, record: Mapping[str, Any]) -> None:
        super().finish_epoch(record)
        if record["validation"]:
            self._validation = f"  ndcg@10 {record['validation']['ndcg@10']:.4f}"


class _LastingConsole(Console):
    """A console that falls silent, rather than end the program, when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def open_display(shown: bool, epochs: int) -> Silence:
    """The display that suits standard error: live, lines, or none where not shown."""
    if not shown:
        return Silence()
    console = _LastingConsole(stderr=True)
    return (Live if console.is_terminal else Lines)(console, epochs)


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """One line of text for one line of the log."""
    parts = [
        f"epoch {record['epoch']}/{epochs}",
        f"loss {record['loss']:.4f}",
        f"{compact(record['events_per_second'])} events/s",
        f"{record['seconds']:.1f} s",
    ]
    if record["validation"]:
        parts.append(f"ndcg@10 {record['validation']['ndcg@10']:.4f}")
        parts.append("best so far" if record["best"] else "not better")
    return "  ".join(parts)


def compact(number: float) -> str:
    """A number in three figures: 950, 12.3k, 4.56M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
