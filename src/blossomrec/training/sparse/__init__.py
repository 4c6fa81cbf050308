"""Training an item table of which a step touches only the rows it needs.

The step works on a small table of those rows, whose gradient is one summed row for each item; see
:class:`RowTable`. ``rules`` has what turns gradients into weights.
"""

from __future__ import annotations

from blossomrec.training.sparse.build import build_table
from blossomrec.training.sparse.table import RowTable

__all__ = ["RowTable", "build_table"]
