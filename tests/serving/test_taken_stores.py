"""Updates take new events and deletions from every kind of store."""

from collections import Counter

import numpy as np
from places import Place

from blossomrec.data.log import EventLog
from blossomrec.serving.stores import store_opener
from blossomrec.serving.stores.bulk import import_events
from blossomrec.serving.stores.store import Event, carried_out
from blossomrec.updating import store_events
from blossomrec.updating.taking import Taking


def logged(folder):
    log = EventLog.open(folder)
    users = np.repeat(np.arange(log.num_users), np.diff(log.offsets))
    ids = log.user_vocabulary.ids(users).to_list(), log.item_vocabulary.ids(log.items).to_list()
    return Counter(zip(map(str, ids[0]), ids[1], log.timestamps.tolist(), strict=True))


def stored(store):
    found = Counter()
    for user, length, *_ in store.members(1_000):
        last = store.profile(user, length).last
        found.update((user, one.item, one.timestamp) for one in last)
    return found


def test_new_events_and_deletions_reach_the_log(tiny_events, place, tmp_path, monkeypatch):
    monkeypatch.setattr(store_events, "USERS_TOGETHER", 7)
    where = place.where if isinstance(place, Place) else str(place)
    store, folder = store_opener(where)[0](), tmp_path / "log"
    EventLog.prepare(tiny_events, folder)
    import_events(folder, store)
    taking = Taking(tmp_path / "runs", folder)
    assert taking.take(store, "it").events == 0
    users, late = [1001, 1004, "9"], 1_800_000_000
    for n, user in enumerate(users):
        events = [Event(50_003 + n, late), Event(7, late + 1), Event(7, late + 1)]
        carried_out(store, lambda user=user, events=events: store.append(str(user), events, late))
    carried_out(store, lambda: store.delete("1007"))
    carried_out(store, lambda: store.delete("1001"))
    carried_out(store, lambda: store.append("1001", [Event(7, late + 5)], late))
    taken = taking.take(store, "it")
    assert (taken.events, taken.forgotten, taken.left_out) == (7, 2, 0)
    assert logged(folder) == stored(store)
    assert taking.take(store, "it") is None
    store.close()
