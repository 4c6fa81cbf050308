"""What every sequence model promises: packing, direction of sight, gradients, scoring."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from blossomrec.attention import BlossomAttention
from blossomrec.data.batch import Batch, pack
from blossomrec.data.history import History
from blossomrec.errors import ConfigError, DataError
from blossomrec.models.bert4rec import append_item
from blossomrec.models.building import build_model
from small_models import (
    ALL_MODELS,
    NUM_ITEMS,
    TRANSFORMERS,
    hidden_states,
    random_histories,
    small_config,
    small_model,
)

CAUSAL = [each for each in ALL_MODELS if each.values[0]["backbone"] != "bert4rec"]
BIDIRECTIONAL = [each for each in TRANSFORMERS if each.values[0]["backbone"] == "bert4rec"]


def changed(history: np.ndarray, place: int) -> np.ndarray:
    """The same history with another item at ``place``."""
    return np.where(np.arange(len(history)) == place, (history + 1) % NUM_ITEMS, history)


@pytest.mark.parametrize("options", ALL_MODELS)
def test_packed_users_are_what_they_are_alone(options):
    model = small_model(**options)
    histories = random_histories(30, 1, 7, 40, 16)
    together = hidden_states(model, *histories)
    alone = torch.cat([hidden_states(model, each) for each in histories])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", ALL_MODELS)
def test_queries_of_packed_users_are_what_they_are_alone(options):
    model = small_model(**options)
    histories = random_histories(30, 1, 7, 40, 16)
    together = model.queries(pack(histories))
    alone = torch.cat([model.queries(pack([each])) for each in histories])
    assert together.shape == (5, 16)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", CAUSAL)
def test_future_events_change_no_past_state(options):
    model = small_model(**options)
    (history,) = random_histories(36)
    before, after = hidden_states(model, history), hidden_states(model, changed(history, 20))
    torch.testing.assert_close(before[:20], after[:20], rtol=1e-5, atol=1e-6)
    assert (before[20:26] - after[20:26]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("options", BIDIRECTIONAL)
def test_bert4rec_sees_both_sides(options):
    model = small_model(**options)
    (history,) = random_histories(36)
    before = hidden_states(model, history)
    for place in (19, 21):
        moved = (hidden_states(model, changed(history, place)) - before).abs().amax(1)
        assert moved[20] > 1e-4


@pytest.mark.parametrize("options", ALL_MODELS)
def test_gradient_reaches_every_parameter(options):
    model = small_model(**options).train()
    batch = pack(random_histories(40, 33, 28, 3))
    # Values may be zero by chance at one place, for a whole parameter they may not.
    items = batch.items.clone()
    if options["backbone"] == "bert4rec":
        items[::5] = NUM_ITEMS
    masked = replace(batch, items=items)
    encoded = model.encode(masked, distil_rows=torch.arange(len(items)))
    logits = encoded.hidden @ model.output_weight().T
    loss = torch.nn.functional.cross_entropy(logits, batch.items.roll(-1))
    if options.get("attention") == "blossom":
        loss = loss + encoded.selector_loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", ALL_MODELS)
def test_chunks_of_scores_are_the_whole(options):
    model = small_model(**options)
    queries = model.queries(pack(random_histories(12, 5)))
    whole = model.scores(queries, 0, NUM_ITEMS)
    chunks = [model.scores(queries, start, min(start + 16, NUM_ITEMS)) for start in (0, 16, 32, 48)]
    assert whole.shape == (2, NUM_ITEMS)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat(chunks, 1), whole)
    torch.testing.assert_close(whole, queries @ model.output_weight().T)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.scores(queries, 0, NUM_ITEMS), whole)


@pytest.mark.parametrize("options", CAUSAL)
def test_query_is_the_state_at_the_last_event(options):
    model = small_model(**options)
    histories = random_histories(9, 4)
    torch.testing.assert_close(
        model.queries(pack(histories)), hidden_states(model, *histories)[[8, 12]]
    )


@pytest.mark.parametrize("options", BIDIRECTIONAL)
def test_bert4rec_query_is_the_state_at_a_mask_behind_the_history(options):
    model = small_model(max_len=12, **options)
    short, long = random_histories(5, 30)
    masked = [np.append(short, NUM_ITEMS), np.append(long[-11:], NUM_ITEMS)]
    torch.testing.assert_close(
        model.queries(pack([short, long])), hidden_states(model, *masked)[[5, 17]]
    )
    assert model.item_embeddings.num_embeddings == NUM_ITEMS + 1
    assert model.output_weight().shape == (NUM_ITEMS, 16)


def test_appended_item_follows_the_last_events():
    items, cu_seqlens = torch.arange(9), torch.tensor([0, 1, 6, 6, 9], dtype=torch.int32)
    batch = append_item(Batch(items, cu_seqlens, 5), 99, 3)
    assert batch.items.tolist() == [0, 99, 3, 4, 5, 99, 99, 6, 7, 8, 99]
    assert batch.cu_seqlens.tolist() == [0, 2, 6, 7, 11] and batch.max_length == 4
    assert batch.cu_seqlens.dtype == torch.int32


def test_an_appended_item_has_the_time_of_the_event_before():
    batch = pack([History(np.arange(n), np.arange(n) * 10) for n in (1, 5)], ("items", "times"))
    assert append_item(batch, 99, 3).times.tolist() == [0, 0, 20, 30, 40, 40]


def test_empty_history_is_refused():
    batch = Batch(torch.arange(3), torch.tensor([0, 2, 2, 3]), 2)
    with pytest.raises(DataError, match="history 1 of the batch has no events"):
        small_model(backbone="sasrec").queries(batch)


@pytest.mark.parametrize("options", TRANSFORMERS)
def test_start_values(options):
    torch.manual_seed(0)
    model = build_model(small_config(hidden_size=64, inner_size=256, **options), 2000)
    assert abs(model.item_embeddings.weight.std() - 0.02) < 1e-3
    for layer in model.layers:
        for linear in (layer.inner, layer.outer):
            assert abs(linear.weight.std() - 0.02) < 1e-3
            assert not linear.bias.any()
        if isinstance(layer.attention, BlossomAttention):
            gate, spec = layer.attention.gate, layer.attention.spec
            assert (gate is None) == (spec.is_union and not spec.near_bias)
            if gate is not None:
                assert not gate.weight.any()
                start = [0.0] if spec.is_union else [-2.0, 2.0]
                assert gate.bias.tolist() == start * 4


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_norms_stand_where_the_option_says(norm):
    model = small_model(backbone="sasrec", attention="full", norm=norm, layers=1)
    batch, layer = pack(random_histories(7)), model.layers[0]
    x = model.item_embeddings(batch.items) * 4  # sqrt of the hidden size

    def attend(x):
        return layer.attention(x, batch.cu_seqlens, max_length=7).hidden

    def feed_forward(x):
        return layer.outer(torch.nn.functional.gelu(layer.inner(x)))

    if norm == "pre":
        x = x + attend(layer.attention_norm(x))
        x = x + feed_forward(layer.feed_forward_norm(x))
        x = model.final_norm(x)
    else:
        x = model.embedding_norm(x)
        x = layer.attention_norm(x + attend(x))
        x = layer.feed_forward_norm(x + feed_forward(x))
    torch.testing.assert_close(model.encode(batch).hidden, x)


def test_dropout_acts_in_training_only():
    model = small_model(backbone="sasrec", attention="full", dropout=0.5)
    batch = pack(random_histories(7))
    torch.testing.assert_close(model.encode(batch).hidden, model.encode(batch).hidden)
    model.train()
    assert not torch.allclose(model.encode(batch).hidden, model.encode(batch).hidden)


def test_dropout_follows_attention_and_feed_forward():
    model = small_model(backbone="sasrec", attention="full", norm="pre").train()
    layer, batch = model.layers[0], pack(random_histories(7))
    layer.dropout.p = 1.0
    x = torch.randn(7, 16)
    attended, _ = layer(x, batch.cu_seqlens, 7)
    assert torch.equal(attended, x)
    assert torch.equal(layer.finish(x), x)


def test_rooms_of_models_and_losses_do_without_polars():
    """And do not import PyTorch's compiler, which takes as long as the rest of it."""
    program = (
        "import sys; sys.modules['polars'] = None; from blossomrec.models import *; "
        "from blossomrec.losses import *; import blossomrec.models.baselines.ease; "
        "[BACKBONES.get(name) for name in BACKBONES]; [LOSSES.get(name) for name in LOSSES]; "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("attention", ["blossom", "full"])
def test_layers_are_kept_when_asked_for(attention):
    model = small_model(backbone="sasrec", attention=attention, layers=3)
    batch = pack(random_histories(30, 4))
    assert model.encode(batch).layers == ()
    assert model.encode(batch).selector_loss is None
    encoded = model.encode(batch, distil_rows=torch.arange(len(batch.items)), keep_layers=True)
    assert [each.hidden.shape for each in encoded.layers] == [(34, 16)] * 3
    if attention == "blossom":
        assert encoded.layers[0].gates.shape == (34, 4, 1)
        losses = torch.stack([each.selector_loss for each in encoded.layers])
        torch.testing.assert_close(encoded.selector_loss, losses.mean())
    else:
        assert encoded.selector_loss is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "lstm"}, "model.backbone is 'lstm'"),
        ({"attention": "none"}, "model.attention is 'none'"),
        ({"kv_heads": 3}, "model.kv_heads is 3"),
        ({"max_len": 1}, "model.max_len is 1"),
    ],
    ids=["backbone", "attention", "kv_heads", "max_len"],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build_model(small_config(**options), NUM_ITEMS)


def test_empty_catalogue_is_refused():
    with pytest.raises(ConfigError, match="num_items is 0"):
        build_model(small_config(), 0)
