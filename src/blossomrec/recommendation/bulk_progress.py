"""How a job over many users shows itself: a bar on a terminal, lines elsewhere, or silence."""

from __future__ import annotations

import contextlib
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from blossomrec.training.progress import compact, duration

# Seconds after which a job that writes into a file or pipe says that it is alive.
EVERY = 30.0


class Silence:
    """The display that shows nothing; the base of those that do."""

    def __init__(self, users: int):
        self.users, self.done = users, 0
        self._begun, self._before = time.monotonic(), 0

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the terminal as it was."""

    def advance(self, users: int) -> None:
        """So many more users are done."""
        self.done += users

    def begin(self, done: int) -> None:
        """So many users were done before; they took no time."""
        self.done = self._before = done

    def pace(self) -> str:
        """Speed and time left."""
        speed = (self.done - self._before) / max(1e-9, time.monotonic() - self._begun)
        left = duration((self.users - self.done) / speed) if speed else "?"
        return f"{compact(speed)} users/s  {left} left"


class Lines(Silence):
    """A line at most every so many seconds, for files and pipes."""

    def __init__(self, users: int, console: Console):
        super().__init__(users)
        self._console, self._said = console, time.monotonic()

    def advance(self, users: int) -> None:
        super().advance(users)
        if time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            with contextlib.suppress(OSError):
                line = f"{self.done:,} of {self.users:,} users  {self.pace()}"
                self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class Bar(Silence):
    """A bar for all users with speed and time left."""

    def __init__(self, users: int, console: Console):
        super().__init__(users)
        columns = (TextColumn("users"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(
            *columns, TextColumn("{task.fields[text]}"), console=console, transient=True
        )
        self._task = self._bar.add_task("", total=users, text="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()

    def advance(self, users: int) -> None:
        super().advance(users)
        self._bar.update(self._task, completed=self.done, text=self.pace())


def open_display(shown: bool, users: int) -> Silence:
    """The display that suits standard error: a bar, lines, or none where not shown."""
    if not shown:
        return Silence(users)
    console = Console(stderr=True)
    return (Bar if console.is_terminal else Lines)(users, console)
