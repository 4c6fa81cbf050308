"""Tables of a report that set models beside each other, with intervals and significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape

import numpy as np

from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.evaluation.significance import PairedTest, compare, holm
from blossomrec.report import page, wording

LEVEL = 0.05


class Comparison:
    """Models under one ranking, each tested against the baseline.

    Attributes:
        k: cut-off of the headline metrics, 10 where it was measured.
        decisive: name of the metric that orders models, NDCG at ``k``.
        headline: names of the accuracy metrics at ``k``.
    """

    def __init__(self, evaluations: Mapping[str, Evaluation], baseline: str):
        self.evaluations, self.baseline = evaluations, baseline
        protocol = next(iter(evaluations.values())).protocol
        self.k = protocol.headline_k
        kinds = ["ndcg", "hr", "recall", "mrr"]
        if protocol.one_target:
            kinds.remove("recall")  # the same as hr
        self.decisive = f"{protocol.prefix}ndcg@{self.k}"
        self.headline = [f"{protocol.prefix}{kind}@{self.k}" for kind in kinds]
        self.label = wording.metric_label(self.decisive)

    @cached_property
    def tests(self) -> dict[str, dict[str, PairedTest]]:
        """Every other model against the baseline, by name of model and of metric."""
        if self.baseline not in self.evaluations:
            return {}
        base = self.evaluations[self.baseline]
        others = {name: e for name, e in self.evaluations.items() if name != self.baseline}
        return {name: compare(evaluation, base) for name, evaluation in others.items()}

    @cached_property
    def corrected(self) -> dict[tuple[str, str], float]:
        """Corrected p-value of every model and headline metric."""
        pairs = [(name, metric) for name in self.tests for metric in self.headline]
        raw = np.array([self.tests[name][metric].p_permutation for name, metric in pairs])
        return dict(zip(pairs, holm(raw).tolist(), strict=True))

    def finding(self) -> str:
        """The best model beside the baseline or, where that is best, the next one; HTML."""
        means = {name: e.metrics[self.decisive] for name, e in self.evaluations.items()}
        if not self.tests:
            best = max(means, key=lambda name: means[name])
            return f"<strong>{escape(best)}</strong> reaches {self.label} {means[best]:.4f}."
        best = max(self.tests, key=lambda name: means[name])
        test, p_value = self.tests[best][self.decisive], self.corrected[best, self.decisive]
        differs = p_value < LEVEL
        return wording.finding(escape(best), escape(self.baseline), test, differs=differs)

    def estimates(self) -> list[tuple[str, float, float, float]]:
        """Name, value and interval of the decisive metric of every model."""
        return [
            (name, e.metrics[self.decisive], *e.intervals[self.decisive])
            for name, e in self.evaluations.items()
        ]

    def differences(self) -> list[tuple[str, float, float, float]]:
        """Name, difference from the baseline and its interval in the decisive metric."""
        rows = []
        for name in self.evaluations if self.tests else ():
            test = self.tests[name][self.decisive] if name in self.tests else None
            rows.append((name, test.difference, test.low, test.high) if test else (name, 0, 0, 0))
        return rows

    def table(self, metrics: Sequence[str], caption: str) -> str:
        """Models by metrics, with intervals and marks."""
        rows = (
            [self._row_name(name), *(self._cell(name, metric) for metric in metrics)]
            for name in self.evaluations
        )
        return page.table(["Model", *map(wording.metric_label, metrics)], rows, caption)

    def test_table(self) -> str:
        """The tests behind the marks of the decisive metric."""
        head = ["Model", "Difference", "95% interval", "p", "p (Holm)", "p (Wilcoxon)", "Cohen's d"]
        rows = []
        for name, tests in self.tests.items():
            test = tests[self.decisive]
            p_values = (test.p_permutation, self.corrected[name, self.decisive], test.p_wilcoxon)
            rows.append(
                [
                    escape(name),
                    wording.difference_text(test),
                    f"{wording.signed(test.low)} to {wording.signed(test.high)}",
                    *map(wording.p_text, p_values),
                    wording.signed(test.effect_size, 3),
                ]
            )
        return page.table(head, rows, f"Differences from {self.baseline} in {self.label}")

    def _row_name(self, name: str) -> str:
        note = '<span class="interval">baseline</span>' if name == self.baseline else ""
        return f"{escape(name)}{note}"

    def _cell(self, name: str, metric: str) -> str:
        evaluation = self.evaluations[name]
        value, accuracy = evaluation.metrics[metric], metric in self.headline
        best = accuracy and value == max(e.metrics[metric] for e in self.evaluations.values())
        number = f'<span class="best">{value:.4f}</span>' if best else f"{value:.4f}"
        if metric not in evaluation.intervals:
            return number
        return f"{self._mark(name, metric)}{number}{interval(*evaluation.intervals[metric])}"

    def _mark(self, name: str, metric: str) -> str:
        if self.corrected.get((name, metric), 1.0) >= LEVEL:
            return ""
        better = self.tests[name][metric].difference > 0
        kind, sign = ("better", "▲") if better else ("worse", "▼")
        label = f"significantly {kind} than {escape(self.baseline)}"
        return f'<span class="mark {kind}" role="img" aria-label="{label}">{sign}</span> '


def interval(low: float, high: float) -> str:
    """An interval below the value of a cell."""
    return f'<span class="interval">{low:.4f}–{high:.4f}</span>'
