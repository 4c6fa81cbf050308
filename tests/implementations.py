"""The native operator as a test parameter, left out where there is no compiler for it.

Where it is only that the operator does not compile, tests run, and fail.
"""

import os

import pytest

from blossomrec.attention.code_cache import NotBuiltError
from blossomrec.attention.native import compiler
from blossomrec.attention.native.library import SWITCH


def _missing() -> str:
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    try:
        compiler.compiler()
    except NotBuiltError as error:
        return str(error)
    return ""


NATIVE_MISSING = _missing()
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(bool(NATIVE_MISSING), reason=NATIVE_MISSING)
)
