"""The Triton kernels against the reference, interpreted where there is no GPU."""

import dataclasses

import pytest
import torch
from inputs import AWKWARD, attend, random_inputs, relative_error

pytest.importorskip("triton")


from blossomrec.attention.backends.triton import launch, operators

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
NAMES = ("out", "q", "k", "v", "gates")


def outputs_and_gradients(inputs, impl, **options):
    leaves = inputs.differentiable()
    out, selected = attend(*inputs.all(), impl=impl, **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)], selected


def check_parity(inputs, tolerance=1e-5, **form):
    """Selected blocks, outputs and all gradients, these with the same blocks."""
    inputs = inputs.to(DEVICE)
    exact = inputs.to(dtype=torch.float64)
    chosen = form.pop("selected", None)
    if chosen is None:
        _, chosen = attend(*exact.all(), impl="reference", **form)
        with torch.no_grad():
            _, selected = attend(*inputs.all(), impl="triton", **form)
        assert torch.equal(selected, chosen)
    expected, _ = outputs_and_gradients(exact, "reference", selected=chosen, **form)
    values, _ = outputs_and_gradients(inputs, "triton", selected=chosen, **form)
    for name, value, other in zip(NAMES, values, expected, strict=True):
        assert relative_error(value, other) < tolerance, name


@pytest.fixture
def short_chunks(monkeypatch):
    """Inverse lists are cut after 16 queries instead of hundreds."""
    plain = launch.launch_for
    monkeypatch.setattr(
        operators, "launch_for", lambda *shape: dataclasses.replace(plain(*shape), chunk=16)
    )


@pytest.mark.parametrize("causal, sinks", [(True, 0), (False, 3)], ids=["causal", "bidirectional"])
def test_awkward_lengths_in_one_batch(causal, sinks):
    inputs = random_inputs([*AWKWARD, 0, 2], heads=4, groups=1, size=16)
    check_parity(inputs, causal=causal, sinks=sinks)


@pytest.mark.parametrize("heads, groups, size", [(1, 1, 16), (4, 2, 32), (4, 1, 64), (8, 1, 16)])
def test_head_layouts(heads, groups, size):
    check_parity(random_inputs([17, 35], heads=heads, groups=groups, size=size), top_n=1)


@pytest.mark.parametrize(
    "form",
    [
        dict(block_size=32, top_n=1, window=3),
        dict(top_n=3, window=40, causal=False),
        dict(sinks=20),
        dict(sinks=20, causal=False, window=1),
    ],
    ids=str,
)
def test_other_patterns(form):
    inputs = random_inputs(
        [3, 80], heads=1, groups=1, size=16, block_size=form.get("block_size", 16)
    )
    check_parity(inputs, **form)


def test_half_precision():
    inputs = random_inputs([40, 65], heads=4, groups=1, size=16, dtype=torch.float16)
    check_parity(inputs, tolerance=1e-3)


