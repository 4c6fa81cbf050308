"""The native operator as a test parameter, left out with the reason where it cannot be compiled."""

import pytest

from blossomrec.attention.native.library import missing

NATIVE_MISSING = missing(8, 2, 16)
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(bool(NATIVE_MISSING), reason=NATIVE_MISSING)
)
