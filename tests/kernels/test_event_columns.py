"""The kernel for what is seen of events against the plain form; interpreted without a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from blossomrec.data.fields import ContextField
from blossomrec.models import fused
from blossomrec.models.event_inputs import EventInputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTEXT = (
    ContextField("shop", "category", ("web", "app")),
    ContextField("price", "number", mean=10.0, deviation=4.0),
    ContextField("day", "category", tuple(map(str, range(9)))),
    ContextField("amount", "number", mean=-1.0, deviation=0.5),
)
# The shape of a request, of parts of an event, and of all of one.
FORMS = [
    {"gap": True},
    {"clock": True, "kinds": 3},
    {"context": CONTEXT, "users": 5},
    {"gap": True, "clock": True, "kinds": 3, "context": CONTEXT, "users": 5},
]


def seen(form, count):
    """Of ``count`` events, with times before 1970, unknown gaps and missing values."""
    generator = torch.Generator().manual_seed(count)

    def draw(low, high):
        return torch.randint(low, high, (count,), generator=generator).to(DEVICE)

    shop, day = draw(0, 3), draw(0, 10)
    numbers = torch.randn(count, 2, generator=generator).to(DEVICE)
    context = torch.stack((shop, numbers[:, 0], day, numbers[:, 1]), 1).float()
    context[draw(0, 4) == 0] = torch.nan
    users = torch.randn(count, 5, generator=generator).to(DEVICE)
    given = {
        "gap": (draw(-1, 1 << 32), "gap" in form),
        "seconds": (draw(-(1 << 33), 1 << 33), "clock" in form),
        "kinds": (draw(0, 4), "kinds" in form),
        "context": (context, "context" in form),
        "users": (users, "users" in form),
    }
    return {name: value for name, (value, there) in given.items() if there}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form))
@pytest.mark.parametrize("count", [5, 70])
def test_rows_and_gradients_are_those_of_the_plain_form(form, count, monkeypatch):
    inputs = EventInputs(12, **form).to(DEVICE)
    torch.nn.init.normal_(inputs.embeddings.weight)
    found = []
    for kernels in (False, True):
        monkeypatch.setattr(fused, "usable", lambda x, kernels=kernels: kernels)
        given = {"gap": None, "seconds": None} | seen(form, count)
        out = inputs(**given)
        (grad,) = torch.autograd.grad(out.square().sum(), inputs.embeddings.weight)
        found.append((out, grad))
    for plain, kernel in zip(*found, strict=True):
        torch.testing.assert_close(kernel, plain)


def test_no_event_gives_no_row(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    inputs = EventInputs(12, gap=True).to(DEVICE)
    assert inputs(torch.zeros(0, dtype=torch.long, device=DEVICE), None).shape == (0, 12)
