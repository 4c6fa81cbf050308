"""One version of a model as it is served, with everything that belongs to its weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from blossomrec.config import ServingConfig
from blossomrec.data.features import FeatureTable
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.device import resolve_device
from blossomrec.errors import RunError
from blossomrec.evaluation.quantised_top_k import prepare
from blossomrec.models.sequence import SequenceModel
from blossomrec.rules import Rules
from blossomrec.run import VERSIONED, run_version
from blossomrec.run.description import RunInfo, read_run_config
from blossomrec.run.tables import open_item_table, open_users, open_vocabulary
from blossomrec.run.weights import load_model
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.version.approximate import ApproximateRanking
from blossomrec.serving.version.catalogue import Catalogue
from blossomrec.serving.version.encoder import Encoder, build_encoder
from blossomrec.serving.version.fields import KnownFields
from blossomrec.serving.version.histories import HistoryCache
from blossomrec.serving.version.ranking import Ranking
from blossomrec.serving.version.served_rules import RuleSource, ServedRules
from blossomrec.serving.watch.popularity import TrainedPopularity

# Times that a folder is read in which files were replaced meanwhile.
ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """A loaded run. Encoded histories live and die with it: no others' weights ever meet them.

    Attributes:
        run: the folder it was read from.
        id: the first digits of a hash of the weights and of the configuration, which tells the
            vocabulary: two runs with the same weights and other items have two.
        model: in evaluation mode; the threads of the engine and of explanations use it.
        max_len: events of a history that the model sees.
        step: see :func:`blossomrec.serving.version.histories.window_start`.
        known: kinds, context and users that the model knows.
        filter_viewed: whether items of the history are left out unless a request says otherwise.
        rules: gives those of requests in the rows of the catalogue.
        written: when the weights were, in seconds since 1970.
        popularity: of the items in training; None where it is not watched, or the log is gone.
    """

    run: Path
    id: str
    model: SequenceModel
    catalogue: Catalogue
    encoder: Encoder
    ranking: Ranking
    cache: HistoryCache
    max_len: int
    step: int
    known: KnownFields
    filter_viewed: bool
    rules: ServedRules
    written: float
    popularity: TrainedPopularity | None


def load_version(
    run: str | Path,
    config: ServingConfig,
    metrics: Metrics,
    *,
    device: str = "auto",
    rules: Rules | None = None,
) -> ModelVersion:
    """Read a run folder.

    Args:
        rules: that hold for every request.

    Raises:
        RunError: a file is missing or damaged, a weight is not finite, or the folder is written to.
        ConfigError: an option is out of bounds, the device is not there, or a rule does not fit the
            table of items.
        DataError: the filter of the rules leaves no item, or their table cannot be read.
    """
    # A link may lead elsewhere in the middle of it.
    parts = _read_whole(Path(run).resolve(), config, device)
    info, model = parts.info, parts.model
    prepare(model)
    ranking = Ranking(model)
    if config.probes:
        ranking = ApproximateRanking(model, config.probes, metrics)
    source = RuleSource(
        parts.vocabulary, parts.features, info.data, ranking.vectors, config.rules_mib << 20
    )
    max_len = config.max_len or info.config.model.max_len
    cache = HistoryCache(config.cache_mib << 20)
    popularity = None
    if config.watched_events:
        popularity = TrainedPopularity.of_log(info.data, parts.vocabulary)
    return ModelVersion(
        run=parts.run,
        id=parts.id,
        model=model,
        catalogue=parts.catalogue,
        encoder=build_encoder(model, max_len, config.step, cache),
        ranking=ranking,
        cache=cache,
        max_len=max_len,
        step=config.step,
        known=KnownFields(model.fields, parts.users, model.inputs),
        filter_viewed=info.filter_viewed,
        rules=ServedRules(source, rules or Rules()),
        written=parts.written,
        popularity=popularity,
    )


class _Parts(NamedTuple):
    """What is read of a run folder, which belongs together."""

    run: Path
    info: RunInfo
    id: str
    model: SequenceModel
    features: FeatureTable | None
    vocabulary: Vocabulary
    catalogue: Catalogue
    users: Vocabulary | None
    written: float


def _read_whole(run: Path, config: ServingConfig, device: str) -> _Parts:
    """Read a folder; again where a file was replaced meanwhile.

    Weights of one run with the vocabulary of another may have the same shapes, and would answer
    with wrong items.
    """
    for _ in range(ATTEMPTS):
        before = _files(run)
        try:
            parts = _read(run, config, device)
        except (RunError, OSError):
            if _files(run) == before:
                raise
            continue
        if _files(run) == before:
            return parts
    raise RunError(f"{run} was written to each of {ATTEMPTS} times that it was read")


def _files(run: Path) -> list[tuple[int, int, int] | None]:
    """What tells whether a file was replaced: a new one is renamed, and has another inode."""
    found = []
    for name in VERSIONED:
        try:
            told = (run / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((told.st_ino, told.st_mtime_ns, told.st_size))
    return found


def _read(run: Path, config: ServingConfig, device: str) -> _Parts:
    info = read_run_config(run)
    config.checked(info.config.model.max_len)
    model = load_model(run, resolve_device(device))
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise RunError(f"{run / 'model.safetensors'} is damaged: {name} is not finite")
    vocabulary, users = open_vocabulary(run, info), open_users(run, info)
    return _Parts(
        run=run,
        info=info,
        id=run_version(run),
        model=model,
        features=open_item_table(run, info) if model.features is None else model.features,
        vocabulary=vocabulary,
        catalogue=Catalogue.of(vocabulary),
        users=None if users is None else users[0],
        written=(run / "model.safetensors").stat().st_mtime,
    )
