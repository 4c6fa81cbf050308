"""RecBole's data sets, its settings, and BlossomRec as one of its models.

Example:
    >>> from blossomrec.contrib.recbole import prepare_dataset, read_settings
    >>> settings = read_settings("sasrec.yaml", ignore=["attn_dropout_prob"])
    >>> log = prepare_dataset("dataset/ml-100k", "log", **settings.prepare)
    >>> BlossomRec(settings.config).fit(log, "runs/sasrec")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import lazily

if TYPE_CHECKING:
    from blossomrec.contrib.recbole.dataset import prepare_dataset
    from blossomrec.contrib.recbole.settings import Settings, read_settings

__all__ = ["Settings", "prepare_dataset", "read_settings"]

# The model needs RecBole, the others do not.
__getattr__ = lazily(
    __name__,
    {
        "Settings": "blossomrec.contrib.recbole.settings",
        "prepare_dataset": "blossomrec.contrib.recbole.dataset",
        "read_settings": "blossomrec.contrib.recbole.settings",
    },
)
