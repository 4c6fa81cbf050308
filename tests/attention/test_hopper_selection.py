"""Selection by warpgroups against PyTorch: on a Hopper GPU where there is one, else emulated."""

import pytest
import torch
from cuda_emulator import COMPILER, Emulator
from inputs import attend, random_inputs

from blossomrec.attention.backends.cuda import compiler, launch, operators

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
KERNEL = compiler.kernel
# One, none and fifteen blocks, and as many as a stage has or nearly, with the events of a few more.
BLOCKS = [1, 0, 15, 16, 17, 63, 64, 65, 2]
LENGTHS = [16 * blocks + blocks % 4 * 5 for blocks in BLOCKS]
# Queries that are multiplied as they are, and those whose mean comes in three parts.
forms = pytest.mark.parametrize("form", [dict(), dict(heads=4, size=16)], ids=str)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module", params=[8, 4], ids=["two warpgroups", "one warpgroup"])
def launched(request, emulator):
    """The names of the programs whose kernels are made."""
    if GPU and not launch.has_warpgroups(DEVICE):
        pytest.skip("the GPU multiplies by warps")
    if not GPU and COMPILER is None:
        pytest.skip("the kernels are emulated with a C++ compiler, and there is none")
    programs = []

    def kernel(program, *given):
        programs.append(program)
        return (KERNEL if GPU else emulator.kernel)(program, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "has_warpgroups", lambda _: True)
        patch.setattr(launch, "HOPPER_HEADS", (16, 64))
        sizes = {
            size: constants | {"TOGETHER": request.param}
            for size, constants in launch.HOPPER_SELECTION.items()
        }
        patch.setattr(launch, "HOPPER_SELECTION", sizes)
        patch.setattr(compiler, "kernel", kernel)
        launch._selection.cache_clear()
        yield programs
    launch._selection.cache_clear()


def select(inputs, top_n, causal):
    numbers = [16, top_n, 8, 0, int(causal), 0]
    return operators.select_blocks(inputs.q, inputs.block_keys, inputs.cu_seqlens, numbers)


def check_choices(inputs, top_n, causal):
    inputs = inputs.to(DEVICE)
    exact = inputs.to(dtype=torch.float64)
    _, expected = attend(*exact.all(), impl="torch", top_n=top_n, causal=causal)
    assert torch.equal(select(inputs, top_n, causal), expected)


def draw(lengths, heads=2, groups=1, size=64, dtype=torch.bfloat16):
    return random_inputs(lengths, heads=heads, groups=groups, size=size, dtype=dtype)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "heads, groups, size, top_n",
    [(4, 2, 64, 4), (2, 2, 64, 1), (2, 1, 64, 3), (4, 1, 16, 4), (2, 1, 16, 3), (2, 2, 16, 4)],
    ids=str,
)
def test_awkward_lengths(launched, heads, groups, size, top_n, causal):
    check_choices(draw(LENGTHS, heads, groups, size), top_n, causal)
    assert launched[-1] == "hopper_selection"


@forms
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_many_histories_beside_a_long_one(launched, form, causal):
    check_choices(draw([3] * 9 + [40, 16 * 130 + 9] + [20] * 7 + [0, 5], **form), 2, causal)


@forms
@pytest.mark.parametrize("lengths", [[], [0], [5, 15, 1], [16], [17], [33], [81]], ids=str)
def test_little_or_nothing_to_choose_from(launched, form, lengths):
    check_choices(draw(lengths, **form), 4, True)


@pytest.mark.parametrize("per_group, causal", [(1, True), (2, False), (4, True)], ids=str)
def test_hundreds_of_blocks_as_warp_by_warp(launched, per_group, causal, monkeypatch):
    inputs = draw([40, 16 * 530 + 5], per_group, size=16)
    # Importance far apart.
    inputs.q *= 2.0 ** -torch.arange(0, 4 * per_group, 4)[:, None]
    inputs.block_keys[::7] *= 2.0**-9
    inputs, choices = inputs.to(DEVICE), []
    for has_warpgroups in (True, False):
        monkeypatch.setattr(launch, "has_warpgroups", lambda _, has=has_warpgroups: has)
        choices.append(choices_of_last(inputs, causal))
    assert launched[-1] == "selection"
    assert torch.equal(*choices)


