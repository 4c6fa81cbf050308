"""The selective scan of a state-space model over packed histories, forward and backward.

h_t = exp(Delta_t A) h_(t-1) + Delta_t u_t B_t^T and y_t = h_t C_t, from h = 0 at the start of each
history (Gu and Dao, arXiv 2312.00752, equation 2 with A discretised by zero-order hold and B by
Euler's rule).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.api import has_triton
from blossomrec.models.recurrent import Continued

# Events of a chunk, which is gone through one by one, and numbers of states that are held at a
# time, few enough for a cache: as many chunks as they allow are gone through together.
CHUNK = 64
HELD = 1 << 20


class Scanned(NamedTuple):
    """What is scanned, of T events, E channels and states of N numbers a channel.

    Attributes:
        u: [T, E], the input.
        delta: [T, E], steps, above 0.
        rates: [E, N], A, below 0.
        b, c: [T, N], what the input adds to the state, and what of the state is seen.
    """

    u: Tensor
    delta: Tensor
    rates: Tensor
    b: Tensor
    c: Tensor


def selective_scan(scanned: Scanned, cu_seqlens: Tensor, *, may_fuse: bool = True) -> Tensor:
    """The scan, [T, E] in float32 or better, with memory linear in T; nothing waits for the device.

    Args:
        scanned: of any floating types; see :class:`Scanned`.
        cu_seqlens: int32 [B+1], where each history starts.
        may_fuse: whether a kernel of a GPU may be used; False asks for plain PyTorch.
    """
    dtype = torch.promote_types(scanned.u.dtype, torch.float32)
    with torch.autocast(scanned.u.device.type, enabled=False):
        exact = Scanned(*(x.to(dtype) for x in scanned))
        goes_on = _goes_on(cu_seqlens, len(exact.u)).to(dtype)
        if may_fuse and exact.u.is_cuda and dtype == torch.float32 and has_triton():
            from blossomrec.models.peers.scan_kernels import kernel_scan

            return kernel_scan(exact, goes_on)
        return cast(Tensor, _Scan.apply(*exact, goes_on))


def _goes_on(cu_seqlens: Tensor, total: int) -> Tensor:
    """1 for events that follow another of their history, 0 for first ones, [T]."""
    starts = cu_seqlens[:-1].long()
    # Of histories without events at the end, the start is behind the last event.
    return torch.ones(total + 1, device=starts.device).index_fill(0, starts, 0)[:total]


def scan_on(scanned: Scanned, given: Continued, states: Tensor) -> tuple[Tensor, Tensor]:
    """The scan of new events of several users from their states, event by event.

    Args:
        states: [B, E, N], of each user.

    Returns:
        [T, E], and the states after the events.
    """
    c = scanned.c
    if given.is_one_each:
        states = _next(states, slice(None), scanned)
        return (states @ c[:, :, None])[..., 0], states
    counts = given.cu_seqlens.diff().long()
    users = counts.argsort(descending=True, stable=True)
    starts, out, states = (
        given.cu_seqlens[:-1].long()[users],
        torch.zeros_like(scanned.u),
        states[users],
    )
    descending = counts[users].tolist()
    users_left = len(descending)
    for number in range(descending[0] if descending else 0):
        while descending[users_left - 1] <= number:
            users_left -= 1
        rows = starts[:users_left] + number
        states[:users_left] = _next(states[:users_left], rows, scanned)
        out[rows] = (states[:users_left] @ c[rows, :, None])[..., 0]
    return out, states[users.argsort()]


def _next(states: Tensor, rows: Tensor | slice, scanned: Scanned) -> Tensor:
    u, delta, rates, b, _ = scanned
    step = delta[rows]
    added = (step * u[rows])[..., None] * b[rows, None]
    return torch.addcmul(added, (step[..., None] * rates).exp(), states)


class _Groups:
    """Chunks of T events, so many together as may be held, one group after the other."""

    def __init__(self, scanned: Scanned, goes_on: Tensor):
        total, (channels, size) = len(goes_on), scanned.rates.shape
        self.together = max(1, HELD // (CHUNK * channels * size))
        rows = CHUNK * self.together
        self.count, self.spare = -(-total // rows), -total % rows
        self.rates = scanned.rates
        # Behind the last event steps are 0: nothing is added, all is kept.
        self.padded = {
            name: self.pad(x)
            for name, x in (*scanned._asdict().items(), ("goes_on", goes_on))
            if name != "rates"
        }

    def pad(self, x: Tensor) -> Tensor:
        """[T, ...] as [groups, CHUNK, chunks, ...]: event by event of the chunks of a group."""
        padded = torch.cat((x, x.new_zeros(self.spare, *x.shape[1:])))
        return padded.unflatten(0, (self.count, self.together, CHUNK)).transpose(1, 2)

    def unpad(self, x: Tensor, total: int) -> Tensor:
        return x.transpose(1, 2).flatten(0, 2)[:total]

    def of(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of a group: u, delta, b, c, the decays and what is added, [CHUNK, chunks, E, N]."""
        u, delta, b, c, goes_on = (
            self.padded[name][number] for name in ("u", "delta", "b", "c", "goes_on")
        )
        decays = (delta[..., None] * self.rates).exp_().mul_(goes_on[..., None, None])
        return u, delta, b, c, decays, (delta * u)[..., None] * b[..., None, :]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, rates, b, c, goes_on):
        scanned = Scanned(u, delta, rates, b, c)
        groups = _Groups(scanned, goes_on)
        out = u.new_empty(groups.count, CHUNK, groups.together, u.shape[1])
        # States before each chunk.
        carried = u.new_empty(groups.count, groups.together, *rates.shape)
        state = torch.zeros_like(rates)
        for number in range(groups.count):
            *_, seen, decays, states = groups.of(number)
            for event in range(1, CHUNK):
                states[event].addcmul_(decays[event], states[event - 1])
                decays[event].mul_(decays[event - 1])
            for chunk in range(groups.together):
                carried[number, chunk] = state
                state = torch.addcmul(states[-1, chunk], decays[-1, chunk], state)
            states.addcmul_(decays, carried[number])
            out[number] = (states @ seen[..., None])[..., 0]
        ctx.save_for_backward(*scanned, goes_on, carried)
        return groups.unpad(out, len(u))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *parts, goes_on, carried = ctx.saved_tensors
        scanned = Scanned(*parts)
        groups, rates = _Groups(scanned, goes_on), scanned.rates
        slopes, of_rates = groups.pad(grad), torch.zeros_like(rates)
        found = {name: torch.empty_like(groups.padded[name]) for name in ("u", "delta", "b", "c")}
        # Of the states by what follows: of the last chunk nothing does.
        after = torch.zeros_like(rates)
        for number in reversed(range(groups.count)):
            u, delta, b, c, decays, added = groups.of(number)
            states = added.clone()
            states[0].addcmul_(decays[0], carried[number])
            for event in range(1, CHUNK):
                states[event].addcmul_(decays[event], states[event - 1])
            by_state, after = _by_states(slopes[number], c, decays, after)
            found["c"][number] = (slopes[number][..., None, :] @ states)[..., 0, :]
            # What is left of the state before: exactly 0 where a history starts.
            kept = states.sub_(added).mul_(by_state)
            by_added = (by_state @ b[..., None])[..., 0]
            found["b"][number] = ((delta * u)[..., None, :] @ by_state)[..., 0, :]
            found["u"][number] = by_added * delta
            found["delta"][number] = by_added * u + (kept * rates).sum(-1)
            of_rates += (kept * delta[..., None]).sum((0, 1))
        of = {name: groups.unpad(x, len(grad)) for name, x in found.items()}
        return of["u"], of["delta"], of_rates, of["b"], of["c"], None


def _by_states(slopes: Tensor, c: Tensor, decays: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the states of a group, [CHUNK, chunks, E, N], and by the one before it, [E, N].

    Args:
        slopes: [CHUNK, chunks, E], gradient of the output.
        c: [CHUNK, chunks, N].
        decays: [CHUNK, chunks, E, N].
        after: gradient of the last state by what follows the group, [E, N].
    """
    found = slopes[..., None] * c[..., None, :]
    # How much of what follows a chunk comes back to each event.
    back = torch.ones_like(found)
    for event in reversed(range(CHUNK - 1)):
        found[event].addcmul_(decays[event + 1], found[event + 1])
        torch.mul(back[event + 1], decays[event + 1], out=back[event])
    follows = torch.empty_like(found[0])
    for chunk in reversed(range(len(follows))):
        follows[chunk] = after
        after = decays[0, chunk] * torch.addcmul(found[0, chunk], back[0, chunk], after)
    return found.addcmul_(back, follows), after
