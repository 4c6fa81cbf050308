"""What a run selects as tables, in words and numbers, and those tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from blossomrec.models.transformer import blossom_spec
from blossomrec.report.inspect.inspection import Example, Inspection
from blossomrec.report.inspect.selection_totals import HeadChoices, Ratio, quantiles_of_counts
from blossomrec.report.page import Cell, TextTable

UNIFORM = "uniform choice"


def percent(share: float) -> str:
    return f"{share:.1%}"


def interval(ratio: Ratio) -> str:
    return f"{percent(ratio.low)}–{percent(ratio.high)}"


def named_heads(inspection: Inspection) -> Iterator[tuple[str, HeadChoices]]:
    """Every key/value head of every layer, with its name."""
    for number, layer in enumerate(inspection.layers, 1):
        for place, head in enumerate(layer.heads, 1):
            yield f"layer {number}, head {place}", head


def coverage(inspection: Inspection) -> TextTable:
    """Shares of attention, and how close the selection comes to the best one."""
    n = inspection.model.top_n
    rows = []
    for name, head in named_heads(inspection):
        shares = (head.covered, head.best, head.random)
        ratio = (percent(head.ratio.value), interval(head.ratio))
        rows.append((name, *map(percent, shares), *ratio, percent(head.own)))
        rows[-1] += (percent(head.short_term),)
    head = ("", "Selected", f"Best {n}", f"Random {n}", "Selected / best", "95% interval")
    head += ("Own block", "Short-term")
    return TextTable("Shares of the attention to the whole history", head, rows)


def distances(inspection: Inspection) -> TextTable:
    """How far away the selected blocks lie."""
    size = inspection.model.block_size
    uniform = size * quantiles_of_counts(inspection.uniform.distances)
    rows = [
        (name, *(f"{distance:,}" for distance in head.distances))
        for name, head in named_heads(inspection)
    ]
    rows.append((UNIFORM, *(f"{distance:,}" for distance in uniform)))
    head = ("", "10%", "25%", "Median", "75%", "90%")
    return TextTable("Distance to selected blocks in events, quantiles", head, rows)


def hubs(inspection: Inspection) -> TextTable:
    """How unevenly the blocks of a history are selected."""
    rows = [
        (name, percent(head.hub_shares[0]), f"{head.entropy:.3f}")
        for name, head in named_heads(inspection)
    ]
    uniform = inspection.uniform
    rows.append((UNIFORM, percent(uniform.hub_shares[0]), f"{uniform.entropy:.3f}"))
    head = ("", "Largest share", "Entropy")
    return TextTable("How unevenly the blocks of a history are selected", head, rows)


def gates_name(inspection: Inspection) -> str:
    """What the weights of the two paths are."""
    union = blossom_spec(inspection.model, causal=inspection.causal).is_union
    return "Mean shares of one softmax" if union else "Mean gates"


def gates(inspection: Inspection) -> TextTable:
    """Mean weights of the two paths by query head."""
    rows = []
    for number, layer in enumerate(inspection.layers, 1):
        for place, (path, balance) in enumerate(
            zip(layer.gates, layer.gate_balance, strict=True), 1
        ):
            cells = (f"{path[0]:.3f}", f"{path[1]:.3f}", percent(balance))
            rows.append((f"layer {number}, query head {place}", *cells))
    head = ("", "Long-term", "Short-term", "Long-term of both")
    return TextTable(gates_name(inspection), head, rows)


def example(shown: Example) -> TextTable:
    """What the last event of a history selects."""
    has_days = bool(shown.days)
    rows = []
    for block in shown.blocks:
        heads = "own block" if block.heads is None else f"{block.heads} of {shown.heads} heads"
        more = f"; {block.more} more" if block.more else ""
        days = [block.days] if has_days else []
        rows.append(
            [
                f"{block.first:,}–{block.last:,}",
                heads,
                *days,
                Cell("; ".join(block.items) + more, prose=True),
            ]
        )
    days = f" from {shown.days}" if has_days else ""
    head = ["Events", "Selected by", *(["When"] if has_days else [])]
    head = [*head, Cell("Items, the latest first", prose=True)]
    caption = f"User {shown.user}: {shown.events:,} events{days}; the test event: {shown.target}"
    if shown.own:
        caption += f" ({shown.own})"
    return TextTable(caption, head, rows)


def choice_pairs(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """Where the selector had a choice, and what was measured there."""
    choice, model = inspection.choice, inspection.model
    yield (
        "Histories with a choice",
        f"{choice.choosing_histories:,} of {choice.histories:,} test histories "
        f"({percent(choice.choosing_histories / choice.histories)})",
    )
    yield (
        "Events with a choice",
        f"{choice.choosing_events:,} of {choice.events:,} "
        f"({percent(choice.choosing_events / choice.events)}): more than {model.top_n} blocks of "
        f"{model.block_size} events to choose from",
    )
    yield (
        "Measured on",
        f"{choice.sampled_events:,} events with a choice in {choice.sampled_histories:,} "
        f"histories; shares of attention on {choice.measured_events:,} of them",
    )
    yield "Longest history", f"the last {inspection.max_len:,} events before the test event"
    yield "Seed of the samples", str(inspection.seed)


def inspection_tables(inspection: Inspection) -> Group:
    """Everything for the terminal."""
    parts: list[Text | Table] = []
    for table in (coverage, distances, hubs, gates):
        content = table(inspection)
        shown = Table()
        for place, name in enumerate(content.head):
            shown.add_column(str(name), justify="right" if place else "left")
        for row in content.rows:
            shown.add_row(*map(str, row))
        parts += [Text(content.caption, style="bold"), shown]
    parts += [Text(f"{name}: {value}") for name, value in choice_pairs(inspection)]
    title = Text(f"{inspection.run}: what its selector selects on {inspection.dataset}", "bold")
    return Group(title, *parts)
