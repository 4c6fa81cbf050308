"""The verb ``rolling``, its table and its picture."""

import io
import json

import pytest
from days import PERIODS

from blossomrec.cli import main
from blossomrec.rolling import outcome
from blossomrec.rolling.measured import Rolled
from blossomrec.rolling.outcome import draw, draw_if_possible, rolled_table
from blossomrec.terminal import console, show
from command_line import refuse, succeed
from small_options import small_flags

pytestmark = pytest.mark.usefixtures("one_thread")


def shown(rolled):
    file = io.StringIO()
    show(console(file), rolled_table(rolled))
    return unwrapped(file.getvalue())


def unwrapped(text):
    """What is shown without the breaks by which it fits the terminal."""
    return " ".join(text.split())


def flags(**others):
    options = [*small_flags(epochs=2), "--model.attention", "full", "--update.epochs", "2"]
    for name, value in (PERIODS | others).items():
        options += [f"--{name}", str(value)]
    return options


def test_the_verb_measures_shows_and_draws(capsys, days, rolled, tmp_path):
    """The same numbers as those of the call from Python, whatever it is told to say."""
    pytest.importorskip("matplotlib")
    text = succeed(capsys, "rolling", days.folder, tmp_path / "r", "--quiet", *flags())
    assert capsys.readouterr().err == ""
    lines = list(map(json.loads, (tmp_path / "r/periods.jsonl").read_text().splitlines()))
    expected = [line["metrics"] for line in rolled[1].lines]
    assert [line["metrics"] for line in lines] == expected
    assert (tmp_path / "r/rolling.svg").read_text().startswith("<?xml")
    for word in ("3 periods from 2023-11-22", "stale", "update", "retrain", "all events of a"):
        assert word in unwrapped(text)


def test_it_says_how_it_goes(capsys, days, tmp_path):
    given = flags(strategies="stale", targets="first", periods=1)
    assert main(["rolling", str(days.folder), str(tmp_path / "r"), *given]) == 0
    text = capsys.readouterr()
    assert "the first event of each user in a period" in unwrapped(text.out)
    assert text.err.startswith("period 1 (2023-11-24T00:00:00Z), stale: ndcg@10 0.")
    assert len(text.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("others", "words"),
    [({"period": "1"}, ["period is '1'", "such as 1d"]), ({"strategies": "best"}, ["'best'"])],
)
def test_what_is_wrong_is_said_in_a_line(capsys, days, tmp_path, others, words):
    refuse(capsys, "rolling", days.folder, tmp_path / "r", *flags(**others), words=words)


def test_an_order_is_refused(capsys, ordered_log, tmp_path):
    words = ["an order, no times"]
    refuse(capsys, "rolling", ordered_log.folder, tmp_path / "r", *flags(), words=words)


def test_the_table_has_totals_shares_and_periods(rolled):
    found = rolled[1]
    text, totals = shown(found), found.totals()
    for strategy, each in totals.items():
        assert f"{each.values['metrics']['ndcg@10']:.4f}" in text
        value, seconds = found.shares(strategy)
        assert f"{value:.1%}" in text and f"{seconds:.1%}" in text
    assert found.shares("retrain") == (1.0, 1.0)
    for line in found.lines:
        assert line["start"] in text
    unknown = sum(line["unknown_to_all"] for line in found.of("stale"))
    assert f"; {unknown} targets are of items without one" in text


def test_a_table_of_what_is_not_done_says_so(rolled):
    some = Rolled(rolled[1].lines[:4], ["period 2, update", "period 2, retrain"])
    assert "Not done: period 2, update; period 2, retrain" in shown(some)
    assert "nothing is measured yet" in shown(Rolled([]))


def test_the_picture_is_the_same_for_the_same_numbers(rolled, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw(rolled[1], tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert all(f">{word}<" in text for word in ("NDCG@10", "stale", "update", "retrain"))


def test_nothing_is_drawn_of_nothing_or_with_nothing(rolled, tmp_path, monkeypatch):
    assert draw_if_possible(Rolled([]), tmp_path) is None

    def missing(*_):
        raise outcome.MissingExtraError("matplotlib", "plots")

    monkeypatch.setattr(outcome, "draw", missing)
    assert draw_if_possible(rolled[1], tmp_path) is None
