"""What the verbs around a server do: serve, openapi, import-events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from blossomrec.config import ServingConfig
from blossomrec.data.reading.options import EventOptions
from blossomrec.recommendation.options import RuleOptions


def serve(
    run: Path,
    *,
    store: str = "events.sqlite",
    titles: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: Annotated[ServingConfig, Parameter(name="*")] = ServingConfig(),  # noqa: B008
    by_rule: Annotated[RuleOptions, Parameter(name="*")] = RuleOptions(),  # noqa: B008
    drain: float = 30.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> None:
    """Answer requests over HTTP: append events, recommend, forget users.

    Args:
        run: run folder; SIGHUP reads it again without dropping a request
        store: SQLite file with the events, made where it is missing, or redis://HOST:PORT/DATABASE
        titles: table with the columns item_id and title, for the page; .parquet, .csv, .tsv, .item
        host: address; any but loopback needs a secret in the variable BLOSSOMREC_TOKEN
        port: 0 takes any that is free
        drain: seconds that requests under way have when the server is stopped
        device: where to compute
        threads: of PyTorch for one operation; half of the processor without it
    """
    from blossomrec.serving.command import serve as start

    where: dict[str, Any] = {"host": host, "port": port, "device": device, "threads": threads}
    start(run, store, options, **where, drain=drain, titles=titles, rules=by_rule.rules())


def openapi() -> None:
    """Print what requests a server takes, as an OpenAPI schema in JSON."""
    from blossomrec.serving.command import openapi_schema

    print(json.dumps(openapi_schema(), indent=2))


def import_events(
    source: Path,
    *,
    store: str = "events.sqlite",
    options: Annotated[EventOptions, Parameter(name="*")] = EventOptions(),  # noqa: B008
) -> None:
    """Load histories into the store of events of a server.

    Args:
        source: folder that ``prepare`` wrote, or a .parquet, .csv, .tsv or .inter file, which the
            other options are about
        store: as that of the server, which may be using it
    """
    from blossomrec.serving.stores import store_opener
    from blossomrec.serving.stores.bulk import import_events as load

    open_store, name = store_opener(store)
    imported = load(source, open_store(), **vars(options))
    print(
        f"{imported.users:,} users with {imported.events:,} events are new in {name}, "
        f"{imported.kept:,} users were there and stay as they are"
    )
