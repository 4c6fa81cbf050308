"""The encoder in operations that every engine has equals the model, at awkward lengths."""

from __future__ import annotations

import pytest
import torch
from exported_models import (
    ALL_INPUTS,
    LENGTHS,
    MAX_LEN,
    all_tables,
    exported_model,
    filled_up,
    history,
)

from blossomrec.attention import BlossomSpec
from blossomrec.attention.reference import long_term_mask, select_blocks
from blossomrec.data.batch import pack
from blossomrec.exporting import dense
from blossomrec.exporting.dense import Padded
from blossomrec.exporting.encoder import DenseEncoder
from whole_history import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = [
    {"attention": "full"},
    {"attention": "window", "window": 6},
    {"layers": 2, "block_size": 16, "compress_window": 32, "top_n": 4, "window": 8},
    {"near_bias": "on"},
    {"fusion": "gated"},
    {"fusion": "gated", "gate": "convex", "sinks": 3},
    {"paths": "long", "share": 0.4},
    {"paths": "short", "power_base": 3.0, "sinks": 2},
    {"compress": "mean", "kv_heads": 1, "rotary_share": 1.0},
    {"norm": "pre", "residual": "gated", "feed_forward": "swiglu", "top_n": 300},
    {"feed_forward": "none", "rotary_share": 0.0},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_the_encoder_equals_the_model(backbone, options):
    model = exported_model(backbone=backbone, **options)
    histories = [history(length, length) for length in LENGTHS]
    expected = model.queries(pack(histories, model.inputs))
    with torch.no_grad():
        found = DenseEncoder(model)(*filled_up(histories, model.inputs).values())
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("left_out", [(), *ALL_INPUTS], ids=str)
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_so_it_does_with_all_that_a_model_can_see(backbone, left_out):
    options = {name: each for name, each in ALL_INPUTS.items() if name != left_out}
    if backbone == "bert4rec" and left_out == "request_time":
        options |= {"time_gap": "off", "clock": "off", "time_share": 0.0}
    if backbone == "bert4rec" and left_out == "event_kinds":
        options |= {"request_kind": "off"}
    model = exported_model(all_tables(), backbone=backbone, **options)
    histories = [history(length, length) for length in (*LENGTHS, 5, 6, 7)]
    expected = model.queries(pack(histories, model.inputs))
    with torch.no_grad():
        found = DenseEncoder(model)(*filled_up(histories, model.inputs).values())
    assert relative_error(found, expected) < 1e-5


def test_the_longest_history_is_taken():
    model = exported_model()
    histories = [history(length, length) for length in (MAX_LEN, 3)]
    with torch.no_grad():
        found = DenseEncoder(model)(*filled_up(histories, model.inputs).values())
    assert relative_error(found, model.queries(pack(histories, model.inputs))) < 1e-5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_blocks_are_chosen_by_the_definition_also_equal_ones(share, causal):
    spec, length = BlossomSpec(block_size=4, top_n=3, share=share, causal=causal), 63
    torch.manual_seed(0)
    # Small whole numbers, so that many scores are equal to the bit.
    q = torch.randint(-1, 2, (length, 2, 4)).float()
    keys = torch.randint(-1, 2, (length // 4, 2, 4)).float()
    expected = long_term_mask(select_blocks(q, keys, spec), 4, causal)
    padded = Padded(torch.tensor([length]), torch.arange(length), torch.empty(0))
    given = q.transpose(0, 1)[None], keys.transpose(0, 1)[None]
    chosen = dense.select_blocks(*given, padded, spec)[0]
    # Its own block, whole or up to itself, is always seen, and never chosen.
    own = long_term_mask(torch.full((length, 2, 1), -1), 4, causal)
    block = torch.arange(length).clamp(max=length // 4 * 4 - 1) // 4
    seen = chosen[:, :, block] & (torch.arange(length) < length // 4 * 4)
    assert torch.equal(seen | own, expected)


def test_what_fills_a_history_up_changes_nothing():
    model = exported_model(backbone="bert4rec")
    given = filled_up([history(length, length) for length in (9, 40)], model.inputs)
    encoder = DenseEncoder(model)
    with torch.no_grad():
        expected = encoder(*given.values())
        given["items"][0, 9:] = 3
        assert torch.equal(encoder(*given.values()), expected)
