"""What transactions promise, and objects that are open at the same time."""

import subprocess
import sys
import threading

import polars as pl
import pytest

from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores.bulk import Imported, import_events
from blossomrec.serving.stores.store import Appended, Conflict, Event, carried_out
from blossomrec.serving.testing.base import NOW, StoreTests, append

SHARED = """
import sys
from blossomrec.serving.stores import store_opener
store = store_opener(sys.argv[1])[0]()
print(store.profile("anna", 0).length)
store.close()
"""


class Sharing(StoreTests):
    """What transactions promise, and objects that are open at the same time."""

    def test_who_came_in_what_was_undone_is_not_there(self, store):
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

    def test_a_transaction_is_all_or_nothing_and_an_attempt_undone_alone(self, store):
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

    def test_two_objects_see_each_others_changes(self, store, open_store):
        other = open_store()

        def write(mine, name):
            for place in range(30):
                append(mine, name, (place, place))

        threads = [
            threading.Thread(target=write, args=pair) for pair in ((store, "a"), (other, "b"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mine in (store, other):
            assert mine.profile("a", 0).length == mine.profile("b", 0).length == 30
        other.close()

    def test_what_others_have_to_know_of_is_counted(self, store, open_store):
        other, before = open_store(), store.notices()
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

    def test_who_is_deleted_and_back_in_one_transaction_begins_anew(self, store):
        append(store, "anna", (1, 5, "a"), (2, 6))
        before = store.numbers(["anna"])
        with store.transaction():
            assert store.delete("anna") == 2
            assert store.append("anna", [Event(3, 1, "a")], NOW) == Appended(1, 0, 1)
            assert store.append("anna", [Event(3, 1, "a"), Event(4, 2)], NOW) == Appended(1, 1, 2)
        assert store.tail("anna", 0, 0, 9).items == [3, 4]
        assert store.numbers(["anna"]) != before
        assert [one.user for one in store.members(9)] == ["anna"]

    def test_work_is_done_again_where_others_come_in_between(self, store):
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

    def test_two_objects_that_change_the_same_user_lose_nothing(self, open_store):
        stores = [open_store() for _ in range(2)]

        def write(mine, name):
            for number in range(25):
                event = Event(number, None, f"{name} {number}")
                carried_out(mine, lambda event=event: mine.append("anna", [event], NOW))

        threads = [
            threading.Thread(target=write, args=pair) for pair in zip(stores, "ab", strict=True)
        ]
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

    def test_other_processes_come_and_go(self, open_store, where):
        """One that ends takes nothing from a server, which has the store open twice."""
        first = open_store()
        append(first, "anna", (1, 1))
        first.close()
        reader, writer = open_store(), open_store()
        for length in range(2, 5):
            append(writer, "anna", (length, length))
            command = [sys.executable, "-c", SHARED, where]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            assert int(found.stdout) == reader.profile("anna", 0).length == length
        for store in (reader, writer):
            store.close()

    def test_an_import_leaves_who_has_come_meanwhile(self, open_store):
        """Others have their turn between the look at who is there and the transaction's end."""
        importing, live = open_store(), open_store()
        table = pl.DataFrame(
            {"user_id": ["anna", "anna"], "item_id": [1, 2], "timestamp": [10, 20]}
        )
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
