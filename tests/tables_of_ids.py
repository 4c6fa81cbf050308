"""Vocabularies as earlier versions wrote them: a table of ids."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from blossomrec.data.vocabulary import Vocabulary


def write_table(folder: Path, ids: pl.Series) -> Path:
    """A vocabulary of the first format, in a folder that holds nothing else afterwards."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    ids.alias("id").to_frame().write_parquet(folder / "ids.parquet")
    told = {"format": 1, "size": len(ids), "dtype": str(ids.dtype)}
    told["fingerprint"] = Vocabulary(ids).fingerprint
    (folder / "vocabulary.json").write_text(json.dumps(told))
    return folder
