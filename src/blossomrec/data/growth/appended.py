"""What one append has added to a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Appended:
    """What one append has added to a log.

    Attributes:
        key: what the table is known by from then on.
        is_new: False where it was there before; then nothing is added.
        events: how many.
        users, items: those that were not there before.
        late: events before one of the same user that was there already.
        first, last: times of the events, in the log's unit; None without any.
        unit: of the times, as ``EventLog.time_unit``.
    """

    key: str
    is_new: bool
    events: int = 0
    users: int = 0
    items: int = 0
    late: int = 0
    first: int | float | None = None
    last: int | float | None = None
    unit: str = ""


def appended_table(appended: Appended) -> Table:
    """The same as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    from blossomrec.data.summary import told_moment

    table = Table(title="Appended", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    if not appended.is_new:
        table.add_row("nothing", "this table was there already")
    else:
        table.add_row("events", f"{appended.events:,}")
        table.add_row("new users", f"{appended.users:,}")
        table.add_row("new items", f"{appended.items:,}")
        table.add_row("late events", f"{appended.late:,}")
        table.add_row("first event", told_moment(appended.first, appended.unit))
        table.add_row("last event", told_moment(appended.last, appended.unit))
    # A key is what the caller likes: square brackets in it are no markup.
    table.add_row("key", Text(appended.key))
    return table
