import json

import pytest

from blossomrec.training.watch import RunLog


def lines(run):
    return [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()]


def write(run, size, epochs):
    log = RunLog(run)
    log.start(size, step=0)
    sizes = []
    for epoch in epochs:
        log.write({"epoch": epoch, "step": epoch, "loss": 1.0})
        sizes.append(log.size)
    log.close()
    return sizes


def test_lines_are_there_at_once(tmp_path):
    log = RunLog(tmp_path / "run")
    log.start(0, step=0)
    log.write({"epoch": 1, "step": 5})
    assert lines(tmp_path / "run") == [1]
    log.close()


def test_lines_that_the_checkpoint_does_not_know_are_cut(tmp_path):
    sizes = write(tmp_path, 0, [1, 2, 3])
    write(tmp_path, sizes[1], [3, 4])
    assert lines(tmp_path) == [1, 2, 3, 4]


def test_a_fresh_start_empties_the_log(tmp_path):
    write(tmp_path, 0, [1, 2])
    write(tmp_path, 0, [1])
    assert lines(tmp_path) == [1]


def test_a_log_that_lost_lines_is_gone_on_with_and_a_warning(tmp_path):
    sizes = write(tmp_path, 0, [1, 2])
    (tmp_path / "log.jsonl").write_text("")
    with pytest.warns(UserWarning, match=r"log\.jsonl was cut short"):
        write(tmp_path, sizes[-1], [3])
    assert lines(tmp_path) == [3]
