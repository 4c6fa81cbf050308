"""The C++ operator: its bits, its operators, its compiler, and what happens without one."""

import os
import platform
import subprocess
import sys
import threading

import pytest
import torch
from inputs import AWKWARD, attend, random_inputs, relative_error

from blossomrec.attention import BlossomSpec, api, selector
from blossomrec.attention.backends.code_cache import NotBuiltError
from blossomrec.attention.backends.cpu import compiler, library, operators
from blossomrec.attention.packing import Packing
from blossomrec.attention.rotary import rotate_by
from implementations import CPU_MISSING

needs_compiler = pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
FUSIONS = pytest.mark.parametrize("fusion", ["gated", "union"])
NAMES = ("out", "q", "k", "v", "gates")


def outputs_and_gradients(inputs, **options):
    leaves = inputs.differentiable()
    out, selected = attend(*inputs.all(), impl="cpu", **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)], selected


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing is compiled yet: an empty cache folder, no library remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_find", library._find.__wrapped__)
    monkeypatch.setattr(api, "_choose", api._choose.__wrapped__)
    return tmp_path / "cache" / "blossomrec" / "cpu"


@pytest.fixture
def quick(monkeypatch):
    """Libraries that are only to be there are not optimised, which takes most of the time."""
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-O0"))


@needs_compiler
@FUSIONS
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_same_bits_whatever_the_number_of_threads(causal, fusion, threads):
    inputs = random_inputs([*AWKWARD, 700], heads=8, size=16, fusion=fusion)
    results = []
    for count in (1, 2, 5, 1):
        threads(count)
        results.append(outputs_and_gradients(inputs, causal=causal, sinks=2, fusion=fusion))
    for values, selected in results[1:]:
        assert torch.equal(selected, results[0][1])
        for name, value, other in zip(NAMES, values, results[0][0], strict=True):
            assert torch.equal(value, other), name


@needs_compiler
@FUSIONS
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_another_history_changes_nothing(causal, fusion):
    inputs = random_inputs([20, 140, 20, 3], size=16, fusion=fusion)
    form = dict(causal=causal, sinks=1, fusion=fusion)
    _, selected = attend(*inputs.all(), impl="cpu", **form)
    before, _ = outputs_and_gradients(inputs, selected=selected, **form)
    for x in (inputs.q, inputs.k, inputs.v, inputs.gates):
        x.data[20:160] = torch.nan
    after, _ = outputs_and_gradients(inputs, selected=selected, **form)
    others = torch.cat((torch.arange(20), torch.arange(160, 183)))
    for name, a, b in zip(NAMES, before, after, strict=True):
        assert torch.equal(a[others], b[others]), name


@needs_compiler
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "heads, groups, size, block_size",
    [(8, 2, 16, 16), (4, 2, 8, 5), (3, 3, 10, 24), (6, 1, 4, 32), (4, 4, 64, 8)],
)
def test_shares_of_attention_that_blocks_get(heads, groups, size, block_size, causal, threads):
    """Every event a sample, beside the PyTorch form."""
    lengths = [*AWKWARD, 0, 700]
    options = {"heads": heads, "groups": groups, "size": size, "block_size": block_size}
    inputs = random_inputs(lengths, **options)
    # One key has almost all the weight, another none that a float32 could hold.
    inputs.k[-200] *= 50
    total, blocks = len(inputs.q), 700 // block_size
    packing = Packing.of(inputs.cu_seqlens, total, block_size)
    rows = torch.arange(total)[:, None]
    form = (rows, blocks, block_size, causal)
    shares = operators.block_shares(inputs.q, inputs.k, inputs.cu_seqlens, *form)
    eligible = selector._eligible(packing, rows, torch.arange(blocks), causal)[:, :, None]
    counted = eligible.sum(-1, keepdim=True) >= 2
    sample = selector.Sample(rows, packing.start, eligible | ~counted)
    spec = BlossomSpec(block_size=block_size, compress="mean")
    expected = selector.block_shares(inputs.q, inputs.k, inputs.cu_seqlens, sample, spec)
    torch.testing.assert_close(shares, expected * counted, rtol=1e-4, atol=1e-7)
    assert not shares.masked_select(~(eligible & counted)).any()
    # Neither another history nor the future is looked at.
    end = total - 150
    inputs.k[:-700] = torch.nan
    inputs.k[end if causal else total :] = torch.nan
    for count in (1, 3):
        threads(count)
        again = operators.block_shares(inputs.q, inputs.k, inputs.cu_seqlens, *form)
        assert torch.equal(again[total - 700 : end], shares[total - 700 : end])


