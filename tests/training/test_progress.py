import errno
import io
import threading

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


def test_within_a_long_epoch_a_line_tells_where_it_stands(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("blossomrec.training.progress.time.monotonic", lambda: now[0])
    lines = Lines(Console(file=io.StringIO()), 5)
    lines.start_epoch(4, 1_200, 1_180)
    assert lines.status() == "epoch 4/5  step 1,180/1,200"
    now[0] = 2.0
    lines.advance(10, 4_000, 5.4321)
    # 0.2 seconds a step; 10 steps of this epoch and 1,200 of the last one are left.
    assert lines.status() == ("epoch 4/5  step 1,190/1,200  loss 5.4321  2k events/s  4:02 left")
    lines.advance(10, 4_000, 5.4321)
    assert lines.status() == "epoch 4/5  step 1,200/1,200  validation"


class Watched(io.StringIO):
    """Text that tells when something is written."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def write(self, text):
        super().write(text)
        self.written.set()


def test_lines_come_while_nothing_moves():
    out = Watched()
    with Lines(Console(file=out), 9, every=0.01) as lines:
        lines.start_epoch(3, 100, 7)
        assert out.written.wait(60)
    assert set(out.getvalue().splitlines()) <= {"epoch 1/9  step 0/0", "epoch 3/9  step 7/100"}


def test_a_reader_that_is_gone_does_not_stop_the_training(monkeypatch):
    for error in (BrokenPipeError(), OSError(errno.EIO, "the terminal is gone")):
        out = io.StringIO()
        monkeypatch.setattr(out, "write", raising(error))
        monkeypatch.setattr("sys.stderr", out)
        show(open_display(True, 9))
        live = Live(open_display(True, 9).console, 9)
        show(live)


def raising(error):
    def write(text):
        raise error

    return write


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
