"""A measurement by ranks, started as torchrun starts them, whose first one tells what was found."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blossomrec.errors import BlossomRecError
from blossomrec.ranks import Ranks, open_ranks

ROOT = Path(__file__).parents[3]


def by_ranks(module: str, asked: dict[str, Any], count: int, device: str) -> Any:
    """What the first of ``count`` ranks found, which run a module that calls :func:`answer`.

    Args:
        module: run by each rank, alone in its process.
        asked: what the module is asked, of plain types.
        device: cuda or cpu.

    Raises:
        BlossomRecError: a rank failed; the message tells what it printed last.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "found.json"
        command = [sys.executable]
        if count > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(count)]
        command += ["-m", module, json.dumps(asked), device, str(told)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode or not told.exists():
            raise BlossomRecError(f"{module} with {asked} failed: {done.stderr[-2_000:]}")
        return json.loads(told.read_text())


def answer(measure: Callable[[dict[str, Any], str, Ranks], Any]) -> None:
    """In the process of a rank: measure what :func:`by_ranks` asked, and tell it.

    Args:
        measure: called with what was asked, the device and the ranks, by each of them.
    """
    asked, device, path = sys.argv[1:]
    with open_ranks(device) as ranks:
        found = measure(json.loads(asked), device, ranks)
        if ranks.first:
            Path(path).write_text(json.dumps(found))
