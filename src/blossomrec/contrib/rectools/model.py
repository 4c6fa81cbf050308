"""The model: fitted on a data set of RecTools, asked for its users and items."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

import attr  # pyright: ignore[reportMissingImports]
import numpy as np
import polars as pl
from rectools import Columns  # pyright: ignore
from rectools.dataset import (  # pyright: ignore[reportMissingImports]
    Dataset,
    IdMap,
    Interactions,
)
from rectools.models.base import ModelBase, ModelConfig  # pyright: ignore[reportMissingImports]

from blossomrec.contrib.rectools.data import event_table, item_table, newest_share
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError
from blossomrec.recommender import BlossomRec

# Cosines of a part of the items with the whole catalogue that are held at a time.
COSINES_AT_ONCE = 10_000_000
# Targets, items and scores, as RecTools passes them on.
Triplet = tuple[Any, Any, Any]


class BlossomRecModelConfig(ModelConfig):
    """What ``get_config`` gives and ``from_config`` takes.

    Attributes:
        hold_out: as of :class:`BlossomRecModel`.
        options: of :class:`blossomrec.BlossomRec`, by name.
    """

    hold_out: bool = True
    options: dict[str, Any] = {}  # noqa: RUF012


@attr.s(slots=True, frozen=True)
class _KnownDataset(Dataset):
    """Interactions with items that the model knows, whose internal ids are its rows.

    Attributes:
        moment: of the newest interaction of the whole data set, for which is recommended.
    """

    moment: datetime | None = attr.ib(default=None)

    @property
    def n_hot_users(self) -> int:
        return self.user_id_map.size

    @property
    def n_hot_items(self) -> int:
        return self.item_id_map.size


class BlossomRecModel(ModelBase[BlossomRecModelConfig]):
    """:class:`blossomrec.BlossomRec` with the methods of a RecTools model.

    Ids are the external ones of the data set, whole numbers or text. Weights say how much an
    interaction counts in training, times in which order they came, and features of items are seen
    (and bring items without interactions into the catalogue). Features of users are not seen. As
    with RecTools' transformers, users are cold whose interactions hold no item that the model
    knows, and nothing is recommended to cold and warm users.

    Args:
        hold_out: leave the last two events of each user out of training, one of which chooses the
            best epoch; without, train on all events but the newest, for as many epochs as
            ``epochs`` says.
        verbose: over 0 shows how training goes.
        options: of :class:`blossomrec.BlossomRec`, such as ``max_len=500``.

    Attributes:
        recommender: what was fitted, to be saved or served; None before.

    Raises:
        ConfigError: an option is unknown or out of bounds.

    Example:
        >>> model = BlossomRecModel(epochs=20, max_len=500).fit(dataset)
        >>> model.recommend(users, dataset, k=10, filter_viewed=True)
    """

    recommends_for_warm = False
    recommends_for_cold = False
    config_class: ClassVar[type[BlossomRecModelConfig]] = BlossomRecModelConfig

    def __init__(self, *, hold_out: bool = True, verbose: int = 0, **options: Any):
        super().__init__(verbose=verbose)
        if not hold_out and "split" in options:
            raise ConfigError(f"split is {options['split']!r}: with hold_out=False there is none")
        # Checked here already, not when it is fitted.
        BlossomRec(**options)
        self.hold_out, self.options = hold_out, options
        self.recommender: BlossomRec | None = None

    def _get_config(self) -> BlossomRecModelConfig:
        told = {"verbose": self.verbose, "hold_out": self.hold_out, "options": self.options}
        return BlossomRecModelConfig(cls=type(self), **told)

    @classmethod
    def _from_config(cls, config: BlossomRecModelConfig) -> Self:
        return cls(hold_out=config.hold_out, verbose=config.verbose, **config.options)

    def _fit(self, dataset: Dataset) -> None:
        events, told = event_table(dataset), item_table(dataset)
        table = {} if told is None else {"items": told[0], "item_kinds": told[1]}
        if Columns.Weight in events.columns:
            table["weight"] = Columns.Weight
        log = EventLog.prepare(events, timestamp=Columns.Datetime, **table)
        split = {}
        if not self.hold_out:
            share = newest_share(dataset)
            split = {"split": "global-time", "valid_share": 0.0, "test_share": share}
        recommender = BlossomRec(**self.options, **split)
        self.recommender = recommender.fit(log, progress=self.verbose > 0)

    def _custom_transform_dataset_u2i(
        self, dataset: Dataset, users: Any, on_unsupported_targets: Any, context: Any = None
    ) -> Dataset:
        asked = dataset.user_id_map.convert_to_internal(users, strict=False)
        return self._known(dataset, dataset.interactions.df[Columns.User].isin(asked))

    def _custom_transform_dataset_i2i(
        self, dataset: Dataset, target_items: Any, on_unsupported_targets: Any
    ) -> Dataset:
        return self._known(dataset, np.ones(len(dataset.interactions.df), bool))

    def _known(self, dataset: Dataset, kept: Any) -> Dataset:
        """Those of the interactions that are kept whose items the model knows."""
        vocabulary, events = self._fitted()[1], dataset.interactions.df
        rows = vocabulary.rows(dataset.item_id_map.external_ids)[events[Columns.Item]]
        chosen = np.asarray(kept) & (rows >= 0)
        users = dataset.user_id_map.external_ids[events[Columns.User][chosen]]
        user_map = IdMap.from_values(users)
        known = events.loc[chosen, Columns.Interactions].reset_index(drop=True)
        known[Columns.User] = user_map.convert_to_internal(users).astype(np.int64)
        known[Columns.Item] = rows[chosen]
        moment = events[Columns.Datetime].max().floor("us").to_pydatetime().replace(tzinfo=UTC)
        item_map = IdMap(vocabulary.ids(np.arange(vocabulary.size)).to_numpy())
        return _KnownDataset(user_map, item_map, Interactions(known), moment=moment)

    def _recommend_u2i(
        self,
        user_ids: np.ndarray,
        dataset: _KnownDataset,
        k: int,
        filter_viewed: bool,
        sorted_item_ids_to_recommend: np.ndarray | None,
    ) -> Triplet:
        recommender, vocabulary = self._fitted()
        rows = sorted_item_ids_to_recommend
        if rows is not None and not len(rows):
            return [], [], []
        given = {
            "k": k,
            "filter_viewed": filter_viewed,
            "items": None if rows is None else vocabulary.ids(rows),
            "at": dataset.moment,
        }
        frames = list(self._recommended(recommender, user_ids, dataset, given))
        found = pl.concat(frames)
        return found["user_id"].to_numpy(), vocabulary.rows(found["item_id"]), found["score"]

    def _recommended(
        self,
        recommender: BlossomRec,
        user_ids: np.ndarray,
        dataset: _KnownDataset,
        given: dict[str, Any],
    ) -> Iterator[pl.DataFrame]:
        """Columns user_id (internal), item_id (external) and score."""
        _, vocabulary = self._fitted()
        events = dataset.interactions.df
        table = pl.DataFrame(
            {
                "user_id": events[Columns.User].to_numpy(),
                "item_id": vocabulary.ids(events[Columns.Item].to_numpy()),
                "timestamp": events[Columns.Datetime].to_numpy("datetime64[ns]"),
            }
        ).sort("timestamp", maintain_order=True)
        if min(table["user_id"].n_unique(), table["item_id"].n_unique()) > 1:
            # The same recommender, of other events.
            twin = copy.copy(recommender)
            twin.log = EventLog.prepare(table, ties="keep")
            yield twin.recommend(user_ids, **given).drop("rank")
            return
        # No log has a single user or a single item.
        for user in user_ids:
            history = table.filter(pl.col("user_id") == user).drop("user_id")
            found = recommender.recommend_history(history, **given).drop("rank")
            yield found.select(pl.lit(int(user)).alias("user_id"), pl.all())

    def _recommend_i2i(
        self,
        target_ids: np.ndarray,
        dataset: Dataset,
        k: int,
        sorted_item_ids_to_recommend: np.ndarray | None,
    ) -> Triplet:
        recommender, vocabulary = self._fitted()
        allowed, size = sorted_item_ids_to_recommend, vocabulary.size
        targets = np.unique(np.asarray(target_ids))
        parts = np.array_split(targets, max(1, len(targets) * size // COSINES_AT_ONCE))
        found = []
        for part in parts:
            # An item is the most similar one to itself.
            itself = pl.DataFrame({"target": part, "item": part, "score": np.float32(1)})
            near = recommender.similar_items(
                vocabulary.ids(part), size if allowed is not None else k
            )
            others = pl.DataFrame(
                {
                    "target": vocabulary.rows(near["item_id"]),
                    "item": vocabulary.rows(near["similar_id"]),
                    "score": near["score"],
                }
            )
            both = pl.concat([itself, others], how="vertical_relaxed")
            if allowed is not None:
                both = both.filter(pl.col("item").is_in(allowed))
            found.append(both.group_by("target", maintain_order=True).head(k))
        told = pl.concat(found)
        return told["target"].to_numpy(), told["item"].to_numpy(), told["score"].to_numpy()

    def _fitted(self) -> tuple[BlossomRec, Any]:
        self._check_is_fitted()
        assert self.recommender is not None
        return self.recommender, self.recommender.items

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.recommender is not None:
            # Whoever asks brings the data set along; the log of the fit is a temporary one.
            state["recommender"] = copy.copy(self.recommender)
            state["recommender"].log = None
        return state
