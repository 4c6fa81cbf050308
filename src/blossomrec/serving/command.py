"""Starting a server from the command line, with word of what is not installed."""

from __future__ import annotations

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
    try:
        from blossomrec.serving.http.server import run_server
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise MissingExtraError(error.name, "serve") from error
    run_server(run, store, config, **options)
