"""Programs written for earlier versions find what they import."""

from blossomrec.serving import bulk, sqlite_store
from blossomrec.serving.stores import bulk as loading
from blossomrec.serving.stores import sqlite_store as store


def test_names_of_earlier_versions_are_the_same_things():
    assert bulk.import_events is loading.import_events
    assert sqlite_store.SQLiteStore is store.SQLiteStore
