import io

import pytest
from rich.console import Console

from blossomrec.training.progress import (
    Lines,
    Live,
    Silence,
    compact,
    duration,
    epoch_line,
    open_display,
)

RECORD = {
    "epoch": 2,
    "loss": 6.54321,
    "events_per_second": 123_456.0,
    "seconds": 8.04,
    "validation": {"ndcg@10": 0.12345},
    "best": True,
}


def test_a_line_an_epoch():
    line = epoch_line(RECORD, 9)
    assert line == "epoch 2/9  loss 6.5432  123k events/s  8.0 s  ndcg@10 0.1235  best so far"
    assert epoch_line({**RECORD, "best": False}, 9).endswith("not better")
    assert epoch_line({**RECORD, "validation": None}, 9).endswith("8.0 s")


def show(display):
    with display:
        display.note("resuming from [bold]x[/bold]")
        display.start_epoch(2, 10, 4)
        display.advance(3, 600, 5.4321)
        display.finish_epoch(RECORD)
        display.start_epoch(3, 10, 0)
        display.advance(1, 200, 4.4444)


def test_lines_hold_no_bar_and_no_control_codes():
    out = io.StringIO()
    show(Lines(Console(file=out, width=40), 9))
    assert out.getvalue().splitlines() == ["resuming from [bold]x[/bold]", epoch_line(RECORD, 9)]


def test_a_terminal_shows_loss_speed_time_left_and_validation():
    out = io.StringIO()
    show(Live(Console(file=out, width=200, force_terminal=True), 9))
    shown = out.getvalue()
    for part in ("3/9", "1/10", "loss 4.4444", "events/s", "left", "ndcg@10 0.1235"):
        assert part in shown
    assert epoch_line(RECORD, 9) in shown


def test_time_left_counts_all_epochs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("blossomrec.training.progress.time.monotonic", lambda: now[0])
    live = Live(Console(file=io.StringIO()), 5)
    live.start_epoch(4, 10, 4)
    now[0] = 6.0
    live.advance(3, 1, 1.0)
    # 2 seconds a step; 3 steps of this epoch and 10 of the last one are left.
    assert live._left() == pytest.approx(26.0)


def test_silence_and_files(capsys):
    show(open_display(False, 3))
    assert capsys.readouterr().err == ""
    assert type(open_display(False, 3)) is Silence
    assert type(open_display(True, 3)) is Lines


@pytest.mark.parametrize(
    "number, text",
    [(12.34, "12.3"), (950, "950"), (12_345, "12.3k"), (4.56e6, "4.56M"), (2e9, "2G")],
)
def test_compact(number, text):
    assert compact(number) == text


@pytest.mark.parametrize("seconds, text", [(-1, "0:00"), (61.4, "1:01"), (3661, "1:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
