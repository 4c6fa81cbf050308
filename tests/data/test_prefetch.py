"""The background thread: order, errors, and an end."""

from __future__ import annotations

import threading
import time

import pytest

from blossomrec.data.batching.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_same_elements_in_order():
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []
    assert not threads()


def test_exceptions_come_out_where_they_happened():
    def source():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    elements = prefetch(source())
    assert [next(elements), next(elements)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(elements)
    assert not threads()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("taken", [1, 3])
def test_closing_ends_the_thread_of_an_endless_source(taken, depth):
    def source():
        while True:
            yield 0

    elements = prefetch(source(), depth)
    for _ in range(taken):
        next(elements)
    assert len(threads()) == 1
    elements.close()
    assert not threads()


def test_leaving_a_loop_ends_the_thread():
    for number in prefetch(iter(range(1000))):
        if number == 5:
            break
    assert not threads()


def test_works_ahead_but_not_far():
    made = []

    def source():
        for number in range(50):
            made.append(number)
            yield number

    elements = prefetch(source(), depth=2)
    next(elements)
    deadline = time.monotonic() + 60
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    # One taken, two in the queue, one waiting for room.
    assert len(made) == 4
    elements.close()
