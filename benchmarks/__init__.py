"""What is measured of blossomrec, and the tables of the docs: ``python -m benchmarks VERB``."""

from typing import Annotated, TypeVar

from cyclopts import Parameter

Value = TypeVar("Value")

# One flag, several values behind it.
Several = Annotated[list[Value], Parameter(consume_multiple=True)]
