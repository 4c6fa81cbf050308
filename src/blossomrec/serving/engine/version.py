"""One version of a model as it is served, with everything that belongs to its weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blossomrec.config import ServingConfig
from blossomrec.device import resolve_device
from blossomrec.errors import RunError
from blossomrec.files import digest
from blossomrec.models.sequence import SequenceModel
from blossomrec.rules import Rules
from blossomrec.run import (
    load_model,
    open_item_table,
    open_users,
    open_vocabulary,
    read_run_config,
)
from blossomrec.serving.engine.approximate import ApproximateRanking
from blossomrec.serving.engine.catalogue import Catalogue
from blossomrec.serving.engine.encoder import Encoder, build_encoder
from blossomrec.serving.engine.fields import KnownFields
from blossomrec.serving.engine.histories import HistoryCache
from blossomrec.serving.engine.ranking import Ranking
from blossomrec.serving.engine.served_rules import RuleSource, ServedRules
from blossomrec.serving.metrics import Metrics


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """A loaded run. Encoded histories live and die with it: no others' weights ever meet them.

    Attributes:
        run: the folder it was read from.
        id: the first digits of the weights' SHA-256.
        model: in evaluation mode; the threads of the engine and of explanations use it.
        max_len: events of a history that the model sees.
        step: see :func:`blossomrec.serving.engine.histories.window_start`.
        keeps_state: whether a history is extended, or encoded anew when it has grown.
        known: kinds, context and users that the model knows.
        filter_viewed: whether items of the history are left out unless a request says otherwise.
        rules: gives those of requests in the rows of the catalogue.
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
    keeps_state: bool
    known: KnownFields
    filter_viewed: bool
    rules: ServedRules


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
        RunError: a file is missing or damaged, or a weight is not finite.
        ConfigError: an option is out of bounds, the device is not there, or a rule does not fit the
            table of items.
        DataError: the filter of the rules leaves no item, or their table cannot be read.
    """
    run = Path(run)
    info = read_run_config(run)
    config = config.checked(info.config.model.max_len)
    model = load_model(run, resolve_device(device))
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise RunError(f"{run / 'model.safetensors'} is damaged: {name} is not finite")
    vocabulary, users = open_vocabulary(run, info), open_users(run, info)
    ranking = Ranking(model)
    if config.probes:
        ranking = ApproximateRanking(model, config.probes, metrics)
    kept = open_item_table(run, info) if model.features is None else model.features
    source = RuleSource(vocabulary, kept, info.data, ranking.vectors, config.rules_mib << 20)
    max_len = config.max_len or info.config.model.max_len
    cache = HistoryCache(config.cache_mib << 20)
    encoder, keeps_state = build_encoder(model, max_len, config.step, cache)
    return ModelVersion(
        run=run,
        id=digest(run / "model.safetensors")[:12],
        model=model,
        catalogue=Catalogue.of(vocabulary),
        encoder=encoder,
        ranking=ranking,
        cache=cache,
        max_len=max_len,
        step=config.step,
        keeps_state=keeps_state,
        known=KnownFields(model.fields, None if users is None else users[0], model.inputs),
        filter_viewed=info.filter_viewed,
        rules=ServedRules(source, rules or Rules()),
    )
