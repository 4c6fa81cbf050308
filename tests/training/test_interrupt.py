import os
import signal
import threading

import pytest

from blossomrec.training.watch import Interrupts, TrainingInterrupted


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_works_as_ever(signum):
    hits = []
    before = signal.signal(signum, lambda *_: hits.append(signum))
    try:
        with pytest.raises(TrainingInterrupted), Interrupts() as interrupts:
            os.kill(os.getpid(), signum)
            assert interrupts.received == signum
            assert hits == []
            os.kill(os.getpid(), signum)
            assert hits == [signum]
        os.kill(os.getpid(), signum)
        assert hits == [signum, signum]
    finally:
        signal.signal(signum, before)


def test_a_signal_that_is_ignored_stays_ignored():
    # As SIGHUP is for what was started with nohup.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_the_last_look_is_not_lost():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match="SIGTERM") as caught, Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    # What went wrong meanwhile is told instead.
    with pytest.raises(RuntimeError), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_come_back_after_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Interrupts():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_train_without_handlers():
    before, found = signal.getsignal(signal.SIGINT), []

    def enter():
        with Interrupts() as interrupts:
            found.append((interrupts.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_an_interruption_passes_as_a_keyboard_interrupt():
    error = TrainingInterrupted(signal.SIGTERM)
    assert isinstance(error, KeyboardInterrupt)
    assert error.signum == 15
    assert "SIGTERM" in str(error)
