"""How much either path counts in the output of a layer, however the two are fused."""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.backends.torch.sparse import near_share
from blossomrec.attention.layer import AttentionOutput
from blossomrec.attention.spec import BlossomSpec


def path_shares(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, output: AttentionOutput, spec: BlossomSpec
) -> Tensor:
    """What the long-term and the short-term path count for each event and head, [T, H, 2].

    Where they are gated, the gates. Of a union the shares of the attention's weight on the keys
    that the short-term path does not see, and on those that it sees; they sum up to 1.

    Args:
        q: [T, H, d] rotated queries of packed histories.
        k: [T, G, d] rotated keys.
        cu_seqlens: int32 [B+1].
        output: what the attention gave for them.
    """
    assert output.gates is not None and output.selected is not None
    if not spec.is_union or not len(q):
        return output.gates
    near = near_share(q, k, output.gates, output.selected, cu_seqlens, spec)
    return torch.stack((1 - near, near), -1)
