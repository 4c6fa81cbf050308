from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import Cases, make_split
from blossomrec.errors import ConfigError, DataError, TrainingError
from blossomrec.evaluation import RankingOptions, evaluate, resolve_filter_seen, scoring
from blossomrec.evaluation.candidates import sample_unseen, targets_of
from blossomrec.evaluation.significance import bootstrap_intervals
from blossomrec.models.baselines import ItemTransitions, Popularity
from ranking_oracle import (
    DotScorer,
    TableScorer,
    full_ranks,
    prepared,
    ranked,
    recommended,
)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(scoring, "GROUP", 4)
    monkeypatch.setattr(scoring, "TILE_ITEMS", 8)
    monkeypatch.setattr(scoring, "TILE_ROWS", 2)
    monkeypatch.setattr(scoring, "WORK_ELEMENTS", 32)


@pytest.fixture(scope="module")
def wide_log():
    """60 users with 3 to 40 events on 400 items, some met again."""
    rng = np.random.default_rng(4)
    histories = [rng.integers(0, 400, n).tolist() for n in rng.integers(3, 41, 60)]
    return prepared([*histories, list(range(400))])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(st.data())
def test_ranks_and_lists_agree_with_plain_loops(small_tiles, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    num_items = data.draw(st.integers(2, 40))
    lengths = data.draw(st.lists(st.integers(2, 12), min_size=1, max_size=9))
    log = prepared([[0, 1], *(rng.integers(0, num_items, n).tolist() for n in lengths)])
    # Few levels make many ties.
    levels = data.draw(st.sampled_from([1, 2, 10, 1000]))
    table = rng.integers(0, levels, (log.num_items, log.num_items)).astype(float)
    sizes = np.diff(log.offsets)
    ends = rng.integers(1, sizes)
    cases = Cases(np.arange(log.num_users), ends, rng.integers(ends + 1, sizes + 1))
    filter_seen = data.draw(st.booleans())
    evaluation = evaluate(
        TableScorer(table),
        log,
        cases,
        RankingOptions(ks=(2, 5), filter_seen=filter_seen),
        tokens_per_batch=data.draw(st.sampled_from([1, 9, 1000])),
        score_elements=data.draw(st.sampled_from([1, 150, 10_000])),
    )
    assert evaluation.ranks.tolist() == full_ranks(log, cases, table, filter_seen)
    for user, end, target_end in zip(cases.users, ends, cases.target_end, strict=True):
        history = log.history(user).items.tolist()
        left_out = set(history[:end]) - set(history[end:target_end]) if filter_seen else set()
        expected = recommended(table[history[end - 1]], left_out, 5)
        assert evaluation.top[user].tolist() == expected + [-1] * (5 - len(expected))


@pytest.mark.parametrize("ranking", ["full", "uni100"])
def test_a_user_with_several_cases_counts_once(wide_log, ranking):
    """Metrics are means over users of the means over their cases, and each case is ranked alone."""
    scorer, options = DotScorer(400), {"ranking": ranking, "filter_seen": True}
    several = make_split(wide_log, EvaluationConfig(last_events=3)).test
    # The first user has one case only, so that users differ in how many they have.
    cases = Cases(*(getattr(several, name)[2:] for name in ("users", "history_end", "target_end")))
    found = evaluate(scorer, wide_log, cases, RankingOptions(**options))
    users = np.unique(cases.users)
    assert (found.protocol.num_cases, found.protocol.num_users) == (len(cases), len(users))
    name = f"{found.protocol.prefix}ndcg@10"
    by_user = {user: [] for user in users}
    for number, user in enumerate(cases.users):
        one = Cases(*(value[number : number + 1] for value in vars(cases).values()))
        alone = evaluate(scorer, wide_log, one, RankingOptions(**options))
        by_user[user].append(alone.metrics[f"{alone.protocol.prefix}ndcg@10"])
        assert alone.ranks[0] == found.ranks[number]
    assert [len(values) for values in by_user.values()] == [1, *[3] * (len(users) - 1)]
    means = [np.mean(values) for values in by_user.values()]
    assert found.per_user[name].tolist() == pytest.approx(means)
    assert found.metrics[name] == pytest.approx(np.mean(means))
    # Intervals and bins of history are of users, too: one value for each.
    expected = bootstrap_intervals({name: np.array(means)}, seed=0)[name]
    assert found.intervals[name] == pytest.approx(expected)
    assert sum(part.users for part in found.slices) == len(users)
    first = [cases.history_end[cases.users == user].min() for user in users]
    assert found.user_lengths.tolist() == first


def test_users_out_of_order_are_refused(wide_log):
    cases = Cases(np.array([1, 0]), np.array([2, 2]), np.array([3, 3]))
    with pytest.raises(DataError, match="side by side"):
        evaluate(DotScorer(400), wide_log, cases, RankingOptions(filter_seen=False))


def test_ties_count_against_the_target(wide_log):
    cases = make_split(wide_log, EvaluationConfig()).test
    evaluation = evaluate(
        TableScorer(np.zeros((400, 400))), wide_log, cases, RankingOptions(filter_seen=False)
    )
    assert (evaluation.ranks == 399).all()
    assert evaluation.metrics["hr@20"] == 0


def test_a_target_that_was_seen_stays_a_candidate():
    log = prepared([["a", "b", "a"], ["c", "d", "e"]])
    [b] = log.item_vocabulary.rows(["b"])
    [a] = log.item_vocabulary.rows(["a"])
    table = np.zeros((5, 5))
    table[b, a] = 1
    case = Cases(np.array([0]), np.array([2]), np.array([3]))
    evaluation = evaluate(TableScorer(table), log, case, RankingOptions(ks=(1,), filter_seen=True))
    assert evaluation.ranks.tolist() == [0]
    assert evaluation.top.tolist() == [[a]]


@pytest.mark.parametrize("ranking", ["full", "uni100"])
def test_nothing_depends_on_the_batch_size(wide_log, ranking):
    cases = make_split(wide_log, EvaluationConfig()).test
    scorer = DotScorer(400)
    options = {"ranking": ranking, "filter_seen": True}
    usual = evaluate(scorer, wide_log, cases, RankingOptions(**options))
    for tokens in (1, 100, 333):
        for elements in (400 * 40, 1 << 20):
            other = evaluate(
                scorer,
                wide_log,
                cases,
                RankingOptions(**options),
                tokens_per_batch=tokens,
                score_elements=elements,
            )
            assert (other.ranks == usual.ranks).all()
            assert other.metrics == usual.metrics


def test_nothing_depends_on_the_batch_size_with_a_real_encoder(tiny_log):
    from blossomrec.config import ModelConfig
    from blossomrec.models.building import build_model

    torch.manual_seed(0)
    size = {"hidden_size": 16, "heads": 2, "kv_heads": 1, "inner_size": 16, "max_len": 40}
    model = build_model(ModelConfig(**size), tiny_log.num_items)
    cases = make_split(tiny_log, EvaluationConfig()).test
    results = [
        evaluate(
            model, tiny_log, cases, RankingOptions(filter_seen=True), tokens_per_batch=tokens
        ).metrics
        for tokens in (1, 77, 10_000)
    ]
    assert results[0] == pytest.approx(results[1], abs=1e-9)
    assert results[0] == pytest.approx(results[2], abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranking", ["full", "uni100"])
def test_a_gpu_ranks_alike(wide_log, ranking):
    # Whole numbers, so that scores are exact and ties are ties on both.
    table = np.random.default_rng(0).integers(0, 50, (400, 400))
    cases = make_split(wide_log, EvaluationConfig(split="global-time")).test
    options = {"ranking": ranking, "filter_seen": True}
    on_cpu = evaluate(TableScorer(table), wide_log, cases, RankingOptions(**options))
    scorer = TableScorer(table)
    scorer.table = scorer.table.cuda()
    on_gpu = evaluate(scorer, wide_log, cases, RankingOptions(**options), device="cuda")
    assert (on_gpu.ranks == on_cpu.ranks).all()
    assert on_gpu.metrics == on_cpu.metrics


def test_uni100_ranks_among_its_sample(wide_log):
    rng = np.random.default_rng(8)
    table = rng.integers(0, 30, (400, 400)).astype(float)
    cases = make_split(wide_log, EvaluationConfig(last_events=2)).test
    evaluation = evaluate(
        TableScorer(table),
        wide_log,
        cases,
        RankingOptions(ranking="uni100", filter_seen=True, seed=3),
    )
    sampled, targets = sample_unseen(wide_log, cases.users, seed=3), targets_of(wide_log, cases)
    expected = []
    for case, (user, end) in enumerate(zip(cases.users, cases.history_end, strict=True)):
        candidates = set(sampled[case].tolist()) - {-1}
        last = wide_log.history(int(user)).items[end - 1]
        own = targets.items[targets.offsets[case] : targets.offsets[case + 1]]
        expected += [ranked(table[last], item, candidates) for item in own]
    assert evaluation.ranks.tolist() == expected
    assert evaluation.top is None
    # One user has met everything.
    assert evaluation.protocol.sampled == (0, 100)
    assert all(name.startswith("uni0-100_") for name in evaluation.metrics)
    assert not any("coverage" in name for name in evaluation.metrics)


@pytest.mark.parametrize(
    "histories, num_items, label, words",
    [
        pytest.param([[0, 1, 2], [3, 4, 5]], 103, "uni100", "100 items drawn uniformly", id="100"),
        pytest.param([[0, 1, 2], [3, 4, 5]], 12, "uni9", "9 items that the user never", id="few"),
        pytest.param([[0, 1, 2, 3], [3, 4, 5]], 12, "uni8-9", "8 to 9 items that", id="range"),
    ],
)
def test_a_sampled_ranking_is_named_by_how_many_were_drawn(histories, num_items, label, words):
    log = prepared([*histories, list(range(num_items))])
    cases = make_split(log, EvaluationConfig()).test
    chosen = Cases(*(value[:2] for value in vars(cases).values()))
    evaluation = evaluate(
        TableScorer(np.zeros((num_items, num_items))),
        log,
        chosen,
        RankingOptions(ranking="uni100", filter_seen=True),
    )
    assert evaluation.protocol.label == label
    assert {name.split("_")[0] for name in evaluation.metrics} == {label}
    assert evaluation.protocol.candidates.startswith(words)
    # All scores are equal, and ties count against the target.
    fewest, most = evaluation.protocol.sampled
    assert sorted(set(evaluation.ranks.tolist())) == sorted({fewest, most})


def test_uni100_of_some_users_is_that_of_all(wide_log):
    cases = make_split(wide_log, EvaluationConfig()).test
    table = np.random.default_rng(0).random((400, 400))
    options = {"ranking": "uni100", "filter_seen": True}
    everyone = evaluate(TableScorer(table), wide_log, cases, RankingOptions(**options))
    some = cases.sample(20, seed=0)
    part = evaluate(TableScorer(table), wide_log, some, RankingOptions(**options))
    assert (part.ranks == everyone.ranks[np.isin(cases.users, some.users)]).all()
    other = evaluate(TableScorer(table), wide_log, cases, RankingOptions(seed=1, **options))
    assert (other.ranks != everyone.ranks).any()


def test_names_and_ranges_of_the_metrics(wide_log):
    cases = make_split(wide_log, EvaluationConfig(split="global-time")).test
    options = RankingOptions(ks=(10, 5), filter_seen=False, split="global-time")
    evaluation = evaluate(DotScorer(400), wide_log, cases, options)
    names = [
        f"{m}@{k}"
        for m in ("hr", "recall", "ndcg", "mrr", "popularity", "coverage")
        for k in (5, 10)
    ]
    assert list(evaluation.metrics) == names
    assert all(0 <= value <= 1 for value in evaluation.metrics.values())
    assert evaluation.protocol.num_targets > evaluation.protocol.num_cases == len(cases)
    assert evaluation.protocol.split == "global-time"
    assert evaluation.lengths.tolist() == cases.history_end.tolist()
    others = evaluate(DotScorer(400), wide_log, cases, replace(options, popularity=False))
    assert others.metrics.items() == {
        (name, value) for name, value in evaluation.metrics.items() if "popularity" not in name
    }


def test_popularity_recommends_the_popular(tiny_log):
    split = make_split(tiny_log, EvaluationConfig())
    scorer = Popularity.fit(tiny_log, split.train_end)
    evaluation = evaluate(
        scorer, tiny_log, split.test, RankingOptions(ks=(1, 5), filter_seen=False)
    )
    assert evaluation.metrics["popularity@1"] > 0.95
    assert evaluation.metrics["coverage@5"] == 5 / tiny_log.num_items
    transitions = ItemTransitions.fit(tiny_log, split.train_end)
    guided = evaluate(
        transitions, tiny_log, split.test, RankingOptions(ks=(1, 5), filter_seen=False)
    )
    assert guided.metrics["coverage@5"] > evaluation.metrics["coverage@5"]
    assert guided.metrics["hr@1"] > 0.8


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest storage that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("ranking", ["full", "uni100"])
def test_no_intermediate_exceeds_the_budget(monkeypatch, ranking):
    monkeypatch.setattr(scoring, "WORK_ELEMENTS", 1 << 16)
    num_items, budget = 60_000, 1 << 18
    rng = np.random.default_rng(2)
    log = prepared([rng.permutation(num_items)[:300].tolist() for _ in range(600)])
    cases = make_split(log, EvaluationConfig()).test
    scorer = DotScorer(log.num_items, size=2)
    with LargestTensor() as largest:
        evaluate(
            scorer,
            log,
            cases,
            RankingOptions(ranking=ranking, filter_seen=True),
            score_elements=budget,
            tokens_per_batch=4_000,
        )
    # The scores of all cases together would be 36 million.
    assert 600 * log.num_items > 100 * budget
    assert largest.numbers <= budget


def test_a_model_in_training_is_put_back_and_had_no_dropout(wide_log):
    cases = make_split(wide_log, EvaluationConfig()).test
    scorer = DotScorer(400).train()
    first = evaluate(scorer, wide_log, cases, RankingOptions(filter_seen=True))
    assert scorer.training
    assert (
        evaluate(scorer.eval(), wide_log, cases, RankingOptions(filter_seen=True)).ranks
        == first.ranks
    ).all()
    assert not scorer.training


def test_scores_are_compared_in_float32_under_autocast(wide_log):
    cases = make_split(wide_log, EvaluationConfig()).test
    usual = evaluate(DotScorer(400), wide_log, cases, RankingOptions(filter_seen=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = evaluate(DotScorer(400), wide_log, cases, RankingOptions(filter_seen=True))
    assert (mixed.ranks == usual.ranks).all()


@pytest.mark.parametrize("ranking", ["full", "uni100"])
def test_scores_that_are_no_numbers_are_refused(wide_log, ranking):
    cases = make_split(wide_log, EvaluationConfig()).test
    table = np.full((400, 400), np.nan)
    with pytest.raises(TrainingError, match="not a number"):
        evaluate(
            TableScorer(table), wide_log, cases, RankingOptions(ranking=ranking, filter_seen=True)
        )


def test_wrong_arguments_are_named(wide_log):
    cases = make_split(wide_log, EvaluationConfig()).test
    with pytest.raises(DataError, match="knows 7 items and the log 400"):
        evaluate(TableScorer(np.zeros((7, 7))), wide_log, cases, RankingOptions(filter_seen=True))
    scorer = DotScorer(400)
    with pytest.raises(ConfigError, match="ranking is 'uni10'"):
        evaluate(scorer, wide_log, cases, RankingOptions(ranking="uni10", filter_seen=True))
    with pytest.raises(ConfigError, match="score_elements is 0"):
        evaluate(scorer, wide_log, cases, RankingOptions(filter_seen=True), score_elements=0)
    scorer.scores = lambda queries, start, stop: torch.zeros(len(queries), 1)
    with pytest.raises(DataError, match=r"shape \(32, 1\)"):
        evaluate(scorer, wide_log, cases, RankingOptions(filter_seen=True))


@pytest.mark.parametrize(
    ("option", "repeats", "expected"),
    [("auto", True, False), ("auto", False, True), ("yes", True, True), ("no", False, False)],
)
def test_seen_items_are_filtered_by_default_where_nothing_repeats(
    tiny_log, repeat_log, option, repeats, expected
):
    log = repeat_log if repeats else tiny_log
    assert resolve_filter_seen(EvaluationConfig(filter_seen=option), log) is expected
