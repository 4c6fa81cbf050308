"""``inspect.html``: what a run selects, in one self-contained page, and as JSON beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.errors import ConfigError
from blossomrec.files import write_json, write_text
from blossomrec.report import plots, wording
from blossomrec.report.inspect import inspect_plots, inspect_tables
from blossomrec.report.inspect.inspect_tables import interval, named_heads, percent
from blossomrec.report.inspect.inspection import Inspection, inspect_run
from blossomrec.report.parts import Figure, TextTable, key_of
from blossomrec.report.svg import render_page
from blossomrec.terminal import show

if TYPE_CHECKING:
    from rich.console import Console


def inspect_and_write(
    run: str | Path,
    log: str | Path | None,
    out: Path | None,
    console: Console,
    **options: Any,
) -> None:
    """Measure a run, print the tables, write the page and, beside it, the JSON.

    Args:
        run, log, options: as of :func:`blossomrec.report.inspect.inspection.inspect_run`.
        out: the page; None is ``inspect.html`` in the run's folder.

    Raises:
        ConfigError: the name of the page does not end in .html.
        MissingExtraError: matplotlib is not installed; tables and JSON are there all the same.
    """
    path = Path(run) / "inspect.html" if out is None else out
    if path.suffix != ".html":
        raise ConfigError(f"out is {path}: the name of a page ends in .html")
    inspection = inspect_run(run, log, **options)
    show(console, inspect_tables.inspection_tables(inspection))
    write_json(path.with_suffix(".json"), inspection.to_dict())
    write_text(path, render_inspection(inspection))
    console.print(
        f"wrote {path} and {path.with_suffix('.json').name}", markup=False, soft_wrap=True
    )


# Headings by id, in the order of the page.
SECTIONS = {
    "coverage": "Attention covered",
    "distances": "Distances",
    "hubs": "Hubs",
    "gates": "Gates",
    "choice": "Where there is a choice",
    "model": "Model",
}


@dataclass(frozen=True)
class Measured:
    """A section with a table and figures."""

    table: TextTable
    figures: list[Figure]


def render_inspection(inspection: Inspection) -> str:
    """The page as a string.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    choice = inspection.choice
    heads = len(inspection.layers[0].heads)
    return render_page(
        "inspect.html",
        title=f"What {inspection.run} selects",
        kicker=(
            f"{inspection.dataset} · {choice.sampled_histories:,} test histories · "
            f"{choice.sampled_events:,} events with a choice"
        ),
        sections=SECTIONS,
        inspection=inspection,
        covered=_covered(inspection),
        heads=key_of([f"head {number}" for number in range(1, heads + 1)]),
        paths=key_of(["long-term", "short-term"]),
        coverage=_coverage(inspection),
        distances=_distances(inspection),
        hubs=_hubs(inspection),
        gates=_gates(inspection),
        choice=list(inspect_tables.choice_pairs(inspection)),
        model=wording.value_pairs(asdict(inspection.model)),
    )


def _covered(inspection: Inspection) -> dict[str, str]:
    """Attention covered, of the best possible, and by a choice at random: layers together."""
    heads = [head for _, head in named_heads(inspection)]
    random = sum(head.random for head in heads) / sum(head.best for head in heads)
    return {
        "share": percent(inspection.ratio.value),
        "interval": interval(inspection.ratio),
        "random": percent(random),
    }


def _coverage(inspection: Inspection) -> Measured:
    layers = inspection.layers
    spoken = "; ".join(
        f"{name} {percent(head.ratio.value)}, {interval(head.ratio)}"
        for name, head in named_heads(inspection)
    )
    ratios = Figure(
        "Selected, of the best possible",
        inspect_plots.ratios(layers, f"Attention covered, of the best possible: {spoken}"),
        "With 95% intervals over histories. The short stroke is a random choice.",
    )
    spoken = "; ".join(
        f"{name} {percent(head.covered)} selected, {percent(head.own)} own block"
        for name, head in named_heads(inspection)
    )
    shares = Figure(
        "Where attention lies",
        inspect_plots.shares(layers, f"Shares of attention: {spoken}"),
        "Grey is the rest of the history.",
        key=key_of(["selected blocks", "own block"]),
    )
    return Measured(inspect_tables.coverage(inspection), [ratios, shares])


def _distances(inspection: Inspection) -> Measured:
    figures = []
    for number, layer in enumerate(inspection.layers, 1):
        alt = f"Distances to the blocks selected by layer {number}; quantiles are in the table"
        size = inspection.model.block_size
        svg = inspect_plots.distances(layer, inspection.uniform, size, alt)
        figures.append(Figure(f"Layer {number}", svg, "Lines: heads. Grey: uniform choice."))
    return Measured(inspect_tables.distances(inspection), figures)


def _hubs(inspection: Inspection) -> Measured:
    figures = []
    for number, layer in enumerate(inspection.layers, 1):
        largest = ", ".join(percent(head.hub_shares[0]) for head in layer.heads)
        alt = f"Share of queries that select each block, layer {number}; largest: {largest}"
        svg = inspect_plots.hubs(layer, inspection.uniform, alt)
        figures.append(Figure(f"Layer {number}", svg, "Lines: heads. Grey: uniform choice."))
    return Measured(inspect_tables.hubs(inspection), figures)


def _gates(inspection: Inspection) -> Measured:
    values = np.stack([layer.gates for layer in inspection.layers])
    svg = plots.gates(values, "Mean gates by layer and query head; numbers are in the table")
    figure = Figure("Mean gates", svg, "By query head, over the events with a choice.")
    return Measured(inspect_tables.gates(inspection), [figure])
