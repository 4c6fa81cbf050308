"""Models over periods of time, from results/growth.jsonl: the last study of a data set and model.

Of several chains of updates the first is shown, except where chains stand side by side.

Nothing is shown of what has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from benchmarks.tables.measured_lines import ROOT, Line, read, table
from blossomrec.rolling.measured import DECISIVE, shares_of, total
from blossomrec.rolling.options import RETRAIN, STALE, STRATEGIES, UPDATE

RESULTS = "growth.jsonl"
# Periods whose targets are put together in a row.
TOGETHER = 5
PARTS = ("new", "old")
# What a study is called, and its lines by strategy, in order of the periods.
Studies = dict[str, dict[str, list[Line]]]


def rolling_lines() -> list[Line]:
    """The lines of periods; none where nothing has been measured yet."""
    return [line for line in _read() if "strategy" in line]


def intervals() -> dict[tuple[str, int, str], str]:
    """Of study, chain and strategy, the interval of its share of retraining's NDCG@10, in words."""
    lines = [line for line in _read() if "compared" in line]
    return {
        (line["study"], _chain(line), line["compared"]): (
            f" ({line['low']:.1%} to {line['high']:.1%})"
        )
        for line in lines
    }


def _read() -> list[Line]:
    return read(RESULTS) if (ROOT / "results" / RESULTS).exists() else []


def studies() -> Studies:
    """The last study of each data set and model."""
    lines = rolling_lines()
    last = {(line["dataset"], line["model"]): line["study"] for line in lines}
    found: dict[str, dict[str, dict[int, Line]]] = {}
    for line in lines:
        dataset, model = line["dataset"], line["model"]
        if line["study"] == last[dataset, model] and _chain(line) == 1:
            strategies = found.setdefault(f"{dataset}: {model}", {})
            strategies.setdefault(line["strategy"], {})[line["period"]] = line
    return {
        name: {
            strategy: [each for _, each in sorted(strategies[strategy].items())]
            for strategy in STRATEGIES
            if strategy in strategies
        }
        for name, strategies in found.items()
    }


def totals() -> str:
    """Accuracy over all periods, and seconds of training, beside those of retraining."""
    rows, known = [], intervals()
    for name, strategies in studies().items():
        for strategy, lines in strategies.items():
            found, later = total(lines), _later(lines)
            seconds = sum(line["seconds"] for line in later) / max(1, len(later))
            shares = shares_of(later, _later(strategies.get(RETRAIN, [])))
            first = lines[0]
            of_both = ["", ""] if shares is None else [f"{share:.1%}" for share in shares]
            of_both[0] += known.get((first["study"], 1, strategy), "")
            rows.append(
                [
                    f"{name}, {len(lines)} x {first['period_length']}: {strategy}",
                    f"{found.counts['metrics']:,}",
                    f"{found.counts['new_item_metrics']:,}",
                    *(_shown(found.values["metrics"].get(one)) for one in ("hr@10", DECISIVE)),
                    *(_shown(found.values[f"{part}_item_metrics"].get(DECISIVE)) for part in PARTS),
                    f"{seconds:,.1f}",
                    *of_both,
                ]
            )
    header = ["data: model, periods: strategy", "targets", "of new items", "HR@10", "NDCG@10"]
    header += ["NDCG@10, new items", "NDCG@10, old items", "seconds a period"]
    return table([*header, "of retrain's NDCG@10", "of its seconds"], rows) if rows else ""


def chains() -> str:
    """Chains of updates beside the same retrainings, where there are several of a study."""
    rows, known = [], intervals()
    for name, strategies in studies().items():
        retrained = _later(strategies.get(RETRAIN, []))
        found: dict[int, dict[str, list[Line]]] = {}
        for line in rolling_lines():
            if retrained and line["study"] == retrained[0]["study"] and line["period"] > 1:
                chain = found.setdefault(_chain(line), {})
                chain.setdefault(line["strategy"], []).append(line)
        if len(found) < 2:
            continue
        shares = []
        for number, chain in found.items():
            stale, update = (shares_of(chain[each], retrained) for each in (STALE, UPDATE))
            assert stale is not None and update is not None
            shares.append((stale[0], *update))
            told = [f"{share:.1%}" for share in shares[-1]]
            for place, strategy in enumerate((STALE, UPDATE)):
                told[place] += known.get((retrained[0]["study"], number, strategy), "")
            rows.append([f"{name}: {number}", str(len(chain[UPDATE])), *told])
        means = map(mean, zip(*shares, strict=True))
        rows.append([f"{name}: mean", "", *(f"{each:.1%}" for each in means)])
    header = ["data: model: chain", "updates", "stale, of retrain's NDCG@10"]
    header += ["update, of retrain's NDCG@10", "of its seconds"]
    return table(header, rows) if rows else ""


def _chain(line: Line) -> int:
    """The number of the chain that a line is of; the first says none."""
    return line.get("chain", 1)


def _later(lines: list[Line]) -> list[Line]:
    """From the second period on: in the first all strategies have the same model."""
    return [line for line in lines if line["period"] > 1]


def over_time() -> str:
    """NDCG@10 of each strategy, some periods together."""
    rows = []
    for name, strategies in studies().items():
        # Days differ: one that a strategy lacks counts for none.
        common = set.intersection(
            *({one["period"] for one in each} for each in strategies.values())
        )
        numbers = sorted(common)
        for first in range(1, max(numbers) + 1, TOGETHER):
            last = min(first + TOGETHER - 1, max(numbers))
            row = [f"{name}: {first} to {last}"]
            for strategy in STRATEGIES:
                lines = strategies.get(strategy, ())
                part = [line for line in lines if first <= line["period"] <= last]
                part = [line for line in part if line["period"] in common]
                row.append(_shown(total(part).values["metrics"].get(DECISIVE)) if part else "")
            rows.append(row)
    return table(["data: model, periods", *STRATEGIES], rows) if rows else ""


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


TABLES: dict[str, Callable[[], str]] = {
    "rolling-totals": totals,
    "rolling-chains": chains,
    "rolling-periods": over_time,
}
