"""The pages whose tables, and the pictures, are made from the lines in results/.

    python -m benchmarks tables            # write them
    python -m benchmarks tables --check    # fail where one is out of date

A table stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``. A picture is drawn again
where its description says that it is of other lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.speed.length_plots import described, draw, fingerprint
from benchmarks.speed.scale_plot import draw_scale
from benchmarks.tables import (
    accuracy_tables,
    catalogue_tables,
    claims,
    data_tables,
    feature_tables,
    planning_tables,
    reproduced_tables,
    rolling_tables,
    selector_tables,
    serving_tables,
    speed_tables,
    tuned_tables,
)
from benchmarks.tables.measured_lines import ROOT, Line, read

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
IMAGES = ROOT / "docs" / "images"
SECTION = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def hardware() -> str:
    """Machines and versions that the lines were measured on."""
    seen: dict[str, None] = {}
    names = ["accuracy", "fusion", "lengths", "speed", "data", "bulk", "features"]
    for name in [*names, "inputs", "selector", "serving", "training", "reproduce", "tuned"]:
        for line in read(f"{name}.jsonl"):
            # Tests are of lines that say where they are from.
            if "paired" in line and "hardware" not in line:
                continue
            seen[_machine(line)] = None
    seen |= {_machine(line): None for line in rolling_tables.rolling_lines()}
    return "".join(seen)


def _machine(line: Line) -> str:
    versions = line["versions"]
    return f"- {line['hardware']}: Python {versions['python']}, torch {versions['torch']}\n"


TABLES: dict[str, Callable[[], str]] = {
    **accuracy_tables.TABLES,
    **catalogue_tables.TABLES,
    **speed_tables.TABLES,
    **claims.TABLES,
    **data_tables.TABLES,
    **feature_tables.TABLES,
    **planning_tables.TABLES,
    **reproduced_tables.TABLES,
    **rolling_tables.TABLES,
    **selector_tables.TABLES,
    **serving_tables.TABLES,
    **tuned_tables.TABLES,
    "hardware": hardware,
}


def filled(text: str) -> str:
    """``text`` with every section filled in."""
    return SECTION.sub(lambda part: part[1] + TABLES[part[2]]() + part[3], text)


def write_pages(*, check: bool = False) -> bool:
    """Fill the tables of the docs and draw their pictures, from the lines in results/.

    Args:
        check: write nothing; exit code 1 where something is out of date
    """
    for page in PAGES:
        text = page.read_text()
        if filled(text) == text:
            continue
        if check:
            print(f"{page} is out of date: run  make docs")
            return False
        page.write_text(filled(text))
    for name, (description, drawn) in _pictures().items():
        path = IMAGES / f"{name}.svg"
        if path.exists() and description in path.read_text():
            continue
        if check:
            print(f"{path} is out of date: run  make docs")
            return False
        drawn(path)
    return True


def _pictures() -> dict[str, tuple[str, Callable[[Path], None]]]:
    """Files in docs/images/: what they say that they show, and what draws them."""
    found: dict[str, tuple[str, Callable[[Path], None]]] = {}
    for name, (bench, lines) in speed_tables.PICTURES.items():
        found[name] = fingerprint(lines(), bench), partial(draw, lines(), bench)
    lines = catalogue_tables.scale_lines()
    return found | {"scale": (described(lines), partial(draw_scale, lines))}
