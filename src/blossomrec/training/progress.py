"""How training shows itself: a live line on a terminal, a line an epoch elsewhere, or silence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


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
    """One line an epoch, for files and pipes."""

    def __init__(self, console: Console, epochs: int):
        self.console = console
        self.epochs = epochs

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def finish_epoch(self, record: Mapping[str, Any]) -> None:
        self.note(epoch_line(record, self.epochs))


class Live(Lines):
    """A bar for the epoch with loss, speed, time left and the last validation."""

    def __init__(self, console: Console, epochs: int):
        super().__init__(console, epochs)
        self._validation = ""
        self._begun, self._steps, self._events = time.monotonic(), 0, 0
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
        self._bar.stop()

    def start_epoch(self, epoch: int, steps: int, done: int) -> None:
        self._epoch, self._total, self._done = epoch, steps, done
        self._epoch_begun, self._events = time.monotonic(), 0
        self._bar.update(
            self._task, epoch=f"{epoch}/{self.epochs}", total=steps, completed=done, text=""
        )

    def advance(self, steps: int, events: int, loss: float) -> None:
        self._steps, self._done = self._steps + steps, self._done + steps
        self._events += events
        speed = self._events / max(1e-9, time.monotonic() - self._epoch_begun)
        text = f"loss {loss:.4f}  {compact(speed)} events/s  {duration(self._left())} left"
        self._bar.update(self._task, completed=self._done, text=text + self._validation)

    def finish_epoch(self, record: Mapping[str, Any]) -> None:
        super().finish_epoch(record)
        if record["validation"]:
            self._validation = f"  ndcg@10 {record['validation']['ndcg@10']:.4f}"

    def _left(self) -> float:
        # Validation and checkpoints are in the time of a step: that is what one waits for.
        each = (time.monotonic() - self._begun) / max(1, self._steps)
        return each * (self._total * (self.epochs - self._epoch + 1) - self._done)


def open_display(shown: bool, epochs: int) -> Silence:
    """The display that suits standard error: live, a line an epoch, or none where not shown."""
    if not shown:
        return Silence()
    console = Console(stderr=True)
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
