"""The command line, run in this process or in one of its own, for the tests of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blossomrec.cli import main
from small_options import small_flags


def succeed(capsys: Any, *arguments: Any, run: Callable[[list[str]], int] = main) -> str:
    """Run what must succeed; gives what it printed."""
    capsys.readouterr()
    code = run([str(one) for one in arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def refuse(
    capsys: Any,
    *arguments: Any,
    words: Sequence[Any],
    run: Callable[[list[str]], int] = main,
    name: str = "blossomrec",
) -> tuple[str, str]:
    """Run what must fail with exit code 2 and one line that holds all the words.

    Gives what went to standard output and to standard error.
    """
    capsys.readouterr()
    code = run([str(one) for one in arguments])
    shown = capsys.readouterr()
    assert code == 2
    assert len(shown.err.splitlines()) == 1, shown.err
    assert shown.err.startswith(f"{name}: ")
    for word in words:
        assert str(word) in shown.err
    return shown.out, shown.err


def python(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """``python -m blossomrec`` in a process of its own."""
    command = [sys.executable, "-m", "blossomrec", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def prepare_and_train(events: Any, folder: Path) -> Path:
    """Fill a folder with ``events.parquet``, its prepared ``log``, and a ``run`` trained on it."""
    events.write_parquet(folder / "events.parquet")
    assert main(["prepare", str(folder / "events.parquet"), str(folder / "log")]) == 0
    flags = ["--quiet", *small_flags(epochs=3)]
    assert main(["train", str(folder / "log"), str(folder / "run"), *flags]) == 0
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
