"""What is kept of histories, so that new events need not run the old ones again."""

from blossomrec.attention.state.attention_state import AttentionState, state_of
from blossomrec.attention.state.graph import StepGraph
from blossomrec.attention.state.keeps_states import KeepsStates, kept_together
from blossomrec.attention.state.paged_states import PagedStates
from blossomrec.attention.state.pages import Layout, OutOfPagesError, PagedLayer, Step

__all__ = [
    "AttentionState",
    "KeepsStates",
    "Layout",
    "OutOfPagesError",
    "PagedLayer",
    "PagedStates",
    "Step",
    "StepGraph",
    "kept_together",
    "state_of",
]
