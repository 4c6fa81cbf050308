"""A fitted model with its items and the log of its users, and what is asked of it in numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from blossomrec.config import RunConfig
from blossomrec.data.features import FeatureTable
from blossomrec.data.history import known_rows
from blossomrec.data.known import KnownHistories
from blossomrec.data.log import EventLog
from blossomrec.data.units import Moment, as_second
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, DataError, RunError, true_or_false, whole_number
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.recommendation.request import Request
from blossomrec.rules import Rules
from blossomrec.rules.catalogue import item_rules
from blossomrec.rules.rules import refuse_contradiction
from blossomrec.run import run_version
from blossomrec.run.description import RunInfo, read_run_config
from blossomrec.run.tables import Known, open_item_table, open_users, open_vocabulary
from blossomrec.run.weights import load_model


class Fitted:
    """What a recommender knows once it is fitted; before that, of everything None.

    Attributes:
        model, items, log, filter_viewed: as of :class:`BlossomRec`.
    """

    config: RunConfig

    def __init__(self) -> None:
        self.model: SequenceModel | None = None
        self.items: Vocabulary | None = None
        self.log: EventLog | None = None
        self.filter_viewed: bool | None = None
        self._info: RunInfo | None = None
        self._folder: Path | None = None
        self._users: Vocabulary | None = None
        self._item_table: FeatureTable | None = None
        self._known: KnownHistories | None = None
        self._ranks = ALONE
        self._no_log = "the log this model was trained on is not there"

    def _ready(self) -> tuple[SequenceModel, Vocabulary]:
        if self.model is None or self.items is None:
            raise RunError("this recommender has not been fitted: call fit or from_pretrained")
        return self.model, self.items

    def _whole(self) -> tuple[SequenceModel, Vocabulary]:
        """As :meth:`_ready`, with all items here.

        Raises:
            RunError: ranks share them.
        """
        if not self._ranks.alone:
            raise RunError(
                f"{self._ranks.size} ranks share the items of this recommender, which only "
                "recommend_all can do with: open it without ranks"
            )
        return self._ready()

    def _histories(self) -> KnownHistories:
        model, vocabulary = self._ready()
        if self.log is None:
            raise RunError(f"{self._no_log}: give one, or use recommend_history")
        if self._known is None or self._known.log is not self.log:
            self._known = KnownHistories(self.log, vocabulary, self._users, model.fields)
        return self._known

    def _is_own_log(self) -> bool:
        """Whether the log lies where the model was trained on it."""
        assert self._info is not None and self.log is not None
        return Path(self.log.folder).resolve() == self._info.data

    @property
    def _version(self) -> str | None:
        """The version of the run; None where there is no folder of it any more."""
        run = self._folder
        if run is None or not (run / "config.json").is_file():
            return None
        return run_version(run)

    def _request(
        self,
        k: int,
        *,
        at: int,
        filter_viewed: bool | None = None,
        items: Iterable[Any] | None = None,
        max_len: int | None = None,
        kind: str | None = None,
        rules: Rules | None = None,
    ) -> Request:
        """What is asked for, checked; ``at`` in seconds."""
        model, vocabulary = self._ready()
        if rules is not None:
            refuse_contradiction(filter_viewed, rules.exclude_seen_days)
        request = Request(
            k=min(whole_number("k", k), vocabulary.size),
            filter_viewed=self._filters(filter_viewed),
            max_len=self._limit(max_len),
            moment=at,
            kind=self._kind(kind),
            items=self._candidates(items),
        )
        if rules is None:
            return request
        return request.ruled(item_rules(rules, model, vocabulary, self.log, self._item_table))

    def _user_request(self, k: int, at: Moment | None, **options: Any) -> Request:
        """The same for users of the log; for the time of its last event, where none is given."""
        log = self._histories().log
        moment = log.last_second if at is None and log.has_times else as_second("at", at)
        request = self._request(k, at=moment, **options)
        days = None if request.rules is None else request.rules.exclude_seen_days
        if days is not None and not log.has_times:
            raise ConfigError(
                f"exclude_seen_days is {days}: the times of {log.folder} only tell an order"
            )
        return request

    def _limit(self, max_len: int | None) -> int:
        """Events of a history that the model sees."""
        return self.config.model.max_len if max_len is None else whole_number("max_len", max_len)

    def _kind(self, name: str | None) -> int:
        """Number of the kind that is wanted."""
        model, _ = self._ready()
        if name is not None and "asked_kinds" not in model.inputs:
            raise ConfigError(f"kind is {name!r}: this model sees no kind that is wanted")
        return model.fields.kind(name)

    def _filters(self, filter_viewed: bool | None) -> bool:
        """Whether items of the history are left out."""
        given = self.filter_viewed if filter_viewed is None else filter_viewed
        return true_or_false("filter_viewed", given)

    def _candidates(self, items: Iterable[Any] | None) -> np.ndarray | None:
        """Rows of the only items to choose from, None for the whole catalogue."""
        _, vocabulary = self._ready()
        return None if items is None else np.unique(known_rows(vocabulary, items, "item"))

    def _saved(self) -> Known:
        """What is written beside the model."""
        model, vocabulary = self._ready()
        users = None
        if self._users is not None and model.users is not None:
            users = (self._users, model.users)
        return Known(vocabulary, self._item_table, users)

    def _load(self, folder: str | Path, device: str, ranks: Ranks = ALONE) -> None:
        """Take model and items from a run folder; of what ranks share this one's part."""
        self._info, self._folder, self._ranks = read_run_config(folder), Path(folder), ranks
        model = load_model(folder, device, ranks)
        self.items = open_vocabulary(folder, self._info)
        self._item_table = model.features
        if self._item_table is None:
            self._item_table = open_item_table(folder, self._info)
        users = open_users(folder, self._info)
        self._users = None if users is None else users[0]
        # Now, because a process forked later cannot.
        self.items.known()
        if self._users is not None:
            self._users.known()
        self.model, self._known = model, None
        self.filter_viewed = self._info.filter_viewed

    def _find_log(self, folder: Path, ranks: Ranks = ALONE) -> None:
        """Take the log that lies in a folder; where it cannot be opened, remember why."""
        found = ranks.in_turn(lambda: _opened(folder))
        if isinstance(found, EventLog):
            self.log = found
        else:
            self._no_log = f"the log this model was trained on is not there ({found})"

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = self.__copy__()
        twin.model = copy.deepcopy(self.model, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if not self._ranks.alone:
            self._whole()
        state = self.__dict__ | {"_known": None}
        if self.log is not None:
            if self.log.is_temporary:
                raise RunError(
                    "a recommender whose log is temporary cannot be pickled: keep the model with "
                    "save_pretrained, or fit it on a log that EventLog.prepare(events, FOLDER) "
                    "wrote"
                )
            state["log"] = self.log.folder.resolve()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"log": None})
        if state["log"] is not None:
            self._find_log(state["log"])


def _opened(folder: Path) -> EventLog | DataError:
    """The log in a folder, or why there is none."""
    try:
        return EventLog.open(folder)
    except DataError as error:
        return error
