"""The loss of several ranks, where their rows count alike and where they do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.losses.sharded import sharded_cross_entropy
from blossomrec.ranks import Ranks


class Only(Ranks):
    """A rank that has all items and rows."""

    def gather(self, x: Tensor) -> Tensor:
        return x

    def sum_to_owners(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("alike", [True, False])
def test_the_mean_of_rows_has_its_gradients(alike, sign):
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 4), torch.randn(11, 4)
    targets = torch.tensor([3, -1, 5, 5, 0, 10, -1, 2, 1])
    given = [each.clone().requires_grad_() for each in (hidden, weight)]
    options = {"first": 0, "longest": 12, "alike": alike, "chunk_elements": 30}
    losses = sharded_cross_entropy(*given, targets, Only(), **options)
    (sign * losses.sum() / 7).backward()
    wanted = [each.clone().requires_grad_() for each in (hidden, weight)]
    (sign * F.cross_entropy(wanted[0] @ wanted[1].T, targets, ignore_index=-1)).backward()
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_rows_that_do_not_count_alike_have_gradients_of_their_own():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    targets, shares = torch.tensor([1, 4, 0, 4]), torch.tensor([0.5, -2.0, 0.0, 1.0])
    losses = sharded_cross_entropy(hidden, weight, targets, Only(), first=0, longest=4)
    found = torch.autograd.grad(losses, (hidden, weight), shares)
    dense = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    wanted = torch.autograd.grad(dense, (hidden, weight), shares)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
