"""The native operator as a test parameter, left out where there is no compiler for it.

Where it is only that the operator does not compile, tests run, and fail.
"""

import os

import pytest

from blossomrec.attention.backends.code_cache import NotBuiltError
from blossomrec.attention.backends.cpu import compiler
from blossomrec.attention.backends.cpu.library import SWITCH


def _missing() -> str:
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    try:
        compiler.compiler()
    except NotBuiltError as error:
        return str(error)
    return ""


CPU_MISSING = _missing()
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING))
