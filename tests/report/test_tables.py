import pytest
from rich.console import Console

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split, split_name
from blossomrec.evaluation import RankingOptions, compare, evaluate
from blossomrec.report.tables import comparison_table, evaluation_table
from blossomrec.report.wording import protocol_pairs
from ranking_oracle import DotScorer


@pytest.fixture
def measure(tiny_log):
    cases = make_split(tiny_log, EvaluationConfig()).test

    def at(size, ranking="full"):
        scorer = DotScorer(tiny_log.num_items, size)
        options = {"ranking": ranking, "filter_seen": True, "split": "leave-one-out"}
        return evaluate(scorer, tiny_log, cases, RankingOptions(**options))

    return at


def printed(renderable):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_every_metric_and_every_slice_is_printed(measure):
    evaluation = measure(4)
    text = printed(evaluation_table("runs/[bold]one", evaluation))
    assert "runs/[bold]one: leave-one-out, full ranking, 58 users" in text
    rows = [line.split()[1] for line in text.splitlines() if "@" in line]
    assert rows[:3] == ["ndcg@10", "hr@10", "hr@5"]
    # With one target, recall is hr.
    assert evaluation.protocol.one_target and "recall" not in text
    for name, value in evaluation.metrics.items():
        if name.startswith("recall"):
            continue
        assert any(
            line.split()[1:4:2] == [name, f"{value:.4f}"]
            for line in text.splitlines()
            if name in line
        )
    for part in evaluation.slices:
        assert part.marked_label in text
    assert any(part.few for part in evaluation.slices)
    assert "* fewer than 30 users" in text
    assert "Ties count against the target" in text


def test_cases_are_told_apart_from_users(tiny_log):
    config = EvaluationConfig(last_events=2)
    cases, scorer = make_split(tiny_log, config).test, DotScorer(tiny_log.num_items)
    options = {"filter_seen": True, "split": split_name(config)}
    evaluation = evaluate(scorer, tiny_log, cases, RankingOptions(**options))
    text = printed(evaluation_table("one", evaluation))
    assert "one: leave-last-2-out, full ranking, 56 users, 112 cases" in text
    words = dict(protocol_pairs(evaluation.protocol))
    assert words["Cases"] == "56 users, 112 cases, 112 targets"
    assert words["Split"].startswith("The last 2 events of every user with at least 5 are")


def test_a_sampled_ranking_says_so(measure):
    text = printed(evaluation_table("one", measure(4, "uni100")))
    assert "sampled ranking (uni20-77)" in text
    assert "uni20-77_ndcg@10" in text
    assert " ndcg@10" not in text


def test_a_comparison_is_printed(measure):
    first = measure(4)
    tests = compare(first, measure(8))
    text = printed(comparison_table("one", "two", tests, first.protocol))
    assert "one (first) and two (second), 58 users" in text
    rows = [line.split()[1] for line in text.splitlines() if "@" in line]
    assert rows[:2] == ["ndcg@10", "hr@10"] and len(rows) == len(set(rows))
    for name, test in tests.items():
        if name.startswith("recall"):
            continue
        [line] = [line for line in text.splitlines() if f" {name} " in line]
        assert f"{test.first:.4f}" in line
        assert f"{test.second:.4f}" in line
