"""What is compiled is kept, and loaded only from a folder that is the user's own."""

import pytest

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


def test_every_program_is_whole():
    for program in compiler.PROGRAMS:
        text = compiler.source(program)
        assert text.count("{") == text.count("}") and 'extern "C" __global__' in text
