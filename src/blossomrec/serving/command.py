"""Starting a server from the command line, with word of what is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blossomrec.config import ServingConfig
from blossomrec.errors import MissingExtraError

EXTRA = {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}


def serve(run: Path, store: str, config: ServingConfig, **options: Any) -> None:
    """Run a server; see :func:`blossomrec.serving.http.server.run_server`.

    Raises:
        MissingExtraError: a package that serving needs is not installed.
    """
    with _named_where_missing():
        from blossomrec.serving.http.server import run_server
    run_server(run, store, config, **options)


def openapi_schema() -> dict[str, Any]:
    """The requests and answers of a server, as its ``/openapi.json`` says them.

    Raises:
        MissingExtraError: a package that serving needs is not installed.
    """
    with _named_where_missing():
        from blossomrec.serving.http.application import openapi_schema
    return openapi_schema()


@contextlib.contextmanager
def _named_where_missing() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise MissingExtraError(error.name, "serve") from error
