"""What goes through the attention layers of a trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from blossomrec.attention import AttentionOutput, BlossomAttention
from blossomrec.models.sequence import SequenceModel


@dataclass(frozen=True)
class Attended:
    """A layer's rotated queries [T, H, d] and keys [T, G, d], and what its attention gave."""

    layer: BlossomAttention
    q: Tensor
    k: Tensor
    output: AttentionOutput


@contextlib.contextmanager
def recorded(model: SequenceModel) -> Iterator[list[Attended]]:
    """The model in evaluation mode; what goes through each of its Blossom attentions, in order."""
    training = model.training
    found: list[Attended] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...], output: AttentionOutput) -> None:
        assert isinstance(layer, BlossomAttention)
        found.append(Attended(layer, *layer.project(*args)[:2], output))

    layers = [each for each in model.modules() if isinstance(each, BlossomAttention)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    model.eval()
    try:
        yield found
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
