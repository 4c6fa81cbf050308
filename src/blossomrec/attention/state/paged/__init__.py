"""One more event of many users at once, over states kept in pages."""

from blossomrec.attention.state.paged.graph import StepGraph
from blossomrec.attention.state.paged.pages import OutOfPagesError, PagedLayer, Prefill, Step
from blossomrec.attention.state.paged.states import PagedStates

__all__ = ["OutOfPagesError", "PagedLayer", "PagedStates", "Prefill", "Step", "StepGraph"]
