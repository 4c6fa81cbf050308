"""The contract of a store of events, as tests that a store of one's own inherits.

Example:
    >>> class TestMyStore(StoreContract):
    ...     @pytest.fixture
    ...     def open_store(self, tmp_path):
    ...         return lambda: MyStore(tmp_path / "events")
"""

import pytest

# Before they are imported, so that a failing assertion shows its values.
pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in ("appending", "reading", "sharing"))
)

from blossomrec.serving.testing.appending import Appending  # noqa: E402
from blossomrec.serving.testing.reading import Reading  # noqa: E402
from blossomrec.serving.testing.sharing import Sharing  # noqa: E402

__all__ = ["StoreContract"]


class StoreContract(Appending, Reading, Sharing):
    """All that every store of events does, wherever it keeps them.

    A subclass overrides the fixture ``open_store``; ``stored_bytes`` and ``where`` too if it can,
    without which the tests that need them are skipped.
    """
