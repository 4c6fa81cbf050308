import numpy as np
import pytest
import torch

from blossomrec.config import EvaluationConfig
from blossomrec.data.batch import pack
from blossomrec.data.split import Cases, make_split
from blossomrec.models import build_model
from blossomrec.report.attention_profile import attention_profile, recorded
from small_models import small_config

HEADS, KV_HEADS, BLOCK, TOP_N, MAX_LEN = 4, 2, 4, 2, 40


def profiled_model(log, **options):
    """Two layers, with gates that differ by head and by event."""
    torch.manual_seed(0)
    model = build_model(small_config(layers=2, **options), log.num_items).eval()
    with torch.no_grad():
        for layer in getattr(model, "layers", ()):
            # A union of what sees both sides has no bias.
            if getattr(layer.attention, "gate", None) is not None:
                torch.nn.init.normal_(layer.attention.gate.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def cases(tiny_log):
    return make_split(tiny_log, EvaluationConfig()).test


def longest(cases, count):
    return np.sort(cases.history_end)[::-1][:count]


def test_the_longest_histories_are_profiled(tiny_log, cases):
    profile = attention_profile(profiled_model(tiny_log), tiny_log, cases, histories=4)
    lengths = np.diff(np.asarray(tiny_log.offsets))[profile.users]
    assert lengths.tolist() == (longest(cases, 4) + 1).tolist()
    shapes = [(2, min(n, MAX_LEN), KV_HEADS, TOP_N) for n in longest(cases, 4)]
    assert [selected.shape for selected in profile.selected] == shapes
    assert all(selected.dtype == np.int32 for selected in profile.selected)


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_gates_are_means_over_the_events_of_all_histories(tiny_log, cases, fusion):
    model = profiled_model(tiny_log, fusion=fusion)
    profile = attention_profile(model, tiny_log, cases)
    assert profile.gates.shape == (2, HEADS, 2)
    assert profile.gates.dtype == np.float64
    assert (profile.gates > 0).all() and (profile.gates < 1).all()
    gates = []
    for user, end in zip(profile.users, longest(cases, 3), strict=True):
        batch = pack([tiny_log.history(user).items[:end][-MAX_LEN:]])
        with torch.no_grad(), recorded(model) as layers:
            model.encode(batch)
        gates.append(torch.stack([each.shares(batch.cu_seqlens) for each in layers]))
    expected = torch.cat(gates, dim=1).mean(1).numpy()
    assert np.allclose(profile.gates, expected, atol=1e-5)
    assert np.ptp(profile.gates[:, :, 0]) > 0.01
    # A union has shares of one softmax instead.
    assert np.allclose(profile.gates.sum(-1), 1) == (fusion == "union")


def test_selected_blocks_are_complete_and_lie_before_their_event(tiny_log, cases):
    profile = attention_profile(profiled_model(tiny_log), tiny_log, cases)
    for selected in profile.selected:
        layers, length = selected.shape[:2]
        own = np.arange(length) // BLOCK
        assert (selected < own[None, :, None, None]).all()
        assert (selected >= -1).all()
        count = np.broadcast_to(np.minimum(own, TOP_N)[:, None], (layers, length, KV_HEADS))
        assert ((selected >= 0).sum(-1) == count).all()
        # No block is selected twice, and a choice was made somewhere.
        pairs = (selected[..., 0] == selected[..., 1]) & (selected[..., 0] >= 0)
        assert not pairs.any()
        late = selected[:, own > TOP_N]
        assert late.min() >= 0 and len(np.unique(late)) > TOP_N


def test_both_sides_may_be_selected_without_causality(tiny_log, cases):
    model = profiled_model(tiny_log, backbone="bert4rec")
    profile = attention_profile(model, tiny_log, cases)
    for selected in profile.selected:
        length = selected.shape[1]
        own = (np.arange(length) // BLOCK)[None, :, None, None]
        assert (selected[selected >= 0] < length // BLOCK).all()
        assert (selected != own).all()
        assert (selected > own).any()
    assert (profile.gates > 0).all() and (profile.gates < 1).all()


def test_histories_shorter_than_a_block_select_nothing(tiny_log):
    lengths = np.diff(np.asarray(tiny_log.offsets))
    user = np.flatnonzero(lengths >= 3)[:1]
    cases = Cases(user, np.array([2]), np.array([3]))
    profile = attention_profile(profiled_model(tiny_log), tiny_log, cases)
    assert [selected.shape for selected in profile.selected] == [(2, 2, KV_HEADS, TOP_N)]
    assert (profile.selected[0] == -1).all()
    assert profile.gates.shape == (2, HEADS, 2)


def test_a_user_with_several_cases_has_one_history(tiny_log):
    config = EvaluationConfig(last_events=4)
    several = make_split(tiny_log, config).test
    profile = attention_profile(profiled_model(tiny_log), tiny_log, several)
    assert len(set(profile.users.tolist())) == 3
    lengths = np.diff(np.asarray(tiny_log.offsets))[profile.users]
    assert sorted(lengths.tolist()) == [58, 59, 60]
    last = several.last_of_each_user()
    assert last.history_end.tolist() == several.history_end[3::4].tolist()


@pytest.mark.parametrize("options", [{"attention": "full"}, {"backbone": "gru4rec"}])
def test_without_blossom_attention_there_is_no_profile(tiny_log, cases, options):
    assert attention_profile(profiled_model(tiny_log, **options), tiny_log, cases) is None


def test_a_profile_leaves_no_gradients(tiny_log, cases):
    model = profiled_model(tiny_log)
    attention_profile(model, tiny_log, cases)
    assert all(parameter.grad is None for parameter in model.parameters())
