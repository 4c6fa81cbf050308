"""BlossomRec: from a log of events to recommendations, in a few calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch

from blossomrec.config import RunConfig, with_options
from blossomrec.data.features import FeatureTable
from blossomrec.data.history import (
    KnownHistories,
    columns_of,
    given_history,
    known_rows,
    shown_ids,
)
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.data.units import Moment, as_second
from blossomrec.data.vocabulary import Vocabulary, as_ids
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError, DataError, RunError, one_of, true_or_false, whole_number
from blossomrec.evaluation import Asked, Evaluation, metrics, scoring
from blossomrec.files import TemporaryFolder
from blossomrec.hub.repository import download, is_repository
from blossomrec.models.inputs import resolve_inputs
from blossomrec.models.sequence import SequenceModel, build_model
from blossomrec.parameters import Parameters
from blossomrec.ranks import launched, open_ranks
from blossomrec.recommendation.ranked_history import check_days, ranked_after
from blossomrec.recommendation.ranked_users import Ranked, UserRanker
from blossomrec.recommendation.request import Request
from blossomrec.recommendation.user_histories import UserHistories
from blossomrec.rules import Rules
from blossomrec.rules.catalogue import item_rules
from blossomrec.rules.rules import refuse_contradiction
from blossomrec.run import (
    Known,
    RunInfo,
    load_model,
    open_item_table,
    open_users,
    open_vocabulary,
    read_run_config,
    run_version,
    write_model,
)
from blossomrec.training.state import seeded

if TYPE_CHECKING:
    from blossomrec.recommendation.bulk import Written
    from blossomrec.recommendation.part_engines import PartEngine
    from blossomrec.training.loop import TrainingResult


class BlossomRec(Parameters):
    """A sequential recommender: fit it on a log of events, ask it for next items.

    Ids are external ones, whole numbers or text, in any list, array or series. Pickled, it takes
    model and items along and opens its log again by the path, if that is still there.

    Args:
        config: everything that decides the outcome; defaults where it is None.
        options: single options by name, such as ``max_len=500`` or ``epochs=20``, that override
            the configuration; see :mod:`blossomrec.config` for all of them.

    Attributes:
        config: the resolved configuration.
        model: the trained model, None before ``fit``.
        items: vocabulary of the catalogue, None before ``fit``.
        log: the events whose users can be asked for, None when there are none. It may be any: items
            meet by their external ids, and those the model does not know are skipped.
        training: what the training came to, None without one.
        filter_viewed: whether recommendations leave out what is in the history unless they are
            asked otherwise: as the evaluation of this model does, None before ``fit``.

    Raises:
        ConfigError: an option is unknown or out of bounds.
    """

    def __init__(self, config: RunConfig | None = None, **options: Any):
        self._parameters = {"config": config, **options}
        self.config = self._given
        self.model: SequenceModel | None = None
        self.items: Vocabulary | None = None
        self.log: EventLog | None = None
        self.training: TrainingResult | None = None
        self.filter_viewed: bool | None = None
        self._info: RunInfo | None = None
        self._folder: Path | None = None
        self._users: Vocabulary | None = None
        self._item_table: FeatureTable | None = None
        self._known: KnownHistories | None = None
        self._no_log = "the log this model was trained on is not there"

    def fit(
        self,
        log: EventLog | Any,
        run: str | Path | None = None,
        *,
        resume: Literal["auto", "never"] = "auto",
        progress: bool = True,
        from_run: str | Path | None = None,
    ) -> BlossomRec:
        """Train on the events of ``log`` that the split leaves for training.

        The global generators of Python, NumPy and torch are afterwards as they were before.

        Args:
            log: a prepared log, or anything :meth:`EventLog.prepare` reads: a path or a frame with
                the columns ``user_id``, ``item_id`` and ``timestamp``.
            run: folder of the run, with checkpoints; a temporary one that lives as long as this
                object where it is None.
            resume: "auto" continues a run that was stopped, "never" refuses a used folder.
            progress: show how training goes.
            from_run: folder of a run that is brought up to date: the model begins as it, items
                meeting by their ids, and is trained on the events of ``log`` that it was not, or on
                all, ``events="all"``. Options that are not given are those of the run.

        Under torchrun all ranks call it. What they trained lies in the run folder, which
        :meth:`from_pretrained` opens; no rank keeps the whole model.

        Returns:
            self.

        Example:
            >>> BlossomRec(epochs=3).fit(EventLog.open("log"), "runs/new", from_run="runs/old")
        """
        from blossomrec.training import train

        log = log if isinstance(log, EventLog) else EventLog.prepare(log)
        temporary = None
        if run is None and launched():
            raise ConfigError("fit needs the folder of the run where ranks train together: give it")
        if run is None:
            # Once the weights are in memory, nothing of it is needed any more.
            temporary = TemporaryFolder()
            run = temporary.path / "run"
        # As it was given, not as it was decided for another log before.
        given = self._begun(from_run)
        device = resolve_device(given.training.device, "training.device")
        with open_ranks(device) as ranks, seeded(given.training.seed):
            self.config = resolve_inputs(given, log, ranks)
            split = make_split(log, self.config.evaluation)
            model = build_model(self.config.model, log.num_items, log.tables, ranks)
            self.training = train(
                model,
                log,
                split,
                self.config,
                Path(run),
                resume=resume,
                progress=progress,
                ancestor=from_run,
                ranks=ranks,
            )
            self.log = log
            if ranks.alone:
                self._load(run, device)
        return self

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        log: EventLog | str | Path | None = None,
        *,
        device: str = "auto",
        revision: str | None = None,
    ) -> BlossomRec:
        """A recommender from a run folder, from what ``save_pretrained`` wrote, or from the Hub.

        Args:
            folder: holds ``config.json``, ``model.safetensors`` and ``vocabulary/``; or the text
                ``"OWNER/NAME"``, a repository of the Hugging Face Hub (extra: hub), where there is
                no such folder.
            log: prepared log with the histories of the users to ask for; None is the log the model
                was trained on, as it is now, if it is still there.
            device: "auto", "cpu" or "cuda".
            revision: of a repository: a branch, a tag or a commit.

        Raises:
            RunError: a file of the run is missing or damaged, or there is no such repository.
            DataError: the log that was given is missing or damaged.
            ConfigError: the device is not there.
        """
        if is_repository(folder):
            folder = download(str(folder), revision)
        self = cls(read_run_config(folder).config)
        self._load(folder, resolve_device(device))
        if log is not None:
            self.log = log if isinstance(log, EventLog) else EventLog.open(log)
        elif self._info is not None:
            self._find_log(self._info.data)
        return self

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``vocabulary/``, without the events.

        A model that was saved in ``folder`` before is replaced.

        Args:
            overwrite: also replace a run folder, whose checkpoints and evaluations are removed.

        Raises:
            RunError: there is nothing to save, or the folder is a run folder.
        """
        model, _ = self._ready()
        assert self._info is not None
        write_model(folder, self._info, self._saved(), model, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        evaluation: Evaluation | None = None,
        private: bool | None = None,
        with_users: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Publish model and model card on the Hugging Face Hub (extra: hub), without the events.

        Ids and tables of the items go with it, paths of this machine do not.

        Args:
            repo_id: ``"OWNER/NAME"``; the repository is made where there is none, and a model that
                was there is replaced.
            evaluation: what :meth:`evaluate` gave, for the card.
            private: whether a new repository is; None is as its owner has set it.
            with_users: also publish the table of users, with their ids, where the model sees one.
            revision: the branch; None is the main one.
            token: of the Hub; None is that of ``hf auth login``.

        Returns:
            The address of the repository.

        Raises:
            RunError: there is nothing to publish.
            ConfigError: the model sees a table of users, and ``with_users`` is not given.

        Example:
            >>> recommender.push_to_hub("me/plays", evaluation=recommender.evaluate())
        """
        from blossomrec.hub.publish import publish

        model, _ = self._ready()
        assert self._info is not None
        return publish(
            repo_id,
            model,
            self._info,
            self._saved(),
            evaluation=evaluation,
            with_users=with_users,
            private=private,
            revision=revision,
            token=token,
        )

    def evaluate(
        self,
        on: Literal["test", "valid"] = "test",
        log: EventLog | str | Path | None = None,
        *,
        ranking: Literal["full", "uni100"] | None = None,
        filter_seen: Literal["auto", "yes", "no"] | None = None,
        ks: Sequence[int] | None = None,
        seed: int | None = None,
        own_metrics: Sequence[str] = (),
        segments: Sequence[str] = (),
    ) -> Evaluation:
        """Measure the model on held-out events, as ``blossomrec evaluate`` does.

        Args:
            on: which held-out events of the split that the model was trained with.
            log: the prepared log; None is ``self.log``, which must be as it was when the model was
                trained, unless it lies elsewhere.
            ranking, filter_seen, ks, seed: see :class:`EvaluationConfig`; None is the model's own.
            own_metrics: names of metrics besides the usual ones, such as ``novelty`` or
                ``diversity:category``; of the user's own, too.
            segments: columns of the table of users, by each value of which metrics are told.

        Returns:
            Ranks of every held-out event, and ``metrics``, ``intervals``, ``slices`` and
            ``segment_slices`` from them.

        Raises:
            RunError: there is no model or no log, the log has changed since, or it has
                other items.
            ConfigError: an option is out of bounds, a metric or a column unknown.

        Example:
            >>> BlossomRec(epochs=3).fit("events.parquet").evaluate().metrics["ndcg@10"]
        """
        from blossomrec.measure import evaluate_model

        model, _ = self._ready()
        assert self._info is not None
        if log is None:
            events, named = self._histories().log, not self._is_own_log()
        else:
            events, named = log if isinstance(log, EventLog) else EventLog.open(log), True
        cut_offs = None if ks is None else metrics.check_ks(ks)
        options = {"ranking": ranking, "filter_seen": filter_seen, "ks": cut_offs, "seed": seed}
        return evaluate_model(
            model,
            self._info,
            events,
            users=self._users,
            on=on,
            options=options,
            asked=Asked(own_metrics=own_metrics, segments=segments),
            named=named,
        )

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
        where one was stopped or killed, and the files are then the same, byte for byte.

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
            engine: "local" computes in this process, "ray" by the workers of Ray, which is joined
                as its variable ``RAY_ADDRESS`` says or else started on this machine. Or one that
                ``open_engine`` has opened.
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
        with open_engine(engine, model.item_embeddings.weight.device.type) as compute:
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
            job = make_job(log, model, self.config, rows, request, **files)
            known.warn_of_unknown(rows)

            def make_ranker() -> UserRanker:
                now = self._histories().log
                # A worker elsewhere has opened it later.
                if now.digest != job.told["digest of the log"]:
                    raise DataError(f"{now.folder} has changed since the job began: begin it again")
                return self._ranker(request, len(rows))

            output = Output.of(job, Path(out), folder=folder)
            writer = PartWriter(output, make_ranker, self._users_frame)
            return write_all(writer, compute, progress=progress)

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
                stacklevel=2,
            )
        known = given_history(rows, columns, model.fields)[rows >= 0]
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
        model, vocabulary = self._ready()
        k = whole_number("k", k)
        rows = torch.from_numpy(known_rows(vocabulary, items, "item"))
        with torch.no_grad():
            table = torch.nn.functional.normalize(model.output_weight().float(), dim=-1)
            count = min(k, len(table) - 1)
            found = []
            for part in rows.to(table.device).split(max(1, scoring.SCORE_ELEMENTS // len(table))):
                cosine = table[part] @ table.T
                cosine[torch.arange(len(part)), part] = -torch.inf
                found.append(cosine.topk(count, dim=-1))
        scores = torch.cat([part.values for part in found]).cpu().numpy()
        similar = torch.cat([part.indices for part in found]).cpu().numpy()
        return pl.DataFrame(
            {
                "item_id": vocabulary.ids(rows.repeat_interleave(count).numpy()),
                "similar_id": vocabulary.ids(similar.ravel()),
                "score": scores.ravel(),
                "rank": np.tile(np.arange(1, count + 1), len(rows)),
            }
        )

    def export(
        self,
        out: str | Path,
        to: Literal["onnx", "torch", "vectors"],
        *,
        k: int | None = None,
        users: str | Path | Iterable[Any] | None = None,
        unknown: Literal["refuse", "skip"] = "refuse",
        index: str | None = None,
        at: Moment | None = None,
        kind: str | None = None,
    ) -> dict[str, Any]:
        """Write the model for other engines, with the ids of its rows and ``export.json``.

        Args:
            out: folder to make.
            to: "onnx" or "torch", an encoder of histories and a ranking of items as graphs; or
                "vectors" in Parquet files, whose inner products are the model's scores.
            k: how many items the ranking of a graph gives; None for 100, or all of fewer.
            users: whose vectors are written: "all" of the log, external ids, or the path of a file
                as of :meth:`recommend_all`; None for nobody's.
            unknown: as of :meth:`recommend_all`, where users are listed.
            index: what faiss is to make of the vectors of items, such as "Flat"; None for nothing.
            at, kind: as of :meth:`recommend`, for vectors of users.

        Returns:
            What ``export.json`` says.

        Raises:
            RunError: something lies at ``out``, or there is no log with the users.
            DataError: a user is unknown, or none has an event of an item that the model knows.
            ConfigError: the model has something that cannot be exported so; the message names it.
            MissingExtraError: what writes ONNX, or faiss, is not installed.

        Example:
            >>> told = recommender.export("exported", "onnx", k=20)
            >>> told["encoder"].get("file")
            'encoder.onnx'
        """
        from blossomrec.exporting.export import Source, Wanted, write_export

        model, vocabulary = self._ready()
        run, version = self._folder, None
        if run is not None and (run / "config.json").is_file():
            version = run_version(run)
        source = Source(model, vocabulary, self._users, version, self.filter_viewed)
        vectors = None if users is None else self._user_vectors(users, unknown, at, kind)
        return write_export(out, source, Wanted(to, k, index, vectors))

    def _user_vectors(
        self,
        users: str | Path | Iterable[Any],
        unknown: str,
        at: Moment | None,
        kind: str | None,
    ) -> Iterator[tuple[list[int | str], np.ndarray]]:
        """Ids and vectors of users, some at a time."""
        from blossomrec.exporting.vectors import user_vectors
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
        return user_vectors(
            model, UserHistories(log, model, vocabulary, self._users, request), rows
        )

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

    def _ranker(self, request: Request, users: int) -> UserRanker:
        """What ranks for so many users of the log."""
        model, vocabulary = self._ready()
        log = self._histories().log
        histories = UserHistories(log, model, vocabulary, self._users, request)
        return UserRanker(model, histories, request, at_once=users)

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

    def _saved(self) -> Known:
        """What is written beside the model."""
        model, vocabulary = self._ready()
        users = None
        if self._users is not None and model.users is not None:
            users = (self._users, model.users)
        return Known(vocabulary, self._item_table, users)

    def _begun(self, from_run: str | Path | None) -> RunConfig:
        """The configuration as it was given, on top of that of the run that is begun with."""
        if from_run is None or self._parameters["config"] is not None:
            return self._given
        return with_options(read_run_config(from_run).config, self._options)

    def _ready(self) -> tuple[SequenceModel, Vocabulary]:
        if self.model is None or self.items is None:
            raise RunError("this recommender has not been fitted: call fit or from_pretrained")
        return self.model, self.items

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

    def _load(self, folder: str | Path, device: str) -> None:
        """Take model and items from a run folder."""
        self._info, self._folder = read_run_config(folder), Path(folder)
        model = load_model(folder, device)
        self.items = open_vocabulary(folder, self._info)
        self._item_table = model.features
        if self._item_table is None:
            self._item_table = open_item_table(folder, self._info)
        users = open_users(folder, self._info)
        self._users = None if users is None else users[0]
        # Now, because a process forked later cannot.
        self.items.read()
        if self._users is not None:
            self._users.read()
        self.model, self._known = model, None
        self.filter_viewed = self._info.filter_viewed

    def _find_log(self, folder: Path) -> None:
        """Take the log that lies in a folder; where it cannot be opened, remember why."""
        try:
            self.log = EventLog.open(folder)
        except DataError as error:
            self._no_log = f"the log this model was trained on is not there ({error})"

    def __copy__(self) -> BlossomRec:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> BlossomRec:
        twin = self.__copy__()
        twin.model = copy.deepcopy(self.model, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
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
