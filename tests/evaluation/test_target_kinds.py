"""Metrics by kind of the target, targets of wanted kinds, and what a model is told of them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from blossomrec.config import EvaluationConfig, RunConfig, check
from blossomrec.data.batching.importance import kind_importance
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, make_split, split_name
from blossomrec.errors import ConfigError, DataError
from blossomrec.evaluation import RankingOptions, compare, compare_kinds, evaluate
from blossomrec.evaluation.candidates import targets_of
from blossomrec.evaluation.evaluation import load_evaluation, save_evaluation
from blossomrec.measure import evaluate_baseline, evaluate_run
from blossomrec.recommender import BlossomRec
from blossomrec.report.tables import comparison_table, evaluation_table
from blossomrec.report.wording import protocol_pairs
from ranking_oracle import DotScorer
from small_options import SMALL

KINDS = ("buy", "cart", "click")


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    """60 users with 12 to 40 events on 50 items, some of an unknown kind."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(12, 41, 60)
    users = np.repeat(np.arange(60), lengths)
    drawn = rng.choice([*KINDS, None], len(users), p=(0.3, 0.1, 0.57, 0.03))
    events = pl.DataFrame(
        {
            "user_id": users,
            "item_id": rng.integers(0, 50, len(users)),
            "timestamp": 1_700_000_000 + 60 * rng.permutation(len(users)),
            "kind": pl.Series(drawn.tolist(), dtype=pl.String),
        }
    )
    return EventLog.prepare(events, tmp_path_factory.mktemp("kinds") / "log", kind="kind")


def printed(renderable) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def measured(log, scorer=None, **options):
    config = EvaluationConfig(**options)
    split = split_name(config)
    cases = make_split(log, config).test
    scorer = scorer or DotScorer(log.num_items)
    return evaluate(scorer, log, cases, RankingOptions(filter_seen=False, split=split)), cases


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_targets_are_of_the_kinds_alone(log, split):
    found, cases = measured(log, split=split, kinds="buy,cart", test_share=0.3)
    wanted = [log.fields.kind(name) for name in ("buy", "cart")]
    assert found.protocol.split == f"{split}, targets: buy, cart"
    for number, user in enumerate(cases.users):
        history = log.history(int(user))
        part = slice(cases.history_end[number], cases.target_end[number])
        mask = np.isin(history.kinds[part], wanted)
        expected = np.unique(history.items[part][mask])
        targets = targets_of(log, cases)
        own = slice(targets.offsets[number], targets.offsets[number + 1])
        assert targets.items[own].tolist() == expected.tolist()
        assert targets.first[number] == log.offsets[user] + part.start + np.argmax(mask)
        of = (targets.of_kinds >= own.start) & (targets.of_kinds < own.stop)
        pairs = {
            (int(item), int(kind))
            for item, kind in zip(history.items[part][mask], history.kinds[part][mask], strict=True)
        }
        items, kinds = targets.items[targets.of_kinds[of]], targets.kinds[of]
        assert sorted(zip(items.tolist(), kinds.tolist(), strict=True)) == sorted(pairs)


def test_a_case_without_a_target_is_named(log):
    cases = Cases(np.array([0]), np.array([5]), np.array([6]), (99,))
    with pytest.raises(DataError, match="the case of user row 0 has no event of the kinds"):
        targets_of(log, cases)


@pytest.mark.parametrize("options", [{}, {"last_events": 3}, {"split": "global-time"}])
def test_metrics_by_kind_are_those_of_these_targets(log, options):
    found, cases = measured(log, **options)
    targets = targets_of(log, cases)
    assert [part.kind for part in found.kind_slices if part.kind != "unknown"] == list(
        log.fields.kinds
    )
    for part in found.kind_slices:
        kind = 0 if part.kind == "unknown" else log.fields.kind(part.kind)
        chosen = targets.of_kinds[targets.kinds == kind]
        by_case = {}
        for target in chosen.tolist():
            case = int(np.searchsorted(targets.offsets, target, side="right")) - 1
            by_case.setdefault(case, []).append(int(found.ranks[target]))
        by_user = {}
        for case, ranks in by_case.items():
            hit = np.mean([rank + j < 10 for j, rank in enumerate(sorted(ranks))])
            by_user.setdefault(int(cases.users[case]), []).append(hit)
        expected = np.mean([np.mean(values) for values in by_user.values()])
        assert part.metrics["recall@10"] == pytest.approx(expected)
        assert (part.users, part.targets) == (len(by_user), len(chosen))
        low, high = part.intervals["ndcg@10"]
        assert low <= part.metrics["ndcg@10"] <= high
    total = sum(part.targets for part in found.kind_slices)
    assert total >= found.protocol.num_targets
    if not options:
        recalls = [part.users * part.metrics["recall@10"] for part in found.kind_slices]
        assert sum(recalls) / 60 == pytest.approx(found.metrics["recall@10"])


