"""What is read back, listed, switched off and deleted."""

import random

import pytest

from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores.store import Event, Member
from blossomrec.serving.testing.base import NOW, StoreTests, append


class Reading(StoreTests):
    """What is read back, listed, switched off and deleted."""

    def test_a_tail_goes_on_where_it_ended(self, store):
        append(store, "anna", *((item, item) for item in range(10)))
        number = store.tail("anna", 0, 0, 1).number
        tail = store.tail("anna", number, 4, 3)
        assert tail.items == tail.times == [4, 5, 6]
        assert store.tail("anna", number, 8, 3).items == [8, 9]
        assert store.tail("anna", number, 10, 3).items == []
        # Of another user of that name, or of more events than there are, nothing is known.
        for other, start in ((number + 1, 4), (number, 11)):
            tail = store.tail("anna", other, start, 2)
            assert (tail.start, tail.items, tail.times) == (0, [0, 1], [0, 1])

    def test_any_part_of_any_history_is_found(self, store):
        draw, histories = random.Random(3), {}
        for batch in range(120):
            user = f"u{draw.randrange(7)}"
            history = histories.setdefault(user, [])
            begin = 20 * batch
            words = ["x" * draw.choice([1, 9, 300]), "\n", '"],["', "\\", "Ünï\u200c\U0001f600"]
            events = [
                Event(
                    draw.choice([batch, draw.choice(words)]),
                    begin + place / 8,
                    f"{batch}\n{place}",
                    draw.choice([None, None, *words]),
                    draw.choice([None, None, None, {draw.choice(words): draw.choice(words)}]),
                )
                for place in range(draw.choice([1, 1, 2, 8, 90]))
            ]
            append(store, user, *events)
            history += events
        for user, history in histories.items():
            number = store.tail(user, 0, 0, 1).number
            for _ in range(20):
                start, limit = draw.randrange(len(history)), draw.choice([1, 3, 50, 4_000])
                tail = store.tail(user, number, start, limit)
                assert tail.items == [event.item for event in history[start : start + limit]]
                assert tail.times == [event.timestamp for event in history[start : start + limit]]
                for told, part in ((tail.kinds, "kind"), (tail.contexts, "context")):
                    parts = [getattr(event, part) for event in history[start : start + limit]]
                    assert parts == (told or [None] * len(parts))
                assert (tail.start, tail.length) == (start, len(history))
                assert store.profile(user, limit).last == history[-limit:]
            for event in draw.sample(history, 5):
                assert append(store, user, event).repeated == 1
        events = sum(map(len, histories.values()))
        assert store.counts() == (len(histories), events)

    def test_a_store_can_be_looked_at(self, store):
        before = store.notices()
        for _ in range(2):
            store.check()
        assert store.notices() == before
        append(store, "anna", (1, 1))
        assert store.counts() == (1, 1)

    def test_what_is_deleted_is_in_no_file(self, store, stored_bytes):
        for number in range(50):
            events = [(f"item-{number}-{place}", place, f"key-{number}") for place in range(1)]
            context = {f"name-{number}-": f"value-{number}-", "long": f"text-{number}-" * 800}
            events += [
                (f"item-{number}-{place}", place, None, f"kind-{number}-", context)
                if place % 20 == 1
                else (f"item-{number}-{place}", place)
                for place in range(1, 40)
            ]
            append(store, f"user-{number}", *events)
        assert b"user-17" in stored_bytes() and b"value-17-" in stored_bytes()
        numbers = store.numbers([f"user-{number}" for number in range(50)])
        assert len(set(numbers)) == 50 and min(numbers) > 0
        with store.transaction():
            assert store.delete("user-17") == 40
            assert store.delete("user-17") == 0
        store.erase()
        content = stored_bytes()
        for word in ("user-17", "item-17-", "key-17", "kind-17-", "name-17-", "value-17-"):
            assert word.encode() not in content
        assert b"text-17-" not in content
        for word in (b"user-16", b"item-18-3", b"key-18", b"kind-16-", b"value-18-", b"text-18-"):
            assert word in content
        # Who comes back is somebody else.
        append(store, "user-17", ("x", 1))
        assert store.tail("user-17", 0, 0, 1).number not in {0, *numbers}
        assert store.profile("user-17", 5).length == 1

    def test_items_are_switched_off_and_on(self, store):
        with store.transaction():
            assert store.switch([3, "x", 3], []) == [3, "x"]
            assert store.switch([3], ["x", "y"]) == [3]
            assert store.switch([], []) == [3]

    def test_users_are_listed_by_their_last_event(self, store, open_store):
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
        for mine in (store, other := open_store()):
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

    def test_equal_times_are_listed_once_each(self, store):
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

    @pytest.mark.parametrize(
        "cursor", ["", "5", "x:1", "5:", "NaN:1", '"5":1', "1e400:1", "true:1"]
    )
    def test_what_is_no_cursor_is_refused(self, store, cursor):
        with pytest.raises(Refusal, match=r"before is .*: it is not the `next` of a list of users"):
            store.members(3, before=cursor)
