import pytest
import torch

from benchmarks.speed import bench_attention, operations
from benchmarks.speed.bench_options import FASTEST_DENSE, PUBLISHED, BenchOptions, Layout
from benchmarks.speed.flex import TILE, power_law_mask
from benchmarks.speed.instruments.parity import Check, largest_error, relative_error
from blossomrec.attention.pattern import NearPattern
from implementations import CPU_MISSING

RAGGED = (33, 1, 17, 120)
ALIKE = (96, 96)


def errors(operation):
    """Of the output, and of each gradient."""
    exact = [leaf.detach().double().requires_grad_() for leaf in operation.leaves]
    pairs = []
    for function, leaves in (
        (operation.function, operation.leaves),
        (operation.definition, exact),
    ):
        out = function(*leaves)
        direction = torch.arange(out.numel(), device=out.device).view(out.shape).cos().to(out)
        pairs.append([out, *torch.autograd.grad(out, leaves, direction)])
    return [relative_error(*pair) for pair in zip(*pairs, strict=True)]


FORM = ("cpu", torch.float32)
TIMED = {
    "blossom-mean": lambda: operations.blossom("torch", "mean", PUBLISHED, RAGGED, *FORM),
    "blossom-mlp": lambda: operations.blossom("torch", "mlp", Layout(4, 2, 64), RAGGED, *FORM),
    "blossom-union": lambda: operations.blossom("torch-union", "mean", PUBLISHED, RAGGED, *FORM),
    "blossom-cpu": lambda: operations.blossom("cpu", "mlp", PUBLISHED, RAGGED, *FORM),
    "short": lambda: operations.short_path("torch", PUBLISHED, RAGGED, *FORM),
    "dense": lambda: operations.dense("dense", PUBLISHED, ALIKE, *FORM),
    "dense-fastest": lambda: operations.dense("dense", FASTEST_DENSE, ALIKE, *FORM),
    "naive": lambda: operations.naive(PUBLISHED, ALIKE, *FORM),
    "ragged-dense": lambda: operations.ragged_dense(PUBLISHED, RAGGED, *FORM),
}


CPU = pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
NAMES = [pytest.param(n, marks=CPU if n == "blossom-cpu" else ()) for n in TIMED]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_timed_is_what_is_defined(name):
    operation = TIMED[name]()
    found = errors(operation)
    assert len(found) == len(operation.leaves) + 1
    assert max(found) < 1e-5


@pytest.mark.parametrize("name", ["dense", "naive", "ragged-dense"])
def test_dense_operations_are_the_same_attention(name):
    """The definition is not one's own: rows of the first history by hand."""
    operation = TIMED[name]()
    q, k, v = (leaf.detach().double() for leaf in operation.leaves)
    if name == "ragged-dense":
        q, k, v = (x[: RAGGED[0]].transpose(0, 1) for x in (q, k, v))
        out = operation.forward()[: RAGGED[0]].transpose(0, 1)
    else:
        q, k, v, out = q[0], k[0], v[0], operation.forward()[0]
    for head, event in ((0, 0), (3, 20), (7, 32)):
        keys, values = k[head // 4, : event + 1], v[head // 4, : event + 1]
        share = (keys @ q[head, event] / 4).softmax(0)
        torch.testing.assert_close(out[head, event].double(), share @ values, rtol=0, atol=1e-5)


def test_the_short_path_sees_the_pattern_alone():
    operation = operations.short_path("torch", PUBLISHED, (200,), *FORM)
    q, k, v = (leaf.detach() for leaf in operation.leaves)
    seen = [150 - distance for distance in NearPattern(operations.WINDOW).distances(151)]
    share = (k[seen, 1] @ q[150, 5] / 4).softmax(0)
    torch.testing.assert_close(operation.forward()[150, 5], share @ v[seen, 1])


@pytest.mark.parametrize("length", [128, 640, 1_536])
def test_tiles_of_the_flex_mask_are_those_with_a_visible_pair(length):
    event = torch.arange(length)
    back = event[:, None] - event
    visible = torch.isin(back, torch.tensor(NearPattern(operations.WINDOW).distances(length)))
    tiles = length // TILE
    wanted = visible.view(tiles, TILE, tiles, TILE).any(3).any(1)
    mask = power_law_mask(length, operations.WINDOW, "cpu")
    assert torch.equal(mask.to_dense()[0, 0].bool(), wanted)
    pairs = mask.mask_mod(torch.tensor(0), torch.tensor(0), event[:, None], event)
    assert torch.equal(pairs, visible)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_is_the_short_path():
    operation = operations.flex_short_path(PUBLISHED, (256, 256), *FORM, compile=False)
    with torch.no_grad():
        # No gradient: FlexAttention has none on a CPU.
        rows = [leaf.detach() for leaf in operation.leaves]
        expected = operation.definition(*(row.double() for row in rows))
        assert relative_error(operation.function(*rows), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_checks_of_the_attention_hold(dtype, tiny_log):
    options = BenchOptions("cpu", dtype, (64,), 128, log=tiny_log.folder)
    found = list(bench_attention.checks(options))
    assert not [check for check in found if check.red]
    names = {check.name for check in found}
    for name in ("torch mean 8/2/16", "torch-union mlp 4/2/64", "dense 2/2/64", "naive 8/2/16"):
        assert name in names
    assert "choices of torch mlp 8/2/16" in names


def test_a_wrong_gradient_is_red(monkeypatch):
    original = operations.blossom_attention

    def wrong(q, k, v, *others, impl, **form):
        if impl == "torch":
            v = v * 2 - v.detach()
        return original(q, k, v, *others, impl=impl, **form)

    monkeypatch.setattr(operations, "blossom_attention", wrong)
    options = BenchOptions("cpu", torch.float32, (64,), 128, impls=("torch",))
    assert {check.name for check in bench_attention.checks(options) if check.red} == {
        f"torch {compress} {heads}"
        for compress in ("mean", "mlp")
        for heads in ("8/2/16", "4/2/64")
    }


def test_a_wrong_choice_is_red(monkeypatch):
    original = operations.blossom_attention

    def wrong(q, *others, impl, **form):
        out, selected = original(q, *others, impl=impl, **form)
        if impl == "torch" and "selected" not in form:
            selected = original(-q, *others, impl=impl, **form)[1]
        return out, selected

    monkeypatch.setattr(operations, "blossom_attention", wrong)
    options = BenchOptions("cpu", torch.float32, (64,), 128, impls=("torch",))
    assert "choices of torch mean 8/2/16" in {
        check.name for check in bench_attention.checks(options) if check.red
    }


def test_not_a_number_is_red():
    assert Check("nan", float("nan"), 1.0).red and not Check("exact", 0.0, 0.0).red
    one, broken = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert Check("nan", largest_error([one, broken, one], [one, one, one]), 1.0).red
