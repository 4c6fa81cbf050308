"""A layer and random events, to be extended part by part."""

import torch
from inputs import make_layer


def make_attention(**options):
    attention = make_layer(**options)
    if attention.gate is not None:
        torch.nn.init.normal_(attention.gate.weight, std=0.3)
    return attention.eval()


def make_events(count, seed=0, size=32):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def in_parts(attention, x, parts, keeps=()):
    """Outputs [L, D] and the state after them, and of each event the first position it saw."""
    state, outputs, first = attention.start(), [], []
    for part, keep in zip(x.split(parts), [*keeps, *[None] * len(parts)], strict=False):
        output, state = attention.extend(part, state)
        outputs.append(output.hidden)
        first += [state.first] * len(part)
        if keep is not None:
            state = state.trim(keep)
    return torch.cat(outputs), state, torch.tensor(first)


def whole(attention, x):
    with torch.no_grad():
        return attention(x, torch.tensor([0, len(x)], dtype=torch.int32))
