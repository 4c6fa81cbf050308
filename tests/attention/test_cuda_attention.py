"""The CUDA kernels against the reference: on a GPU where there is one, else on emulated lanes."""

import pytest
import torch
from cuda_emulator import COMPILER, Emulator
from inputs import AWKWARD, attend, random_inputs, relative_error

from blossomrec.attention.backends.cuda import compiler, launch, operators

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
NAMES = ("out", "q", "k", "v", "gates")
B, H = torch.bfloat16, torch.float16
REAL_KERNEL = compiler.kernel
# What has nothing to do with how chosen blocks are got at, or takes long.
once = pytest.mark.parametrize("kernels", [("fetched", 1)], indirect=True, ids=str)
# For what depends on the size of heads: each has the kernels that it is launched with.
as_launched = pytest.mark.parametrize("kernels", [None], indirect=True, ids=["as launched"])
# Of all head sizes: blocks fetched for each event alone; and those of wide heads swept over, with
# queries that come to keys through a ring, and selection two tiles at a time.
FORMS = [("fetched", 1), ("wide", 2)]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module", autouse=True, params=FORMS, ids=str)
def kernels(request, emulator):
    """The compiled kernels, emulated where there is no GPU.

    Both ways to get at chosen blocks; one warp in a block of threads, and some together.
    """
    if not GPU and COMPILER is None:
        pytest.skip("the kernels are emulated with a C++ compiler, and there is none")
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            form, together = request.param
            take_form(patch, form)
            patch.setattr(launch, "TOGETHER", dict.fromkeys(launch.HEAD_SIZES, together))
        if not GPU:
            patch.setattr(compiler, "kernel", emulator.kernel)
        forget()
        yield
    forget()


def take_form(patch, form):
    """Kernels of this form for all head sizes: wide ones as they are, others like them."""
    sizes, is_wide = launch.HEAD_SIZES, form == "wide"
    wide = launch.Wide(2, forward=8, together=4, slots=1, queries=8, stages=3, keys=8)
    resident = dict.fromkeys(("FORWARD", "QUERIES", "KEYS", "LISTS"), 8)
    forms = {size: launch.WIDE.get(size, wide) for size in sizes} if is_wide else {}
    patch.setattr(launch, "WIDE", forms)
    patch.setattr(launch, "RESIDENT", dict.fromkeys(sizes, resident))


def forget():
    """Kernels are kept by their constants; others are to be made now."""
    launch._attention.cache_clear()
    launch._selection.cache_clear()


def outputs_and_gradients(inputs, impl, **options):
    leaves = inputs.differentiable()
    out, selected = attend(*inputs.all(), impl=impl, **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)], selected


def check_parity(inputs, **form):
    """Selected blocks, outputs and all gradients, these with the same blocks."""
    inputs = inputs.to(DEVICE)
    exact = inputs.to(dtype=torch.float64)
    chosen = form.pop("selected", None)
    if chosen is None:
        _, chosen = attend(*exact.all(), impl="reference", **form)
        with torch.no_grad():
            _, selected = attend(*inputs.all(), impl="cuda", **form)
        assert torch.equal(selected, chosen)
    expected, _ = outputs_and_gradients(exact, "reference", selected=chosen, **form)
    values, _ = outputs_and_gradients(inputs, "cuda", selected=chosen, **form)
    for name, value, other in zip(NAMES, values, expected, strict=True):
        assert relative_error(value, other) < TOLERANCE[inputs.q.dtype], name


@once
@pytest.mark.parametrize("dtype, causal", [(B, True), (H, False)], ids=str)
def test_awkward_lengths_in_one_batch(dtype, causal):
    inputs = random_inputs([*AWKWARD, 0, 2], heads=8, groups=2, size=16, dtype=dtype)
    check_parity(inputs, causal=causal)


@as_launched
@pytest.mark.parametrize(
    "heads, groups, size, causal",
    [(1, 1, 16, True), (2, 2, 32, True), (4, 2, 64, False), (8, 1, 16, False)],
    ids=str,
)
def test_head_layouts(heads, groups, size, causal):
    inputs = random_inputs([17, 100], heads=heads, groups=groups, size=size, dtype=H)
    check_parity(inputs, top_n=1, causal=causal)


@once
@pytest.mark.parametrize(
    "form",
    [dict(top_n=8, window=20), dict(top_n=3, window=33, causal=False), dict(window=1)],
    ids=str,
)
def test_other_patterns(form):
    check_parity(random_inputs([3, 180], heads=4, groups=1, size=16, dtype=H), **form)


