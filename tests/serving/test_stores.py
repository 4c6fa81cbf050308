"""What every store of events does, wherever it keeps them."""

import contextlib
import random
import subprocess
import sys
import threading

import polars as pl
import pytest

from blossomrec.serving.bulk import Imported, import_events
from blossomrec.serving.committer import Committer
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.store import Appended, Conflict, Event, Member, carried_out

NOW = 1_000


@pytest.fixture
def store(place):
    store = place.open()
    yield store
    store.close()


def append(store, user, *events):
    listed = [Event(*event) for event in events]
    return carried_out(store, lambda: store.append(user, listed, NOW))


def test_events_come_back_in_order_and_in_their_types(store, place):
    assert append(store, "anna", ("milk", 1), (7, 1.5, "k")) == Appended(2, 0, 2)
    assert append(store, "anna", ("7", 2)) == Appended(1, 0, 3)
    assert append(store, "ben", (1, 0)) == Appended(1, 0, 1)
    store.close()
    again = place.open()
    tail = again.tail("anna", 0, 0, 10)
    assert tail.items == ["milk", 7, "7"]
    assert (tail.start, tail.length) == (0, 3)
    profile = again.profile("anna", 2)
    assert profile.length == 3
    assert profile.last == [Event(7, 1.5, "k"), Event("7", 2, None)]
    assert again.profile("anna", 0).last == []
    assert again.tail("carl", 0, 0, 10) is None and again.profile("carl", 5) is None
    again.close()


def test_a_tail_goes_on_where_it_ended(store):
    append(store, "anna", *((item, item) for item in range(10)))
    number = store.tail("anna", 0, 0, 1).number
    assert store.tail("anna", number, 4, 3).items == [4, 5, 6]
    assert store.tail("anna", number, 8, 3).items == [8, 9]
    assert store.tail("anna", number, 10, 3).items == []
    # Of another user of that name, or of more events than there are, nothing is known.
    for other, start in ((number + 1, 4), (number, 11)):
        tail = store.tail("anna", other, start, 2)
        assert (tail.start, tail.items) == (0, [0, 1])


def test_any_part_of_any_history_is_found(store):
    draw, histories = random.Random(3), {}
    for turn in range(120):
        user = f"u{draw.randrange(7)}"
        history = histories.setdefault(user, [])
        begin = 20 * turn
        words = ["x" * draw.choice([1, 9, 300]), "\n", '"],["', "\\", "Ünï\u200c\U0001f600"]
        events = [
            Event(draw.choice([turn, draw.choice(words)]), begin + place / 8, f"{turn}\n{place}")
            for place in range(draw.choice([1, 1, 2, 8, 90]))
        ]
        append(store, user, *events)
        history += events
    for user, history in histories.items():
        number = store.tail(user, 0, 0, 1).number
        for _ in range(20):
            start, most = draw.randrange(len(history)), draw.choice([1, 3, 50, 4_000])
            tail = store.tail(user, number, start, most)
            assert tail.items == [event.item for event in history[start : start + most]]
            assert (tail.start, tail.length) == (start, len(history))
            assert store.profile(user, most).last == history[-most:]
        for event in draw.sample(history, 5):
            assert append(store, user, event).repeated == 1
    events = sum(map(len, histories.values()))
    assert store.counts() == (len(histories), events)


def test_an_event_with_a_known_key_is_stored_once(store):
    assert append(store, "anna", (1, 5, "a"), (1, 5, "a"), (2, 6, "b")) == Appended(2, 1, 2)
    assert append(store, "anna", (1, 5, "a"), (2, None, "b"), (3, 7, "c")) == Appended(1, 2, 3)
    # A key belongs to a user.
    assert append(store, "ben", (1, 5, "a")) == Appended(1, 0, 1)
    assert append(store, "anna", (3, 7), (3, 7)) == Appended(2, 0, 5)


@pytest.mark.parametrize("event", [(9, 5, "a"), (1, 6, "a"), ("1", 5, "a")])
def test_a_key_of_another_event_is_refused(store, event):
    append(store, "anna", (1, 5, "a"))
    with pytest.raises(Refusal, match=r"events\[1\].key is 'a'") as refused:
        append(store, "anna", (4, 8, "b"), event)
    assert (refused.value.status, refused.value.field) == (409, "events[1].key")
    assert store.profile("anna", 9).length == 1
    with pytest.raises(Refusal, match=r"events\[1\].key"):
        append(store, "new", (1, 5, "a"), (2, 5, "a"))
    assert store.profile("new", 9) is None


