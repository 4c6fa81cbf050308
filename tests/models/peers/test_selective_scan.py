"""The selective scan against its recurrence in float64, and its kernels against it."""

import pytest
import torch
import torch.nn.functional as F
from peer_inputs import LENGTHS, bounds_of, draw, relative_error

from blossomrec.models.peers import selective_scan as scans
from blossomrec.models.peers.selective_scan import Scanned, scan_on, selective_scan
from blossomrec.models.recurrent import Continued

lengths_of = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def drawn(total, channels=6, size=3) -> Scanned:
    """Steps from tiny to large, so that states are kept long and forgotten at once."""
    u, steps = draw(total, channels), draw(total, channels, seed=1)
    rates = -(draw(channels, size, seed=2).exp())
    b, c = draw(total, size, seed=3), draw(total, size, seed=4)
    return Scanned(u, F.softplus(2 * steps - 2), rates, b, c)


def event_by_event(scanned, lengths, states=None):
    """Outputs and last states, from the definition."""
    u, delta, rates, b, c = scanned
    out, last, row = [], [], 0
    for number, length in enumerate(lengths):
        state = torch.zeros_like(rates) if states is None else states[number]
        for _ in range(length):
            decay, added = torch.exp(delta[row, :, None] * rates), delta[row] * u[row]
            state = decay * state + added[:, None] * b[row]
            out.append(state @ c[row])
            row += 1
        last.append(state)
    return torch.stack(out), torch.stack(last)


@pytest.mark.parametrize("held", [1, 64 * 6 * 3 * 2, 1 << 22], ids=["one", "two", "many"])
@lengths_of
def test_parity_with_the_recurrence(lengths, held, monkeypatch):
    monkeypatch.setattr(scans, "HELD", held)
    scanned = drawn(sum(lengths))
    leaves = [x.requires_grad_() for x in scanned]
    expected, _ = event_by_event(Scanned(*leaves), lengths)
    out = selective_scan(Scanned(*leaves), bounds_of(lengths))
    torch.testing.assert_close(out, expected)
    grad = draw(*out.shape, seed=9)
    exact = torch.autograd.grad(expected, leaves, grad)
    for found, each in zip(torch.autograd.grad(out, leaves, grad), exact, strict=True):
        torch.testing.assert_close(found, each)
    single = [x.detach().float().requires_grad_() for x in scanned]
    rounded = selective_scan(Scanned(*single), bounds_of(lengths))
    assert relative_error(rounded, out) < 1e-5
    for found, each in zip(torch.autograd.grad(rounded, single, grad.float()), exact, strict=True):
        assert relative_error(found, each) < 1e-5


def test_memory_is_that_of_a_few_chunks(monkeypatch):
    monkeypatch.setattr(scans, "HELD", 64 * 6 * 3)
    scanned = Scanned(*(x.requires_grad_() for x in drawn(640)))
    out = selective_scan(scanned, bounds_of([640]))
    sizes = [x.numel() for x in out.grad_fn.saved_tensors]
    # Of states those before ten chunks, beside the inputs.
    assert sorted(sizes) == sorted([*(x.numel() for x in scanned), 640, 10 * 6 * 3])


@lengths_of
def test_new_events_behind_states(lengths):
    scanned, states = drawn(sum(lengths)), draw(len(lengths), 6, 3, seed=5)
    expected, last = event_by_event(scanned, lengths, states)
    bounds, nobody = bounds_of(lengths), torch.zeros(len(lengths), dtype=torch.int64)
    position = torch.arange(sum(lengths))
    given = Continued(bounds, max(lengths), nobody, position)
    out, after = scan_on(scanned, given, states)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(after, last)


def test_one_event_of_each_user():
    scanned, states = drawn(5), draw(5, 6, 3, seed=5)
    expected, last = event_by_event(scanned, [1] * 5, states)
    before = states.clone()
    nobody = torch.zeros(5, dtype=torch.int64)
    out, after = scan_on(scanned, Continued(bounds_of([1] * 5), 1, nobody, nobody), states)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(after, last)
    assert torch.equal(states, before)
