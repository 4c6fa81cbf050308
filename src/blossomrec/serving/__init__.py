"""Live recommendations: durable events, encoded histories kept in memory, HTTP."""

from blossomrec.serving.client import Client, ServerError

__all__ = ["Client", "ServerError"]