def test_events_are_in_order_of_time(store):
    append(store, "anna", (1, 5), (2, 5), (3, 7.5))
    for events, index, last in (([(4, 7)], 0, 7.5), ([(4, 9), (5, 8)], 1, 9)):
        with pytest.raises(Refusal, match=f"the event before it was at {last}") as refused:
            append(store, "anna", *events)
        assert refused.value.status == 409
        assert refused.value.field == f"events[{index}].timestamp"
    assert store.profile("anna", 9).length == 3
    append(store, "anna", (4, 7.5))


def test_an_event_without_a_time_is_now_and_never_before_the_last(store):
    append(store, "anna", (1, None), (2, None), (3, 5_000), (4, None))
    assert [event.timestamp for event in store.profile("anna", 9).last] == [NOW, NOW, 5_000, 5_000]


TIMES = {"seconds": 10**0, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@pytest.mark.parametrize("unit", TIMES)
def test_the_first_time_that_looks_like_one_shows_the_unit_of_all(store, place, unit):
    now, size = 1_764_000_000.5, TIMES[unit]
    append(store, "anna", (1, 5), (2, None), (3, 7_700))
    assert store.unit() is None
    append(store, "ben", (1, 1_600_000_000 * size))
    with store.transaction():
        store.append("ben", [Event(2)], now)
        store.append("carl", [Event(3)], now)
    for mine in (store, other := place.open()):
        assert mine.unit() == unit
        times = [event.timestamp for event in mine.profile("ben", 1).last]
        assert (
            times
            == [int(now * size)]
            == [event.timestamp for event in mine.profile("carl", 1).last]
        )
    other.close()


def test_a_time_in_the_future_is_refused_and_locks_nobody(store):
    now, day = 1_764_000_000, 86_400
    for first in (now + day + 1, 4_000_000_000, (now + 2 * day) * 1000, 9 * 10**18):
        with pytest.raises(Refusal, match=f"timestamp is {first}: it is .* now, and events"):
            store_append(store, "anna", [Event(1, 1), Event(1, first)], now, day)
    assert store.profile("anna", 1) is None and store.unit() is None
    store_append(store, "anna", [Event(1, now - 9), Event(2, now + day)], now, day)
    with pytest.raises(
        Refusal, match=r"are in seconds here, and this one looks like milli"
    ) as told:
        store_append(store, "ben", [Event(1, now), Event(1, now * 1000)], now, day)
    assert (told.value.status, told.value.code) == (422, "in_the_future")
    assert (told.value.field, told.value.value) == ("events[1].timestamp", now * 1000)
    with pytest.raises(Refusal, match="at most 86400 seconds ahead"):
        store_append(store, "ben", [Event(1, 5 * 10**10)], now, day)
    # Without a bound anything goes, as in an import.
    store_append(store, "ben", [Event(1, now * 1000)], now, None)
    with pytest.raises(Refusal, match="looks like microseconds") as told:
        store_append(store, "dora", [Event(1, now * 10**6)], now, 0)


def test_who_came_in_what_was_undone_is_not_there(store):
    """Nor is whoever gets the place meanwhile taken for them."""
    for undo in range(2):
        with pytest.raises(RuntimeError), store.transaction():
            for _ in range(2):
                store.append("anna", [Event(1, 1)], NOW)
            raise RuntimeError
        if undo:
            append(store, "ben", (2, 2))
        assert store.profile("anna", 1) is None and store.numbers(["anna"]) == [0]
    append(store, "anna", (3, 3))
    assert store.tail("anna", 0, 0, 9).items == [3]


def test_a_unit_of_an_append_that_fails_is_no_unit(store):
    with pytest.raises(RuntimeError), store.transaction():
        store.append("anna", [Event(1, 1_600_000_000_000)], NOW)
        raise RuntimeError
    with store.transaction():
        with pytest.raises(RuntimeError), store.attempt():
            store.append("anna", [Event(1, 1_600_000_000_000)], NOW)
            raise RuntimeError
        store.append("anna", [Event(1, 1_600_000_000)], NOW)
    assert store.unit() == "seconds"


def store_append(store, user, events, now, ahead):
    return carried_out(store, lambda: store.append(user, events, now, ahead))


def test_a_store_can_be_looked_at(store):
    before = store.notices()
    for _ in range(2):
        store.check()
    assert store.notices() == before
    append(store, "anna", (1, 1))
    assert store.counts() == (1, 1)


def test_a_transaction_is_all_or_nothing_and_an_attempt_undone_alone(store):
    with pytest.raises(RuntimeError), store.transaction():
        store.append("anna", [Event(1, 1)], NOW)
        raise RuntimeError
    assert store.profile("anna", 1) is None
    with store.transaction():
        store.append("anna", [Event(1, 1)], NOW)
        with pytest.raises(RuntimeError), store.attempt():
            store.append("anna", [Event(2, 2)], NOW)
            store.append("ben", [Event(2, 2)], NOW)
            raise RuntimeError
        with store.attempt():
            store.append("carl", [Event(3, 3)], NOW)
    assert store.tail("anna", 0, 0, 9).items == [1]
    assert store.profile("ben", 1) is None and store.profile("carl", 1).length == 1


def test_what_is_deleted_is_in_no_file(store, place):
    for number in range(50):
        events = [(f"item-{number}-{place}", place, f"key-{number}") for place in range(1)]
        events += [(f"item-{number}-{place}", place) for place in range(1, 40)]
        append(store, f"user-{number}", *events)
    assert b"user-17" in place.content()
    numbers = store.numbers([f"user-{number}" for number in range(50)])
    assert len(set(numbers)) == 50 and min(numbers) > 0
    with store.transaction():
        assert store.delete("user-17") == 40
        assert store.delete("user-17") == 0
    store.erase()
    content = place.content()
    for word in (b"user-17", b"item-17-", b"key-17"):
        assert word not in content
    for word in (b"user-16", b"item-18-3", b"key-18"):
        assert word in content
    # Who comes back is somebody else.
    append(store, "user-17", ("x", 1))
    assert store.tail("user-17", 0, 0, 1).number not in {0, *numbers}
    assert store.profile("user-17", 5).length == 1


def test_items_are_switched_off_and_on(store):
    with store.transaction():
        assert store.switch([3, "x", 3], []) == [3, "x"]
        assert store.switch([3], ["x", "y"]) == [3]
        assert store.switch([], []) == [3]


def test_two_objects_see_each_others_changes(store, place):
    other = place.open()

    def write(mine, name):
        for place in range(30):
            append(mine, name, (place, place))

    threads = [threading.Thread(target=write, args=pair) for pair in ((store, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in (store, other):
        assert mine.profile("a", 0).length == mine.profile("b", 0).length == 30
    other.close()


def test_users_are_listed_by_their_last_event(store, place):
    with store.transaction():
        for number in range(7):
            store.append(f"u{number}", [Event(number, 10 - number)] * (number + 1), NOW)
    append(store, "u0", (1, 99))
    append(store, "u4", (1, 98.5, "key"))
    # Nor is it the order of arrival that counts, nor a repeated event.
    append(store, "u2", (1, 97))
    append(store, "u4", (1, 98.5, "key"))
    with store.transaction():
        store.delete("u6")
    for mine in (store, other := place.open()):
        listed = mine.members(3)
        assert [one.user for one in listed] == ["u0", "u4", "u2"]
        assert [one[1:3] for one in listed] == [(2, 99), (6, 98.5), (4, 97)]
        more = mine.members(100, before=listed[-1].cursor)
        assert [one[:3] for one in more] == [("u1", 2, 9), ("u3", 4, 7), ("u5", 6, 5)]
        assert mine.members(3, before=more[-1].cursor) == []
        assert isinstance(more[0], Member)
    assert store.numbers(["u0", "u6", "nobody"])[1:] == [0, 0]
    assert store.numbers(["u1"]) == [store.tail("u1", 0, 0, 1).number]
    other.close()


def test_equal_times_are_listed_once_each(store):
    """Also where those at whom a list goes on have had events, or are gone, in between."""
    with store.transaction():
        for number in range(9):
            store.append(f"u{number}", [Event(1, 5)], NOW)
        store.append("early", [Event(1, 4)], NOW)
    first = store.members(3)
    assert [one.last for one in first] == [5, 5, 5]
    append(store, first[2].user, (1, 6))
    second = store.members(3, before=first[-1].cursor)
    with store.transaction():
        store.delete(second[-1].user)
    third = store.members(9, before=second[-1].cursor)
    users = [one.user for one in (*first, *second, *third)]
    assert len(users) == 10 and users[-1] == "early"
    assert {*users} == {*(f"u{number}" for number in range(9)), "early"}


@pytest.mark.parametrize("cursor", ["", "5", "x:1", "5:", "NaN:1", '"5":1', "1e400:1", "true:1"])
def test_what_is_no_cursor_is_refused(store, cursor):
    with pytest.raises(Refusal, match=r"before is .*: it is not the `next` of a list of users"):
        store.members(3, before=cursor)


def test_what_others_have_to_know_of_is_counted(store, place):
    other, before = place.open(), store.notices()
    append(store, "anna", (1, 1))
    assert other.notices() == before
    with store.transaction():
        store.switch([1], [])
        store.delete("nobody")
    assert other.notices() == (before.switches + 1, before.deletions)
    assert other.off() == [1]
    with store.transaction():
        store.delete("anna")
    assert other.notices() == (before.switches + 1, before.deletions + 1)
    other.close()


def test_who_is_deleted_and_back_in_one_transaction_begins_anew(store):
    append(store, "anna", (1, 5, "a"), (2, 6))
    before = store.numbers(["anna"])
    with store.transaction():
        assert store.delete("anna") == 2
        assert store.append("anna", [Event(3, 1, "a")], NOW) == Appended(1, 0, 1)
        assert store.append("anna", [Event(3, 1, "a"), Event(4, 2)], NOW) == Appended(1, 1, 2)
    assert store.tail("anna", 0, 0, 9).items == [3, 4]
    assert store.numbers(["anna"]) != before
    assert [one.user for one in store.members(9)] == ["anna"]


def test_many_events_at_a_time(store):
    """More than one command of any store takes."""
    events = [Event(number, number, f"key {number}") for number in range(5_001)]
    assert carried_out(store, lambda: store.append("anna", events, NOW)).stored == 5_001
    assert carried_out(store, lambda: store.append("anna", events, NOW)).repeated == 5_001
    assert store.tail("anna", 0, 4_998, 9).items == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    number = store.numbers(["anna"])[0]
    assert store.tail("anna", number, 4_998, 9).items == [4_998, 4_999, 5_000]


def test_work_is_done_again_where_others_come_in_between(store):
    tries = []

    def work():
        tries.append(1)
        store.append("anna", [Event(1, 1)], NOW)
        if len(tries) < 4:
            raise Conflict
        return len(tries)

    assert carried_out(store, work) == 4
    assert store.profile("anna", 9).length == 1

    def never():
        raise Conflict

    with pytest.raises(Refusal, match="in between") as refused:
        carried_out(store, never)
    assert (refused.value.status, refused.value.code) == (503, "store_busy")


def test_two_objects_that_change_the_same_user_lose_nothing(place):
    stores = [place.open() for _ in range(2)]

    def write(mine, name):
        for number in range(25):
            event = Event(number, None, f"{name} {number}")
            carried_out(mine, lambda event=event: mine.append("anna", [event], NOW))

    threads = [threading.Thread(target=write, args=pair) for pair in zip(stores, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = stores[0].profile("anna", 100).last
    assert len(last) == 50
    for name in "ab":
        keys = [event.key for event in last if event.key.startswith(name)]
        assert keys == [f"{name} {number}" for number in range(25)]
    for mine in stores:
        mine.close()


SHARED = """
import sys
from blossomrec.serving.stores import store_opener
store = store_opener(sys.argv[1])[0]()
print(store.profile("anna", 0).length)
store.close()
"""


def test_other_processes_come_and_go(place):
    """One that ends takes nothing from a server, which has the store open twice."""
    first = place.open()
    append(first, "anna", (1, 1))
    first.close()
    reader, writer = place.open(), place.open()
    for length in range(2, 5):
        append(writer, "anna", (length, length))
        command = [sys.executable, "-c", SHARED, place.where]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        assert int(found.stdout) == reader.profile("anna", 0).length == length
    for store in (reader, writer):
        store.close()


def test_an_import_leaves_who_has_come_meanwhile(place):
    """Between the look at who is there and the end of the transaction others have their turn."""
    importing, live = place.open(), place.open()
    table = pl.DataFrame({"user_id": ["anna", "anna"], "item_id": [1, 2], "timestamp": [10, 20]})
    original, raced = importing.numbers, []

    def numbers(users):
        found = original(users)
        if not raced:
            raced.append(threading.Thread(target=append, args=(live, "anna", ("new", 30))))
            raced[0].start()
            # A file is locked for the import: there the other one comes after it.
            raced[0].join(1.0)
        return found

    importing.numbers = numbers
    imported = import_events(table, importing)
    raced[0].join()
    items = [event.item for event in importing.profile("anna", 5).last]
    if imported == Imported(0, 0, 1):
        assert items == ["new"]
    else:
        assert (imported, items) == (Imported(1, 2, 0), [1, 2, "new"])
    for store in (importing, live):
        store.close()


def test_a_deletion_whose_answer_was_lost_is_erased_all_the_same(place, monkeypatch):
    """What was sent may have been carried out; the one who deletes again finds nobody."""
    store = place.open()
    append(store, "anna-the-first", (1, 1))
    original = store.transaction

    @contextlib.contextmanager
    def lost():
        with original():
            yield
        monkeypatch.setattr(store, "transaction", original)
        raise store.failures[0]("the answer is lost")

    erased = []
    erase = store.erase
    monkeypatch.setattr(store, "erase", lambda: (erase(), erased.append(1)))
    committer = Committer(store, 10, Metrics())
    # The first deletion of a process erases in any case.
    committer.submit(lambda store: store.delete("nobody"), erase=True).result(60)
    erased.clear()
    monkeypatch.setattr(store, "transaction", lost)
    future = committer.submit(lambda store: store.delete("anna-the-first"), erase=True)
    with pytest.raises(Refusal):
        future.result(60)
    assert (
        committer.submit(lambda store: store.delete("anna-the-first"), erase=True).result(60) == 0
    )
    committer.close()
    assert erased and b"anna-the-first" not in place.content()


def test_traces_that_another_process_left_are_removed(place, monkeypatch):
    """Whoever is asked to delete again, it may be another server than the first time."""
    first, second = (Committer(place.open(), 10, Metrics()) for _ in range(2))

    def delete(committer, user):
        future = committer.submit(lambda store: store.delete(user), erase=True)
        return future.result(60)

    for committer in (first, second):
        assert delete(committer, "nobody") == 0
    append(first._store, "anna-the-first", (1, 1))
    with monkeypatch.context() as patched:

        def fails():
            raise first._store.failures[0]("the disk is full")

        patched.setattr(first._store, "erase", fails)
        with pytest.raises(Refusal):
            delete(first, "anna-the-first")
    assert b"anna-the-first" in place.content()
    erased = []
    erase = second._store.erase
    monkeypatch.setattr(second._store, "erase", lambda: (erase(), erased.append(1)))
    for _ in range(2):
        assert delete(second, "anna-the-first") == 0
    assert erased == [1] and b"anna-the-first" not in place.content()
    for committer in (first, second):
        committer.close()


def test_who_is_deleted_is_erased_whatever_the_store_counts(place, monkeypatch):
    """A store that was emptied, or taken back from a copy, counts from a lower number again."""
    committer = Committer(place.open(), 10, Metrics())

    def delete(user):
        future = committer.submit(lambda store: store.delete(user), erase=True)
        return future.result(60)

    append(committer._store, "anna-the-first", (1, 1))
    assert delete("anna-the-first") == 1
    counted = committer._store.notices()
    append(committer._store, "ben-the-second", (1, 1))
    monkeypatch.setattr(committer._store, "notices", lambda: counted)
    assert delete("ben-the-second") == 1
    committer.close()
    assert b"ben-the-second" not in place.content()
