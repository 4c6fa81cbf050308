"""The SQLite store, where programs written for earlier versions import it from."""

from blossomrec.serving.stores.sqlite_store import SQLiteStore

__all__ = ["SQLiteStore"]