@needs_compiler
@pytest.mark.parametrize(
    "rows, blocks, words",
    [
        ([39, 58], 2, "a sample is row 58, there are 58"),
        ([-1], 2, "a sample is row -1, there are 58"),
        ([39], 1, "more than 1 blocks in the longest history"),
    ],
)
def test_wrong_samples_are_named(rows, blocks, words):
    inputs = random_inputs([40, 18], size=16)
    with pytest.raises(ValueError, match=words):
        operators.block_shares(
            inputs.q, inputs.k, inputs.cu_seqlens, torch.tensor([rows]), blocks, 16, True
        )


@needs_compiler
@FUSIONS
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_scores(scale, fusion):
    """Softmaxes that are flat, and such that one key has all the weight."""
    inputs = random_inputs([200], size=16, fusion=fusion)
    inputs.q *= scale
    if fusion == "union":
        inputs.gates *= scale
    exact = inputs.to(dtype=torch.float64)
    form = {"selected": attend(*exact.all(), impl="reference", fusion=fusion)[1], "fusion": fusion}
    value, _ = attend(*inputs.all(), impl="cpu", **form)
    expected, _ = attend(*exact.all(), impl="reference", **form)
    assert relative_error(value, expected) < 1e-5


@needs_compiler
def test_rows_at_any_stride():
    inputs = random_inputs([35], heads=2, groups=1, size=16)
    expected, _ = attend(*inputs.all(), impl="cpu")
    joint = torch.cat((inputs.q, inputs.k, inputs.v), dim=1)
    inputs.q, inputs.k, inputs.v = joint.split((2, 1, 1), dim=1)
    value, _ = attend(*inputs.all(), impl="cpu")
    assert torch.equal(value, expected)


@needs_compiler
@FUSIONS
def test_the_operators_are_registered_in_full(fusion):
    inputs, numbers = random_inputs([40, 18], size=16, fusion=fusion), [16, 4, 8, 0, 1]
    numbers.append(int(fusion == "union"))
    _, selected = attend(*inputs.all(), impl="cpu", fusion=fusion)
    leaves = inputs.differentiable()
    torch.library.opcheck(operators.attend, (*leaves, selected, inputs.cu_seqlens, numbers))
    arguments = (inputs.q.detach(), inputs.block_keys, inputs.cu_seqlens, numbers)
    torch.library.opcheck(operators.select_blocks, arguments)
    arguments = (inputs.q.detach(), inputs.k.detach(), inputs.cu_seqlens)
    torch.library.opcheck(operators.block_shares, (*arguments, torch.tensor([[39]]), 2, 16, True))
    torch.library.opcheck(operators.rotate, (leaves[0], torch.rand(58, 2, 4), False, 2, 16))


@needs_compiler
@pytest.mark.parametrize("size, pairs", [(16, 4), (10, 5), (6, 0)])
def test_rotation_and_its_gradient(size, pairs, threads):
    threads(3)
    x, angles = torch.randn(700, 3, size).requires_grad_(), torch.randn(700, 2, pairs)
    direction = torch.randn(x.shape)
    found = operators.rotate(x, angles, False, 1, 16)
    expected = rotate_by(x, angles)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(out, x, direction)[0] for out in (found, expected))
    torch.testing.assert_close(*gradients)


