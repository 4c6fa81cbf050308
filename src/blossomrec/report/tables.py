"""Evaluations and comparisons as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.evaluation.metrics import FEW_NOTE, Slice
from blossomrec.evaluation.protocol import EvaluationProtocol
from blossomrec.evaluation.significance import PairedTest
from blossomrec.report import wording

# Tests by name of metric, of each part of the users or targets.
Tests = Mapping[str, Mapping[str, PairedTest]]


def evaluation_table(name: str, evaluation: Evaluation) -> Group:
    """Every metric with its interval, and NDCG and HR by length, kind of event and segment."""
    protocol = evaluation.protocol
    kind = "full ranking" if protocol.ranking == "full" else f"sampled ranking ({protocol.label})"
    split = f"{protocol.split}, " if protocol.split else ""
    table = _table("metric", "value", "95% interval")
    for metric in wording.shown_metrics(protocol, evaluation.metrics):
        interval = evaluation.intervals.get(metric)
        shown = f"{interval[0]:.4f}–{interval[1]:.4f}" if interval else ""
        _add_row(table, metric, f"{evaluation.metrics[metric]:.4f}", shown)
    told = f" {wording.told(protocol)}." if wording.told(protocol) else ""
    candidates = Text(f"Candidates: {protocol.candidates}. Ties count against the target.{told}")
    title = _title(f"{name}: {split}{kind}, {wording.users_text(protocol)}")
    slices = [_title("By length of history"), _slices_table("events", evaluation.slices, protocol)]
    kinds = evaluation.kind_slices if len(evaluation.kind_slices) > 1 else ()
    if kinds:
        slices += [_title("By kind of the target"), _slices_table("kind", kinds, protocol)]
    shown = [*evaluation.slices, *kinds]
    for column, parts in evaluation.segment_slices.items():
        some = parts[: wording.MOST_SEGMENTS]
        slices += [_title(wording.segments_title(column, len(parts)))]
        slices += [_slices_table(column, some, protocol)]
        shown += some
    if any(part.few for part in shown):
        slices.append(Text(FEW_NOTE))
    return Group(title, table, *slices, candidates)


def comparison_table(
    first: str,
    second: str,
    tests: Mapping[str, PairedTest],
    protocol: EvaluationProtocol,
    by_kind: Tests | None = None,
    by_segment: Mapping[str, Tests] | None = None,
) -> Group:
    """Paired tests of two models, metric by metric; differences are first minus second.

    by_kind: the same of the targets of each kind of event, of which NDCG and HR are shown.
    by_segment: the same of the users by the values of a column, by column.
    """
    users = next(iter(tests.values())).users
    title = _title(f"{first} (first) and {second} (second), {users:,} users")
    columns = ("first", "second", "difference", "95% interval", "p", "p Wilcoxon", "Cohen's d")
    table = _table("metric", *columns)
    for name in wording.shown_metrics(protocol, tests):
        _add_row(table, name, *_test_cells(tests[name]))
    parts: list[Text | Table] = []
    if by_kind and len(by_kind) > 1:
        parts += [_title("By kind of the target"), _parts_table("kind", columns, by_kind, protocol)]
    for column, found in (by_segment or {}).items():
        parts += [_title(wording.segments_title(column, len(found)))]
        parts += [_parts_table(column, columns, found, protocol)]
    return Group(title, table, *parts)


def _parts_table(
    first: str, columns: Sequence[str], tests: Tests, protocol: EvaluationProtocol
) -> Table:
    """NDCG and HR of some of the users or targets, by what these are called."""
    table = _table(first, "users", "metric", *columns)
    for part, found in tests.items():
        for name in wording.shown_metrics(protocol, found)[:2]:
            test = found[name]
            _add_row(table, part, f"{test.users:,}", name, *_test_cells(test))
    return table


def _test_cells(test: PairedTest) -> list[str]:
    return [
        f"{test.first:.4f}",
        f"{test.second:.4f}",
        wording.difference_text(test),
        f"{wording.signed(test.low)} to {wording.signed(test.high)}",
        wording.p_text(test.p_permutation),
        wording.p_text(test.p_wilcoxon),
        wording.signed(test.effect_size, 3),
    ]


def comparison_of_models(evaluations: Mapping[str, Evaluation]) -> Group:
    """Models of one protocol beside each other: the metrics at 10, or the first cut-off."""
    protocol = next(iter(evaluations.values())).protocol
    k = protocol.headline_k
    kinds = [f"{protocol.prefix}{kind}@{k}" for kind in ("ndcg", "hr", "mrr")]
    table = _table("model", kinds[0], "95% interval", *kinds[1:], f"coverage@{k}")
    for name, evaluation in evaluations.items():
        low, high = evaluation.intervals[kinds[0]]
        values = [f"{evaluation.metrics[kind]:.4f}" for kind in kinds]
        coverage = evaluation.metrics.get(f"coverage@{k}")
        _add_row(
            table,
            name,
            values[0],
            f"{low:.4f}–{high:.4f}",
            *values[1:],
            "" if coverage is None else f"{coverage:.1%}",
        )
    return Group(_title(f"{wording.users_text(protocol)}; {protocol.candidates}"), table)


def frame_table(frame: Any) -> Table:
    """A frame of recommendations."""
    shown = Table()
    for name in frame.columns:
        justify = "right" if name in ("score", "rank") else "left"
        shown.add_column(Text(name), justify=justify, overflow="fold")
    for row in frame.iter_rows():
        cells = (f"{one:.4f}" if isinstance(one, float) else str(one) for one in row)
        _add_row(shown, *cells)
    return shown


def _slices_table(first: str, slices: Sequence[Slice], protocol: EvaluationProtocol) -> Table:
    k = protocol.headline_k
    metrics = [f"{protocol.prefix}{kind}@{k}" for kind in ("ndcg", "hr")]
    table = _table(first, "users", metrics[0], "95% interval", metrics[1], "95% interval")
    for part in slices:
        cells = []
        for metric in metrics:
            low, high = part.intervals[metric]
            cells += [f"{part.metrics[metric]:.4f}", f"{low:.4f}–{high:.4f}"]
        _add_row(table, part.marked_label, f"{part.users:,}", *cells)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table()
    # Names of columns are text: square brackets in them are no markup.
    table.add_column(Text(first))
    for column in others:
        table.add_column(column, justify="right")
    return table


def _add_row(table: Table, *cells: str) -> None:
    # Names of columns, in metrics too, and ids are text: square brackets in them are no markup.
    table.add_row(*map(Text, cells))


def _title(text: str) -> Text:
    # Names and paths are text: square brackets in them are no markup.
    return Text(text, style="bold")
