"""What the verbs that recommend do, and the demo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from blossomrec.commands.printing import show_frame
from blossomrec.errors import ConfigError
from blossomrec.ranks import ALONE, Ranks, launched, open_ranks
from blossomrec.recommendation.options import (
    COMMAS,
    BulkOptions,
    RecommendOptions,
    RuleOptions,
)


def recommend(
    run: Path,
    *,
    user: Annotated[list[str] | None, Parameter(help="user id; may be given again")] = None,
    history: Annotated[str | None, Parameter(help=f"item ids, oldest first, {COMMAS}")] = None,
    k: int = 10,
    log: Path | None = None,
    bulk: Annotated[BulkOptions, Parameter(name="*")] = BulkOptions(),  # noqa: B008
    options: Annotated[RecommendOptions, Parameter(name="*")] = RecommendOptions(),  # noqa: B008
    by_rule: Annotated[RuleOptions, Parameter(name="*")] = RuleOptions(),  # noqa: B008
    unknown: Literal["skip", "refuse"] | None = None,
    json: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Recommend items for users of the log or for any list of items.

    Under torchrun ranks share the catalogue for --all and --users.

    Args:
        run: run folder, or what save_pretrained wrote
        k: how many items for each user
        log: prepared log with the users' histories; a run knows the one it was trained on
        unknown: what to do with items of --history that the model does not know (skip without
            it), or with users of --users who are not in the log (refuse without it)
        json: print JSON instead of a table
        device: where to compute
    """
    from blossomrec.data.units import moment_of
    from blossomrec.recommendation.part_engines import open_engine

    if [user is not None, history is not None, bulk.users is not None, bulk.all].count(True) != 1:
        raise ConfigError("give either --user or --history, or --all or --users with --out")
    bulk.check()
    if unknown is not None and history is None and bulk.users is None:
        raise ConfigError(f"unknown is {unknown}: only --history and --users may hold unknown ids")
    chosen: dict[str, Any] = vars(options) | {
        "items": _ids("items", options.items),
        "at": moment_of("at", options.at),
        "rules": by_rule.rules(),
    }
    with _ranks(bulk, device) as ranks, open_engine(bulk.engine, device, ranks) as engine:
        # PyTorch is imported while Ray starts.
        from blossomrec.recommender import BlossomRec

        recommender = BlossomRec.from_pretrained(run, log, device=device, ranks=ranks)
        if bulk.out is not None:
            chosen |= {"shards": bulk.shards, "rows_per_file": bulk.rows_per_file}
            written = recommender.recommend_all(
                bulk.out, bulk.users, k, unknown=unknown or "refuse", engine=engine, **chosen
            )
            if ranks.first:
                print(f"{written.rows:,} items for {written.users:,} users are in {bulk.out}")
            return
    if user is not None:
        frame = recommender.recommend(user, k, **chosen)
    else:
        given = _ids("history", history) or []
        frame = recommender.recommend_history(given, k, unknown=unknown or "skip", **chosen)
    show_frame(frame, as_json=json)


@contextmanager
def _ranks(bulk: BulkOptions, device: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, who share the items; this process alone where it did not."""
    if not launched():
        yield ALONE
        return
    if bulk.out is None:
        raise ConfigError("--user and --history are answered by one process: leave torchrun away")
    from blossomrec.device import resolve_device
    from blossomrec.training.ranks.launch import reported

    with reported(), open_ranks(resolve_device(device)) as ranks:
        yield ranks


def similar(
    run: Path,
    *,
    item: Annotated[list[str], Parameter(help="item id; may be given again")],
    k: int = 10,
    json: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Show the items that a model holds to be closest to others.

    Args:
        run: run folder, or what save_pretrained wrote
        k: how many items for each one
        json: print JSON instead of a table
        device: where to compute
    """
    from blossomrec.recommender import BlossomRec

    frame = BlossomRec.from_pretrained(run, device=device).similar_items(item, k)
    show_frame(frame, as_json=json)


def demo(
    folder: Path = Path("runs/demo"),
    *,
    events: Annotated[Path | None, Parameter(help="your own table of events")] = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    epochs: int = 12,
    seed: int = 0,
) -> None:
    """The whole path on simulated events or on your own file.

    Args:
        folder: where log, runs and report go; training that was stopped goes on
        user: column of the user ids in your own table
        item: column of the item ids
        timestamp: column of the times
        epochs: most epochs for each model
        seed: of the simulated events and of the training
    """
    from blossomrec.demo import run_demo

    run_demo(
        folder,
        events=events,
        user=user,
        item=item,
        timestamp=timestamp,
        epochs=epochs,
        seed=seed,
    )


def _ids(name: str, text: str | None) -> list[str] | None:
    """Ids with commas between them, as in a line of a CSV file; None where there is no text."""
    if text is None:
        return None
    found = []
    # The end of the text is the last of them, and nothing.
    for quoted, plain in _ID.findall(text)[:-1]:
        if plain.startswith('"'):
            raise ConfigError(f"{name} has a quote that does not end with its id: {plain}")
        found.append(quoted.replace('""', '"') or plain.strip())
    if any(found) and "" in found:
        raise ConfigError(f"{name} has an empty id, number {found.index('') + 1}: {text}")
    return list(filter(None, found))


# In double quotes, a quote inside doubled, or up to the next comma.
_ID = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*(?=,|$)|([^,]*))(?:,|$)')