def test_a_kind_called_unknown_is_not_taken_for_those_that_are(log):
    """Of the same targets, with one kind renamed."""
    found, _ = measured(log)
    kinds = tuple("unknown" if name == "click" else name for name in log.fields.kinds)
    renamed = replace(found, protocol=replace(found.protocol, kinds=kinds))
    names = {"unknown": "(unknown)", "click": "unknown"}
    expected = {names.get(part.kind, part.kind): part.targets for part in found.kind_slices}
    assert {part.kind: part.targets for part in renamed.kind_slices} == expected
    assert len(expected) == 4 and set(renamed.per_user_by_kind) == set(expected)


def test_kinds_are_kept_shown_and_compared(log, tmp_path):
    found, _ = measured(log)
    save_evaluation(found, tmp_path / "one.json")
    loaded = load_evaluation(tmp_path / "one.json")
    assert loaded.kind_slices == found.kind_slices and loaded.protocol == found.protocol
    written = json.loads((tmp_path / "one.json").read_text())
    assert [part["kind"] for part in written["kind_slices"]] == [p.kind for p in found.kind_slices]
    text = printed(evaluation_table("one", found))
    assert "By kind of the target" in text
    for part in found.kind_slices:
        assert part.marked_label in text
    other, _ = measured(log, DotScorer(log.num_items, 8))
    tests = compare_kinds(found, other)
    for part, again in zip(found.kind_slices, other.kind_slices, strict=True):
        test = tests[part.kind]["ndcg@10"]
        assert (test.users, test.first, test.second) == (
            part.users,
            part.metrics["ndcg@10"],
            again.metrics["ndcg@10"],
        )
    shown = comparison_table("one", "two", compare(found, other), found.protocol, tests)
    text = printed(shown)
    assert "By kind of the target" in text and "click" in text


def test_kinds_change_nothing_else(log, tmp_path):
    """The same events prepared without their kinds."""
    events = [
        pl.DataFrame(
            {
                "user_id": log.user_vocabulary.ids([user] * len(history)),
                "item_id": log.item_vocabulary.ids(history.items),
                "timestamp": history.times,
            }
        )
        for user in range(log.num_users)
        for history in [log.history(user)]
    ]
    plain = EventLog.prepare(pl.concat(events), tmp_path / "plain", ties="keep")
    for options in ({}, {"split": "global-time"}):
        with_kinds, without = measured(log, **options)[0], measured(plain, **options)[0]
        assert with_kinds.ranks.tolist() == without.ranks.tolist()
        assert with_kinds.metrics == without.metrics and with_kinds.slices == without.slices
        assert without.kind_slices == () and without.kinds is None
        assert set(compare(with_kinds, without)) == set(with_kinds.per_user)
        assert compare_kinds(with_kinds, without) == {}
        assert "By kind" not in printed(evaluation_table("one", without))


@pytest.mark.parametrize("split", ["leave-one-out", "global-time"])
def test_the_model_is_told_kind_and_moment_of_the_first_target(log, split):
    told = {"asked": [], "asked_kinds": []}

    class Scorer(DotScorer):
        inputs = ("items", "times", "asked", "asked_kinds")

        def queries(self, batch):
            for name, values in told.items():
                values += getattr(batch, name)[batch.last_rows].tolist()
            return super().queries(batch)

    found, cases = measured(
        log, Scorer(log.num_items), split=split, kinds="buy,cart", test_share=0.3
    )
    wanted = [log.fields.kind(name) for name in ("buy", "cart")]
    for number, user in enumerate(cases.users):
        history = log.history(int(user))
        part = slice(cases.history_end[number], cases.target_end[number])
        first = part.start + int(np.argmax(np.isin(history.kinds[part], wanted)))
        assert told["asked"][number] == history.times[first]
        assert told["asked_kinds"][number] == history.kinds[first] in wanted
    assert found.protocol.asked_kinds and found.protocol.moments
    words = dict(protocol_pairs(found.protocol))["Inputs"]
    assert "the model is told which kind of event is wanted" in words
    assert ("or of the first one" in words) is (not found.protocol.one_target)
    assert "which kind of event is wanted" in printed(evaluation_table("one", found))


def test_what_the_split_is_in_words(log):
    for options, words in (
        ({"kinds": "buy"}, "Leave-one-out by kind: the last event of kind buy of every user"),
        ({"kinds": "buy,cart", "last_events": 2}, "The last 2 events of kind buy or cart of every"),
        ({"split": "global-time", "kinds": "buy"}, "items of all events of kind buy in the last"),
    ):
        found, _ = measured(log, **options)
        assert words in dict(protocol_pairs(found.protocol))["Split"]


def test_baselines_are_measured_on_the_same_targets(log):
    found = evaluate_baseline("popularity", log, kinds="buy")
    assert found.protocol.split == "leave-one-out, targets: buy"
    assert [part.kind for part in found.kind_slices] == ["buy"]
    whole = {name: pytest.approx(v) for name, v in found.metrics.items() if "@" in name}
    own = found.kind_slices[0].metrics
    assert own == {name: whole[name] for name in own}
    # With nothing else, a table by kind would say it all again.
    assert "By kind" not in printed(evaluation_table("popularity", found))


