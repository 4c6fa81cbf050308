"""Rules for what is recommended: filters and boosts by a small language, limits, diversity."""

from blossomrec.rules.rules import Rules

__all__ = ["Rules"]
