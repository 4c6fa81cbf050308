"""A model measured as it is used: trained, kept as it is or up to date, period after period."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import lazily

if TYPE_CHECKING:
    from blossomrec.rolling.jobs import rolling
    from blossomrec.rolling.measured import Rolled
    from blossomrec.rolling.options import RollingOptions, UpdateOptions

__all__ = ["Rolled", "RollingOptions", "UpdateOptions", "rolling"]

# Imported when first used: the command line answers before PyTorch is there.
__getattr__ = lazily(
    __name__,
    {
        "Rolled": "blossomrec.rolling.measured",
        "RollingOptions": "blossomrec.rolling.options",
        "UpdateOptions": "blossomrec.rolling.options",
        "rolling": "blossomrec.rolling.jobs",
    },
)
