"""Losses that compare each target with a sample of the catalogue, the same for every row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from blossomrec.config import TrainingConfig
from blossomrec.losses import TrainingLoss, row_shares, weighted_mean
from blossomrec.losses.sampled_gradients import CHUNK_ELEMENTS, mean_loss
from blossomrec.losses.sampling import NegativeSampler
from blossomrec.models.fused.embedding import embedding


def sampled_softmax(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    row_weights: Tensor | None = None,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    may_fuse: bool = True,
) -> Tensor:
    """Softmax cross-entropy with the sum over the catalogue estimated from a sample.

    A sampled logit is corrected by the logarithm of the expected number of its item in the sample
    (Bengio and Senécal, IEEE Transactions on Neural Networks 19, 2008). Hits of the target are
    removed and the target, which is always there, is not corrected: the sum that the loss divides
    by is then estimated without bias.

    Logits exist for some rows at a time, with kernels of a GPU nowhere in memory, and gradients are
    computed together with the loss. Under autocast the factors of the products have the autocast
    type; sums and softmax are float32 or better.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M], negative where the row is not to count.
        negatives: int64 [N], drawn with replacement, the same for every row.
        log_q: [N], log-probability with which each was drawn.
        row_weights: [M], how much each row counts in the mean; all alike without.
        chunk_elements: largest number of logits held at once, but for those of a single row.
        may_fuse: whether kernels of a GPU may be used.
    """
    # Unlike indexing, an embedding lookup has a gradient that is summed in a fixed order.
    rows = hidden, embedding(targets.clamp(min=0), weight, may_fuse=may_fuse), targets
    vectors = embedding(negatives, weight, may_fuse=may_fuse)
    options = {"chunk_elements": chunk_elements, "may_fuse": may_fuse}
    return mean_loss(rows, vectors, (negatives, log_q), row_weights, **options)


def gbce(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    row_weights: Tensor | None = None,
    *,
    t: float,
    num_items: int | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    may_fuse: bool = True,
) -> Tensor:
    """Generalised binary cross-entropy (Petrov and Macdonald, gSASRec, RecSys 2023).

    The positive probability is raised to the power beta = alpha (t (1 - 1/alpha) + 1/alpha), where
    alpha = N / (I - 1) is the share of the catalogue that is sampled.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M], negative where the row is not to count.
        negatives: int64 [N], drawn uniformly, the same for every row; hits of the target count 0.
        row_weights: [M], how much each row counts in the mean; all alike without.
        t: calibration, 0 is plain binary cross-entropy, 1 removes all overconfidence.
        num_items: size of the catalogue, where ``weight`` has some of its rows; I without.
        chunk_elements: largest number of logits held at once, but for those of a single row.
        may_fuse: whether kernels of a GPU may be used.
    """
    catalogue = len(weight) if num_items is None else num_items
    alpha = min(len(negatives) / max(catalogue - 1, 1), 1.0)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)

    def of_logits(positive: Tensor, negative: Tensor) -> Tensor:
        return beta * F.softplus(-positive) + F.softplus(negative).sum(1)

    options = {"chunk_elements": chunk_elements, "may_fuse": may_fuse}
    row_losses = _row_losses(of_logits, hidden, weight, targets, negatives, **options)
    return weighted_mean(row_losses, _counted(targets, row_weights)) / (len(negatives) + 1)


def bpr(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    row_weights: Tensor | None = None,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    may_fuse: bool = True,
) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): mean of -log sigmoid(s+ - s-).

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M], negative where the row is not to count.
        negatives: int64 [N], the same for every row; pairs whose items are the same are left out.
        row_weights: [M], how much each pair of a row counts in the mean; all alike without.
        chunk_elements, may_fuse: as of :func:`gbce`.
    """

    def of_logits(positive: Tensor, negative: Tensor) -> Tensor:
        return F.softplus(negative - positive[:, None]).sum(1)

    options = {"chunk_elements": chunk_elements, "may_fuse": may_fuse}
    losses = _row_losses(of_logits, hidden, weight, targets, negatives, **options)
    shares = row_shares(_counted(targets, row_weights))
    counted = (shares * _pairs(targets, negatives)).sum()
    # Nothing is lost where nothing counts, whatever it is divided by.
    return (losses * shares).sum() / torch.where(counted > 0, counted, 1.0)


def _pairs(targets: Tensor, negatives: Tensor) -> Tensor:
    """With how many of the negatives each target [M] makes a pair, int64 [M]."""
    ordered = negatives.sort().values
    first, end = (torch.searchsorted(ordered, targets, right=right) for right in (False, True))
    return len(negatives) - (end - first)


def _counted(targets: Tensor, row_weights: Tensor | None) -> Tensor:
    """How much each row counts, [M]: nothing without a target."""
    there = targets >= 0
    return there.float() if row_weights is None else row_weights * there