@pytest.mark.parametrize(
    "sizes, form",
    [
        (dict(heads=2, groups=2), {}),
        (dict(heads=4, groups=1), dict(sinks=20)),
        (dict(heads=2, groups=1), dict(sinks=3, causal=False)),
        (dict(heads=1, groups=1, block_size=32), dict(block_size=32, window=40, top_n=1)),
    ],
    ids=str,
)
def test_union(sizes, form):
    check_parity(
        random_inputs([1, 15, 33, 0, 70], size=16, fusion="union", **sizes), fusion="union", **form
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_a_union_sees_keys_once_that_stand_in_chosen_blocks(causal):
    length, distances = 150, torch.tensor([1, 2, 4, 8, -1, -2, -4, 3][: 4 if causal else 8])
    chosen = (torch.arange(length) // 16)[:, None] - distances
    chosen[(chosen < 0) | (chosen >= length // 16)] = -1
    selected = chosen[:, None].to(DEVICE, torch.int32)
    inputs = random_inputs([length], heads=4, groups=1, size=16, fusion="union")
    form = dict(selected=selected, top_n=len(distances), causal=causal, fusion="union")
    check_parity(inputs, **form)


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_a_block_chosen_by_everyone(short_chunks, fusion):
    hub = torch.full((150, 1, 4), -1, dtype=torch.int32, device=DEVICE)
    hub[32:, :, 0] = 1
    inputs = random_inputs([150], heads=2, groups=1, size=16, fusion=fusion)
    check_parity(inputs, selected=hub, fusion=fusion)


def test_equal_scores_choose_the_lower_block():
    inputs = random_inputs([160], heads=1, groups=1, size=16).to(DEVICE)
    inputs.block_keys[:] = 0.0
    inputs.block_keys[1::2] = -0.0
    _, selected = attend(*inputs.all(), impl="triton")
    assert selected[-1].flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("top_n", [1, 5, 16])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_selection_among_many_blocks(causal, top_n):
    # Blocks of more than one step of the kernel, their scores rising and falling.
    length = 16 * 150
    inputs = random_inputs([40, length], heads=2, groups=1, size=16).to(DEVICE)
    rows = torch.tensor([0, 39, 40, 40 + 15, 40 + 16, 1000, 1700, 40 + length - 1])
    with torch.no_grad():
        selected = operators.select_blocks(
            inputs.q, inputs.block_keys, inputs.cu_seqlens, [16, top_n, 8, 0, int(causal), 0]
        )
    exact = inputs.to(dtype=torch.float64)
    _, expected = attend(*exact.all(), impl="torch", top_n=top_n, causal=causal, selected=None)
    assert torch.equal(selected[rows], expected[rows])


def test_another_history_changes_nothing():
    inputs = random_inputs([20, 40, 20], heads=1, groups=1, size=16).to(DEVICE)
    form = dict(impl="triton", causal=False, sinks=1)
    _, selected = attend(*inputs.all(), **form)
    before, _ = outputs_and_gradients(inputs, selected=selected, **form)
    for x in (inputs.q, inputs.k, inputs.v, inputs.gates):
        x.data[20:60] = torch.nan
    after, _ = outputs_and_gradients(inputs, selected=selected, **form)
    others = torch.cat((torch.arange(20), torch.arange(60, 80)))
    for name, a, b in zip(NAMES, before, after, strict=True):
        assert torch.equal(a[others], b[others]), name


@pytest.mark.parametrize("fusion, causal", [("gated", True), ("union", False)], ids=str)
def test_blocks_up_to_a_share(fusion, causal):
    inputs = random_inputs([17, 0, 100], heads=4, groups=1, size=16, fusion=fusion)
    check_parity(inputs, fusion=fusion, causal=causal, share=0.8)


def test_rows_at_any_stride():
    inputs = random_inputs([35], heads=2, groups=1, size=16).to(DEVICE)
    expected, _ = attend(*inputs.all(), impl="triton")
    joint = torch.cat((inputs.q, inputs.k, inputs.v), dim=1)
    inputs.q, inputs.k, inputs.v = joint.split((2, 1, 1), dim=1)
    inputs.gates = inputs.gates.transpose(0, 1).contiguous().transpose(0, 1)
    value, _ = attend(*inputs.all(), impl="triton")
    assert torch.equal(value, expected)


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=str)
def test_no_events(lengths):
    inputs = random_inputs(lengths, size=16).to(DEVICE)
    out, selected = attend(*inputs.all(), impl="triton")
    assert out.shape == (0, 4, 16)
    assert selected.shape == (0, 2, 4)


def test_the_operators_are_registered_in_full():
    inputs = random_inputs([18], heads=1, groups=1, size=16).to(DEVICE)
    _, selected = attend(*inputs.all(), impl="triton")
    leaves = inputs.differentiable()
    arguments = (*leaves, selected, inputs.cu_seqlens, [16, 4, 8, 0, 1, 0])
    torch.library.opcheck(operators.attend, arguments)
    arguments = (inputs.q.detach(), inputs.block_keys, inputs.cu_seqlens, [16, 4, 8, 0, 1, 0])
    torch.library.opcheck(operators.select_blocks, arguments)


@pytest.mark.parametrize(
    "sizes, form, message",
    [
        (dict(size=8), {}, "head size is 8"),
        (dict(size=16, heads=3, groups=1), {}, "query heads a key/value head is 3"),
        (dict(size=16, block_size=8), dict(block_size=8), "block_size is 8"),
        (dict(size=16, dtype=torch.float64), {}, "type is torch.float64"),
        (dict(size=16), dict(power_base=3.0), "power_base is 3.0, the kernels take 2"),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take_is_named(sizes, form, message):
    inputs = random_inputs([20], **sizes).to(DEVICE)
    with pytest.raises(ValueError, match=message):
        attend(*inputs.all(), impl="triton", **form)
