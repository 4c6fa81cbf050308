"""Training losses over an item catalogue, none of which holds one logit per row and item.

Each takes ``hidden`` [M, D] (one row per prediction), ``weight`` [I, D] (one row per item) and
``targets`` [M] (item rows), and returns a scalar mean that is differentiable in the first two. To
``cross_entropy`` a negative target is none: its row counts nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import product
from blossomrec.config import TrainingConfig
from blossomrec.errors import ConfigError
from blossomrec.models import fused

# Fewer rows than this in a tile would spend more time on adding up the gradient of the catalogue
# than on the products themselves.
TILE_ROWS = 512


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_elements: int = 1 << 23
) -> Tensor:
    """Softmax cross-entropy over the whole catalogue, exact, with bounded memory.

    Logits exist in tiles of at most ``chunk_elements``; both gradients are computed together with
    the loss, so that nothing of size M x I is kept for the backward pass. Under autocast the
    factors of the products have the autocast type; sums and softmax are float32 or better.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M], each in 0 .. I-1, or negative where the row is not to count.
        chunk_elements: largest number of logits held at once; about four times as many float32
            numbers is what the loss needs beside its gradients.
    """
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _CatalogueCrossEntropy.apply(
        hidden, weight, targets, dtype, chunk_elements, differentiate
    )


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype, chunk_elements, differentiate):
        # Never looked at: the answer would have to come from the device.
        ctx.rows, ctx.dtypes = (targets >= 0).sum().clamp(min=1), (hidden.dtype, weight.dtype)
        summed = _by_kernels if _kernels_take(hidden, dtype) else _by_tiles
        with torch.autocast(hidden.device.type, enabled=False):
            factors, items = hidden.to(dtype), weight.to(dtype)
            total, gradients = summed(factors, items, targets, chunk_elements, differentiate)
        ctx.save_for_backward(*gradients)
        return total / ctx.rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # The mean is taken here: dividing earlier would underflow in float16 factors.
        factor = grad / ctx.rows
        scaled = [
            (each * factor).to(dtype)
            for each, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None


def _kernels_take(hidden: Tensor, dtype: torch.dtype) -> bool:
    if not len(hidden) or not fused.usable(hidden):
        return False
    from blossomrec.models.fused import catalogue_loss

    return catalogue_loss.takes(hidden, dtype)


def _by_kernels(
    factors: Tensor, items: Tensor, targets: Tensor, chunk_elements: int, differentiate: bool
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss and gradients, as :func:`_by_tiles`, on a GPU in 16 bits."""
    from blossomrec.models.fused.catalogue_loss import summed_cross_entropy

    # In 16 bits eight times as many gradients of logits take what four float32 tiles take.
    return summed_cross_entropy(factors, items, targets, 8 * chunk_elements, differentiate)


