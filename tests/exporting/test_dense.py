"""The encoder in operations that every engine has equals the model, at awkward lengths."""

from __future__ import annotations

import pytest
import torch
from exported_models import FORMS, exported_model, filled_up, histories_of, history

from blossomrec.attention import BlossomSpec
from blossomrec.attention.reference import long_term_mask, select_blocks
from blossomrec.data.batch import pack
from blossomrec.exporting import dense
from blossomrec.exporting.dense import Padded
from blossomrec.exporting.encoder import DenseEncoder
from whole_history import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_equals_the_model(form):
    model = exported_model(**FORMS[form])
    histories = histories_of(model)
    expected = model.queries(pack(histories, model.inputs))
    with torch.no_grad():
        found = DenseEncoder(model)(*filled_up(histories, model.inputs).values())
    assert relative_error(found, expected) < 1e-5


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
