"""A layer of one's own in the place of an attention, by its name."""

import pytest
import torch
from torch import nn

from blossomrec.attention import AttentionOutput
from blossomrec.attention.packing import positions
from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError
from blossomrec.models import ATTENTIONS
from blossomrec.training.shape import waiting_attention
from small_models import random_histories, small_config, small_model


class Previous(nn.Module):
    """Every event sees the one before it."""

    def __init__(self, size):
        super().__init__()
        self.output = nn.Linear(size, size)

    def forward(self, x, cu_seqlens, *, max_length, distil_rows=None, rotary=None):
        before = torch.where(positions(cu_seqlens, len(x))[:, None] > 0, x.roll(1, 0), 0.0)
        return AttentionOutput(self.output(before))


@pytest.fixture
def previous(monkeypatch):
    def build(config, *, causal):
        assert causal
        return Previous(config.hidden_size)

    monkeypatch.setitem(ATTENTIONS._registered, "previous", build)


def test_a_model_takes_it_by_its_name(previous):
    model = small_model(attention="previous", layers=1)
    one, other = random_histories(9, 4)
    together = model.queries(pack([one, other]))
    torch.testing.assert_close(together[1:], model.queries(pack([other])))
    # Two events are all that is seen.
    torch.testing.assert_close(together[1:], model.queries(pack([other[-2:]])))


def test_it_keeps_no_state_and_waits_unless_it_says_so(previous, monkeypatch):
    with pytest.raises(ConfigError, match="attention previous keeps no state"):
        small_model(attention="previous").start()
    config = small_config(attention="previous")
    assert "'previous', which waits for lengths" in waiting_attention(config, exact=True)
    monkeypatch.setattr(Previous, "captured", True, raising=False)
    assert waiting_attention(config, exact=True) == ""


@pytest.mark.parametrize("name", ["window", "linrec", "mamba"])
def test_ours_are_captured(name):
    assert waiting_attention(small_config(attention=name), exact=True) == ""


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"attention is 'nearest': choose one of blossom, f"):
        small_model(attention="nearest")
