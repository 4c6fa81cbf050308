"""The modules in benchmarks/ that make the tables of the docs, and what stands in their tables."""

import contextlib
import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@contextlib.contextmanager
def imported(name: str):
    """A module of benchmarks/, forgotten afterwards with those that it imports."""
    own = {path.stem for path in BENCHMARKS.glob("*.py")}
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for each in own & sys.modules.keys():
            sys.modules.pop(each)


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table, without its header."""
    return [[cell.strip() for cell in row[2:-2].split(" | ")] for row in text.splitlines()[2:]]
