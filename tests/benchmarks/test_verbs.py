"""The command line of the benchmarks, which the package does not know."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.__main__ import VERBS
from blossomrec import BlossomRec, EventLog
from small_options import SMALL

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(benchmarks, verb):
    shown = benchmarks(verb, "--help")
    assert f"Usage: python -m benchmarks {verb}" in shown


def test_the_docs_name_verbs_and_files_that_there_are():
    text = "\n".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")))
    assert set(re.findall(r"python -m benchmarks ([a-z-]+)", text)) | {"tables"} == set(VERBS)
    for path in re.findall(r"`(benchmarks/[^`\s]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_package_imports_no_benchmark():
    for path in (ROOT / "src").rglob("*.py"):
        assert "benchmarks" not in path.read_text(), path


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["frobnicate"], ['"frobnicate"', "speed, data, accuracy"]),
        (["tables", "--frob"], ["--frob"]),
        (["selector", "nothing"], ['"nothing"', "drift"]),
        (["selector", "parity", "recall"], ["parity and cost want the device for themselves"]),
        (["selector", "logs"], ["--logs, the folder of prepared logs"]),
        (["selector", "recall", "--candidates", "best"], ["'best'", "full, short, mlp"]),
        (["selector", "recall", "--training", "{"], ["--training is '{'", "no JSON"]),
        (["selector", "recall", "--model", "3"], ["--model is '3'", "options by name"]),
        (["explain", "none"], ["none/config.json is missing"]),
        (["serving", "none"], ["none/config.json is missing"]),
    ],
)
def test_what_is_wrong_is_said_in_a_line(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(*arguments, words=words)
    assert list(tmp_path.iterdir()) == []


def test_explanations_are_measured(benchmarks, tiny_log, tmp_path, monkeypatch, one_thread):
    from benchmarks.serving import removed_events

    monkeypatch.setattr(removed_events, "LENGTHS", (10,))
    monkeypatch.setattr(removed_events, "SHORTEST", 20)
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    BlossomRec(**SMALL).fit(tiny_log, run, progress=False)
    shown = benchmarks("explain", run, "--users", 3, "--out", out)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line["scenario"], line["users"]) == ("explain", 3)
    assert set(line["change"]) == {"explained", "attended", "last", "random", "random_recent"}
    assert f"{line['ratio']} times random" in shown


def test_features_are_measured(benchmarks, refused, tiny_events, tmp_path, one_thread):
    """Some users' last event is of an item that nobody has met before."""
    last = tiny_events.group_by("user_id").agg(pl.col("timestamp").max()).sort("user_id").head(20)
    new = last.with_columns(
        item_id=990_000 + pl.int_range(20) % 4, timestamp=pl.col("timestamp") + 1
    )
    events = pl.concat([tiny_events, new.select(tiny_events.columns)])
    items = (
        events.select("item_id")
        .unique()
        .sort("item_id")
        .with_columns(genre=pl.format("genre {}", pl.int_range(pl.len()) % 3))
    )
    EventLog.prepare(events, tmp_path / "logs" / "films", items=items)
    out, runs = tmp_path / "out.jsonl", tmp_path / "runs"
    given = ["--datasets", "films", "--out", out, "--runs", runs, "--epochs", 1, "--max-len", 8]
    benchmarks(
        *("features", tmp_path / "logs", *given, "--attentions", "blossom"),
        *("--forms", "ids", "gap-request-content"),
    )
    ids, all_inputs = map(json.loads, out.read_text().splitlines())
    assert [ids[name] for name in ("time", "request_time", "content")] == ["none", False, False]
    seen = [all_inputs[name] for name in ("time", "request_time", "content")]
    assert seen == ["gap", True, True]
    cold = all_inputs["cold_metrics"]
    assert cold["targets"] == ids["cold_metrics"]["targets"] >= 10
    # There are four of them: each is among the first ten of its like.
    assert cold["recall@10 among cold items"] == cold["recall@10 by popularity of categories"] == 1
    assert 0 <= cold["recall@10"] <= 1
    assert (ids["kinds"], ids["targets"], ids["kind_metrics"]) == (False, "", {})
    refused("features", tmp_path, "--datasets", "x", "--forms", "all", words=["'all' is not known"])
    given = ("--datasets", "x", "--wanted", "buy")
    refused("features", tmp_path, *given, words=["wanted is 'buy' and targets ''"])


def test_wanted_kinds_are_measured(benchmarks, kind_log, tmp_path, one_thread):
    """Each line has the metrics of the wanted kind; those of the last seed the paired test."""
    out, targets = tmp_path / "out.jsonl", "buy=1,click=0.1"
    benchmarks(
        *("features", kind_log.folder.parent, "--datasets", kind_log.folder.name),
        *("--wanted", "buy", "--targets", targets, "--attentions", "blossom"),
        *("--forms", "ids", "any-kind", "kinds-weighted", "--seeds", 3, 4),
        *("--epochs", 1, "--max-len", 8, "--hidden-size", 16),
        *("--out", out, "--runs", tmp_path / "runs"),
    )
    lines = list(map(json.loads, out.read_text().splitlines()))
    told = [(line["kinds"], line["targets"], line["validated_on_all"]) for line in lines]
    assert told == 2 * [(False, "", False), (False, "", True), ("seen, asked", targets, False)]
    assert [line["seed"] for line in lines] == [3, 3, 3, 4, 4, 4]
    assert {line["protocol"] for line in lines} == {"leave-one-out, targets: buy"}
    for line in lines:
        assert list(line["kind_metrics"]) == ["buy"]
        assert line["kind_metrics"]["buy"]["ndcg@10"] == line["metrics"]["ndcg@10"]
    assert ["paired" in line for line in lines] == [False] * 4 + [True] * 2
    paired = lines[-1]["paired"]
    means = [np.mean([lines[i]["metrics"]["ndcg@10"] for i in each]) for each in ((2, 5), (0, 3))]
    assert paired["difference"] == pytest.approx(means[0] - means[1], abs=2e-6)
    assert (paired["against"], paired["seeds"]) == ("ids", [3, 4])
    assert paired["low"] <= paired["difference"] <= paired["high"]
    assert 0 < paired["p_value"] <= 1


def test_approximate_ranking_is_measured(benchmarks, tmp_path, one_thread):
    pytest.importorskip("faiss")
    out = tmp_path / "out.jsonl"
    benchmarks("approximate", "--items", 5_000, "--out", out)
    lines = list(map(json.loads, out.read_text().splitlines()))
    assert [line["probes"] for line in lines] == [0, 4, 16, 64, 128]
    assert lines[0]["recall"] == 1.0


def test_the_cost_of_rules_is_measured(benchmarks, tmp_path, one_thread):
    out = tmp_path / "out.jsonl"
    flags = ["--items", 400, "--users", 5, "--requests", 2, "--out", out]
    benchmarks("rules", *flags)
    lines = list(map(json.loads, out.read_text().splitlines()))
    names = list(dict.fromkeys(line["rules"] for line in lines))
    assert {"none", "filter that keeps half", "max_per"} <= set(names)
    assert [line["where"] for line in lines] == ["engine"] * len(names) + ["library"] * len(names)
    assert all(0 < line["p50_ms"] <= line["p95_ms"] for line in lines)
