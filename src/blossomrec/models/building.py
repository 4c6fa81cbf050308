"""Making the model that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.config import ModelConfig, check
from blossomrec.data.fields import Tables
from blossomrec.errors import ConfigError
from blossomrec.models.shard import sharded
from blossomrec.ranks import ALONE, Ranks
from blossomrec.registry import BACKBONES

if TYPE_CHECKING:
    from blossomrec.models.sequence import SequenceModel


def build_model(
    config: ModelConfig,
    num_items: int,
    tables: Tables | None = None,
    ranks: Ranks | None = None,
) -> SequenceModel:
    """The model that ``config.backbone`` names, with start values from PyTorch's generator.

    Args:
        config: the architecture; an input that is neither "on" nor "off" is off.
        num_items: size of the catalogue.
        tables: what is known of items, users and events, such as ``log.tables``.
        ranks: who share the item table; this one's model has its rows, with the numbers that they
            have in the whole, and all the rest.

    Raises:
        ConfigError: an option is out of bounds or does not fit another one, or there are no items.
    """
    check(config, "model.")
    if num_items < 1:
        raise ConfigError(f"num_items is {num_items}: a catalogue needs at least 1 item")
    with sharded(ranks or ALONE):
        model = BACKBONES.get(config.backbone)(config, num_items)
    if not len(model.held_items):
        raise ConfigError(
            f"num_items is {num_items}: too few for each rank to have some of them, choose fewer"
        )
    # Last, so that a model without other inputs begins with the numbers that it always began with.
    model.attach(Tables() if tables is None else tables)
    return model
