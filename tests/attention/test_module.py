"""The layer: start values, gradients, a selector that learns, clear errors."""

import math

import pytest
import torch
from inputs import attend, make_layer, random_inputs, relative_error

from blossomrec.attention import BlossomAttention, BlossomSpec, selector
from blossomrec.attention.api import resolve
from blossomrec.attention.packing import Packing
from blossomrec.attention.selector import selector_loss
from blossomrec.attention.spec import FUSIONS, GATES, Heads
from implementations import CPU

CU_SEQLENS = torch.tensor([0, 200, 201, 333], dtype=torch.int32)
ALL = torch.arange(333)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_gradient_reaches_every_parameter(compress, causal, fusion):
    attention = make_layer(compress=compress, causal=causal, fusion=fusion)
    given = attention(torch.randn(333, 32), CU_SEQLENS, distil_rows=ALL)
    (given.hidden.square().sum() + given.selector_loss).backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 1e-6, name


def test_the_selector_loss_teaches_what_the_importance_is_made_of():
    attention = make_layer()
    given = attention(torch.randn(333, 32), CU_SEQLENS, distil_rows=ALL)
    given.selector_loss.backward()
    reached = {name.split(".")[0] for name, p in attention.named_parameters() if p.grad is not None}
    assert reached == {"compress", "query", "key"}


def test_the_target_of_the_selector_loss_is_fixed():
    """Keys feel the loss through their block keys alone, and no key outside a block does."""
    q, k = torch.randn(100, 4, 8, requires_grad=True), torch.randn(100, 2, 8, requires_grad=True)
    block_keys = torch.randn(6, 2, 8, requires_grad=True)
    cu_seqlens = torch.tensor([0, 100], dtype=torch.int32)
    form = {"rows": ALL[:100], "max_length": 100, "spec": BlossomSpec()}
    selector_loss(q, k, block_keys, cu_seqlens, **form).backward()
    assert k.grad is None
    assert q.grad.norm() > 0 and block_keys.grad.norm() > 0


def test_equal_importance_and_attention_have_no_divergence():
    """Keys alike within a block: importance and the log of the mass differ by a constant."""
    torch.manual_seed(0)
    block_keys = torch.randn(10, 2, 8)
    k = block_keys.repeat_interleave(16, 0)
    q = torch.randn(160, 2, 8).repeat_interleave(2, 1)
    cu_seqlens = torch.tensor([0, 96, 160], dtype=torch.int32)
    for causal in (True, False):
        form = {"rows": ALL[:160], "max_length": 96, "spec": BlossomSpec(causal=causal)}
        assert selector_loss(q, k, block_keys, cu_seqlens, **form).abs() < 1e-5
        assert selector_loss(q, k, block_keys.flip(0), cu_seqlens, **form) > 0.1


def test_events_are_sampled_evenly_from_the_given_rows():
    torch.manual_seed(0)
    lengths = torch.tensor([5, 200, 47, 48, 49, 16, 300, 33, 31])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    total = int(cu_seqlens[-1])
    given = torch.arange(0, total, 2)
    packing = Packing.of(cu_seqlens, total, 16)
    times = torch.zeros(total)
    for _ in range(200):
        starts = cu_seqlens[:-1].long()
        sampled = selector._draw(cu_seqlens, starts, given, *selector.sample_sizes(300, 4))
        assert selector.SAMPLES - 64 < sampled.numel() <= selector.SAMPLES
        assert (packing.history[sampled] == packing.history[sampled[:, :1]]).all()
        times += torch.bincount(sampled.flatten(), minlength=total)
    assert (times[1::2] == 0).all()
    expected = 200 * sampled.numel() / len(given)
    # Events of a history are drawn together, so counts spread more than alone.
    by_history = torch.zeros(9).index_add(0, packing.history[given], times[given])
    rows = torch.bincount(packing.history[given])
    torch.testing.assert_close(by_history / rows, torch.full((9,), expected), rtol=0.35, atol=0)


def test_fewer_events_are_sampled_from_very_long_histories():
    cu_seqlens = torch.tensor([0, 300_000], dtype=torch.int32)
    first, rows = torch.tensor([80]), torch.arange(300_000)
    sampled = selector._draw(cu_seqlens, first, rows, *selector.sample_sizes(300_000, 8)).numel()
    assert sampled > 1
    assert sampled * 8 * 300_000 <= selector.MAX_SCORES


