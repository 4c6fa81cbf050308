"""Models beside each other in a report, with intervals and significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.evaluation.significance import PairedTest, compare, compare_kinds, holm
from blossomrec.report import wording
from blossomrec.report.page import Cell, TextTable

LEVEL = 0.05


@dataclass(frozen=True)
class Finding:
    """What a comparison comes to.

    Attributes:
        name: of the model that it is about.
        baseline: what it is compared with.
        verdict: how it ranks beside the baseline; "alone" where there is nothing to compare.
        numbers: values in words.
    """

    name: str
    baseline: str
    verdict: Literal["better", "worse", "alike", "alone"]
    numbers: str


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

    def finding(self) -> Finding:
        """The best model beside the baseline or, where that is best, the next one."""
        means = {name: e.metrics[self.decisive] for name, e in self.evaluations.items()}
        if not self.tests:
            best = max(means, key=lambda name: means[name])
            return Finding(best, self.baseline, "alone", f"{self.label} {means[best]:.4f}")
        best = max(self.tests, key=lambda name: means[name])
        test = self.tests[best][self.decisive]
        verdict = self._verdict(best, self.decisive) or "alike"
        return Finding(best, self.baseline, verdict, wording.difference_numbers(test))

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

    def table(self, metrics: Sequence[str], caption: str) -> TextTable:
        """Models by metrics, with intervals and marks."""
        rows = [
            [self._row_name(name), *(self._cell(name, metric) for metric in metrics)]
            for name in self.evaluations
        ]
        return TextTable(caption, ["Model", *map(wording.metric_label, metrics)], rows)

    def test_table(self) -> TextTable:
        """The tests behind the marks of the decisive metric."""
        head = ["Model", "Difference", "95% interval", "p", "p (Holm)", "p (Wilcoxon)", "Cohen's d"]
        rows = []
        for name, tests in self.tests.items():
            test = tests[self.decisive]
            p_values = (test.p_permutation, self.corrected[name, self.decisive], test.p_wilcoxon)
            rows.append(
                [
                    name,
                    wording.difference_text(test),
                    f"{wording.signed(test.low)} to {wording.signed(test.high)}",
                    *map(wording.p_text, p_values),
                    wording.signed(test.effect_size, 3),
                ]
            )
        return TextTable(f"Differences from {self.baseline} in {self.label}", head, rows)

    def kind_table(self) -> TextTable | None:
        """Differences in the decisive metric by kind of the target; None where none is told."""
        pairs = [
            (name, kind, tests[self.decisive])
            for name in self.tests
            for kind, tests in compare_kinds(
                self.evaluations[name], self.evaluations[self.baseline]
            ).items()
        ]
        if not pairs:
            return None
        corrected = holm(np.array([test.p_permutation for *_, test in pairs])).tolist()
        head = ["Model", "Kind", "Users", "Difference", "95% interval", "p", "p (Holm)"]
        rows = [
            [
                name,
                kind,
                f"{test.users:,}",
                wording.difference_text(test),
                f"{wording.signed(test.low)} to {wording.signed(test.high)}",
                wording.p_text(test.p_permutation),
                wording.p_text(p_value),
            ]
            for (name, kind, test), p_value in zip(pairs, corrected, strict=True)
        ]
        caption = f"Differences from {self.baseline} in {self.label} by kind of the target"
        return TextTable(caption, head, rows)

    def _row_name(self, name: str) -> Cell:
        return Cell(name, note="baseline" if name == self.baseline else "")

    def _cell(self, name: str, metric: str) -> str | Cell:
        evaluation = self.evaluations[name]
        if metric not in evaluation.metrics:
            return "–"
        value, interval = evaluation.metrics[metric], evaluation.intervals.get(metric)
        return Cell(
            f"{value:.4f}",
            note=wording.interval(*interval) if interval else "",
            best=metric in self.headline and value == self._largest(metric),
            mark=self._verdict(name, metric),
            against=self.baseline,
        )

    def _largest(self, metric: str) -> float:
        return max(e.metrics[metric] for e in self.evaluations.values())

    def _verdict(self, name: str, metric: str) -> Literal["", "better", "worse"]:
        """How a model differs from the baseline; empty where it may be chance."""
        if self.corrected.get((name, metric), 1.0) >= LEVEL:
            return ""
        return "better" if self.tests[name][metric].difference > 0 else "worse"
