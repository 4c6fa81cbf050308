"""Losses that compare each target with a sample of the catalogue, the same for every row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.config import TrainingConfig
from blossomrec.losses import TrainingLoss, row_shares, weighted_mean


class NegativeSampler:
    """Draws items with replacement from a fixed distribution; its stream can be saved and resumed.

    Args:
        num_items: size of the catalogue.
        counts: [I] training events of each item, for sampling by popularity (each count plus one,
            so that every item can be drawn); uniform without.
        seed: start of the stream.
    """

    def __init__(self, num_items: int, *, counts: Any = None, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        shares = torch.ones(num_items, dtype=torch.float64)
        if counts is not None:
            shares += torch.as_tensor(np.asarray(counts), dtype=torch.float64)
        self.probabilities = shares / shares.sum()
        # A search in the running sum has no limit on the catalogue, as torch.multinomial has.
        self.cumulative = self.probabilities.cumsum(0)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` items, int64, and their log-probabilities, float32, both on the CPU."""
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64)
        items = torch.searchsorted(self.cumulative, draws * self.cumulative[-1], right=True)
        items = items.clamp(max=len(self.cumulative) - 1)
        return items, self.probabilities[items].log().float()


def sampled_softmax(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy with the sum over the catalogue estimated from a sample.

    A sampled logit is corrected by the logarithm of the expected number of its item in the sample
    (Bengio and Senécal, IEEE Transactions on Neural Networks 19, 2008). Hits of the target are
    removed and the target, which is always there, is not corrected: the sum that the loss divides
    by is then estimated without bias.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M].
        negatives: int64 [N], drawn with replacement, the same for every row.
        log_q: [N], log-probability with which each was drawn.
        row_weights: [M], how much each row counts in the mean; all alike without.
    """
    positive, negative = _sampled_logits(hidden, weight, targets, negatives)
    negative = negative - (log_q + np.log(len(negatives)))
    losses = torch.cat([positive[:, None], negative], dim=1).logsumexp(1) - positive
    return weighted_mean(losses, row_weights)


def gbce(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    row_weights: Tensor | None = None,
    *,
    t: float,
) -> Tensor:
    """Generalised binary cross-entropy (Petrov and Macdonald, gSASRec, RecSys 2023).

    The positive probability is raised to the power beta = alpha (t (1 - 1/alpha) + 1/alpha), where
    alpha = N / (I - 1) is the share of the catalogue that is sampled.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M].
        negatives: int64 [N], drawn uniformly, the same for every row; hits of the target count 0.
        row_weights: [M], how much each row counts in the mean; all alike without.
        t: calibration, 0 is plain binary cross-entropy, 1 removes all overconfidence.
    """
    positive, negative = _sampled_logits(hidden, weight, targets, negatives)
    alpha = min(len(negatives) / max(len(weight) - 1, 1), 1.0)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    row_losses = beta * F.softplus(-positive) + F.softplus(negative).sum(1)
    return weighted_mean(row_losses, row_weights) / (len(negatives) + 1)


def bpr(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): mean of -log sigmoid(s+ - s-).

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M].
        negatives: int64 [N], the same for every row; pairs whose items are the same are left out.
        row_weights: [M], how much each pair of a row counts in the mean; all alike without.
    """
    positive, negative = _sampled_logits(hidden, weight, targets, negatives)
    pairs, losses = negatives != targets[:, None], F.softplus(negative - positive[:, None])
    if row_weights is None:
        return losses.sum() / pairs.sum().clamp(min=1)
    shares = row_shares(row_weights)
    counted = (shares * pairs.sum(1)).sum()
    # Nothing is lost where nothing counts, whatever it is divided by.
    return (losses.sum(1) * shares).sum() / torch.where(counted > 0, counted, 1.0)


def _sampled_logits(
    hidden: Tensor, weight: Tensor, targets: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of the targets [M] and of the sample [M, N], -inf where it hits the target."""
    exact = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(exact)
        # Unlike indexing, an embedding lookup has a gradient that is summed in a fixed order.
        positive = (hidden * F.embedding(targets, weight).to(exact)).sum(1)
        negative = hidden @ F.embedding(negatives, weight).to(exact).T
    return positive, negative.masked_fill(negatives == targets[:, None], -torch.inf)


class SampledLoss(TrainingLoss):
    """Base of the losses over ``config.negatives`` items that are drawn anew for every batch.

    Attributes:
        by_popularity: items are drawn by their training events, not uniformly.
    """

    by_popularity: ClassVar[bool] = False

    def __init__(self, config: TrainingConfig, item_counts: np.ndarray):
        super().__init__(config, item_counts)
        counts = item_counts if self.by_popularity else None
        self.sampler = NegativeSampler(len(item_counts), counts=counts, seed=config.seed)

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        negatives, log_q = self.sampler.sample(self.config.negatives)
        sample = negatives.to(hidden.device), log_q.to(hidden.device)
        # A loss that takes no weights is never given any.
        weights = () if row_weights is None else (row_weights,)
        return self.of_sample(hidden, weight, targets, *sample, *weights)

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

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.sampler.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sampler.generator.set_state(state["generator"])


class SampledSoftmax(SampledLoss):
    """:func:`sampled_softmax` of items that are drawn by popularity."""

    by_popularity = True
    weighted = True

    def of_sample(self, hidden, weight, targets, negatives, log_q, row_weights=None):
        return sampled_softmax(hidden, weight, targets, negatives, log_q, row_weights)


class GBCE(SampledLoss):
    """:func:`gbce`, calibrated by ``config.gbce_t``."""

    weighted = True

    def of_sample(self, hidden, weight, targets, negatives, log_q, row_weights=None):
        return gbce(hidden, weight, targets, negatives, row_weights, t=self.config.gbce_t)


class BPR(SampledLoss):
    """:func:`bpr`."""

    weighted = True

    def of_sample(self, hidden, weight, targets, negatives, log_q, row_weights=None):
        return bpr(hidden, weight, targets, negatives, row_weights)
