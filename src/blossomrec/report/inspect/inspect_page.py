"""``inspect.html``: what a run selects, in one self-contained page, and as JSON beside it."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.errors import ConfigError
from blossomrec.files import replacing, write_json
from blossomrec.report import page, plots, wording
from blossomrec.report.inspect import inspect_plots, inspect_tables
from blossomrec.report.inspect.inspect_tables import TextTable, interval, named_heads, percent
from blossomrec.report.inspect.inspection import Inspection, inspect_run
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
    write_page(path, inspection)
    console.print(
        f"wrote {path} and {path.with_suffix('.json').name}", markup=False, soft_wrap=True
    )


def write_page(path: Path, inspection: Inspection) -> None:
    """Write the page, whole or not at all.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    text = render_page(inspection)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_page(inspection: Inspection) -> str:
    """The page as a string."""
    choice = inspection.choice
    kicker = (
        f"{inspection.dataset} · {choice.sampled_histories:,} test histories · "
        f"{choice.sampled_events:,} events with a choice"
    )
    options = (
        (name, wording.value_text(value)) for name, value in asdict(inspection.model).items()
    )
    parts = [
        ("coverage", "Attention covered", _coverage(inspection)),
        ("distances", "Distances", _distances(inspection)),
        ("hubs", "Hubs", _hubs(inspection)),
        ("gates", "Gates", _gates(inspection)),
        ("choice", "Where there is a choice", _choice(inspection)),
        ("model", "Model", page.definitions(options)),
    ]
    return page.page(f"What {inspection.run} selects", kicker, _lead(inspection), parts)


def _lead(inspection: Inspection) -> str:
    ratio, n = inspection.ratio, inspection.model.top_n
    heads = [head for _, head in named_heads(inspection)]
    random = sum(head.random for head in heads) / sum(head.best for head in heads)
    blocks, cover = ("block", "covers") if n == 1 else (f"{n} blocks", "cover")
    return (
        f"The selected {blocks} {cover} <strong>{percent(ratio.value)}</strong> "
        f"(95% interval {interval(ratio)}) of the attention that the best {blocks} would cover; "
        f"a choice at random would cover {percent(random)}."
    )


def _coverage(inspection: Inspection) -> str:
    model, layers = inspection.model, inspection.layers
    text = (
        "Shares of what an event would attend to if the same queries and keys saw the whole "
        f"history. The long-term path sees {model.top_n} selected blocks and the event's own one. "
        "Best: the blocks with the largest shares, which no selector can beat. Random: as many "
        "blocks drawn from those that may be selected, on average. Short-term: what the power-law "
        "pattern of the other path sees."
    )
    spoken = "; ".join(
        f"{name} {percent(head.ratio.value)}, {interval(head.ratio)}"
        for name, head in named_heads(inspection)
    )
    ratios = page.figure(
        "Selected, of the best possible",
        inspect_plots.ratios(layers, f"Attention covered, of the best possible: {spoken}"),
        "With 95% intervals over histories. The short stroke is a random choice.",
    )
    spoken = "; ".join(
        f"{name} {percent(head.covered)} selected, {percent(head.own)} own block"
        for name, head in named_heads(inspection)
    )
    paths = page.key([(0, "selected blocks"), (1, "own block")])
    shares = page.figure(
        "Where attention lies",
        paths + inspect_plots.shares(layers, f"Shares of attention: {spoken}"),
        "Grey is the rest of the history.",
    )
    table = _table(inspect_tables.coverage(inspection))
    return page.paragraph(text) + table + page.figures([ratios, shares])


def _distances(inspection: Inspection) -> str:
    text = (
        "From the start of an event's own block to the start of a selected one. "
        "Each step to the right doubles the distance; the grey area is a uniform choice among the "
        "blocks that the same events could select."
    )
    figures = []
    for number, layer in enumerate(inspection.layers, 1):
        alt = f"Distances to the blocks selected by layer {number}; quantiles are in the table"
        size = inspection.model.block_size
        svg = inspect_plots.distances(layer, inspection.uniform, size, alt)
        figures.append(page.figure(f"Layer {number}", svg, "Lines: heads. Grey: uniform choice."))
    table = _table(inspect_tables.distances(inspection))
    return page.paragraph(text) + _head_key(inspection) + page.figures(figures) + table


def _hubs(inspection: Inspection) -> str:
    # Every event of a bidirectional model may select every block.
    early = ": early blocks can be selected by more events" if inspection.causal else ""
    text = (
        "A hub is a block that most events of its history select, whatever they ask for. Blocks "
        "are ordered within each history by how often they are selected, and grey is what a "
        f"uniform choice would give{early}. Entropy is 1 where all blocks of a history are "
        "selected equally often, 0 for one alone."
    )
    figures = []
    for number, layer in enumerate(inspection.layers, 1):
        largest = ", ".join(percent(head.hub_shares[0]) for head in layer.heads)
        alt = f"Share of queries that select each block, layer {number}; largest: {largest}"
        svg = inspect_plots.hubs(layer, inspection.uniform, alt)
        figures.append(page.figure(f"Layer {number}", svg, "Lines: heads. Grey: uniform choice."))
    table = _table(inspect_tables.hubs(inspection))
    return page.paragraph(text) + _head_key(inspection) + page.figures(figures) + table


def _gates(inspection: Inspection) -> str:
    text = "Weights from 0 to 1 of the two paths whose sum is a head's output, by query head."
    values = np.stack([layer.gates for layer in inspection.layers])
    svg = plots.gates(values, "Mean gates by layer and query head; numbers are in the table")
    figure = page.figure("Mean gates", svg, "By query head, over the events with a choice.")
    paths = page.key([(0, "long-term"), (1, "short-term")])
    table = _table(inspect_tables.gates(inspection))
    return page.paragraph(text) + paths + page.figures([figure, f"<div>{table}</div>"])


def _choice(inspection: Inspection) -> str:
    text = (
        "Where no more blocks can be selected than there are, all are, and any selector is right. "
        "All figures here are of events with a choice, each counted alike."
    )
    return page.paragraph(text) + page.definitions(inspect_tables.choice_pairs(inspection))


def _head_key(inspection: Inspection) -> str:
    heads = inspection.layers[0].heads
    return page.key([(place, f"head {place + 1}") for place in range(len(heads))])


def _table(content: TextTable) -> str:
    return page.table(
        content.head,
        [[escape(name), *cells] for name, *cells in content.rows],
        content.caption,
    )