def _by_tiles(
    factors: Tensor, items: Tensor, targets: Tensor, chunk_elements: int, differentiate: bool
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss, and its gradients [M, D] and [I, D] if they are wanted."""
    rows, exact = len(factors), torch.promote_types(factors.dtype, torch.float32)
    height = min(max(chunk_elements // len(items), TILE_ROWS), chunk_elements, rows)
    width = min(max(chunk_elements // max(height, 1), 1), len(items))
    total = factors.new_zeros((), dtype=exact)
    gradients = []
    if differentiate:
        gradients = [torch.zeros_like(each, dtype=exact) for each in (factors, items)]
    for start in range(0, rows, max(height, 1)):
        part = slice(start, start + height)
        total += _add_rows(factors[part], items, targets[part], width, part, gradients)
    return total, gradients


def _add_rows(
    factors: Tensor,
    items: Tensor,
    targets: Tensor,
    width: int,
    rows: slice,
    gradients: list[Tensor],
) -> Tensor:
    """Summed loss of some rows; adds their share to ``gradients``, [M, D] and [I, D], if given."""
    exact = torch.promote_types(factors.dtype, torch.float32)
    columns = [slice(start, start + width) for start in range(0, len(items), width)]
    normaliser = torch.full_like(targets, -torch.inf, dtype=exact)
    target_logits = torch.zeros_like(normaliser)
    logits = normaliser
    for column in columns:
        logits = product(factors, items[column].T)
        normaliser = torch.logaddexp(normaliser, logits.logsumexp(1))
        target_logits += _at_targets(logits, targets, column.start)
    # Where there is no target nothing is likely, and nothing is lost.
    counted = targets >= 0
    normaliser = normaliser.masked_fill(~counted, torch.inf)
    for column in columns if gradients else ():
        # A single tile is still there; several are computed again rather than kept.
        if len(columns) > 1:
            logits = product(factors, items[column].T)
        excess = logits.sub_(normaliser[:, None]).exp_()
        _subtract_targets(excess, targets, column.start)
        excess = excess.to(factors.dtype)
        gradients[0][rows] += product(excess, items[column])
        gradients[1][column] += product(excess.T, factors)
    return (normaliser - target_logits).masked_fill(~counted, 0.0).sum()


def _at_targets(logits: Tensor, targets: Tensor, start: int) -> Tensor:
    """Each row's target logit where its column is in this tile, else 0, [rows]."""
    place = targets - start
    inside = (place >= 0) & (place < logits.shape[1])
    found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return torch.where(inside, found, 0.0)


def _subtract_targets(probabilities: Tensor, targets: Tensor, start: int) -> None:
    """Take 1 from each row's target where its column is in this tile, in place."""
    place = targets - start
    inside = (place >= 0) & (place < probabilities.shape[1])
    place = place.clamp(0, probabilities.shape[1] - 1)[:, None]
    probabilities.scatter_add_(1, place, -inside[:, None].to(probabilities.dtype))


def sampled_softmax(
    hidden: Tensor, weight: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor
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
    """
    positive, negative = _sampled_logits(hidden, weight, targets, negatives)
    negative = negative - (log_q + np.log(len(negatives)))
    return (torch.cat([positive[:, None], negative], dim=1).logsumexp(1) - positive).mean()


def gbce(hidden: Tensor, weight: Tensor, targets: Tensor, negatives: Tensor, *, t: float) -> Tensor:
    """Generalised binary cross-entropy (Petrov and Macdonald, gSASRec, RecSys 2023).

    The positive probability is raised to the power beta = alpha (t (1 - 1/alpha) + 1/alpha), where
    alpha = N / (I - 1) is the share of the catalogue that is sampled.

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M].
        negatives: int64 [N], drawn uniformly, the same for every row; hits of the target count 0.
        t: calibration, 0 is plain binary cross-entropy, 1 removes all overconfidence.
    """
    positive, negative = _sampled_logits(hidden, weight, targets, negatives)
    alpha = min(len(negatives) / max(len(weight) - 1, 1), 1.0)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    row_losses = beta * F.softplus(-positive) + F.softplus(negative).sum(1)
    return row_losses.mean() / (len(negatives) + 1)


def bpr(hidden: Tensor, weight: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): mean of -log sigmoid(s+ - s-).

    Args:
        hidden: [M, D].
        weight: [I, D].
        targets: int64 [M].
        negatives: int64 [N], the same for every row; pairs whose items are the same are left out.
    """
    positive, negative = _sampled_logits(hidden, weight, targets, negatives)
    pairs = (negatives != targets[:, None]).sum()
    return F.softplus(negative - positive[:, None]).sum() / pairs.clamp(min=1)


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


class TrainingLoss:
    """The loss a configuration asks for, with the state of its sampling.

    Called with (hidden [M, D], weight [I, D], targets [M]), it returns a scalar.
    """

    def __init__(self, config: TrainingConfig, sampler: NegativeSampler | None):
        self.config, self.sampler = config, sampler

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        if self.sampler is None:
            return cross_entropy(hidden, weight, targets)
        negatives, log_q = self.sampler.sample(self.config.negatives)
        negatives, log_q = negatives.to(hidden.device), log_q.to(hidden.device)
        if self.config.loss == "sampled_softmax":
            return sampled_softmax(hidden, weight, targets, negatives, log_q)
        if self.config.loss == "gbce":
            return gbce(hidden, weight, targets, negatives, t=self.config.gbce_t)
        return bpr(hidden, weight, targets, negatives)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state_dict` continues the same stream of samples."""
        return {} if self.sampler is None else {"generator": self.sampler.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.sampler is not None:
            self.sampler.generator.set_state(state["generator"])


def build_loss(config: TrainingConfig, item_counts: Any, num_items: int) -> TrainingLoss:
    """The loss named by ``config.loss``.

    Args:
        config: which loss, how many negatives, the seed of their sampling.
        item_counts: [I] training events of each item; sampled softmax draws by them, gBCE and BPR
            draw uniformly.
        num_items: size of the catalogue.

    Raises:
        ConfigError: ``item_counts`` has another length than the catalogue.
    """
    if len(item_counts) != num_items:
        raise ConfigError(f"{len(item_counts)} item counts for {num_items} items")
    if config.loss == "cross_entropy":
        return TrainingLoss(config, None)
    counts = item_counts if config.loss == "sampled_softmax" else None
    return TrainingLoss(config, NegativeSampler(num_items, counts=counts, seed=config.seed))
