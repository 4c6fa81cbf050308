"""What new events over kept states are held to: the reference over the whole history at once."""

import math

import torch

from blossomrec.attention import AttentionOutput, BlossomAttention, layer, reference


def relative_error(value, exact):
    return float((value.double() - exact.double()).norm() / exact.double().norm())


class Recorder:
    """Remembers what the attention layers selected while states were extended, one user."""

    def __init__(self, monkeypatch):
        self.selected = {}
        original = BlossomAttention.extend_paged

        def recorded(attention, x, pages, step, *others):
            given: AttentionOutput = original(attention, x, pages, step, *others)
            self.selected.setdefault(attention, []).append(given.selected)
            return given

        monkeypatch.setattr(BlossomAttention, "extend_paged", recorded)

    def replay(self, monkeypatch, first):
        """Make ``forward`` attend as defined, where event t sees only positions from ``first[t]``.

        Each layer uses the blocks that it selected while extending, once they are found to be the
        best ones, so that a tie within rounding does not make two histories of one.
        """
        selections = iter([torch.cat(each) for each in self.selected.values()])

        def attend(q, k, v, block_keys, gates, cu_seqlens, spec, **others):
            selected = next(selections)
            assert_best(q, block_keys, selected, first, spec.block_size, spec.top_n)
            seen = torch.arange(len(q)) >= first[:, None]
            far = reference.long_term_mask(selected, spec.block_size, causal=True) & seen
            near = reference.short_term_mask(len(q), spec, q.device) & seen
            out = reference.fused_attention(q, k, v, gates, far, near, spec)
            return out.to(q.dtype), selected

        monkeypatch.setattr(layer, "blossom_attention", attend)


def assert_best(q, block_keys, selected, first, block_size, top_n):
    """``selected`` are the most important blocks of those that have not left, within rounding."""
    length, groups, _ = selected.shape
    mean_q = q.double().view(length, groups, -1, q.shape[-1]).mean(2) / math.sqrt(q.shape[-1])
    scores = torch.einsum("tgd,jgd->tgj", mean_q, block_keys.double())
    number, own = torch.arange(len(block_keys)), torch.arange(length)[:, None] // block_size
    eligible = ((number < own) & (number >= first[:, None] // block_size))[:, None]
    eligible = eligible.expand_as(scores)
    taken = torch.zeros(length, groups, len(block_keys) + 1, dtype=torch.bool)
    taken.scatter_(-1, torch.where(selected < 0, len(block_keys), selected).long(), True)
    taken = taken[..., :-1]
    assert not (taken & ~eligible).any()
    assert (taken.sum(-1) == eligible.sum(-1).clamp(max=top_n)).all()
    assert ((selected >= 0).sum(-1) == taken.sum(-1)).all()
    rising = torch.where(selected < 0, len(block_keys), selected).diff()
    assert (rising >= 0).all()
    worst = scores.masked_fill(~taken, math.inf).amin(-1) if len(block_keys) else None
    if worst is not None:
        left = scores.masked_fill(taken | ~eligible, -math.inf).amax(-1)
        rounding = max(1e-5, 2 * torch.finfo(block_keys.dtype).eps)
        assert (worst >= left - rounding * scores.abs().max()).all()
