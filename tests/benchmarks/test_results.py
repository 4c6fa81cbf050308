import json
import multiprocessing
import platform

import pytest

import blossomrec
from benchmarks.results import append_result, commit, result_line
from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError
from blossomrec.evaluation import RankingOptions, evaluate
from blossomrec.models.baselines import Popularity


@pytest.fixture(scope="module")
def line(tiny_log):
    split = make_split(tiny_log, EvaluationConfig())
    model = Popularity.fit(tiny_log, split.train_end)
    evaluation = evaluate(
        model, tiny_log, split.test, RankingOptions(filter_seen=True, split="leave-one-out")
    )
    return result_line(
        evaluation, dataset="tiny", model="sasrec", attention="full", seed=4, max_len=50, epochs=2
    )


def test_a_line_has_exactly_the_fields(line):
    fields = "dataset model attention seed max_len protocol ranking filter_seen metrics by_length "
    fields += "seconds_per_epoch epochs peak_mib hardware versions commit"
    assert " ".join(line) == fields
    assert line["protocol"] == "leave-one-out"
    assert line["ranking"] == "full"
    assert line["filter_seen"] is True
    assert 0 <= line["metrics"]["ndcg@10"] <= 1
    assert line["versions"]["python"] == platform.python_version()
    assert line["versions"]["blossomrec"] == blossomrec.__version__
    assert "cores" in line["hardware"]
    assert line["commit"] is None or len(line["commit"].rstrip("+")) == 40


def test_no_commit_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_lines_are_appended_whole(line, tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    append_result(path, line)
    append_result(path, line | {"seed": 5})
    assert [json.loads(text)["seed"] for text in path.read_text().splitlines()] == [4, 5]


def test_half_a_line_does_not_spoil_the_next(line, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"dataset": "ti')
    append_result(path, line)
    broken, whole = path.read_text().splitlines()
    assert broken == '{"dataset": "ti'
    assert json.loads(whole) == line


def _append_many(path, line):
    for _ in range(50):
        append_result(path, line)


def test_two_processes_do_not_mix_their_lines(line, tmp_path):
    path, context = tmp_path / "results.jsonl", multiprocessing.get_context("fork")
    long = line | {"dataset": "x" * 20_000}
    writers = [context.Process(target=_append_many, args=(path, long)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert lines == [long] * 100


def test_what_does_not_belong_in_a_line_is_named(line, tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ConfigError, match="cannot be written"):
        append_result(path, line | {"model": {1, 2}})
    with pytest.raises(ConfigError, match="cannot be written"):
        append_result(path, line | {"peak_mib": float("nan")})
    assert not path.exists()
