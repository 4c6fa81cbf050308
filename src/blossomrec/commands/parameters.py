"""Parameters that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

ConfigFile = Annotated[
    Path | None,
    Parameter(
        help="YAML, TOML or JSON file with model, training, evaluation options; or the preset "
        "paper: BlossomRec as published"
    ),
]
