"""Gates of residual connections, and the forms of the feed-forward network."""

import pytest
import torch
import torch.nn.functional as F

from blossomrec.data.batch import pack
from small_models import random_histories, small_model

FORMS = [
    {"residual": residual, "feed_forward": feed_forward, "norm": norm}
    for residual in ("plain", "gated")
    for feed_forward in ("gelu", "swiglu", "none")
    for norm in ("pre", "post")
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))


def written_out(model, batch):
    """What one layer makes of a batch, from the definition."""
    form, layer = model.config, model.stack()[0]
    pre = form.norm == "pre"
    x = model.embed(batch)

    def joined(x, function, norm, gate):
        added = function(norm(x)) if pre else function(x)
        if form.residual == "gated":
            added = torch.sigmoid(x @ gate.weight.T + gate.bias) * added
        return x + added if pre else norm(x + added)

    def attend(x):
        return layer.attention(x, batch.cu_seqlens, max_length=batch.max_length).hidden

    def feed(x):
        inner = layer.inner(x)
        if form.feed_forward == "gelu":
            return layer.outer(F.gelu(inner))
        value, opening = inner.split(form.inner_size, -1)
        return layer.outer(value * opening * torch.sigmoid(opening))

    x = joined(x, attend, layer.attention_norm, getattr(layer, "attention_gate", None))
    if form.feed_forward != "none":
        x = joined(x, feed, layer.feed_forward_norm, getattr(layer, "feed_forward_gate", None))
    return model.final_norm(x)


@forms
def test_layers_are_what_the_options_say(form):
    model = small_model(layers=1, **form)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter)
    batch = pack(random_histories(30, 7))
    torch.testing.assert_close(model.encode(batch).hidden, written_out(model, batch))


@forms
def test_gradient_reaches_every_parameter(form):
    model = small_model(attention="full", **form).train()
    batch = pack(random_histories(40, 33, 28, 3))
    logits = model.encode(batch).hidden @ model.output_weight().T
    F.cross_entropy(logits, batch.items.roll(-1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_gate_starts_half_open():
    layer = small_model(residual="gated").stack()[0]
    assert not layer.attention_gate.bias.any()
    assert layer.attention_gate.weight.abs().max() < 0.1


def test_kernels_of_a_plain_layer_are_not_for_others():
    assert small_model().stack()[0].may_fuse
    for form in ({"residual": "gated"}, {"feed_forward": "swiglu"}, {"feed_forward": "none"}):
        assert not small_model(**form).stack()[0].may_fuse
