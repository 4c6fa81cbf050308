"""Which past events led to a score: what flows through the attention, back to every event.

With the attention weights, the gates, the scales of the layer norms and the openings of the GELUs
held at the values they have, a score is a sum: one share for each event of the history and a rest
that comes from biases. The share of an event is what its embedding brings to the score over all
ways through the layers (the rules of AttnLRP, Achtibat et al., ICML 2024, and of the exact
decompositions before it). What an event changes by drawing attention to others is not in it.

The cost is one pass of the model over the history, and for the way back a bounded number of events
for each event reached: those of its blocks and of its recent events.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from blossomrec.data.batch import Batch, pack
from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.evaluation import scoring
from blossomrec.explanation.layers import Flow, LayerInputs, back_through_layer
from blossomrec.explanation.shares import Explanation
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.transformer import TransformerModel


def check_explainable(model: SequenceModel) -> TransformerModel:
    """The model, if :func:`explain` can explain it.

    Raises:
        ConfigError: it is not a causal Transformer with Blossom attention.
    """
    config = model.config
    if config.backbone != "sasrec" or config.attention != "blossom":
        raise ConfigError(
            f"backbone {config.backbone} with attention {config.attention} cannot be explained: "
            "only sasrec with blossom can"
        )
    assert isinstance(model, TransformerModel)
    return model


@torch.no_grad()
def explain(model: SequenceModel, history: History | np.ndarray, item: int) -> Explanation:
    """Shares of the events of a history in the score that an item has after it.

    Args:
        model: in evaluation mode, SASRec with Blossom attention.
        history: at least one event, as the model sees them; item rows alone are one, too.
        item: row of the item.

    Raises:
        ConfigError: the model is another one.
    """
    transformer = check_explainable(model)
    device = model.item_embeddings.weight.device
    batch = pack([history], model.inputs).to(device)
    rotary, request = transformer.rotary(batch, batch.cu_seqlens), None
    asked = transformer.asked(batch)
    if asked is not None and transformer.request_inputs is not None:
        request = transformer.request_inputs(*asked)
    inputs, outputs, stack = [transformer.embed(batch)], [], transformer.stack()
    for layer in stack:
        x, attended = layer(inputs[-1], batch.cu_seqlens, batch.max_length, rotary=rotary)
        inputs.append(layer.finish(x, request if layer is stack[-1] else None))
        outputs.append(attended)
    embedding = model.item_vectors()[item]
    score = float(transformer.final_norm(inputs[-1][-1]) @ embedding)
    flow = Flow(batch.last_rows, embedding[None])
    if isinstance(transformer.final_norm, nn.LayerNorm):
        flow = flow.back_through_norm(transformer.final_norm, inputs[-1])
    layers = []
    for layer, x, attended in reversed(list(zip(stack, inputs[:-1], outputs, strict=True))):
        given = LayerInputs(batch.cu_seqlens, rotary, request if layer is stack[-1] else None)
        flow, shares = back_through_layer(layer, x, attended, given, flow)
        layers.insert(0, shares)
    contributions = torch.zeros(len(batch.items), device=device)
    contributions[flow.rows] = (flow.gradient * inputs[0][flow.rows]).sum(-1).float()
    rest = score - float(contributions.double().sum())
    block_size, own = model.config.block_size, None
    mixed = _mixed(model, batch, transformer.final_norm(inputs[-1][-1:]), item)
    if mixed is not None:
        score, own = mixed, mixed - score
    shares = contributions.cpu().numpy()
    return Explanation(score, shares, rest, block_size, tuple(layers), own)


def _mixed(model: SequenceModel, batch: Batch, state: Tensor, item: int) -> float | None:
    """Score of an item of the history with the mixture in it; None where there is none."""
    own = model.history_items(batch)
    if own is None or not bool((own.items == item).any()):
        return None
    device = state.device
    block = scoring.ScoreBlock(model, 1, device=device, score_elements=scoring.SCORE_ELEMENTS)
    with scoring.full_precision(device):
        return float(block.fill(scoring.Queries(state.float(), own))[0, item])
