"""What is kept of histories, so that new events need not run the old ones again."""

from blossomrec.attention.state.attention_state import AttentionState

__all__ = ["AttentionState"]
