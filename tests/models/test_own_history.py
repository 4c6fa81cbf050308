"""Own items mixed into the catalogue, against the mixture as plain loops in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from blossomrec.data.batch import Batch
from blossomrec.models.own_history import OwnHistory
from blossomrec.models.own_history.items import OwnItems
from own_items_oracle import log_mixture
from small_models import NUM_ITEMS

SIZE = 6
DAY = 86_400


def mixture(timed):
    """All of whose numbers matter."""
    torch.manual_seed(0)
    own = OwnHistory(SIZE, 64, timed=timed).double()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return own


def histories(*lengths, few=5, seed=0):
    """Batch, times and time to the next moment; few items, so that they come again."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, few, sum(lengths))
    # Some at the same time, some minutes and some years apart.
    steps = rng.choice([0, 0, 1, 50, 4_000, DAY, 11 * DAY, 400 * DAY], len(items))
    times = 1_600_000_000 + steps.cumsum()
    edges = np.cumsum([0, *lengths])
    ahead = np.append(steps[1:], 7 * DAY)
    ahead[edges[1:] - 1] = 3 * DAY
    ahead[rng.random(len(items)) < 0.2] = -1
    targets = rng.integers(0, few + 3, len(items))
    batch = Batch(
        torch.from_numpy(items),
        torch.from_numpy(edges).int(),
        max(lengths),
        targets=torch.from_numpy(targets),
        times=torch.from_numpy(times),
    )
    return batch, torch.from_numpy(ahead)


def states(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=generator, dtype=torch.float64)


def expected_mixtures(own, hidden, catalogue, batch, ahead):
    edges = batch.cu_seqlens.tolist()
    found = []
    for start, end in itertools.pairwise(edges):
        if start < end:
            given = [each[start:end].tolist() for each in (batch.items, batch.times, ahead)]
            found.append(log_mixture(own, hidden[start:end], catalogue, *given))
    return torch.cat(found)


@pytest.mark.parametrize("timed", [False, True], ids=["events", "times"])
@pytest.mark.parametrize("lengths", [(1,), (2, 1, 7), (33, 1, 18)], ids=str)
def test_losses_and_every_gradient(timed, lengths):
    own, (batch, ahead) = mixture(timed), histories(*lengths)
    hidden, catalogue = states(sum(lengths)), states(NUM_ITEMS, seed=2)
    leaves = [hidden.requires_grad_(), catalogue.requires_grad_(), *own.parameters()]
    logits = hidden @ catalogue.T
    rows = torch.arange(sum(lengths))
    losses = logits.logsumexp(1) - logits[rows, batch.targets]
    losses = own.losses(losses, hidden, batch, None, catalogue, ahead)
    exact = -expected_mixtures(own, hidden, catalogue, batch, ahead)[rows, batch.targets]
    assert torch.allclose(losses, exact, rtol=1e-8)
    counts = torch.linspace(0.5, 2, len(rows), dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad(each @ counts, leaves, allow_unused=True) for each in (losses, exact)
    )
    for value, other, leaf in zip(found, wanted, leaves, strict=True):
        other = torch.zeros_like(leaf) if other is None else other
        value = torch.zeros_like(leaf) if value is None else value
        assert torch.allclose(value, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("timed", [False, True], ids=["events", "times"])
def test_scores_are_the_mixture_for_every_item(timed):
    lengths = (1, 9, 23)
    own, (batch, ahead) = mixture(timed), histories(*lengths)
    hidden, catalogue = states(sum(lengths)), states(NUM_ITEMS, seed=2)
    ends = batch.last_rows
    scores = hidden[ends] @ catalogue.T
    found = own.items(batch, catalogue, ahead)
    of_own = own.scores(
        hidden[ends], scores.logsumexp(1), found, scores[found.history, found.items]
    )
    scores[found.history, found.items] = of_own
    exact = expected_mixtures(own, hidden, catalogue, batch, ahead)[ends]
    assert torch.allclose(scores.log_softmax(1), exact, rtol=1e-8)


def test_parts_of_own_items_join_to_the_whole():
    own, (batch, ahead) = mixture(True), histories(1, 9, 23, 4)
    whole = own.items(batch, states(NUM_ITEMS), ahead)
    joined = OwnItems.join([whole.part(0, 1), whole.part(1, 1), whole.part(1, 4)])
    assert joined.num_histories == whole.num_histories == 4
    for name in ("history", "led", "items", "shares", "buckets", "weights"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