@as_launched
@pytest.mark.parametrize(
    "heads, groups, size, dtype, form",
    [
        (8, 2, 16, B, {}),
        (8, 2, 16, H, dict(causal=False)),
        (1, 1, 16, H, dict(window=20)),
        (2, 2, 32, H, dict(top_n=2, window=1)),
        (4, 2, 64, H, dict(top_n=3, window=33, causal=False)),
    ],
    ids=str,
)
def test_union(heads, groups, size, dtype, form):
    sizes = dict(heads=heads, groups=groups, size=size, dtype=dtype, fusion="union")
    check_parity(random_inputs([1, 15, 33, 0, 150], **sizes), fusion="union", **form)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_a_union_sees_keys_once_that_stand_in_chosen_blocks(causal):
    length, distances = 300, torch.tensor([1, 2, 4, 8, -1, -2, -4, 3][: 4 if causal else 8])
    chosen = (torch.arange(length) // 16)[:, None] - distances
    chosen[(chosen < 0) | (chosen >= length // 16)] = -1
    selected = chosen[:, None].to(DEVICE, torch.int32)
    inputs = random_inputs([length], heads=4, groups=1, size=16, dtype=H, fusion="union")
    form = dict(selected=selected, top_n=len(distances), causal=causal, fusion="union")
    check_parity(inputs, **form)


@as_launched
@pytest.mark.parametrize(
    "base, heads, groups, size, form",
    [
        (1.5, 4, 1, 16, dict(window=2)),
        (1.5, 4, 2, 64, dict(causal=False)),
        (3.0, 2, 2, 32, dict(fusion="union", top_n=3, causal=False)),
        (4.0, 8, 1, 16, dict(window=20, causal=False)),
        (4.0, 8, 2, 16, dict(fusion="union")),
        # There is no far distance in any history.
        (1e18, 4, 2, 16, {}),
    ],
    ids=str,
)
def test_powers_of_other_bases(base, heads, groups, size, form):
    sizes = dict(heads=heads, groups=groups, size=size, dtype=H)
    inputs = random_inputs([1, 16, 33, 0, 180], **sizes, fusion=form.get("fusion", "gated"))
    check_parity(inputs, power_base=base, **form)


@as_launched
@pytest.mark.parametrize(
    "share, heads, groups, size, form",
    [
        (0.5, 4, 1, 16, {}),
        (0.8, 4, 2, 32, dict(fusion="union", top_n=3, causal=False)),
        (0.95, 8, 2, 16, dict(causal=False, power_base=3.0)),
    ],
    ids=str,
)
def test_blocks_up_to_a_share(share, heads, groups, size, form):
    sizes = dict(heads=heads, groups=groups, size=size, dtype=H)
    inputs = random_inputs([1, 16, 33, 0, 180], **sizes, fusion=form.get("fusion", "gated"))
    check_parity(inputs, share=share, **form)


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_a_block_chosen_by_everyone(monkeypatch, fusion):
    # Its inverse list is cut into many chunks, and events that choose nothing come last.
    monkeypatch.setattr(launch, "CHUNK", dict.fromkeys(launch.HEAD_SIZES, 16))
    forget()
    hub = torch.full((150, 1, 4), -1, dtype=torch.int32, device=DEVICE)
    hub[32:, :, 0] = 1
    hub[100:120, :, 1] = 3
    inputs = random_inputs([150], heads=2, groups=1, size=16, dtype=H, fusion=fusion)
    check_parity(inputs, selected=hub, fusion=fusion)
    forget()


@once
@pytest.mark.parametrize("top_n, causal", [(4, True), (3, False), (1, True)], ids=str)
@pytest.mark.parametrize("counters, counts", [(4096, 1 << 28), (8, 500), (4096, 1)], ids=str)
def test_lists_hold_choices_in_the_order_of_events(monkeypatch, counters, counts, top_n, causal):
    monkeypatch.setattr(launch, "COUNTERS", counters)
    # Room for the counts of all segments, of two, or of less than one.
    monkeypatch.setattr(launch, "MAX_COUNTS", counts)
    forget()
    lengths, groups, chunk = [40, 0, 1100, 600, 1], 2, launch.CHUNK[16]
    inputs = random_inputs(lengths, heads=2, groups=groups, size=16, dtype=H).to(DEVICE)
    numbers = [16, top_n, 8, 0, int(causal), 0, 2, 1]
    selected = random_choices(lengths, groups, top_n, causal)
    kernels = launch.attention_kernels(inputs.q, groups, numbers)
    table = operators._table(inputs.cu_seqlens, sum(lengths))
    taken = []

    def count_choices(*given):
        taken.append(given[4].numel())
        kernels.count_choices(*given)

    counting = kernels._replace(count_choices=count_choices)
    found = operators._inverse(counting, selected.to(DEVICE), table, chunk)
    # A segment has a count for each list at least.
    assert taken[0] <= max(counts, len(table) * groups)
    order, bounds, owners = (x.tolist() for x in found)
    first_tiles = torch.tensor([0, 3, 3, 72, 110]).repeat_interleave(torch.tensor(lengths))
    lists = (first_tiles[:, None, None] + selected) * groups + torch.arange(groups)[:, None]
    lists[selected < 0] = -1
    for number, (begin, end) in enumerate(bounds):
        places = (lists.flatten() == number).nonzero()[:, 0].tolist()
        assert order[begin:end] == places
        for at in range(begin + chunk, end, chunk):
            assert owners[at // chunk] == number
            owners[at // chunk] = -1
    assert set(owners) == {-1}
    forget()


def random_choices(lengths, groups, top_n, causal):
    """Distinct blocks of each event's history, earlier ones if causal, with -1 among them."""
    chosen = torch.full((sum(lengths), groups, top_n), -1, dtype=torch.int32)
    generator, row = torch.Generator().manual_seed(0), 0
    for length in lengths:
        for event in range(length):
            blocks = event // 16 if causal else length // 16
            for group in range(groups):
                each = torch.randperm(blocks, generator=generator)[:top_n].to(torch.int32)
                # The first block is everyone's: its list has chunks.
                each[1:][each[1:] == 0] = -1
                if len(each):
                    each[0] = 0
                chosen[row, group, : len(each)] = each
            row += 1
    return chosen


def test_equal_scores_choose_the_lower_block():
    inputs = random_inputs([16 * 24], heads=1, groups=1, size=16, dtype=H).to(DEVICE)
    inputs.block_keys[:] = 0.0
    inputs.block_keys[1::2] = -0.0
    _, selected = attend(*inputs.all(), impl="cuda")
    assert selected[-1].flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "heads, top_n, causal, size",
    [
        (2, 1, True, 16),
        (2, 4, True, 16),
        (2, 4, False, 16),
        (2, 4, True, 64),
        # Means of queries come in three parts, and few events share a block of threads.
        (4, 12, True, 32),
    ],
)
@pytest.mark.parametrize("keys", [torch.bfloat16, torch.float32], ids=str)
def test_selection_among_many_blocks(heads, top_n, causal, size, keys):
    length = 16 * 150
    inputs = random_inputs([40, length], heads=heads, groups=1, size=size, dtype=B).to(DEVICE)
    # The rows of the second history's last block, and of one in the middle.
    rows = torch.tensor([0, 39, 40, 40 + 15, 40 + 16, 1000, 1700, 40 + length - 1])
    block_keys = inputs.block_keys.to(keys) + torch.rand(len(inputs.block_keys), 1, size).to(
        DEVICE, keys
    )
    numbers = [16, top_n, 8, 0, int(causal), 0]
    selected = operators.select_blocks(inputs.q, block_keys, inputs.cu_seqlens, numbers)
    inputs.block_keys = block_keys
    exact = inputs.to(dtype=torch.float64)
    _, expected = attend(*exact.all(), impl="torch", top_n=top_n, causal=causal)
    assert torch.equal(selected[rows], expected[rows])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_selection_where_neighbours_are_of_two_histories(causal):
    # With odd numbers of blocks, the last of one and the first of the next may share a warp.
    lengths = [16 * 15, 16 * 8 + 5, 16 * 11]
    inputs = random_inputs(lengths, heads=2, groups=1, size=64, dtype=B).to(DEVICE)
    numbers = [16, 4, 8, 0, int(causal), 0]
    arguments = (inputs.q, inputs.block_keys, inputs.cu_seqlens, numbers)
    selected = operators.select_blocks(*arguments)
    exact = inputs.to(dtype=torch.float64)
    _, expected = attend(*exact.all(), impl="torch", causal=causal)
    assert torch.equal(selected, expected)


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_scores_far_apart(fusion):
    # Tops of the softmaxes are found late, and what was summed up is scaled anew.
    inputs = random_inputs([17, 150], heads=4, groups=2, size=16, dtype=H, fusion=fusion)
    inputs.q *= 6
    check_parity(inputs, fusion=fusion)


@pytest.mark.parametrize("dtype, fusion", [(H, "gated"), (B, "gated"), (H, "union")], ids=str)
def test_a_score_far_below_zero_stays_with_its_event(dtype, fusion):
    # The lse of the first packed event is one that no score of 0 may meet: 2 ** -lse is infinite.
    sizes = dict(heads=4, groups=2, size=16, dtype=dtype, fusion=fusion)
    inputs = random_inputs([1, 10, 26], **sizes)
    inputs.k[0] *= 20 / inputs.k[0].norm(dim=-1, keepdim=True)
    inputs.q[0] = -inputs.k[0].repeat_interleave(2, dim=0)
    check_parity(inputs, fusion=fusion)


def test_gates_all_but_closed():
    # Division takes numbers like these as 0.
    inputs = random_inputs([1, 10, 26], heads=4, groups=2, size=16, dtype=B)
    inputs.gates[::2, :, 0] = 1e-39
    check_parity(inputs)


def test_queries_change_nothing_of_those_beside_them():
    inputs = random_inputs([150], heads=4, groups=1, size=16, dtype=H).to(DEVICE)
    inputs.q *= 6
    before, selected = attend(*inputs.all(), impl="cuda")
    inputs.q[1::2] *= -1
    after, _ = attend(*inputs.all(), selected=selected, impl="cuda")
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1::2], after[1::2])


def test_the_future_changes_nothing():
    inputs = random_inputs([150], heads=4, groups=1, size=16, dtype=H).to(DEVICE)
    before, _ = attend(*inputs.all(), impl="cuda")
    for x in (inputs.q, inputs.k, inputs.v, inputs.gates):
        x.data[100:] = 7.0
    inputs.block_keys[6:] = 7.0
    after, _ = attend(*inputs.all(), impl="cuda")
    assert torch.equal(before[:100], after[:100])
    assert not torch.equal(before[100:], after[100:])


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_another_history_changes_nothing(fusion):
    # The first one, too, whose rows stand in for those that are not there.
    lengths, form = [19, 41, 18, 21], dict(causal=False, fusion=fusion)
    poisoned = torch.tensor([1, 0, 1, 0]).repeat_interleave(torch.tensor(lengths)).bool()
    sizes = dict(heads=4, groups=1, size=16, dtype=H, fusion=fusion)
    inputs = random_inputs(lengths, **sizes).to(DEVICE)
    _, selected = attend(*inputs.all(), impl="cuda", **form)
    before, _ = outputs_and_gradients(inputs, "cuda", selected=selected, **form)
    for x in (inputs.q, inputs.k, inputs.v, inputs.gates):
        x.data[poisoned] = torch.nan
    after, _ = outputs_and_gradients(inputs, "cuda", selected=selected, **form)
    for name, a, b in zip(NAMES, before, after, strict=True):
        assert torch.equal(a[~poisoned], b[~poisoned]), name


def test_rows_at_any_stride():
    inputs = random_inputs([35], heads=4, groups=2, size=16, dtype=H).to(DEVICE)
    expected, _ = outputs_and_gradients(inputs, "cuda")
    apart = inputs.to()
    apart.q = torch.nn.functional.pad(inputs.q, (8, 0))[..., 8:]
    apart.k = torch.cat((inputs.k, inputs.k), dim=-1)[..., 16:]
    apart.v = inputs.v.transpose(0, 1).contiguous().transpose(0, 1)
    # Contiguous, but not where four numbers are read at a time.
    apart.gates = torch.nn.functional.pad(inputs.gates.flatten(), (1, 0))[1:].view(35, 4, 2)
    values, _ = outputs_and_gradients(apart, "cuda")
    for name, value, other in zip(NAMES, values, expected, strict=True):
        assert torch.equal(value, other), name


@once
def test_rows_are_copied_where_eight_numbers_are_not_aligned():
    x = torch.zeros(6, 4, 48, dtype=H, device=DEVICE)
    for rows in (x, x[:, 1:3, 8:24], x.transpose(0, 1), x[:1].expand(5, 4, 48)):
        assert operators._rows(rows) is rows
    uneven = torch.zeros(6, 4, 20, dtype=H, device=DEVICE)
    for rows in (x[..., 4:20], x[..., ::2], x.transpose(1, 2), uneven, uneven.transpose(0, 1)):
        copy = operators._rows(rows)
        assert copy.is_contiguous() and copy.data_ptr() != rows.data_ptr()
        assert copy.shape == rows.shape


@once
@pytest.mark.skipif(GPU, reason="a GPU stops at what is not aligned")
def test_the_emulator_tells_what_is_not_aligned(emulator):
    pack = emulator.kernel("pack", "pack_blocks", launch._constants((1, 1, 16, 1, False), True))
    rows = torch.zeros(1, 1, 24, dtype=H)
    table = torch.tensor([[0, 1, 0, 0, 0]], dtype=torch.int32)
    packed = torch.empty(1, 1, 2, 16, 16, dtype=H)
    pack(1, rows, rows, table, packed, 24, 24, 24, 24, 0)
    with pytest.raises(AssertionError, match="accesses are not aligned"):
        pack(1, rows[..., 2:], rows, table, packed, 24, 24, 24, 24, 0)


def test_selection_with_rows_farther_apart_than_32_bits_count(monkeypatch):
    inputs = random_inputs([97], heads=1, groups=1, size=16, dtype=H).to(DEVICE)
    arguments = (inputs.block_keys, inputs.cu_seqlens, [16, 4, 8, 0, 1, 0])
    # 6.5 GB, of which a CPU takes only what is touched.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    apart = torch.empty(97, 1 << 25, dtype=H, device=DEVICE)[:, None, :16]
    apart.copy_(inputs.q)
    selected = operators.select_blocks(apart, *arguments)
    assert torch.equal(selected, operators.select_blocks(inputs.q, *arguments))


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=str)
def test_no_events(lengths):
    inputs = random_inputs(lengths, size=16, dtype=H).to(DEVICE)
    out, selected = attend(*inputs.all(), impl="cuda")
    assert out.shape == (0, 4, 16)
    assert selected.shape == (0, 2, 4)


@once
def test_the_operators_are_registered_in_full():
    inputs = random_inputs([18], heads=4, groups=1, size=16, dtype=H).to(DEVICE)
    _, selected = attend(*inputs.all(), impl="cuda")
    leaves = inputs.differentiable()
    numbers = [16, 4, 8, 0, 1, 0, 2, 1]
    torch.library.opcheck(operators.attend, (*leaves, selected, inputs.cu_seqlens, numbers))
    arguments = (inputs.q.detach(), inputs.block_keys, inputs.cu_seqlens, numbers)
    torch.library.opcheck(operators.select_blocks, arguments)


@once
@pytest.mark.parametrize("form", [{}, dict(share=0.8, power_base=1.7)], ids=str)
def test_compiled_as_one_graph(form):
    inputs = random_inputs([40, 3], heads=4, groups=1, size=16, dtype=H).to(DEVICE)
    leaves = inputs.differentiable()

    def loss():
        out, _ = attend(*inputs.all(), impl="cuda", **form)
        return out.float().sin().sum()

    expected = torch.autograd.grad(loss(), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for value, other in zip(torch.autograd.grad(compiled(), leaves), expected, strict=True):
        assert relative_error(value, other) < TOLERANCE[H]


@once
@pytest.mark.parametrize(
    "sizes, form, message",
    [
        (dict(size=8), {}, "head size is 8"),
        (dict(size=16, heads=3, groups=1), {}, "query heads a key/value head is 3"),
        (dict(size=16), dict(sinks=2), "sinks is 2"),
        (dict(size=16, block_size=32), dict(block_size=32), "block_size is 32"),
        (dict(size=16, dtype=torch.float32), {}, "type is torch.float32"),
        (dict(size=16, heads=2, groups=2), dict(top_n=5), "top_n is 5"),
        (dict(size=16), dict(window=40), "window is 40"),
        (dict(size=16), dict(power_base=1.4), "power_base is 1.4, the kernels take at least 1.5"),
        (dict(size=16, heads=2, groups=2), dict(power_base=1.5), "power_base is 1.5"),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take_is_named(sizes, form, message):
    inputs = random_inputs([20], **({"dtype": H} | sizes)).to(DEVICE)
    with pytest.raises(ValueError, match=message):
        attend(*inputs.all(), impl="cuda", **form)


@once
def test_tensors_elsewhere_are_named():
    with pytest.raises(compiler.CompilationError, match="pack_blocks needs an NVIDIA GPU, not cpu"):
        REAL_KERNEL("pack", "pack_blocks", {})(1, torch.zeros(1))
