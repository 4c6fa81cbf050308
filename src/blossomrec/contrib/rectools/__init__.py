"""BlossomRec as a model of RecTools, for its cross-validation, its metrics and its habits.

Example:
    >>> from blossomrec.contrib.rectools import BlossomRecModel
    >>> model = BlossomRecModel(epochs=20, max_len=500).fit(dataset)
    >>> model.recommend(users, dataset, k=10, filter_viewed=True)
"""

from blossomrec.errors import MissingExtraError

try:
    import rectools  # noqa: F401  # pyright: ignore
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "rectools", "rectools") from error

from blossomrec.contrib.rectools.model import BlossomRecModel, BlossomRecModelConfig

__all__ = ["BlossomRecModel", "BlossomRecModelConfig"]
