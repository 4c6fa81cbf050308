import pytest
from rich.console import Console

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split, split_name
from blossomrec.evaluation import RankingOptions, compare, compare_segments, evaluate
from blossomrec.measure import evaluate_baseline
from blossomrec.report import wording
from blossomrec.report.tables import comparison_table, evaluation_table
from blossomrec.report.wording import metric_label, protocol_pairs
from list_oracle import log_with_tables
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


def test_metrics_of_lists_and_segments_are_printed(monkeypatch):
    log = log_with_tables([[0, 1, 2, 3, 4], *[[n % 5, (n + 1) % 5, (n + 2) % 5] for n in range(9)]])
    asked = {"own_metrics": ["diversity:maker_name", "gini"], "segments": ["country"]}
    first = evaluate_baseline("transitions", log, **asked)
    second = evaluate_baseline("popularity", log, **asked)
    text = printed(evaluation_table("one", first))
    [line] = [line for line in text.splitlines() if "diversity:maker_name@10" in line]
    low, high = first.intervals["diversity:maker_name@10"]
    assert f"{first.metrics['diversity:maker_name@10']:.4f}" in line
    assert f"{low:.4f}–{high:.4f}" in line
    assert "gini@10" in text and "By country of the user" in text
    parts = first.segment_slices["country"]
    for part in parts:
        assert part.marked_label in text
    by_segment = compare_segments(first, second, names=("ndcg@10", "hr@10"))
    tests = compare(first, second)
    text = printed(comparison_table("one", "two", tests, first.protocol, None, by_segment))
    for part in parts:
        assert f"│ {part.value} " in text[text.index("By country of the user") :]
    # Of many values those of most users are shown.
    monkeypatch.setattr(wording, "MOST_SEGMENTS", 1)
    by_segment = compare_segments(first, second, most=1)
    for table in (
        evaluation_table("one", first),
        comparison_table("one", "two", tests, first.protocol, None, by_segment),
    ):
        text = printed(table)
        shown = text[text.index("By country of the user, the 1 values with most users") :]
        assert f"│ {parts[0].value} " in shown and f"│ {parts[1].value} " not in shown


def test_metrics_have_labels():
    assert metric_label("ndcg@10") == "NDCG@10"
    assert metric_label("uni20-79_first-place@5") == "First-place@5 (uni20-79)"
    assert metric_label("diversity:main_genre@10") == "Diversity@10 (main_genre)"
    assert metric_label("diversity:a@b@10") == "Diversity@10 (a@b)"


def test_the_protocol_defines_the_metrics_that_were_asked_for(measure):
    protocol = measure(4).protocol
    words = dict(protocol_pairs(protocol, ["novelty", "calibration:main_genre", "own"]))
    assert words["Novelty@k"].startswith("mean log2(users / users who met")
    assert words["Calibration@k (main_genre)"].startswith("Kullback-Leibler")
    assert words.keys() - dict(protocol_pairs(protocol)).keys() == {
        "Novelty@k",
        "Calibration@k (main_genre)",
    }