@pytest.mark.usefixtures("one_thread")
def test_training_validates_on_the_same_kinds(log, tmp_path):
    config = RunConfig(evaluation=EvaluationConfig(kinds="buy"))
    recommender = BlossomRec(config, **SMALL | {"epochs": 2}).fit(
        log, tmp_path / "run", progress=False
    )
    split = make_split(log, config.evaluation)
    found = evaluate_run(tmp_path / "run", on="valid")
    assert found.protocol.split == "leave-one-out, targets: buy"
    assert (found.protocol.num_cases, found.lengths.tolist()) == (
        len(split.valid),
        split.valid.history_end.tolist(),
    )
    # Nothing from the first validation target on is trained on.
    assert found.lengths.tolist() == split.train_end[found.users].tolist()
    assert recommender.training is not None
    best = recommender.training.validation["ndcg@10"]
    assert found.metrics["ndcg@10"] == pytest.approx(best, abs=1e-4)
    with pytest.raises(ConfigError, match="--kinds click is for baselines"):
        evaluate_run(tmp_path / "run", kinds="click")


def test_kinds_with_commas_are_in_quotes():
    events = pl.DataFrame(
        {
            "user_id": [1] * 4 + [2] * 4,
            "item_id": [5, 6, 7, 8] * 2,
            "timestamp": [1, 2, 3, 4] * 2,
            "kind": ["a,b", "a,b", "a", "c=d"] * 2,
        }
    )
    log = EventLog.prepare(events, kind="kind")
    cases = make_split(log, EvaluationConfig(kinds='"a,b", a')).test
    assert cases.kinds == (log.fields.kind("a,b"), log.fields.kind("a"))
    found = kind_importance('"a,b"=2, "c=d"=0.5', log)
    assert found.tolist() == [0, 2, 0, 0.5]
    for text in ("a,\nb", "a b", "a,b"):
        with pytest.raises(ConfigError, match="have the kinds 'a,b', 'a', 'c=d'"):
            make_split(log, EvaluationConfig(kinds=text))


def test_kinds_are_a_text(log):
    with pytest.raises(ConfigError, match=r"evaluation.kinds is \['buy'\]: a text is needed"):
        check(RunConfig(evaluation=EvaluationConfig(kinds=["buy"])))  # pyright: ignore


def test_the_commands_take_and_compare_kinds(log, cli, tmp_path):
    for name in ("popularity", "transitions"):
        shown = cli(
            *("evaluate", name, "--log", log.folder, "--kinds", "click,cart"),
            *("--ks", "10", "--out", tmp_path / name),
        )
        assert f"{name}: leave-one-out, targets: click, cart, full ranking" in shown
        assert "By kind of the target" in shown
    assert "By kind of the target" in cli(
        "compare", tmp_path / "popularity", tmp_path / "transitions"
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec"])
def test_another_log_is_read_in_the_numbers_of_the_model(backbone, tmp_path):
    """With one user more, kinds, categories and rows of users have other numbers, and the columns
    of the context another order."""
    rng = np.random.default_rng(7)
    count = 20 * 15
    events = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(20), 15),
            "item_id": rng.permutation(np.arange(count) % 12),
            "timestamp": 1_700_000_000 + 60 * np.arange(count),
            "kind": rng.choice(["click", "buy"], count, p=[0.7, 0.3]),
            "shop": rng.choice(["web", "app", "store"], count, p=[0.6, 0.3, 0.1]),
            "price": rng.random(count).round(3),
        }
    )
    users = pl.DataFrame({"user_id": np.arange(-1, 20), "age": rng.integers(20, 60, 21)})
    more = pl.DataFrame(
        {
            "user_id": [-1] * 600,
            "item_id": np.arange(600) % 12,
            "timestamp": 1_700_000_000 + np.arange(600),
            "kind": ["buy"] * 500 + ["look"] * 100,
            "shop": ["store"] * 500 + ["fair"] * 100,
            "price": [9.0] * 600,
        }
    )
    log = EventLog.prepare(
        events, tmp_path / "log", kind="kind", context=("shop", "price"), users=users
    )
    others = EventLog.prepare(
        pl.concat([events, more]), tmp_path / "others", kind="kind", context=("price", "shop")
    )
    sees = ("event_kinds", "request_kind", "context", "user_table")
    options: dict[str, Any] = SMALL | dict.fromkeys(sees, "on") | {"epochs": 8}
    recommender = BlossomRec(backbone=backbone, **options).fit(
        log, tmp_path / "run", progress=False
    )
    own = evaluate_run(tmp_path / "run")
    assert own.metrics == recommender.evaluate().metrics
    # In falling order of events; the one more user, who has no id in the table here, comes first.
    assert (log.fields.kinds, others.fields.kinds) == (("click", "buy"), ("buy", "click", "look"))
    with pytest.warns(UserWarning, match="is not what"):
        found = [evaluate_run(tmp_path / "run", others), recommender.evaluate(log=others)]
    for evaluation in found:
        assert evaluation.ranks[1:].tolist() == own.ranks.tolist()
        assert evaluation.protocol.kinds == others.fields.kinds
    plain = EventLog.prepare(events, tmp_path / "plain")
    with pytest.raises(DataError, match="has no kinds that a model can see"):
        evaluate_run(tmp_path / "run", plain)
