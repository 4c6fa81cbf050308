"""What has the parts of a job written, by the name of the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from blossomrec.engines import check_engine
from blossomrec.recommendation.on_ray import started_ray

# PyTorch is imported while Ray starts.
if TYPE_CHECKING:
    from blossomrec.recommendation.parts import Advance, PartWriter, Users

# Parts, each when it is there, in any order.
PartsWritten = Generator["Users", None, None]
# Has parts written.
PartEngine = Callable[["PartWriter", Sequence["Users"], "Advance"], PartsWritten]


def open_engine(engine: str | PartEngine, device: str) -> AbstractContextManager[PartEngine]:
    """An engine, which may be used while it is open.

    Args:
        engine: its name; or one that is open, which stays so.
        device: "auto", "cpu" or "cuda", as the model has it.

    Raises:
        ConfigError: there is no such engine.
        MissingExtraError: Ray is not installed.
    """
    if not isinstance(engine, str):
        return nullcontext(engine)
    check_engine(engine)
    return started_ray(device) if engine == "ray" else nullcontext(_write_here)


def _write_here(writer: PartWriter, parts: Sequence[Users], advance: Advance) -> PartsWritten:
    """Compute one part after another in this process."""
    for part in parts:
        writer.write(part, advance)
        yield part
