import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from blossomrec.config import EvaluationConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.evaluation import RankingOptions, compare, evaluate
from blossomrec.evaluation.evaluation import load_evaluation, save_evaluation
from blossomrec.evaluation.metrics import METRICS
from blossomrec.measure import evaluate_baseline, evaluate_run, override
from blossomrec.models.baselines import BASELINES
from blossomrec.recommender import BlossomRec
from small_options import SMALL


@pytest.fixture(scope="module")
def trained(tiny_log, tmp_path_factory):
    """A run on the tiny log that filters nothing and knows cut-offs of its own."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = SMALL | {"filter_seen": "no", "ks": (2, 10), "split": "global-time"}
    recommender = BlossomRec(**options).fit(tiny_log, run, progress=False)
    return recommender, run


def test_a_run_is_measured_as_it_was_trained(trained, tiny_log):
    recommender, run = trained
    measured = evaluate_run(run)
    split = make_split(tiny_log, recommender.config.evaluation)
    cases, options = split.test, RankingOptions(ks=(2, 10), filter_seen=False)
    own = evaluate(recommender.model, tiny_log, cases, options, train_end=split.train_end)
    assert np.array_equal(measured.ranks, own.ranks)
    assert measured.metrics == own.metrics
    protocol = measured.protocol
    assert (protocol.split, protocol.ranking, protocol.filter_seen) == (
        "global-time",
        "full",
        False,
    )
    assert protocol.num_cases == len(cases)


def test_options_override_those_of_the_run(trained, tiny_log):
    recommender, run = trained
    measured = evaluate_run(
        run, tiny_log, on="valid", ranking="uni100", filter_seen="yes", ks=(1,), seed=3
    )
    assert measured.protocol.ranking == "uni100"
    assert measured.protocol.filter_seen is True
    assert (measured.protocol.ks, measured.protocol.seed) == ((1,), 3)
    valid = make_split(tiny_log, recommender.config.evaluation).valid
    assert np.array_equal(measured.users, valid.users)
    # Of 80 items these users have met between 34 and 60.
    assert measured.protocol.sampled == (20, 46)
    kinds = ("hr", "recall", "ndcg", "mrr")
    assert set(measured.metrics) == {f"uni20-46_{kind}@1" for kind in kinds}
    # None is no change.
    assert evaluate_run(run, ranking=None, ks=None).metrics == evaluate_run(run).metrics


def test_the_log_may_be_a_folder(trained, tiny_log):
    _, run = trained
    ranks = evaluate_run(run).ranks
    for log in (tiny_log, tiny_log.folder, str(tiny_log.folder)):
        assert np.array_equal(evaluate_run(run, log).ranks, ranks)


def test_another_vocabulary_is_refused(trained, repeat_log):
    _, run = trained
    with pytest.raises(RunError, match="another vocabulary") as error:
        evaluate_run(run, repeat_log)
    assert str(run) in str(error.value) and str(repeat_log.folder) in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{}, {"on": "valid"}, {"ranking": "uni100", "seed": 3}, {"ks": [1, 7], "filter_seen": "yes"}],
    ids=str,
)
def test_a_recommender_measures_itself_as_its_run_is_measured(trained, tiny_log, options):
    recommender, run = trained
    expected = evaluate_run(run, **options | ({"ks": (1, 7)} if "ks" in options else {}))
    recommenders = [recommender, BlossomRec.from_pretrained(run)]
    recommenders.append(BlossomRec.from_pretrained(run, tiny_log))
    for one in recommenders:
        measured = one.evaluate(**options)
        assert measured.protocol == expected.protocol
        assert measured.metrics == expected.metrics
        assert measured.intervals == expected.intervals


def test_a_recommender_without_a_log_of_its_own_is_told_to_take_one(
    trained, tiny_log, repeat_log, tmp_path
):
    recommender, _ = trained
    recommender.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    values = json.loads(path.read_text()) | {"data": str(tmp_path / "gone")}
    path.write_text(json.dumps(values))
    lost = BlossomRec.from_pretrained(tmp_path / "saved")
    with pytest.raises(RunError, match=r"gone is not a prepared log.*: give one"):
        lost.evaluate()
    assert lost.evaluate(log=tiny_log).metrics == recommender.evaluate().metrics
    with pytest.raises(RunError, match="this model belongs to another vocabulary"):
        lost.evaluate(log=repeat_log.folder)
    with pytest.raises(RunError, match="has not been fitted"):
        BlossomRec().evaluate()


def test_a_recommender_knows_a_log_that_was_prepared_again(tiny_events, tmp_path):
    log = EventLog.prepare(tiny_events, tmp_path / "log")
    fitted = BlossomRec(**SMALL).fit(log, tmp_path / "run", progress=False)
    metrics = fitted.evaluate().metrics
    EventLog.prepare(tiny_events.with_columns(-pl.col("timestamp")), tmp_path / "log")
    # An open log is what it was.
    assert fitted.evaluate().metrics == metrics
    again = BlossomRec.from_pretrained(tmp_path / "run")
    with pytest.raises(RunError, match="has changed since this model was trained on it"):
        again.evaluate()
    with pytest.warns(UserWarning, match="is not what this model was trained on"):
        assert again.evaluate(log=tmp_path / "log").metrics != metrics


def test_a_run_whose_log_has_grown(tiny_events, tmp_path):
    log = EventLog.prepare(tiny_events, tmp_path / "log")
    BlossomRec(**SMALL).fit(log, tmp_path / "run", progress=False)
    user, item = tiny_events["user_id"][0], tiny_events["item_id"].max() + 1
    late = tiny_events["timestamp"].max() + 1
    more = tiny_events[:1].with_columns(timestamp=pl.lit(late))
    log.append(more)
    # The items are the same: it is told, and measured all the same if the log is named.
    with pytest.raises(RunError, match=r"has changed since .*run was trained on it \(events"):
        evaluate_run(tmp_path / "run")
    with pytest.warns(UserWarning, match="is not what"):
        assert evaluate_run(tmp_path / "run", tmp_path / "log").metrics
    log.append(more.with_columns(item_id=item, timestamp=late + 1))
    for named in (None, tmp_path / "log"):
        with pytest.raises(
            RunError, match=r"has grown by 1 items that .*run does not know.*--from"
        ):
            evaluate_run(tmp_path / "run", named)
    # What the model does not know is left out of the history.
    found = BlossomRec.from_pretrained(tmp_path / "run")
    assert found.log.num_items == log.num_items + 1
    assert found.recommend([user], 5)["item_id"].n_unique() == 5


def test_own_metrics_are_measured_and_kept(trained, tiny_log, tmp_path, monkeypatch):
    monkeypatch.setattr(METRICS, "_registered", {})

    @METRICS.register("misses")
    def misses(places, offsets, k):
        return 1.0 - (places[offsets[:-1]] < k)

    recommender, run = trained
    for measured in (
        evaluate_run(run, own_metrics=["misses"]),
        recommender.evaluate(own_metrics=["misses"]),
        evaluate_baseline("popularity", tiny_log, own_metrics=["misses"]),
    ):
        assert measured.metrics["misses@10"] == pytest.approx(1 - measured.metrics["hr@10"])
        assert "misses@10" in measured.intervals
    save_evaluation(measured, tmp_path / "kept.json")
    assert load_evaluation(tmp_path / "kept.json").metrics == measured.metrics
    usual = evaluate_baseline("popularity", tiny_log)
    assert "misses@10" not in compare(usual, measured)
    monkeypatch.setattr(METRICS, "_registered", {})
    with pytest.raises(RunError, match=r"kept.json: own_metrics is 'misses', a metric that is not"):
        load_evaluation(tmp_path / "kept.json")
    with pytest.raises(ConfigError, match="own_metrics is 'misses': choose one of hr, recall, nd"):
        recommender.evaluate(own_metrics=["misses"])


def test_a_log_that_was_prepared_again_is_refused(tiny_events, tmp_path):
    log = EventLog.prepare(tiny_events, tmp_path / "log")
    run = tmp_path / "run"
    BlossomRec(**SMALL).fit(log, run, progress=False)
    metrics = evaluate_run(run).metrics
    EventLog.prepare(tiny_events, tmp_path / "log")
    assert evaluate_run(run).metrics == metrics
    EventLog.prepare(tiny_events.with_columns(-pl.col("timestamp")), tmp_path / "log")
    with pytest.raises(RunError, match=r"has changed since .* \(items of the events, times\)"):
        evaluate_run(run)
    # An open log is what it was.
    assert evaluate_run(run, log).metrics == metrics
    with pytest.warns(UserWarning, match=r"\(items of the events, times\): what is held out there"):
        assert evaluate_run(run, tmp_path / "log").metrics != metrics


def test_a_run_that_does_not_know_its_log_is_measured_with_a_warning(trained, tiny_log, tmp_path):
    trained[0].save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"log": None}))
    for log in (None, tiny_log):
        with pytest.warns(UserWarning, match="does not tell the identity of its log"):
            assert evaluate_run(tmp_path / "saved", log).metrics == evaluate_run(trained[1]).metrics


def test_a_log_that_is_gone_is_named(trained, tmp_path):
    recommender, _ = trained
    recommender.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    values = json.loads(path.read_text()) | {"data": str(tmp_path / "gone")}
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="is not there: give the log") as error:
        evaluate_run(tmp_path / "saved")
    assert str(tmp_path / "gone") in str(error.value)
    with pytest.raises(DataError, match="gone is not a prepared log"):
        evaluate_run(tmp_path / "saved", tmp_path / "gone")


def test_a_folder_that_is_no_run_is_named(tmp_path, trained):
    with pytest.raises(RunError, match=r"config\.json is missing") as error:
        evaluate_run(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_device_that_is_not_there_is_named(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is 'cuda': torch finds no CUDA device here"):
        evaluate_run(trained[1], device="cuda")


@pytest.mark.filterwarnings("ignore:personal-:UserWarning")
@pytest.mark.parametrize("name", BASELINES.names())
def test_baselines_learn_from_training_events_alone(tiny_log, name):
    split = make_split(tiny_log, EvaluationConfig())
    own = BASELINES.get(name).fit(tiny_log, split.train_end)
    for on in ("test", "valid"):
        measured = evaluate_baseline(name, tiny_log, on=on)
        expected = evaluate(own, tiny_log, getattr(split, on), RankingOptions(filter_seen=True))
        assert np.array_equal(measured.ranks, expected.ranks)
        assert measured.protocol.split == "leave-one-out"
        assert measured.protocol.filter_seen is True


@pytest.mark.parametrize("name", ["personal-frequency", "personal-recency"])
def test_own_items_want_a_log_with_repeats(tiny_log, repeat_log, name, recwarn):
    measured = evaluate_baseline(name, repeat_log)
    assert measured.protocol.filter_seen is False and not recwarn.list
    # The last item is ranked first unless another one was met as often.
    assert measured.metrics["hr@20"] > 0.5
    with pytest.warns(UserWarning, match=f"{name} recommends items of the history, which"):
        left_out = evaluate_baseline(name, tiny_log)
    popular = evaluate_baseline("popularity", tiny_log)
    assert np.array_equal(left_out.ranks, popular.ranks)
    assert not BASELINES.get(name).suits(tiny_log, filter_seen=True)
    assert BASELINES.get(name).suits(repeat_log, filter_seen=False)


def test_a_dense_model_is_not_fitted_unasked_on_a_large_catalogue(tiny_log):
    large = SimpleNamespace(num_items=100_000)
    unasked = {name for name in BASELINES if BASELINES.get(name).suits(large, filter_seen=False)}
    assert unasked == set(BASELINES) - {"ease"}
    assert BASELINES.get("ease").suits(tiny_log, filter_seen=True)


@pytest.mark.parametrize("on", ["tset", None, 3])
def test_other_events_than_those_held_out_are_named(tiny_log, trained, on):
    for measure in (
        lambda: evaluate_run(trained[1], on=on),
        lambda: evaluate_baseline("popularity", tiny_log, on=on),
    ):
        with pytest.raises(ConfigError, match=f"on is {on!r}: choose one of test, valid"):
            measure()


def test_transitions_know_the_ring(tiny_log):
    """Histories walk along a ring of items: the next one is what followed before."""
    ring, popular = (evaluate_baseline(name, tiny_log) for name in ("transitions", "popularity"))
    assert ring.metrics["ndcg@10"] > 0.9
    assert popular.metrics["ndcg@10"] < 0.5


def test_baselines_take_options(tiny_log, repeat_log):
    measured = evaluate_baseline("popularity", tiny_log, split="global-time", ranking="uni100")
    assert measured.protocol.split == "global-time"
    assert measured.protocol.ranking == "uni100"
    assert evaluate_baseline("popularity", repeat_log).protocol.filter_seen is False


def test_an_unknown_baseline_is_named(tiny_log):
    with pytest.raises(ConfigError) as error:
        evaluate_baseline("magic", tiny_log)
    assert str(error.value) == (
        "no baseline 'magic': choose one of popularity, recent-popularity, personal-frequency, "
        "personal-recency, transitions, item-knn, ease"
    )


def test_override_leaves_out_what_is_none():
    config = EvaluationConfig(ks=(3,), filter_seen="yes")
    assert override(config, {"ks": None, "ranking": None}) == config
    changed = override(config, {"ks": (7,), "ranking": "uni100", "seed": None})
    assert changed == EvaluationConfig(ks=(7,), filter_seen="yes", ranking="uni100")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ranking": "some"}, ["ranking is 'some'", "full, uni100"]),
        ({"filter_seen": True}, ["filter_seen is True", "auto, yes, no"]),
        ({"ks": (0,)}, ["ks is (0,)", "at least 1"]),
        ({"seed": -1}, ["seed is -1", "at least 0"]),
        ({"max_len": 5}, ["unknown option max_len", "ranking"]),
        ({"max_len": None}, ["unknown option max_len", "ranking"]),
    ],
)
def test_wrong_options_are_named(tiny_log, trained, options, words):
    for measure in (
        lambda: override(EvaluationConfig(), options),
        lambda: evaluate_run(trained[1], **options),
        lambda: evaluate_baseline("popularity", tiny_log, **options),
    ):
        with pytest.raises(ConfigError) as error:
            measure()
        assert all(word in str(error.value) for word in words)


def test_measuring_needs_no_polars():
    program = "import sys; sys.modules['polars'] = None; import blossomrec.measure"
    subprocess.run([sys.executable, "-c", program], check=True)
