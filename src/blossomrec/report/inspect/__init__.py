"""What the selectors of a trained run select: measures, tables, figures and a page."""

from blossomrec.report.inspect.inspection import Inspection, inspect_run

__all__ = ["Inspection", "inspect_run"]
