"""Search for good options of a configuration, judged by the validation events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import lazily

if TYPE_CHECKING:
    from blossomrec.tuning.options import TuneOptions
    from blossomrec.tuning.search import TuneResult, tune

__all__ = ["TuneOptions", "TuneResult", "tune"]

# Imported when first used: the command line answers before Optuna and PyTorch are there.
__getattr__ = lazily(
    __name__,
    {
        "TuneOptions": "blossomrec.tuning.options",
        "TuneResult": "blossomrec.tuning.search",
        "tune": "blossomrec.tuning.search",
    },
)
