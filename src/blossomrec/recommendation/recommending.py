"""What a fitted model is asked for: items for users and after histories, similar ones, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from blossomrec.data.history import History, columns_of, given_history, known_rows, shown_ids
from blossomrec.data.units import Moment, as_second
from blossomrec.data.vocabulary import as_ids
from blossomrec.errors import ConfigError, DataError, one_of, whole_number
from blossomrec.recommendation.fitted import Fitted
from blossomrec.recommendation.ranked_history import check_days, ranked_after
from blossomrec.recommendation.ranked_users import Ranked, UserRanker
from blossomrec.recommendation.request import Request
from blossomrec.recommendation.similar import similar_items
from blossomrec.recommendation.user_histories import UserHistories
from blossomrec.rules import Rules

if TYPE_CHECKING:
    from blossomrec.recommendation.bulk import Written
    from blossomrec.recommendation.part_engines import PartEngine


class Recommending(Fitted):
    """The answers of a fitted model, as frames with external ids."""

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        k: int = 10,
        *,
        filter_viewed: bool | None = None,
        items: Iterable[Any] | None = None,
        max_len: int | None = None,
        at: Moment | None = None,
        kind: str | None = None,
        rules: Rules | None = None,
    ) -> pl.DataFrame:
        """The ``k`` best next items for users of the log, from their whole history.

        Args:
            users: external ids; None is every user.
            filter_viewed: leave out what is in the user's history; None is as the model is
                evaluated, ``self.filter_viewed``: by default where the log has no repeats.
            items: external ids to choose from; None is the whole catalogue.
            max_len: events of a history that the model sees, the last ones; None is as many as in
                training.
            at: the moment for which is recommended, a datetime or a time since 1970 in any unit,
                to a model that sees it; None is the time of the log's last event.
            kind: the kind of event that is wanted, such as "buy", for a model that sees it; None is
                any.
            rules: filters, boosts and limits by what is known of the items; see :class:`Rules`.

        Returns:
            Columns user_id, item_id, score, rank (from 1); fewer than ``k`` rows for a user where
            fewer items are left, none for one without any item that the model knows.

        Raises:
            DataError: a user, an item or the kind is unknown; the message names it.
            ConfigError: an option is out of bounds or of a wrong type.
        """
        self._whole()
        known = self._histories()
        log = known.log
        if users is None:
            rows = np.arange(log.num_users)
        else:
            rows = known_rows(log.user_vocabulary, users, "user")
        given = {"filter_viewed": filter_viewed, "items": items, "max_len": max_len, "kind": kind}
        request = self._user_request(k, at, rules=rules, **given)
        known.warn_of_unknown(rows)
        ranker = self._ranker(request, len(rows))
        return self._users_frame(Ranked.join(list(ranker.ranked(rows))))

    def recommend_all(
        self,
        out: str | Path,
        users: str | Path | Iterable[Any] | None = None,
        k: int = 100,
        *,
        shards: int | None = None,
        rows_per_file: int | None = None,
        unknown: Literal["refuse", "skip"] = "refuse",
        engine: Literal["local", "ray"] | PartEngine = "local",
        progress: bool = True,
        **options: Any,
    ) -> Written:
        """Write the ``k`` best next items for many users of the log to Parquet files.

        What is written is what :meth:`recommend` gives, users in the order of the log, each once.
        Memory does not grow with the number of users, but for their ids. The same call goes on
        where one was stopped or killed, and the files are then the same, byte for byte. Ranks who
        share the items, see :meth:`BlossomRec.from_pretrained`, all call it with the same.

        Args:
            out: a file that ends in ``.parquet``; with ``shards`` or ``rows_per_file`` a folder.
            users: external ids, or the path of a file with them: a table (.parquet, .csv, .tsv)
                with a column ``user_id`` or a single one, or text with an id in each line; None is
                every user.
            k: as of ``recommend``, but no more than the catalogue has.
            shards: write so many files, of as many users each.
            rows_per_file: write files of at most so many rows.
            unknown: "refuse" a list with users who are not in the log, or "skip" them with a
                warning.
            engine: "local" computes in this process, or by the ranks that share the items, "ray"
                by the workers of Ray, which is joined as its variable ``RAY_ADDRESS`` says or else
                started on this machine. Or one that ``open_engine`` has opened.
            progress: show on standard error how it goes.
            options: ``filter_viewed``, ``items``, ``max_len``, ``at``, ``kind`` and ``rules``
                of ``recommend``.

        Raises:
            RunError: something else lies at ``out``, such as what other options gave.
            DataError: a user or an item is unknown; the message names it and its place.
            ConfigError: an option is out of bounds.

        Example:
            >>> recommender.recommend_all("recommendations.parquet", k=50)
        """
        from blossomrec.recommendation.bulk import write_all
        from blossomrec.recommendation.job import make_job
        from blossomrec.recommendation.output import Output
        from blossomrec.recommendation.part_engines import open_engine
        from blossomrec.recommendation.parts import PartWriter
        from blossomrec.recommendation.user_list import listed_users

        model, vocabulary = self._ready()
        ranks, device = self._ranks, model.item_embeddings.weight.device.type
        with ranks.said_once(), open_engine(engine, device, ranks) as compute:
            known = self._histories()
            log, folder = known.log, shards is not None or rows_per_file is not None
            if not folder and Path(out).suffix != ".parquet":
                raise ConfigError(f"out is {str(out)!r}: a file's name must end in .parquet")
            if whole_number("k", k) > vocabulary.size:
                raise ConfigError(f"k is {k}: the model knows {vocabulary.size} items")
            rows = np.arange(log.num_users)
            if users is not None:
                rows = listed_users(users, log.user_vocabulary, unknown)
            request = self._user_request(k, options.pop("at", None), **options)
            files = {"shards": shards, "rows_per_file": rows_per_file}
            job = make_job(log, model, self.config, rows, request, **files, ranks=ranks)
            known.warn_of_unknown(rows)

            def make_ranker() -> UserRanker:
                now = self._histories().log
                # A worker elsewhere has opened it later.
                if now.digest != job.told["digest of the log"]:
                    raise DataError(f"{now.folder} has changed since the job began: begin it again")
                return self._ranker(request, len(rows))

            output = Output.of(job, Path(out), folder=folder)
            writer = PartWriter(output, make_ranker, self._users_frame)
            return write_all(writer, compute, progress=progress, ranks=ranks)

    def recommend_history(
        self,
        history: Sequence[Any] | Mapping[str, Any] | pl.DataFrame,
        k: int = 10,
        *,
        filter_viewed: bool | None = None,
        items: Iterable[Any] | None = None,
        max_len: int | None = None,
        unknown: Literal["skip", "refuse"] = "skip",
        at: Moment | None = None,
        kind: str | None = None,
        rules: Rules | None = None,
    ) -> pl.DataFrame:
        """The ``k`` best next items after any events, oldest first.

        Args:
            history: item ids; or a frame, or lists by name, with what else is known of the events
                for a model that sees it: ``item_id``, ``timestamp`` (as ``at``), ``kind``, and the
                columns of the context by their names.
            filter_viewed, items, max_len, kind: as of ``recommend``.
            unknown: what to do with items the model does not know: "skip" them with a warning, or
                "refuse" the history.
            at: the moment for which is recommended; None where it is not known.
            rules: as of ``recommend``. ``exclude_seen_days`` needs ``at``, from which it counts,
                and the ``timestamp`` of the events; ``fallback`` needs a log, and is for a history
                without a known item.

        Returns:
            Columns item_id, score, rank (from 1).

        Raises:
            DataError: an unknown item where they are refused, or no known item at all; a column is
                missing, unknown or of another length.
            ConfigError: an option is out of bounds or of a wrong type, or a rule lacks what it
                needs.

        Example:
            >>> events = {"item_id": [7, 9], "timestamp": [1_700_000_000, 1_700_000_060]}
            >>> recommender.recommend_history(events, at=datetime.now(UTC))
        """
        model, _ = self._whole()
        columns, ids, known = self._given_history(history, unknown)
        if not len(known) and (rules is None or rules.fallback == "none"):
            what = f"the history {shown_ids(ids)}" if ids else "an empty history"
            raise DataError(f"{what} has no item that the model knows")
        check_days(rules, columns, at)
        given = {"filter_viewed": filter_viewed, "items": items, "max_len": max_len, "kind": kind}
        request = self._request(k, **given, at=as_second("at", at), rules=rules)
        return self._frame({}, *ranked_after(known, model, request))

    def similar_items(self, items: Iterable[Any], k: int = 10) -> pl.DataFrame:
        """The ``k`` items whose embeddings are closest, by cosine, to each given one.

        Returns:
            Columns item_id, similar_id, score (cosine), rank (from 1).

        Raises:
            DataError: an item is unknown.
            ConfigError: ``k`` is no whole number of at least 1.
        """
        model, vocabulary = self._whole()
        k = whole_number("k", k)
        return similar_items(model, vocabulary, known_rows(vocabulary, items, "item"), k)

    def explain(
        self,
        item: Any,
        *,
        user: Any = None,
        history: Sequence[Any] | Mapping[str, Any] | pl.DataFrame | None = None,
        k: int = 10,
        unknown: Literal["skip", "refuse"] = "skip",
        at: Moment | None = None,
        kind: str | None = None,
    ) -> dict[str, Any]:
        """Why an item has its score for a user of the log, or after any events.

        Args:
            item: external id, of any item of the model.
            user: external id of a user of the log; or else ``history``.
            history, unknown: as of :meth:`recommend_history`.
            k: how many events to name, those that raise the score most.
            at, kind: as of :meth:`recommend` for a user, of :meth:`recommend_history` for events.

        Returns:
            What a server answers to ``/v1/explain``: ``score``, which the ``contributions`` of all
            events that the model sees, ``rest`` and what there is of ``own`` add up to; ``events``,
            the ``k`` of the largest contributions with their positions; and of each of the
            ``layers`` the blocks selected and the recent events. ``model`` is the version of the
            run, None where there is no folder of it any more.

        Raises:
            DataError: the item or the user is unknown, or the model knows no item of the history.
            ConfigError: the backbone or its attention is one that cannot be explained, an option is
                wrong, or not just one of ``user`` and ``history`` is given.

        Example:
            >>> why = recommender.explain(50_010, history=[50_003, 50_017], k=1)
            >>> (event,) = why["events"]
            >>> event.keys()
            dict_keys(['position', 'item', 'contribution'])
        """
        from blossomrec.explanation.answer import explained
        from blossomrec.explanation.explain import check_explainable

        model, vocabulary = self._whole()
        check_explainable(model)
        if (user is None) == (history is None):
            raise ConfigError("give either user or history")
        k, row = whole_number("k", k), int(known_rows(vocabulary, [item], "item")[0])
        if user is not None:
            request, histories = self._user_request(k, at, kind=kind), self._histories()
            users = known_rows(histories.log.user_vocabulary, [user], "user")
            histories.warn_of_unknown(users)
            ids, known = [user], histories.history(int(users[0]))
        else:
            request = self._request(k, at=as_second("at", at), kind=kind)
            _, ids, known = self._given_history(history, unknown)
        if not len(known):
            whose = "user" if history is None else "the history"
            raise DataError(f"{whose} {shown_ids(ids)} has no item that the model knows")
        known = known.asked_for(request.moment, request.kind, context=len(model.fields.context))
        start, names = max(0, len(known) - request.max_len), vocabulary.ids
        found = explained(model, known, start, row, k, lambda rows: names(rows).to_list())
        return {"model": self._version, **found}

    def _given_history(
        self, history: Any, unknown: str
    ) -> tuple[Mapping[str, Any], list[int | str], History]:
        """What is given of events by name, the ids of their items, and those of known items."""
        model, vocabulary = self._ready()
        one_of("unknown", unknown, ("skip", "refuse"))
        columns = columns_of(history)
        ids = as_ids(columns["item_id"], "item", ordered=True)
        rows = vocabulary.rows(ids)
        strangers = [item for item, row in zip(ids, rows, strict=True) if row < 0]
        if strangers and unknown == "refuse":
            known_rows(vocabulary, ids, "item")
        if strangers:
            warnings.warn(
                f"{len(strangers)} of {len(ids)} items of the history are unknown and skipped: "
                f"{shown_ids(strangers)}",
                stacklevel=3,
            )
        return columns, ids, given_history(rows, columns, model.fields)[rows >= 0]

    def _listed_histories(
        self,
        users: str | Path | Iterable[Any],
        unknown: str,
        at: Moment | None,
        kind: str | None,
    ) -> tuple[UserHistories, np.ndarray]:
        """Histories of users of the log, listed or "all", and the rows of these users."""
        from blossomrec.recommendation.user_list import listed_users

        model, vocabulary = self._ready()
        known = self._histories()
        log = known.log
        everyone = isinstance(users, str) and users == "all"
        rows = np.arange(log.num_users)
        if not everyone:
            rows = listed_users(users, log.user_vocabulary, unknown)
        known.warn_of_unknown(rows)
        request = self._user_request(1, at, kind=kind)
        return UserHistories(log, model, vocabulary, self._users, request), rows

    def _ranker(self, request: Request, users: int) -> UserRanker:
        """What ranks for so many users of the log."""
        model, vocabulary = self._ready()
        log = self._histories().log
        histories = UserHistories(log, model, vocabulary, self._users, request)
        return UserRanker(model, histories, request, at_once=users, ranks=self._ranks)

    def _users_frame(self, ranked: Ranked) -> pl.DataFrame:
        """Recommendations to users of the log by external ids."""
        users = self._histories().log.user_vocabulary.ids(ranked.users)
        return self._frame({"user_id": users}, ranked.items, ranked.scores, ranked.ranks)

    def _frame(
        self, columns: dict[str, Any], rows: np.ndarray, scores: np.ndarray, ranks: np.ndarray
    ) -> pl.DataFrame:
        _, vocabulary = self._ready()
        return pl.DataFrame(
            {**columns, "item_id": vocabulary.ids(rows), "score": scores, "rank": ranks}
        )
