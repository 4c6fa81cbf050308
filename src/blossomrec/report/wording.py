"""Protocols, metrics and numbers in words for a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from blossomrec.data.features import Categories
from blossomrec.data.history import History
from blossomrec.data.log import EventLog
from blossomrec.data.split import TARGETS
from blossomrec.evaluation.protocol import EvaluationProtocol
from blossomrec.evaluation.significance import PERMUTATIONS, RESAMPLES, PairedTest

SPLITS = {
    "leave-one-out": (
        "Leave-one-out: the last event of every user with at least three is the test target; "
        "the event before it served for validation and belongs to the test history."
    ),
    "global-time": (
        "Global time split: the targets of a user are all items of the last period of the log, "
        "the history is everything before it."
    ),
}
SEVERAL = (
    "The last {count:,} events of every user with at least {least:,} are the test targets, each "
    "ranked for a history of all that came before it; the {count:,} before them served for "
    "validation. Metrics are means over users of the means over their events."
)
# Of splits whose targets are events of some kinds.
OF_KINDS = {
    "leave-one-out": (
        "Leave-one-out by kind: the last event of kind {kinds} of every user with two such events "
        "is the test target, the one of these kinds before it served for validation; the history "
        "is everything before the target."
    ),
    "global-time": (
        "Global time split: the targets of a user are the items of all events of kind {kinds} in "
        "the last period of the log, the history is everything before it."
    ),
}
SEVERAL_OF_KINDS = (
    "The last {count:,} events of kind {kinds} of every user with at least {least:,} of them are "
    "the test targets, each ranked for a history of all that came before it; the {count:,} of "
    "these kinds before them served for validation. Metrics are means over users of the means over "
    "their events."
)
DEFINITIONS = {
    "hr": "whether any target is among the first k, mean over users",
    "recall": "share of a case's targets among the first k, mean over users",
    "ndcg": "discounted gain 1 / log2(place + 1) of the targets among the first k, over the ideal",
    "mrr": "1 / place of the first target, 0 beyond the first k",
    "popularity": (
        "mean popularity percentile, by training events, of the first k recommended items: 0 the "
        "least popular item, 1 the most popular, 0.5 a recommendation at random"
    ),
    "coverage": "share of the catalogue among the first k recommended items of anybody",
}
# Of metrics that are measured when they are asked for.
OWN_DEFINITIONS = {
    "novelty": (
        "mean log2(users / users who met the item in training) of the first k recommended items"
    ),
    "serendipity": (
        "share of the first k recommended items that are targets and would not be there if what is "
        "most popular in training were recommended"
    ),
    "diversity": (
        "one minus the mean cosine of all pairs of the first k recommended items by the column"
    ),
    "long-tail": (
        "share of the first k recommended items outside the smallest set of items that has 80% of "
        "the training events"
    ),
    "calibration": (
        "Kullback-Leibler divergence of the history's distribution over the column from that of "
        "the first k recommended items, smoothed by alpha 0.01; 0 is best"
    ),
    "gini": (
        "inequality of how often the items of the catalogue are among the first k recommended ones "
        "of anybody: 0 where all are equally often, 1 where there is a single one"
    ),
}


MOMENTS = "the model is told for when it recommends: the time of the target"
ASKED_KINDS = "the model is told which kind of event is wanted: the kind of the target"
FIRST_TARGET = ", or of the first one where a case has several"


def told(protocol: EvaluationProtocol) -> str:
    """What of the targets a model is told, in words; empty where it is nothing."""
    words = [MOMENTS] * protocol.moments + [ASKED_KINDS] * protocol.asked_kinds
    first = FIRST_TARGET if protocol.asked_kinds and not protocol.one_target else ""
    return "; ".join(words) + first


def metric_label(name: str) -> str:
    """``ndcg@10`` as people write it; sampled ones, and those by a column, say so."""
    base, _, k = name.rpartition("@")
    kind, _, column = base.partition(":")
    sampled, _, kind = ("", "", kind) if column else kind.rpartition("_")
    kind = kind.upper() if kind in ("hr", "ndcg", "mrr") else kind.capitalize()
    said = sampled or column
    return f"{kind}@{k} ({said})" if said else f"{kind}@{k}"


# Values of a column of the table of users that are shown, those of most users.
MOST_SEGMENTS = 20


def segments_title(column: str, values: int) -> str:
    """Title of metrics by so many values of a column of the table of users."""
    most = f", the {MOST_SEGMENTS} values with most users"
    return f"By {column} of the user{most if values >= MOST_SEGMENTS else ''}"


def shown_metrics(protocol: EvaluationProtocol, names: Iterable[str]) -> list[str]:
    """The metrics to show: NDCG and HR at the cut-off that decides first, none said twice.

    Recall equals HR where every case has one target.
    """
    k = protocol.headline_k
    first = [f"{protocol.prefix}{kind}@{k}" for kind in ("ndcg", "hr")]
    known = [name for name in names if not (protocol.one_target and "recall@" in name)]
    return [name for name in first if name in known] + [one for one in known if one not in first]


def protocol_pairs(
    protocol: EvaluationProtocol, own: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """What was measured, as names and sentences.

    own: names of the metrics of lists and of the catalogue that were asked for.
    """
    yield "Split", _split_text(protocol.split)
    yield "Cases", f"{users_text(protocol)}, {protocol.num_targets:,} targets"
    yield "Candidates", protocol.candidates
    if told(protocol):
        yield "Inputs", told(protocol)
    yield "Ties", "count against the target"
    yield (
        "Several targets",
        "do not compete: a target is ranked among the items that are no targets of its user",
    )
    yield "Intervals", f"95% percentile bootstrap over users, {RESAMPLES:,} resamples"
    yield (
        "Significance",
        f"paired sign-flip test over users, {PERMUTATIONS:,} permutations, two-sided; "
        "marks use p-values corrected for all comparisons of the table (Holm)",
    )
    yield "Fingerprint", f"{protocol.fingerprint} (equal where cases are equal)"
    for name, meaning in DEFINITIONS.items():
        yield metric_label(f"{name}@k"), meaning
    for name in own:
        meaning = OWN_DEFINITIONS.get(name.partition(":")[0])
        if meaning:
            yield metric_label(f"{name}@k"), meaning


def users_text(protocol: EvaluationProtocol) -> str:
    """How many users were measured and, where they have several cases each, how many cases."""
    users = protocol.num_users or protocol.num_cases
    cases = f", {protocol.num_cases:,} cases" if protocol.num_cases != users else ""
    return f"{users:,} users{cases}"


def _split_text(split: str | None) -> str:
    name, _, names = (split or "").partition(TARGETS)
    kinds = " or ".join(names.split(", "))
    if last := re.fullmatch(r"leave-last-(\d+)-out", name):
        count = int(last[1])
        if kinds:
            return SEVERAL_OF_KINDS.format(count=count, least=2 * count, kinds=kinds)
        return SEVERAL.format(count=count, least=2 * count + 1)
    if kinds and name in OF_KINDS:
        return OF_KINDS[name].format(kinds=kinds)
    return SPLITS.get(name, split or "not told")


def difference_numbers(test: PairedTest) -> str:
    """The values of two models, their difference and its interval."""
    return (
        f"{metric_label(test.metric)} {test.first:.4f} against {test.second:.4f}, "
        f"difference {difference_text(test)}, "
        f"95% interval {signed(test.low)} to {signed(test.high)}"
    )


def interval(low: float, high: float) -> str:
    return f"{low:.4f}–{high:.4f}"


def signed(value: float, digits: int = 4) -> str:
    """With a sign, and a minus that is as wide as a plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def difference_text(test: PairedTest) -> str:
    """A difference and, where there is something to relate it to, its share."""
    relative = f" ({test.difference / test.second:+.1%})" if test.second else ""
    return signed(test.difference) + relative.replace("-", "−")


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def summary_pairs(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The summary of a log as names and values; entries unknown here are shown as they are."""
    rest = dict(summary)
    for name in ("users", "items", "events"):
        if name in rest:
            yield name.capitalize(), value_text(rest.pop(name))
    if "mean_length" in rest:
        yield "Events per user", f"{rest.pop('mean_length'):,.1f} on average"
    for name, value in rest.pop("length_percentiles", {}).items():
        share = "All users" if name == "max" else f"{name}% of users"
        yield f"{share} have at most", f"{value:,.0f} events"
    for name, share in rest.pop("share_over", {}).items():
        yield f"Users over {int(name):,} events", f"{share:.2%}"
    time = rest.pop("time", {})
    for name in ("first", "last"):
        if name in time:
            yield f"{name.capitalize()} event", str(time.get(f"{name}_iso", time[name]))
    if "has_repeats" in rest:
        yield "Items repeat in histories", value_text(rest.pop("has_repeats"))
    for entry in rest.pop("dropped", []):
        yield f"Dropped: {entry['reason']}", f"{entry['events']:,} events"
    for name, value in rest.items():
        yield name.replace("_", " ").capitalize(), value_text(value)


def value_pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options by name, each as people read it."""
    return [(name, value_text(value)) for name, value in values.items()]


def value_text(value: Any) -> str:
    """A configuration or summary value as people read it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**9 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {value_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(value_text(part) for part in value) or "none"
    return str(value)


# Letters of a title, and of a cell of categories.
LONGEST_TITLE, LONGEST_CATEGORIES = 60, 40
# Columns of categories that are shown.
MOST_CATEGORIES = 2


class ItemWords:
    """What is shown of the items of a log: ids and, from the table of items, titles and categories.

    Attributes:
        head: names of the cells of an item.
    """

    def __init__(self, log: EventLog):
        self._ids, table = log.item_vocabulary, log.item_features
        self._titles = None if table is None else table.titles
        found = {} if table is None else table
        categories = [(name, one) for name, one in found.items() if isinstance(one, Categories)]
        self._categories = [one for _, one in categories[:MOST_CATEGORIES]]
        names = [name.capitalize().replace("_", " ") for name, _ in categories[:MOST_CATEGORIES]]
        self.head = ["Item", *(["Title"] if self._titles is not None else []), *names]

    def cells(self, row: int) -> list[str]:
        """Id, title and categories of an item, as many as ``head`` names."""
        titles = [] if self._titles is None else [cut(self._titles[row], LONGEST_TITLE)]
        categories = [cut(", ".join(one[row]), LONGEST_CATEGORIES) for one in self._categories]
        return [self._id(row), *titles, *categories]

    def name(self, row: int) -> str:
        """Id and title of an item, in one."""
        title = "" if self._titles is None else cut(self._titles[row], LONGEST_TITLE)
        return f"{self._id(row)} {title}".strip()

    def _id(self, row: int) -> str:
        return str(self._ids.ids([row]).item())


# Seconds of what durations are told in, from so many of each on.
DURATIONS = {"year": 31_557_600, "day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
FEWEST = 2


def habit(history: History, item: int) -> str:
    """How often, when last and how regularly an item is in a history, in words; empty if it isn't.

    Gaps are told in time, back from the moment for which is recommended, where all times are known;
    else in events.
    """
    places = np.flatnonzero(history.items == item)
    if not len(places):
        return ""
    ago = counted(len(history) - int(places[-1]), "event")
    gaps, regular = np.diff(places), lambda gap: counted(round(gap), "event")
    if history.times is not None and len(history.times):
        times, moment = history.times[places], int(history.times[-1])
        if history.asked is not None and history.asked[-1] >= 0:
            moment = int(history.asked[-1])
        if min(times.min(), moment) >= 0:
            ago, gaps, regular = duration(max(moment - int(times[-1]), 0)), np.diff(times), duration
    if len(places) == 1:
        return f"in the history once, {ago} ago"
    words = f"in the history {len(places):,} times, last {ago} ago"
    usual = float(np.median(gaps))
    return f"{words}, usually every {regular(usual)}" if len(gaps) > 1 and usual > 0 else words


def duration(seconds: float) -> str:
    """A time that has passed, in the largest unit of which there are two."""
    name, size = next(
        (name, size) for name, size in DURATIONS.items() if seconds >= FEWEST * size or size == 1
    )
    return counted(round(seconds / size), name)


def counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def cut(text: str, longest: int) -> str:
    """A text on one line, its end left out where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def date(second: int) -> str:
    """The day of a time in seconds since 1970 (UTC)."""
    return datetime.fromtimestamp(int(second), UTC).strftime("%Y-%m-%d")


def period(seconds: Any) -> str:
    """The days from the first to the last of some times; empty where there are none."""
    if seconds is None or not len(seconds):
        return ""
    first, last = date(seconds[0]), date(seconds[-1])
    return first if first == last else f"{first} to {last}"