def choices_of_last(inputs, causal):
    """Those of the last events alone, which have the most to choose among."""
    q, keys = inputs.q, inputs.block_keys
    table = operators._table(inputs.cu_seqlens, len(q))
    selected = q.new_empty(len(q), 1, 4, dtype=torch.int32)
    kernels = launch.selection_kernels(q, 1, 4, causal, 1)
    kernels.select_blocks(16, q, keys, table, selected, len(table), len(keys), *q.stride()[:2])
    return selected[-100:]


def test_the_smallest_part_of_a_mean_counts(launched):
    inputs = draw([16 * 17], heads=4, size=16)
    inputs.q[:], inputs.block_keys[:] = 0.0, 0.0
    # The first two numbers cancel but for a few 2^-18, which two parts have no room for.
    inputs.q[:, 0, :2], inputs.q[:, 1, :2] = 1.0, 2.0**-9
    inputs.q[:, 2, 0] = torch.tensor([2.0**-18, -(2.0**-18)]).repeat(8 * 17)
    inputs.block_keys[:, 0, 0] = 1 + torch.arange(17) * 5 % 17 / 16
    inputs.block_keys[:, 0, 1] = -inputs.block_keys[:, 0, 0]
    check_choices(inputs, 4, True)


def test_scores_that_rise_and_fall(launched):
    # Every block passes what those before it set as a bound; or none does after the first few.
    inputs = draw([16 * 130] * 2)
    scale = torch.linspace(0.5, 2.0, 130).repeat(2)
    scale[130:] = scale[130:].flip(0)
    inputs.q[:] = inputs.q[:1, :1]
    inputs.block_keys = (inputs.q[0, 0] * scale[:, None, None]).to(torch.bfloat16)
    inputs.q += torch.randn(inputs.q.shape, generator=torch.Generator().manual_seed(2)) / 16
    selected = select(inputs.to(DEVICE), 4, True).cpu()
    exact = inputs.to(dtype=torch.float64)
    _, expected = attend(*exact.all(), impl="torch")
    # Keys that are rounded alike score alike but for the order of the sums.
    scores = (exact.q.sum(1) @ exact.block_keys[:130, 0].T)[: 16 * 130]
    scores = torch.cat((scores, (exact.q.sum(1) @ exact.block_keys[130:, 0].T)[16 * 130 :]))
    assert torch.equal(selected < 0, expected < 0)
    chosen, best = (
        scores.gather(1, x[:, 0].clamp(min=0).long()).sort(-1).values for x in (selected, expected)
    )
    torch.testing.assert_close(chosen, best, rtol=1e-5, atol=0)


@forms
@pytest.mark.parametrize("score", [0.0, 1.0, -1.0])
def test_equal_scores_choose_the_lower_block(launched, form, score):
    inputs = draw([16 * 70], **form)
    inputs.q[:], inputs.block_keys[:] = 1.0, score
    selected = select(inputs.to(DEVICE), 4, True)
    assert selected[-1].flatten().tolist() == [0, 1, 2, 3]


@forms
def test_another_history_changes_nothing(launched, form):
    lengths = [16 * 3, 16 * 20 + 2, 16 * 2, 16 * 70]
    inputs = draw(lengths, **form).to(DEVICE)
    before = select(inputs, 4, False)
    poisoned = torch.tensor([1, 0, 1, 0], device=DEVICE).bool()
    rows = poisoned.repeat_interleave(torch.tensor(lengths, device=DEVICE))
    blocks = poisoned.repeat_interleave(torch.tensor(lengths, device=DEVICE) // 16)
    inputs.q[rows], inputs.block_keys[blocks] = torch.nan, torch.nan
    assert torch.equal(select(inputs, 4, False)[~rows], before[~rows])


@pytest.mark.parametrize("heads, size", [(4, 64), (8, 16)], ids=str)
def test_rows_at_any_stride(launched, heads, size):
    inputs = draw([150, 16 * 20], heads, 2, size).to(DEVICE)
    expected = select(inputs, 4, True)
    inputs.q = torch.nn.functional.pad(inputs.q, (8, 0))[..., 8:]
    assert torch.equal(select(inputs, 4, True), expected)


@pytest.mark.parametrize(
    "form, top_n, program",
    [
        (dict(heads=4), 4, "wide_selection"),
        (dict(), 8, "wide_selection"),
        (dict(size=32), 4, "wide_selection"),
        (dict(dtype=torch.float16), 4, "wide_selection"),
        (dict(heads=4, size=16), 8, "selection"),
    ],
    ids=str,
)
def test_other_forms_choose_warp_by_warp(launched, form, top_n, program):
    check_choices(draw([150], **form), top_n, True)
    assert launched[-1] == program
