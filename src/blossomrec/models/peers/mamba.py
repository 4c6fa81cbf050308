"""Mamba4Rec: a selective state-space model over packed histories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput
from blossomrec.attention.packing import histories, positions
from blossomrec.config import ModelConfig
from blossomrec.errors import ConfigError
from blossomrec.models import fused
from blossomrec.models.peers.selective_scan import Scanned, scan_on, selective_scan
from blossomrec.models.recurrent import Continued, RecurrentAttention, Tensors
from blossomrec.models.sasrec import SASRec

# Channels for each dimension of the model, and events that the convolution sees.
EXPAND, SEEN = 2, 4
# Steps at the start: evenly spread in their logarithm.
STEPS = (1e-3, 1e-1)


class MambaBlock(RecurrentAttention):
    """The block of a selective state-space model (Gu and Dao, 2023, arXiv 2312.00752).

    Two projections of each event, to 2 D channels each; one passes a convolution over the last four
    events, SiLU and the selective scan, the other one, through SiLU, gates what comes of it.

    What is kept of a user are the channels of the last three events, and the state of the scan.

    Args:
        hidden_size: D.
        state_size: numbers of the state of each channel, N.
        may_fuse: whether a kernel of a GPU may be used.

    Attributes:
        captured: whether it can be part of a CUDA graph: it never waits for the device.
    """

    captured = True

    def __init__(self, *, hidden_size: int, state_size: int, may_fuse: bool = True):
        super().__init__()
        channels, rank = EXPAND * hidden_size, -(-hidden_size // 16)
        self.channels, self.state_size, self.may_fuse = channels, state_size, may_fuse
        self.input = nn.Linear(hidden_size, 2 * channels, bias=False)
        self.seen = nn.Parameter(torch.empty(SEEN, channels))  # of the event itself first
        self.seen_bias = nn.Parameter(torch.zeros(channels))
        self.selection = nn.Linear(channels, rank + 2 * state_size, bias=False)
        self.step = nn.Linear(rank, channels)
        self.log_rates = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.passed = nn.Parameter(torch.ones(channels))
        self.output = nn.Linear(channels, hidden_size, bias=False)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """The start values of the paper: rates -1 .. -N, and steps spread over ``STEPS``."""
        nn.init.uniform_(self.seen, -(SEEN**-0.5), SEEN**-0.5)
        bound = self.step.in_features**-0.5
        nn.init.uniform_(self.step.weight, -bound, bound)
        low, high = (math.log(step) for step in STEPS)
        steps = (low + (high - low) * torch.rand(self.channels)).exp()
        # The inverse of softplus.
        self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        max_length: int,
        distil_rows: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> AttentionOutput:
        """Scan each history; arguments and result as of :class:`FullAttention`.

        Positions and angles have no part in it: the order is in the scan.
        """
        channels, gate = self.input(x).chunk(2, -1)
        before = positions(cu_seqlens, len(x))
        mixed = channels * self.seen[0] + self.seen_bias
        for ago in range(1, SEEN):
            earlier = F.pad(channels, (0, 0, ago, 0))[: len(x)]
            mixed = mixed + torch.where(before[:, None] >= ago, earlier, 0.0) * self.seen[ago]
        u = F.silu(mixed)
        scanned = self._scanned(u)
        out = selective_scan(scanned, cu_seqlens, may_fuse=self.may_fuse)
        return AttentionOutput(self._finished(out, scanned.u, gate))

    def initial(self, users: int) -> Tensors:
        weight = self.log_rates
        window = weight.new_zeros(users, SEEN - 1, self.channels)
        return window, weight.new_zeros(users, self.channels, self.state_size)

    def extend_recurrent(
        self, x: Tensor, given: Continued, kept: Tensors, rotary: Tensor | None = None
    ) -> tuple[Tensor, Tensors]:
        channels, gate = self.input(x).chunk(2, -1)
        mixed, window = self._seen_on(channels, given, kept[0])
        scanned = self._scanned(F.silu(mixed + self.seen_bias))
        out, states = scan_on(scanned, given, kept[1])
        return self._finished(out, scanned.u, gate), (window, states)

    def _seen_on(self, channels: Tensor, given: Continued, window: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution over new events behind a window [B, 3, E], and the window after them."""
        if given.is_one_each:
            seen = torch.cat((window, channels[:, None]), 1)
            return (seen * self.seen.flip(0)).sum(1), seen[:, 1:]
        # Windows and new events, user after user, are one row of numbers.
        bounds, users = given.cu_seqlens.long(), torch.arange(len(window), device=window.device)
        history = histories(given.cu_seqlens, len(channels))
        rows = torch.arange(len(channels), device=window.device) + (history + 1) * (SEEN - 1)
        ahead = torch.arange(SEEN - 1, device=window.device)
        places = (bounds[:-1] + users * (SEEN - 1))[:, None] + ahead
        joint = channels.new_empty(len(channels) + window.shape[:2].numel(), self.channels)
        joint[places.flatten()], joint[rows] = window.flatten(0, 1).to(joint.dtype), channels
        seen = sum(joint[rows - ago] * self.seen[ago] for ago in range(SEEN))
        assert isinstance(seen, Tensor)
        return seen, joint[places + bounds.diff()[:, None]]

    def _scanned(self, u: Tensor) -> Scanned:
        """What the scan is given of channels [T, E]."""
        size = self.state_size
        step, b, c = self.selection(u).split((self.step.in_features, size, size), -1)
        exact = torch.promote_types(u.dtype, torch.float32)
        with torch.autocast(u.device.type, enabled=False):
            # A sum of many steps is only as good as each of them.
            delta = F.softplus(F.linear(step.to(exact), self.step.weight, self.step.bias))
            rates = -self.log_rates.exp()
        return Scanned(u, delta, rates, b, c)

    def _finished(self, out: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        """Of scanned channels [T, E], beside which they pass as they are, [T, D]."""
        return self.output(((out + u * self.passed) * F.silu(gate)).to(gate.dtype))


def build_mamba(config: ModelConfig, *, causal: bool) -> MambaBlock:
    """A block of a state-space model as a configuration defines it.

    Raises:
        ConfigError: it is to see both directions.
    """
    if not causal:
        raise ConfigError(
            f"model.attention is 'mamba', which sees what came before: {config.backbone} sees more"
        )
    return MambaBlock(
        hidden_size=config.hidden_size,
        state_size=config.state_size,
        may_fuse=fused.allowed(config),
    )


class Mamba4Rec(SASRec):
    """Recommendation with selective state spaces (Liu et al., arXiv 2403.03900).

    SASRec with the block of Mamba in place of attention: each layer is a block and a feed-forward
    network, each with dropout, residual connection and layer norm. Options of attention have no
    effect.

    Args:
        config: the architecture; ``state_size`` is that of the block.
        num_items: size of the catalogue.
    """

    fixed: ClassVar[Mapping[str, Any]] = {"attention": "mamba"}