def _row_losses(
    of_logits: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    chunk_elements: int,
    may_fuse: bool,
) -> Tensor:
    """Losses of rows, [M], by the logits of their targets [m] and of the sample [m, N].

    Those of the sample are -inf where it hits the target. They exist for some rows at a time; where
    these are not all, they are computed again for the gradients.
    """
    exact = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    # Unlike indexing, a lookup has a gradient that is summed in a fixed order.
    vectors = embedding(targets.clamp(min=0), weight, may_fuse=may_fuse).to(exact)
    sample = embedding(negatives, weight, may_fuse=may_fuse).to(exact)

    def of_part(hidden: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
        positive = (hidden * vectors).sum(1)
        hits = negatives == targets[:, None]
        return of_logits(positive, (hidden @ sample.T).masked_fill(hits, -torch.inf))

    height = max(1, chunk_elements // max(1, len(negatives)))
    rows = hidden.to(exact), vectors, targets
    with torch.autocast(hidden.device.type, enabled=False):
        if len(hidden) <= height:
            return of_part(*rows)
        parts = zip(*(each.split(height) for each in rows), strict=True)
        return torch.cat([_again(of_part, *part) for part in parts])


def _again(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """What a function gives, which is computed again for the gradients."""
    # Nothing is drawn, so that the state of no generator is kept.
    found = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return cast(Tensor, found)


class SampledLoss(TrainingLoss):
    """Base of the losses over ``config.negatives`` items that are drawn anew for every batch.

    Attributes:
        by_popularity: items are drawn by their training events, but for ``config.uniform_share``
            of them; uniformly where it is False.
        sparse: whether ``weight`` may be the rows of the targets and the sample alone, as it is
            where the rest of the item table is not touched.
    """

    by_popularity: ClassVar[bool] = False
    sparse: ClassVar[bool] = False

    def __init__(self, config: TrainingConfig, item_counts: np.ndarray):
        super().__init__(config, item_counts)
        self.num_items = len(item_counts)
        self.sampler = NegativeSampler(
            self.num_items,
            counts=item_counts if self.by_popularity else None,
            uniform_share=config.uniform_share,
            seed=config.seed,
        )

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        # A loss that takes no weights is never given any.
        weights = () if row_weights is None else (row_weights,)
        return self.of_sample(hidden, weight, targets, *self.draw(hidden.device), *weights)

    def draw(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The next negatives, int64 [N], and their log-probabilities [N]; nothing waits."""
        return self.sampler.sample(self.config.negatives, device, may_fuse=self.may_fuse)

    def of_sample(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        negatives: Tensor,
        log_q: Tensor,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss with these negatives, int64 [N], and their log-probabilities [N]."""
        raise NotImplementedError

    def counted(
        self, targets: Tensor, negatives: Tensor, row_weights: Tensor | None = None
    ) -> Tensor | None:
        """What :meth:`of_sample` divides the sum over rows by, but for a constant factor: a scalar.
        None where it is the summed weight of the rows with a target, which the host knows.

        So the mean over the rows of several ranks is made of the means of each.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {"seed": self.sampler.seed, "drawn": self.sampler.drawn}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "drawn" not in state:
            warnings.warn(
                "the training was begun when items were sampled by another generator: it goes on "
                "with items of a new stream",
                stacklevel=2,
            )
            return
        self.sampler.seed.copy_(state["seed"])
        self.sampler.drawn.copy_(state["drawn"])


class SampledSoftmax(SampledLoss):
    """:func:`sampled_softmax` of items that are drawn by popularity."""

    by_popularity = True
    captured = True
    weighted = True
    sparse = True

    def of_sample(self, hidden, weight, targets, negatives, log_q, row_weights=None):
        given = hidden, weight, targets, negatives, log_q, row_weights
        return sampled_softmax(*given, may_fuse=self.may_fuse)


class GBCE(SampledLoss):
    """:func:`gbce`, calibrated by ``config.gbce_t``."""

    captured = True
    weighted = True
    sparse = True

    def of_sample(self, hidden, weight, targets, negatives, log_q, row_weights=None):
        options = {"t": self.config.gbce_t, "num_items": self.num_items}
        given = hidden, weight, targets, negatives, row_weights
        return gbce(*given, **options, may_fuse=self.may_fuse)


class BPR(SampledLoss):
    """:func:`bpr`."""

    captured = True
    weighted = True
    sparse = True

    def of_sample(self, hidden, weight, targets, negatives, log_q, row_weights=None):
        return bpr(hidden, weight, targets, negatives, row_weights, may_fuse=self.may_fuse)

    def counted(self, targets, negatives, row_weights=None):
        return (_counted(targets, row_weights) * _pairs(targets, negatives)).sum()
