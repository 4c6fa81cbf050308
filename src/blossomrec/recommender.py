"""BlossomRec: from a log of events to recommendations, in a few calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blossomrec.config import RunConfig, with_options
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.data.units import Moment
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.evaluation import Asked, Evaluation, metrics
from blossomrec.files import TemporaryFolder
from blossomrec.hub.repository import download, is_repository
from blossomrec.models.building import build_model
from blossomrec.models.inputs import resolve_inputs
from blossomrec.parameters import Parameters
from blossomrec.ranks import ALONE, Ranks, launched, open_ranks
from blossomrec.recommendation.recommending import Recommending
from blossomrec.run.description import read_run_config
from blossomrec.run.writing import write_model
from blossomrec.training.state import seeded

if TYPE_CHECKING:
    from blossomrec.training.loop import TrainingResult


class BlossomRec(Recommending, Parameters):
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
        super().__init__()
        self._parameters = {"config": config, **options}
        self.config = self._given
        self.training: TrainingResult | None = None

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
        ranks: Ranks = ALONE,
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
            ranks: who share the items of the model: each has some of the rows of its table, and
                :meth:`recommend_all` is what they can do together. All call this.

        Raises:
            RunError: a file of the run is missing or damaged, or there is no such repository.
            DataError: the log that was given is missing or damaged.
            ConfigError: the device is not there, or ranks cannot share the items of the model.

        Example:
            >>> with open_ranks("cuda") as ranks:  # under torchrun
            ...     shared = BlossomRec.from_pretrained("runs/large", ranks=ranks)
            ...     shared.recommend_all("recommendations.parquet", k=100)
        """
        if is_repository(folder):
            folder = ranks.in_turn(lambda: download(str(folder), revision))
        self = cls(read_run_config(folder).config)
        self._load(folder, resolve_device(device), ranks)
        # Opening merges what was appended, which one rank does for all.
        if log is not None:
            given = log
            self.log = (
                given
                if isinstance(given, EventLog)
                else ranks.in_turn(lambda: EventLog.open(given))
            )
        elif self._info is not None:
            self._find_log(self._info.data, ranks)
        return self

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``vocabulary/``, without the events.

        A model that was saved in ``folder`` before is replaced.

        Args:
            overwrite: also replace a run folder, whose checkpoints and evaluations are removed.

        Raises:
            RunError: there is nothing to save, or the folder is a run folder.
        """
        model, _ = self._whole()
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

        model, _ = self._whole()
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
            segments: columns of the table of users, each value of which gets metrics of its own.

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

        model, _ = self._whole()
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
        from blossomrec.exporting.vectors import user_vectors

        model, vocabulary = self._whole()
        source = Source(model, vocabulary, self._users, self._version, self.filter_viewed)
        vectors = None
        if users is not None:
            vectors = user_vectors(model, *self._listed_histories(users, unknown, at, kind))
        return write_export(out, source, Wanted(to, k, index, vectors))

    def _begun(self, from_run: str | Path | None) -> RunConfig:
        """The configuration as it was given, on top of that of the run that is begun with."""
        if from_run is None or self._parameters["config"] is not None:
            return self._given
        return with_options(read_run_config(from_run).config, self._options)