@needs_compiler
@FUSIONS
@pytest.mark.parametrize("impl", ["auto", "cpu"])
def test_a_compiled_graph_holds_the_operators_whole(impl, fusion):
    inputs = random_inputs([100, 30, 7], fusion=fusion)
    leaves = inputs.differentiable()

    def function(q, k, v, gates):
        rows = (q, k, v, inputs.block_keys, gates, inputs.cu_seqlens)
        return 2 * attend(*rows, impl=impl, fusion=fusion)[0]

    expected = function(*leaves)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
    assert torch.equal(compiled, expected)
    for value, other in zip(
        torch.autograd.grad(compiled.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        assert torch.equal(value, other)


@needs_compiler
@pytest.mark.parametrize("row, block", [(3, 0), (50, 3), (50, -2), (119, 7), (20, 70_000)])
def test_a_selected_block_that_is_none_is_named(row, block):
    inputs = random_inputs([120])
    selected = torch.full((120, 2, 4), -1, dtype=torch.int32)
    selected[row, 1, 2] = block
    with pytest.raises(ValueError, match=f"selected has a block in row {row} "):
        attend(*inputs.all(), impl="cpu", selected=selected, causal=row != 119)


@needs_compiler
@pytest.mark.parametrize("bounds", [[0, 50, 40], [0, 50, 30, 40], [1, 40], [0, 41]], ids=str)
def test_lengths_that_are_none_are_refused(bounds):
    inputs = random_inputs([40])
    inputs.cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens does not rise from 0 to 40"):
        attend(*inputs.all(), impl="cpu")
    q, k, v, _, gates, cu_seqlens = inputs.all()
    selected = torch.full((40, k.shape[1], 4), -1, dtype=torch.int32)
    given, numbers = [q, k, v, gates, selected, cu_seqlens], [16, 4, 8, 0, 1, 0]
    with pytest.raises(ValueError, match="cu_seqlens does not rise from 0 to 40"):
        operators.attend_backward(q, given, [q.new_zeros(2, *q.shape[:2])], numbers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_types_are_refused_by_name_and_left_to_pytorch(dtype):
    inputs = random_inputs([40], dtype=dtype)
    with pytest.raises(ValueError, match=f"the type is {dtype}"):
        attend(*inputs.all(), impl="cpu")
    expected, _ = attend(*inputs.all(), impl="torch")
    assert torch.equal(attend(*inputs.all())[0], expected)


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other names")
@pytest.mark.parametrize(
    "flag, block_size, size", [("-march=x86-64", 16, 16), ("-march=x86-64-v3", 4, 6)]
)
def test_narrower_vectors(fresh, monkeypatch, flag, block_size, size):
    """Processors whose registers hold 4 or 8 numbers."""
    monkeypatch.setattr(compiler, "native_flag", lambda: flag)
    for fusion in ("gated", "union"):
        sizes = dict(size=size, block_size=block_size, fusion=fusion)
        inputs = random_inputs([*AWKWARD, 0, 2], **sizes)
        form = dict(block_size=block_size, sinks=2, causal=False, fusion=fusion)
        exact = inputs.to(dtype=torch.float64)
        leaves = exact.differentiable()
        out, chosen = attend(*exact.all(), impl="reference", **form)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        expected = [out.detach(), *torch.autograd.grad(out, leaves, direction.double())]
        values, selected = outputs_and_gradients(inputs, **form)
        assert torch.equal(selected, chosen), fusion
        for name, value, other in zip(NAMES, values, expected, strict=True):
            assert relative_error(value, other) < 1e-5, f"{name}, {fusion}"


def check_absence(reason):
    """ "auto" goes on without the operator, by name it is refused with the reason."""
    inputs = random_inputs([40])
    expected, _ = attend(*inputs.all(), impl="torch")
    assert torch.equal(attend(*inputs.all())[0], expected)
    with pytest.raises(ValueError, match=f"impl is 'cpu': .*{reason}"):
        attend(*inputs.all(), impl="cpu")


def test_without_a_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    check_absence(r"no C\+\+ compiler is found \(c\+\+, g\+\+, clang\+\+\)")


def test_a_compiler_that_is_not_there(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    check_absence("CXX=no-such-compiler is not found")


def test_a_compiler_that_fails(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho unknown processor >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    check_absence("failed: unknown processor")
    assert list(fresh.iterdir()) == []


def test_a_compiler_that_makes_no_library(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 0\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    check_absence("cannot be loaded")


def test_switched_off(fresh, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "0")
    check_absence("switched off by BLOSSOMREC_CPU_BACKEND=0")


def test_a_folder_that_others_may_write_to_is_not_used(fresh):
    fresh.mkdir(parents=True)
    fresh.chmod(0o777)
    check_absence(r"may be written by others \(owner \d+, mode 777\)")


def test_a_folder_that_cannot_be_made(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check_absence("cannot be made")


def test_a_user_without_a_home(fresh, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    check_absence("cannot be made")


@needs_compiler
@pytest.mark.parametrize("change", ["mode", "link"])
def test_a_library_that_others_may_write_to_is_not_loaded(fresh, quick, change, tmp_path):
    path = compiler.build(HEAD_SIZE=8, HEADS_PER_GROUP=2, BLOCK_SIZE=16)
    if change == "mode":
        path.chmod(0o722)
    else:
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    check_absence(f"{path.name} is a link, belongs to another user or may be written by others")


@pytest.mark.skipif(not hasattr(os, "chown") or os.getuid() != 0, reason="needs to be root")
def test_a_folder_of_another_user_is_not_used(fresh):
    fresh.mkdir(parents=True, mode=0o700)
    os.chown(fresh, 12345, -1)
    check_absence("belongs to another user")


@needs_compiler
def test_compiled_once_and_named_by_what_it_is_made_of(fresh, quick, monkeypatch, tmp_path):
    constants = dict(HEAD_SIZE=8, HEADS_PER_GROUP=2, BLOCK_SIZE=16)
    first = compiler.build(**constants)
    before = first.stat().st_mtime_ns
    assert compiler.build(**constants) == first
    assert first.stat().st_mtime_ns == before
    names = {first}
    source = tmp_path / "source"
    source.mkdir()
    for path in compiler.SOURCE.iterdir():
        (source / path.name).write_bytes(path.read_bytes() + b"\n")
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "SOURCE", source)
        names.add(compiler.build(**constants))
    monkeypatch.setattr(compiler, "processor", lambda: ("another",))
    names.add(compiler.build(**constants))
    assert len(names) == 3
    assert {path.parent for path in names} == {fresh}
    assert set(fresh.iterdir()) == names


@needs_compiler
def test_threads_and_processes_that_compile_at_once(fresh, quick):
    constants = dict(HEAD_SIZE=2, HEADS_PER_GROUP=1, BLOCK_SIZE=16)
    program = (
        "from blossomrec.attention.backends.cpu import compiler, library\n"
        f"compiler.FLAGS = {compiler.FLAGS}\n"
        "library.Library(2, 1, 16)._functions.blossom_forward"
    )
    other = subprocess.Popen([sys.executable, "-c", program])
    built = []
    workers = [
        threading.Thread(target=lambda: built.append(compiler.build(**constants))) for _ in range(2)
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert other.wait() == 0
    assert list(fresh.iterdir()) == [built[0]] and built[0] == built[1]


@needs_compiler
def test_a_child_process_goes_on():
    """No thread outlives a call, so that there is none to miss after a fork."""
    program = (
        "import os, torch; torch.set_num_threads(3)\n"
        "from blossomrec.attention import blossom_attention\n"
        "q = torch.randn(500, 4, 8); k = torch.randn(500, 2, 8)\n"
        "rows = (q, k, k, k[:31], q[..., :2], torch.tensor([0, 500], dtype=torch.int32))\n"
        "first, _ = blossom_attention(*rows, impl='cpu')\n"
        "if os.fork() == 0:\n"
        "    same = torch.equal(blossom_attention(*rows, impl='cpu')[0], first)\n"
        "    os._exit(0 if same else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_what_cannot_be_loaded_is_a_reason(fresh, monkeypatch, tmp_path):
    text = tmp_path / "text.so"
    text.write_text("no library")
    monkeypatch.setattr(library, "build", lambda **constants: text)
    with pytest.raises(NotBuiltError, match=r"text\.so cannot be loaded"):
        library.library(8, 2, 16)
