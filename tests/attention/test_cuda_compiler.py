"""What is compiled is kept, and loaded only from a folder that is the user's own."""

import ctypes
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from blossomrec.attention.backends.cuda import compiler

CONSTANTS = {"R": 4, "G": 2}


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """The programs that were compiled; the compiler gives their names as code."""
    done = []

    def compile_(program, text, options):
        done.append(program)
        return program.encode()

    monkeypatch.setattr(compiler, "_compile", compile_)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return done


def test_code_is_compiled_once_for_each_set_of_constants(compilations):
    for _ in range(2):
        assert compiler.compiled("pack", CONSTANTS, "sm_90") == b"pack"
    assert compilations == ["pack"]
    compiler.compiled("pack", CONSTANTS | {"R": 2}, "sm_90")
    compiler.compiled("pack", CONSTANTS, "sm_80")
    compiler.compiled("forward", CONSTANTS, "sm_90")
    assert compilations == ["pack", "pack", "pack", "forward"]


def test_only_hopper_has_an_architecture_of_its_own():
    names = [compiler.architecture_of(each) for each in ((8, 0), (9, 0), (10, 0), (12, 1))]
    assert names == ["sm_80", "sm_90a", "sm_100", "sm_121"]


def test_what_others_may_write_is_not_loaded(compilations, tmp_path):
    compiler.compiled("pack", CONSTANTS, "sm_90")
    (kept,) = (tmp_path / "blossomrec" / "cuda").iterdir()
    kept.write_bytes(b"something else")
    assert compiler.compiled("pack", CONSTANTS, "sm_90") == b"something else"
    kept.chmod(0o722)
    assert compiler.compiled("pack", CONSTANTS, "sm_90") == b"pack"
    kept.chmod(0o700)
    kept.parent.chmod(0o777)
    assert compiler.compiled("pack", CONSTANTS, "sm_90") == b"pack"
    assert compilations == ["pack"] * 3


def test_the_device_of_the_tensors_is_the_current_one_of_every_call(monkeypatch):
    current, calls = [0], []

    class Driver:
        def __getattr__(self, name):
            def call(first, *_):
                calls.append((name, current[-1]))
                if name == "cuFuncGetAttribute":
                    # The kernel has shared memory.
                    first._obj.value = 1
                return 0

            return call

    @contextmanager
    def device(number):
        current.append(number)
        yield
        current.pop()

    monkeypatch.setattr(compiler, "_driver", Driver)
    monkeypatch.setattr(compiler, "compiled", lambda *_: b"")
    monkeypatch.setattr(compiler, "as_argument", lambda _: ctypes.c_int())
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    elsewhere = SimpleNamespace(device=torch.device("cuda", 1), is_cuda=True)
    compiler._module.cache_clear()
    compiler.kernel("pack", "pack_blocks", CONSTANTS)(1, elsewhere)
    compiler._module.cache_clear()
    assert calls[-1][0] == "cuLaunchKernel" and ("cuFuncSetAttribute", 1) in calls
    assert [number for _, number in calls] == [1] * len(calls)


def test_every_program_is_whole():
    for program in compiler.PROGRAMS:
        text = compiler.source(program)
        assert text.count("{") == text.count("}") and 'extern "C" __global__' in text