@pytest.mark.parametrize("impl", ["torch", CPU])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("top_n", [1, 2])
def test_the_selector_loss_written_out(causal, top_n, impl, monkeypatch):
    """Every event sampled, against a loop over events, heads and blocks."""
    inputs = random_inputs([70, 20, 40])
    block_keys = torch.randn(len(inputs.k) // 16, 2, 8)
    events = torch.arange(130)
    by_history = torch.cat(
        (
            events[:70].repeat(2)[:70],
            torch.arange(70, 90).repeat(4)[:70],
            torch.arange(90, 130).repeat(2)[:70],
        )
    ).view(3, 70)
    monkeypatch.setattr(selector, "_draw", lambda *_: by_history)
    spec, rows = BlossomSpec(causal=causal, top_n=top_n), (inputs.q, inputs.k)
    parts = resolve(spec, Heads(4, 2, 8), torch.float32, "cpu", impl).parts
    given = (block_keys, inputs.cu_seqlens)
    value = parts.selector_loss(*rows, *given, rows=events, max_length=70, spec=spec)
    divergences = []
    for row in by_history.flatten().tolist():
        start, length, first = ((0, 70, 0), (70, 20, 4), (90, 40, 5))[(row >= 70) + (row >= 90)]
        own = (row - start) // 16
        blocks = [j for j in range(length // 16) if (j < own if causal else j != own)]
        if len(blocks) <= top_n:
            continue
        for group in range(2):
            heads = inputs.q[row, 2 * group : 2 * group + 2].float()
            keys = torch.stack(
                [inputs.k[start + 16 * j : start + 16 * j + 16, group].float() for j in blocks]
            )
            weights = torch.einsum("rd,jsd->rjs", heads, keys).div(math.sqrt(8)).exp().sum(-1)
            mass = (weights / weights.sum(-1, keepdim=True)).mean(0)
            found = block_keys[[first + j for j in blocks], group].float()
            share = (found @ heads.mean(0) / math.sqrt(8)).softmax(0)
            divergences.append((mass * (mass / share).log()).sum())
    torch.testing.assert_close(value, torch.stack(divergences).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "of_queries, of_keys",
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
)
def test_queries_and_keys_of_two_types_teach_the_same(of_queries, of_keys):
    inputs = random_inputs([200])
    q, k = inputs.q.to(of_queries), inputs.k.to(of_keys)
    # What the operator does not take as it is has to be compared with PyTorch's form.
    impl = "auto" if of_queries == torch.float32 else "torch"
    parts = resolve(BlossomSpec(), Heads(4, 2, 8), torch.float32, "cpu", impl).parts
    form = {"rows": ALL[:200], "max_length": 200, "spec": BlossomSpec()}
    losses = []
    for pair in ((q, k), (q.float(), k.float())):
        torch.manual_seed(0)
        given = (*pair, inputs.block_keys, inputs.cu_seqlens)
        losses.append(parts.selector_loss(*given, **form))
    assert torch.equal(*losses)


def test_one_path_alone_has_no_gate_and_nothing_dead():
    x = torch.randn(333, 32)
    for paths, weights in (("long", [1.0, 0.0]), ("short", [0.0, 1.0])):
        attention = make_layer(paths=paths)
        given = attention(x, CU_SEQLENS, distil_rows=ALL)
        assert given.gates.unique(dim=0).tolist() == [[weights] * 4]
        loss = given.hidden.square().sum()
        loss = loss if given.selector_loss is None else loss + given.selector_loss
        loss.backward()
        assert (given.selector_loss is None) == (paths == "short")
        for name, parameter in attention.named_parameters():
            assert parameter.grad is not None and parameter.grad.norm() > 1e-6, name


@pytest.mark.parametrize("gate", GATES)
def test_the_gate_starts_short_term(gate):
    given = make_layer(gate=gate)(torch.randn(333, 32), CU_SEQLENS)
    expected = torch.tensor([-2.0, 2.0]).sigmoid().expand(333, 4, 2)
    torch.testing.assert_close(given.gates, expected)


def test_a_convex_gate_shares_one_weight_among_the_paths():
    attention, x = make_layer(gate="convex"), torch.randn(333, 32)
    torch.nn.init.normal_(attention.gate.weight)
    given = attention(x, CU_SEQLENS)
    longs = (x @ attention.gate.weight.T + attention.gate.bias).sigmoid()
    torch.testing.assert_close(given.gates, torch.stack((longs, 1 - longs), -1))
    assert longs.std() > 0.1
    given.hidden.square().sum().backward()
    assert all(parameter.grad.norm() > 1e-6 for parameter in attention.gate.parameters())


def test_a_union_starts_without_a_bias():
    attention = make_layer(fusion="union")
    given = attention(torch.randn(333, 32), CU_SEQLENS)
    assert torch.equal(given.gates, torch.zeros(333, 4, 1))
    # Of one path alone there is nothing to unite.
    assert make_layer(fusion="union", paths="long").gate is None


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_a_union_without_bias_is_one_whose_bias_is_zero(causal):
    x, options = torch.randn(333, 32), {"fusion": "union", "causal": causal}
    with_bias, without = make_layer(**options), make_layer(**options, near_bias=False)
    assert without.gate is None
    given, names = with_bias.state_dict(), without.state_dict().keys()
    without.load_state_dict({name: given[name] for name in names})
    outputs = [layer(x, CU_SEQLENS) for layer in (with_bias, without)]
    assert torch.equal(outputs[0].gates, outputs[1].gates)
    torch.testing.assert_close(outputs[0].hidden, outputs[1].hidden)
    assert without.spec.is_union and not without.spec.is_gated
    # A gate is not a bias: it stays.
    assert make_layer(fusion="gated", near_bias=False).gate is not None


@pytest.mark.parametrize("impl", ["torch", CPU])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_events_without_a_choice_are_never_sampled(causal, impl, monkeypatch):
    """Those that have more than ``top_n`` eligible blocks are, and all of them."""
    spec, lengths = BlossomSpec(causal=causal, top_n=2, block_size=4), [3, 12, 15, 16, 11, 40, 8]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    expected, start = set(), 0
    for length in lengths:
        for own in range(length):
            others = [j for j in range(length // 4) if (j < own // 4 if causal else j != own // 4)]
            expected |= {start + own} if len(others) > 2 else set()
        start += length
    drawn = []
    original = selector._draw
    monkeypatch.setattr(
        selector, "_draw", lambda *given: drawn.append(original(*given)) or drawn[-1]
    )
    q, k, block_keys = torch.randn(start, 4, 8), torch.randn(start, 2, 8), torch.randn(start, 2, 8)
    parts = resolve(spec, Heads(4, 2, 8), torch.float32, "cpu", impl).parts
    rows = torch.cat((torch.arange(start), torch.full((9,), start)))
    for _ in range(5):
        form = {"rows": rows, "max_length": 40, "spec": spec}
        assert parts.selector_loss(q, k, block_keys, cu_seqlens, **form) > 0
    assert set(torch.cat(drawn).flatten().tolist()) == expected


@pytest.mark.parametrize("impl", ["torch", CPU])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
# The longest history may be longer; and those with a choice need not be among the rows.
@pytest.mark.parametrize("lengths, first", [([79], 0), ([33, 0, 70], 0), ([200, 40], 200)])
def test_a_batch_without_a_choice_gives_a_loss_of_zero(lengths, first, causal, impl):
    inputs = random_inputs(lengths)
    rows = torch.arange(first, len(inputs.q))
    spec = BlossomSpec(causal=causal)
    parts = resolve(spec, Heads(4, 2, 8), torch.float32, "cpu", impl).parts
    leaves = [inputs.q.requires_grad_(), inputs.block_keys.requires_grad_()]
    form = {"rows": rows, "max_length": 640, "spec": spec}
    loss = parts.selector_loss(inputs.q, inputs.k, inputs.block_keys, inputs.cu_seqlens, **form)
    assert loss == 0
    assert not any(each.any() for each in torch.autograd.grad(loss, leaves))


def test_nothing_to_choose_is_a_loss_of_zero_in_16_bits_as_well():
    """The sum of all queries is more than such a number holds."""
    q, k = (torch.full((60, heads, 8), 1e3).half().requires_grad_() for heads in (4, 2))
    block_keys = k[15::16]
    form = {"rows": ALL[:60], "max_length": 60, "spec": BlossomSpec()}
    loss = selector_loss(q, k, block_keys, torch.tensor([0, 60], dtype=torch.int32), **form)
    assert loss == 0
    assert not any(each.any() for each in torch.autograd.grad(loss, [q, k]))


def test_short_histories_give_a_loss_of_zero():
    cu_seqlens = torch.arange(0, 31, 3, dtype=torch.int32)
    given = make_layer()(torch.randn(30, 32), cu_seqlens, distil_rows=ALL[:30])
    given.selector_loss.backward()
    assert given.selector_loss == 0


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_selector_learns_to_find_the_block_that_attention_wants(causal):
    """One block of each history holds keys that match the queries; which one is random."""
    torch.manual_seed(0)
    attention = make_layer(causal=causal)
    optimizer = torch.optim.Adam(attention.compress.parameters(), lr=3e-3)
    wanted_q = torch.randn(1, 4, 8).abs()

    def step():
        length, count = 320, 4
        cu_seqlens = torch.arange(0, length * count + 1, length, dtype=torch.int32)
        k = torch.randn(length * count, 2, 8) * 0.3
        planted = torch.randint(0, 16, (count,))
        for history, block in enumerate(planted.tolist()):
            start = history * length + block * 16
            k[start + 5 : start + 8] += 2 * wanted_q.view(2, 2, 8).mean(1)
        q = wanted_q + 0.3 * torch.randn(length * count, 4, 8)
        block_keys = attention.compress(k, cu_seqlens)
        _, selected = attend(
            q, k, k, block_keys.detach(), torch.ones(len(q), 4, 2), cu_seqlens, causal=causal
        )
        loss = selector_loss(
            q,
            k,
            block_keys,
            cu_seqlens,
            rows=torch.arange(len(q)),
            max_length=320,
            spec=BlossomSpec(causal=causal),
        )
        last = selected[torch.arange(count) * length + length - 1]
        found = (last == planted[:, None, None]).any(-1).float().mean()
        return loss, float(found)

    before = sum(step()[1] for _ in range(10)) / 10
    for _ in range(80):
        loss, _ = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = sum(step()[1] for _ in range(10)) / 10
    assert before < 0.6
    assert after > 0.95


def test_wrong_arguments_are_named():
    inputs = random_inputs([40])
    with pytest.raises(ValueError, match=r"gates is \[40, 4, 1\]: \[40, 4, 2\]"):
        attend(*inputs.all()[:4], inputs.gates[..., :1], inputs.cu_seqlens)
    with pytest.raises(ValueError, match="top_n is 0"):
        attend(*inputs.all(), top_n=0)
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        attend(*inputs.all(), impl="cuda")
    with pytest.raises(ValueError, match="hidden_size 30"):
        BlossomAttention(hidden_size=30, num_heads=4, num_kv_heads=2)
    with pytest.raises(ValueError, match="compress is 'max'"):
        make_layer(compress="max")
    with pytest.raises(ValueError, match="paths is 'none'"):
        make_layer(paths="none")
    with pytest.raises(ValueError, match="gate is 'open': choose one of independent, convex"):
        make_layer(gate="open")
    with pytest.raises(ValueError, match="fusion is 'sum': choose one of gated, union"):
        make_layer(fusion="sum")
    with pytest.raises(ValueError, match=r"gates is \[40, 4, 2\]: \[40, 4, 1\]"):
        attend(*inputs.all(), fusion="union")


def test_autocast_leaves_scores_and_selection_in_float32():
    attention, x = make_layer(), torch.randn(333, 32)
    exact = attention(x, CU_SEQLENS, distil_rows=ALL)
    with torch.autocast("cpu", torch.bfloat16):
        given = attention(x, CU_SEQLENS, distil_rows=ALL)
    (given.hidden.float().sum() + given.selector_loss).backward()
    assert given.hidden.dtype == torch.bfloat16
    assert given.selector_loss.dtype == torch.float32
    assert relative_error(given.hidden.detach(), exact.hidden.detach()) < 2e-2


def test_gradients_do_not_depend_on_the_order_of_threads():
    # Deterministic algorithms would hide an operation whose sums depend on it.
    torch.use_deterministic_algorithms(False)
    attention, x = make_layer(), torch.randn(4_096, 32)
    cu_seqlens = torch.tensor([0, 256, 512, 768, 1_024, 2_048, 4_096], dtype=torch.int32)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first = None
        for _ in range(8):
            attention.zero_grad()
            torch.manual_seed(1)
            given = attention(x, cu_seqlens, distil_rows=torch.arange(4_096))
            (given.hidden.square().sum() + given.selector_loss).backward()
            gradients = [parameter.grad.clone() for parameter in attention.parameters()]
            first = first or gradients
            assert all(torch.equal(a, b) for a, b in zip(gradients, first, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_events_are_sampled_equally_often():
    lengths = [800, 160, 640, 0]
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    rows = torch.arange(0, 1_600, 25)  # 32 of the first history, 7 and 25 of the others
    packing = Packing.of(cu_seqlens, 1_600, 16)
    starts = cu_seqlens[:-1].long()
    runs = selector._draw(cu_seqlens, starts, rows, *selector.sample_sizes(800, 4))
    assert (packing.history[runs] == packing.history[runs[:, :1]]).all()
    # Histories as often as their share of the rows says, but for the parts at its two ends.
    share = torch.tensor([32, 7, 25]) / 64
    drawn = packing.history[runs[:, 0]].bincount(minlength=3)
    assert ((drawn - share * len(runs)).abs() < 2).all()
    # So are the rows of a run.
    for run in runs:
        mine = rows[packing.history[rows] == packing.history[run[0]]]
        times = (run[:, None] == mine).sum(0)
        assert times.sum() == runs.shape[1]
        assert ((times - runs.shape[1] / len(mine)).abs() < 2).all()


def test_each_row_is_sampled_exactly_twice_where_runs_are_twice_as_long():
    cu_seqlens = torch.tensor([0, 2_048, 4_096], dtype=torch.int32)
    rows = torch.arange(0, 4_096, 64)
    starts = cu_seqlens[:-1].long()
    runs = selector._draw(cu_seqlens, starts, rows, *selector.sample_sizes(2_048, 4))
    assert runs.shape == (8, 64)
    for run in runs:
        assert (run.unique(return_counts=True)[1] == 2).all()
    assert (runs.flatten().unique(return_counts=True)[1] == 8).all()
