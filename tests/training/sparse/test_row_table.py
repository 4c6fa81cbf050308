"""A table of rows against the dense form of its optimizer and its moving average."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from blossomrec.training.sparse import distinct as distinct_rows
from blossomrec.training.sparse import table as tables
from blossomrec.training.sparse.distinct import distinct
from blossomrec.training.sparse.rules import LazyAdamW, RowwiseAdaGrad
from blossomrec.training.sparse.table import RowTable

ROWS, SIZE, DECAY = 300, 5, 0.98


def rate_of(step: int) -> float:
    return 0.01 * min(1.0, (step + 1) / 20) * (1.0 if step < 200 else 0.3)


def rows_of(step: int) -> torch.Tensor:
    """A few rows, some often, some rarely, some twice, some never."""
    generator = torch.Generator().manual_seed(step)
    draws = torch.rand(12, generator=generator, dtype=torch.float64)
    return (draws**3 * (ROWS - 20)).long()


def gradients(vectors: torch.Tensor, step: int) -> torch.Tensor:
    """A loss whose gradients depend on the rows, and differ much in size."""
    generator = torch.Generator().manual_seed(1_000 + step)
    wanted = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    wanted = wanted.to(vectors.dtype)
    return ((vectors - wanted).square().sum(1) * 10.0 ** wanted[:, 0].detach()).sum()


class DenseAdaGrad:
    """Row-wise AdaGrad, all rows at every step."""

    def __init__(self, weight: nn.Parameter):
        self.weight, self.sums = weight, torch.zeros(len(weight), dtype=weight.dtype)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.sums += self.weight.grad.square().mean(1)
        self.weight -= rate * self.weight.grad / (self.sums.sqrt() + 1e-8)[:, None]


def start(dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64).to(dtype)


def by_rows(rule, steps, *, decay=DECAY, dtype=torch.float64, may_fuse=True):
    """A table after some steps, not caught up."""
    table = RowTable("items", nn.Parameter(start(dtype)), rule, may_fuse=may_fuse)
    if decay:
        table.start_average(decay)
    go_on(table, range(steps))
    return table


def go_on(table, steps):
    for step in steps:
        (places,) = table.take(rows_of(step))
        gradients(F.embedding(places, table.vectors), step).backward()
        table.set_rate(rate_of(step))
        table.step()


def dense(rule, steps, dtype=torch.float64):
    """Weights and average of the whole table by the dense form."""
    weight = nn.Parameter(start(dtype))
    adagrad = DenseAdaGrad(weight)
    adamw = torch.optim.AdamW([weight], weight_decay=0.0, eps=LazyAdamW.eps)
    mean = weight.detach().clone()
    for step in range(steps):
        weight.grad = None
        gradients(F.embedding(rows_of(step), weight), step).backward()
        if isinstance(rule, RowwiseAdaGrad):
            adagrad.step(rate_of(step))
        else:
            adamw.param_groups[0]["lr"] = rate_of(step)
            adamw.step()
        decay = min(DECAY, (2 + step) / (11 + step))
        get_ema_multi_avg_fn(decay)([mean], [weight.detach()], step)
    return weight.detach(), mean, adamw.state.get(weight, {})


# With AdamW's usual eps, and with one that is as good as none.
@pytest.mark.parametrize("eps, error", [(1e-8, 1e-5), (1e-30, 1e-11)])
@pytest.mark.parametrize("rule", [LazyAdamW, RowwiseAdaGrad])
@pytest.mark.parametrize("steps", [1, 3, 400])
def test_a_table_that_has_caught_up_is_the_dense_one(monkeypatch, rule, steps, eps, error):
    monkeypatch.setattr(LazyAdamW, "eps", eps)
    table = by_rows(rule(), steps)
    weight, mean, moments = dense(rule(), steps)
    behind = (table.updates - table.seen).max()
    assert behind == steps if steps < 10 else 200 < behind <= ROWS
    table.catch_up()
    # Of how far rows went, which is much less than where they are.
    scale = (weight - start()).abs().max()
    assert scale > 1e-4
    torch.testing.assert_close(table.weight.detach(), weight, rtol=0, atol=error * scale)
    torch.testing.assert_close(table.mean, mean, rtol=0, atol=error * scale)
    for name in moments.keys() & table.rows_state.keys():
        torch.testing.assert_close(table.rows_state[name], moments[name], rtol=error, atol=0)


def test_a_rate_on_the_device_is_that_of_the_moment():
    """As a captured step sees it."""
    found, rate = [], torch.zeros(())
    for on_device in (True, False):
        table = RowTable("items", nn.Parameter(start()), LazyAdamW(), rate_factor=2.0)
        table.set_rate(rate)
        for step in range(30):
            (places,) = table.take(rows_of(step))
            gradients(F.embedding(places, table.vectors), step).backward()
            rate.fill_(2.0 ** -(step % 7))
            if not on_device:
                table.set_rate(2.0 ** -(step % 7))
            table.step()
        found.append(table.weight.detach())
    assert torch.equal(*found)


def test_rows_that_nothing_is_known_of_stay_where_they_are():
    table = by_rows(LazyAdamW(), 300)
    table.catch_up()
    assert torch.equal(table.weight[-20:], start()[-20:])
    torch.testing.assert_close(table.mean[-20:], start()[-20:], rtol=1e-12, atol=0)


def test_rows_after_their_last_gradient_go_on_moving():
    """Or else this would not be the dense form."""
    table = by_rows(LazyAdamW(), 1)
    at_once = table.weight.detach().clone()
    touched = rows_of(0)
    (places,) = table.take(torch.tensor([ROWS - 1]))
    (F.embedding(places, table.vectors).sum() * 0).backward()
    table.step()
    table.catch_up()
    assert ((table.weight - at_once)[touched].abs() > 1e-4).all()


def test_in_float32_it_is_as_near_as_float32_goes():
    table = by_rows(LazyAdamW(), 400, dtype=torch.float32)
    table.catch_up()
    weight, mean, _ = dense(LazyAdamW(), 400)
    torch.testing.assert_close(table.weight.detach().double(), weight, rtol=0, atol=2e-5)
    torch.testing.assert_close(table.mean.double(), mean, rtol=0, atol=2e-5)


@pytest.mark.parametrize("decay", [0, DECAY])
def test_kernels_find_the_same(monkeypatch, decay):
    pytest.importorskip("triton")
    from blossomrec.models.fused.lazy_adamw import LazyRows

    found, by_age, taken = [], [], []
    step = LazyRows.step

    def counted(*given, **options):
        taken.append(given)
        step(*given, **options)

    monkeypatch.setattr(LazyRows, "step", counted)
    monkeypatch.setattr(tables.fused, "usable", lambda x: True)
    for may_fuse in (True, False):
        table = by_rows(LazyAdamW(), 60, decay=decay, dtype=torch.float32, may_fuse=may_fuse)
        assert len(taken) == 60
        behind = table.seen.clone()
        table.catch_up()
        mean = () if table.mean is None else (table.mean,)
        found.append((table.weight.detach(), *mean, *table.rows_state.values(), behind))
        by_age.append((table.steps, table.updates, table.moved, table.left, table.behind))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for one, other in zip(*by_age, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("age", [512, 500, 150])
def test_no_row_is_older_than_is_allowed(monkeypatch, age):
    """Where the ages that are known of are fewer, more rows are brought up to date in turn."""
    monkeypatch.setattr(tables, "LONGEST_AGE", age)
    table = by_rows(LazyAdamW(), 400)
    assert 100 < (table.updates - table.seen).max() <= min(age, ROWS)
    table.catch_up()
    weight, mean, _ = dense(LazyAdamW(), 400)
    torch.testing.assert_close(table.weight.detach(), weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(table.mean, mean, rtol=0, atol=1e-5)


def test_when_it_catches_up_changes_no_more_than_rounding(monkeypatch):
    monkeypatch.setattr(LazyAdamW, "eps", 1e-30)
    often, once = by_rows(LazyAdamW(), 0), by_rows(LazyAdamW(), 120)
    for step in range(120):
        go_on(often, [step])
        if step % 7 == 0:
            often.catch_up()
    for table in (often, once):
        table.catch_up()
    torch.testing.assert_close(often.weight, once.weight, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(often.mean, once.mean, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", [LazyAdamW, RowwiseAdaGrad])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_a_stored_table_goes_on_to_the_same_bits(rule, decay):
    whole = by_rows(rule(), 50, decay=decay)
    first = by_rows(rule(), 30, decay=decay)
    other = by_rows(rule(), 3, decay=decay)
    kept = {name: value.clone() for name, value in first.state_dict().items()}
    with torch.no_grad():
        other.weight.copy_(first.weight)
        if decay:
            other.mean.copy_(first.mean)
    other.load_state_dict(kept)
    go_on(other, range(30, 50))
    assert torch.equal(other.weight, whole.weight)
    assert not decay or torch.equal(other.mean, whole.mean)
    for name, value in whole.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_gradients_of_rows_are_those_of_the_table():
    table = RowTable("items", nn.Parameter(start()), RowwiseAdaGrad())
    items, targets = rows_of(1), rows_of(2).view(3, 4)
    weight = nn.Parameter(start())
    found = table.take(items, targets)
    assert found[1].shape == targets.shape
    for of, rows in ((table.vectors, found), (weight, (items, targets))):
        looked_up = [F.embedding(each, of) for each in rows]
        (
            looked_up[0].square().sum() + (looked_up[1] * looked_up[0][:3, None]).sin().sum()
        ).backward()
    rows = distinct([items, targets], ROWS).rows.unique()
    dense_rows = torch.zeros_like(weight).index_add_(0, table._rows, table.vectors.grad)
    torch.testing.assert_close(dense_rows, weight.grad, rtol=1e-12, atol=1e-14)
    assert (weight.grad.abs().sum(1) > 0).nonzero()[:, 0].tolist() == rows.tolist()
    # Clipping by the norm sees the same.
    torch.testing.assert_close(table.vectors.grad.norm(), weight.grad.norm())
    assert weight.grad.shape[0] > len(table.vectors)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_distinct_rows_are_those_of_unique(seed, fused, monkeypatch):
    if fused:
        pytest.importorskip("triton")
        monkeypatch.setattr(distinct_rows, "BLOCK", 4)
    generator = torch.Generator().manual_seed(seed)
    given = [
        torch.randint(0, 9, shape, generator=generator) for shape in ((5,), (0,), (2, 3), (seed,))
    ]
    found = distinct(given, 9, fused=fused)
    rows = torch.cat([each.flatten() for each in given]).unique()
    assert found.rows.unique().tolist() == rows.tolist()
    assert len(found.rows) == min(9, 11 + seed)
    assert torch.equal(found.rows[: len(rows)], rows)
    assert torch.equal(found.rows, found.rows[found.own])
    for one, places in zip(given, found.places, strict=True):
        assert torch.equal(found.rows[places], one)
        assert (places < len(rows)).all()
    # Slots beyond the distinct rows are told from those where a row stands first.
    first = torch.arange(len(found.rows)) == found.own
    assert first.nonzero()[:, 0].tolist() == list(range(len(rows)))
    together = torch.cat([each.flatten() for each in found.places])
    assert torch.equal(together[found.ordered.places], found.ordered.keys.long())
    assert (found.ordered.keys.diff() >= 0).all()
