"""Loading histories into a store, where programs written for earlier versions import it from."""

from blossomrec.serving.stores.bulk import import_events

__all__ = ["import_events"]
