"""The parts of a training that are others where ranks share it."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

from blossomrec.config import RunConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.errors import ConfigError
from blossomrec.losses import SampledLoss, TrainingLoss
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import Ranks
from blossomrec.registry import BACKBONES
from blossomrec.training.shape import Shape
from blossomrec.training.sharded.division import Division
from blossomrec.training.sharded.objective import ShardedObjective

__all__ = ["ShardedObjective", "check_shared", "divide"]

# Batches of the first epoch by which it is told how many rows a part needs.
LOOKED_AT = 8


def check_shared(config: RunConfig, loss: TrainingLoss) -> None:
    """Raise ConfigError where a backbone or a loss is not for several ranks."""
    model, training, reason = config.model, config.training, ""
    if not BACKBONES.get(model.backbone).takes_features:
        reason = f"model.backbone {model.backbone!r} does not say that it takes item_vectors"
    elif not (loss.sharded or (isinstance(loss, SampledLoss) and loss.sparse)):
        reason = f"training.loss {training.loss!r} needs the vectors of all items"
    if reason:
        raise ConfigError(f"the training is shared by ranks, but {reason}: choose another, or one")


def divide(
    model: SequenceModel,
    loss: TrainingLoss,
    config: RunConfig,
    ranks: Ranks,
    shape: Shape | None = None,
    batches: TrainingBatches | None = None,
) -> Division:
    """What gives this rank its part of each batch.

    Args:
        model: on the device of the training.
        shape: that parts are padded to, for a graph.
        batches: by the first of which there is room for rows in padded parts; None where it is
            made later.
    """
    # Own items are told from the target by its place.
    with_targets = isinstance(loss, SampledLoss) or model.own_history is not None
    num_rows = model.num_items + model.extra_rows
    division = Division(
        *(ranks, num_rows, config.training.seed),
        with_targets=with_targets,
        device=model.item_embeddings.weight.device,
        shape=shape,
    )
    if shape is not None and batches is not None:
        with closing(batches.epoch(0, division=division)) as parts:
            division.make_room(islice(parts, LOOKED_AT))
    return division
