"""What an append promises: order, keys, times and their unit."""

import pytest

from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores.store import Appended, Event, carried_out
from blossomrec.serving.testing.base import NOW, StoreTests, append, store_append

TIMES = {"seconds": 10**0, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


class Appending(StoreTests):
    """What an append promises: order, keys, times and their unit."""

    def test_events_come_back_in_order_and_in_their_types(self, store, open_store):
        assert append(store, "anna", ("milk", 1), (7, 1.5, "k")) == Appended(2, 0, 2)
        assert append(store, "anna", ("7", 2)) == Appended(1, 0, 3)
        assert append(store, "ben", (1, 0)) == Appended(1, 0, 1)
        store.close()
        again = open_store()
        tail = again.tail("anna", 0, 0, 10)
        assert tail.items == ["milk", 7, "7"]
        assert (tail.start, tail.length) == (0, 3)
        profile = again.profile("anna", 2)
        assert profile.length == 3
        assert profile.last == [Event(7, 1.5, "k"), Event("7", 2, None)]
        assert again.profile("anna", 0).last == []
        assert again.tail("carl", 0, 0, 10) is None and again.profile("carl", 5) is None
        again.close()

    def test_kind_and_context_come_back_where_they_are_told(self, store, open_store):
        context = {"shop": 'Köln \n"7"', "price": 2.5, "count": 3, "": ""}
        append(store, "anna", (1, 1), (2, 2, "k", "buy"), (3, 3, None, None, context))
        append(store, "anna", (4, 4), (5, 5, None, "click", {"price": -1e-9}))
        append(store, "ben", (1, 1), (2, 2, "k"))
        store.close()
        again = open_store()
        tail = again.tail("anna", 0, 0, 9)
        assert tail.items == [1, 2, 3, 4, 5]
        assert tail.kinds == [None, "buy", None, None, "click"]
        assert tail.contexts == [None, None, context, None, {"price": -1e-9}]
        last = again.profile("anna", 4).last
        assert last[0] == Event(2, 2, "k", "buy")
        assert last[1:3] == [Event(3, 3, None, None, context), Event(4, 4)]
        # Where nothing is told, there is nothing to look at.
        for plain in (again.tail("anna", tail.number, 3, 1), again.tail("ben", 0, 0, 9)):
            assert plain.items and plain.kinds is None and plain.contexts is None
        kinds = again.tail("anna", tail.number, 0, 2)
        assert (kinds.kinds, kinds.contexts) == ([None, "buy"], None)
        again.close()

    def test_an_event_with_a_known_key_is_stored_once(self, store):
        assert append(store, "anna", (1, 5, "a"), (1, 5, "a"), (2, 6, "b")) == Appended(2, 1, 2)
        assert append(store, "anna", (1, 5, "a"), (2, None, "b"), (3, 7, "c")) == Appended(1, 2, 3)
        # A key belongs to a user.
        assert append(store, "ben", (1, 5, "a")) == Appended(1, 0, 1)
        assert append(store, "anna", (3, 7), (3, 7)) == Appended(2, 0, 5)

    def test_an_event_with_a_known_key_has_its_kind_and_context(self, store):
        event = (1, 5, "a", "buy", {"shop": "web", "price": 2})
        assert append(store, "anna", event, event) == Appended(1, 1, 1)
        assert append(store, "anna", (1, None, *event[2:3], "buy", {"price": 2.0, "shop": "web"}))
        others = [(None, event[4]), ("click", event[4]), ("buy", None), ("buy", {"price": 2})]
        for kind, context in others:
            with pytest.raises(Refusal, match=r"events\[1\].key is 'a'") as refused:
                append(store, "anna", (4, 8, "b"), (1, 5, "a", kind, context))
            assert (refused.value.status, refused.value.code) == (409, "key_reused")
            with pytest.raises(Refusal, match=r"events\[1\].key is 'a'"):
                append(store, "new", event, (1, 5, "a", kind, context))
        assert store.profile("anna", 9).last == [Event(*event)]

    def test_a_number_and_its_digits_are_the_same_item_under_a_key(self, store):
        """Which of them an id is may change with the model that learns it."""
        assert append(store, "anna", (1, 5, "a"), ("x", 6, "b")) == Appended(2, 0, 2)
        assert append(store, "anna", ("1", 5, "a"), ("2", 6, "c"), (2, 6, "c")) == Appended(1, 2, 3)
        assert store.tail("anna", 0, 0, 9).items == [1, "x", "2"]
        with pytest.raises(Refusal, match=r"events\[0\].key is 'a'"):
            append(store, "anna", ("01", 5, "a"))

    @pytest.mark.parametrize("event", [(9, 5, "a"), (1, 6, "a"), ("x", 5, "a"), (1, 5, "a", "buy")])
    def test_a_key_of_another_event_is_refused(self, store, event):
        append(store, "anna", (1, 5, "a"))
        with pytest.raises(Refusal, match=r"events\[1\].key is 'a'") as refused:
            append(store, "anna", (4, 8, "b"), event)
        assert (refused.value.status, refused.value.field) == (409, "events[1].key")
        assert store.profile("anna", 9).length == 1
        with pytest.raises(Refusal, match=r"events\[1\].key"):
            append(store, "new", (1, 5, "a"), (2, 5, "a"))
        assert store.profile("new", 9) is None

    def test_events_are_in_order_of_time(self, store):
        append(store, "anna", (1, 5), (2, 5), (3, 7.5))
        for events, index, last in (([(4, 7)], 0, 7.5), ([(4, 9), (5, 8)], 1, 9)):
            with pytest.raises(Refusal, match=f"the event before it was at {last}") as refused:
                append(store, "anna", *events)
            assert refused.value.status == 409
            assert refused.value.field == f"events[{index}].timestamp"
        assert store.profile("anna", 9).length == 3
        append(store, "anna", (4, 7.5))

    def test_an_event_without_a_time_is_now_and_never_before_the_last(self, store):
        append(store, "anna", (1, None), (2, None), (3, 5_000), (4, None))
        assert [event.timestamp for event in store.profile("anna", 9).last] == [
            NOW,
            NOW,
            5_000,
            5_000,
        ]

    @pytest.mark.parametrize("unit", TIMES)
    def test_the_first_time_that_looks_like_one_shows_the_unit_of_all(
        self, store, open_store, unit
    ):
        now, size = 1_764_000_000.5, TIMES[unit]
        append(store, "anna", (1, 5), (2, None), (3, 7_700))
        assert store.unit() is None
        append(store, "ben", (1, 1_600_000_000 * size))
        with store.transaction():
            store.append("ben", [Event(2)], now)
            store.append("carl", [Event(3)], now)
        for mine in (store, other := open_store()):
            assert mine.unit() == unit
            times = [event.timestamp for event in mine.profile("ben", 1).last]
            assert (
                times
                == [int(now * size)]
                == [event.timestamp for event in mine.profile("carl", 1).last]
            )
        other.close()

    def test_a_time_in_the_future_is_refused_and_locks_nobody(self, store):
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

    def test_a_unit_of_an_append_that_fails_is_no_unit(self, store):
        with pytest.raises(RuntimeError), store.transaction():
            store.append("anna", [Event(1, 1_600_000_000_000)], NOW)
            raise RuntimeError
        with store.transaction():
            with pytest.raises(RuntimeError), store.attempt():
                store.append("anna", [Event(1, 1_600_000_000_000)], NOW)
                raise RuntimeError
            store.append("anna", [Event(1, 1_600_000_000)], NOW)
        assert store.unit() == "seconds"

    def test_many_events_at_a_time(self, store):
        """More than one command of any store takes."""
        events = [Event(number, number, f"key {number}") for number in range(5_001)]
        assert carried_out(store, lambda: store.append("anna", events, NOW)).stored == 5_001
        assert carried_out(store, lambda: store.append("anna", events, NOW)).repeated == 5_001
        assert store.tail("anna", 0, 4_998, 9).items == [0, 1, 2, 3, 4, 5, 6, 7, 8]
        number = store.numbers(["anna"])[0]
        assert store.tail("anna", number, 4_998, 9).items == [4_998, 4_999, 5_000]
