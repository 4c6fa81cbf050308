"""What has the parts of a job written, by the name of the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from blossomrec.engines import check_engine
from blossomrec.errors import ConfigError
from blossomrec.ranks import ALONE, Ranks
from blossomrec.recommendation.on_ranks import RanksEngine
from blossomrec.recommendation.on_ray import started_ray

# PyTorch is imported while Ray starts.
if TYPE_CHECKING:
    from blossomrec.recommendation.parts import Advance, PartWriter, Users

# Parts, each when it is there, in any order.
PartsWritten = Generator["Users", None, None]
# Has parts written.
PartEngine = Callable[["PartWriter", Sequence["Users"], "Advance"], PartsWritten]


def open_engine(
    engine: str | PartEngine, device: str, ranks: Ranks = ALONE
) -> AbstractContextManager[PartEngine]:
    """An engine, which may be used while it is open.

    Args:
        engine: its name; or one that is open, which stays so.
        device: "auto", "cpu" or "cuda", as the model has it.
        ranks: who share the items of the model, and compute by the engine "local".

    Raises:
        ConfigError: there is no such engine, or ranks cannot use it.
        MissingExtraError: Ray is not installed.
    """
    if not isinstance(engine, str):
        return nullcontext(engine)
    if not ranks.alone:
        if engine != "local":
            raise ConfigError(
                f"engine is {engine!r}: {ranks.size} ranks share the items of the model, and "
                "compute themselves; leave it or torchrun away"
            )
        return nullcontext(RanksEngine(ranks))
    check_engine(engine)
    return started_ray(device) if engine == "ray" else nullcontext(_write_here)


def _write_here(writer: PartWriter, parts: Sequence[Users], advance: Advance) -> PartsWritten:
    """Compute one part after another in this process."""
    for part in parts:
        writer.write(part, advance)
        yield part
