"""What a run is made of: frozen dataclasses whose fields carry their own explanation.

A value comes from the defaults here, then a YAML or TOML file, then a flag; the resolved form is
printed and saved as ``config.json`` in the run folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_args, get_origin, get_type_hints

from blossomrec.errors import ConfigError, shortened
from blossomrec.registry import ATTENTIONS, BACKBONES, LOSSES, Registry

# The largest that every generator of random numbers takes.
LARGEST_SEED = 2**63 - 1
LARGEST_HISTORY = 10_000_000
# Of anything that an event looks at; selected blocks take memory whether a history has them or not.
LARGEST_PATTERN = 65_536
# A configuration has some hundred lines; no file that is larger is read.
LARGEST_FILE = 1 << 20
# Names that are listed whole where one is unknown, and characters of a longer list.
FEW_NAMES, LONGEST_LIST = 8, 300


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with its explanation and, for numbers, its inclusive bounds."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def column(default: str, help: str) -> Any:
    """A dataclass field that names a column; in frames of pandas a name may be a number, too."""
    return field(
        default=default, metadata={"help": help, "low": None, "high": None, "column": True}
    )


def named(registry: Registry[Any], default: str, help: str) -> Any:
    """A dataclass field whose value is a name in a registry; its explanation lists the names."""
    help = f"{help}: {', '.join(registry.names())}"
    bounds = {"low": None, "high": None}
    return field(default=default, metadata={"help": help, **bounds, "registry": registry})


Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class ModelConfig:
    """The architecture."""

    backbone: str = named(BACKBONES, "sasrec", "model around the attention")
    attention: str = named(ATTENTIONS, "blossom", "attention of the Transformer backbones")
    max_len: int = option(
        200, "longest history, in events, that the model sees", low=2, high=LARGEST_HISTORY
    )
    hidden_size: int = option(128, "width of embeddings and layers", low=1)
    layers: int = option(2, "number of layers", low=1, high=1_024)
    heads: int = option(8, "query heads", low=1)
    kv_heads: int = option(
        0, "key/value heads; divides heads, 0 for as many; fewer take less time and memory", low=0
    )
    rotary_share: float = option(
        0.5,
        "share of each head's dimensions rotated by the position; the rest compare contents alone",
        low=0,
        high=1,
    )
    time_share: float = option(
        0.0, "share of each head's dimensions that the real time rotates", low=0, high=1
    )
    time_gap: Switch = option(
        "auto", "see the time since the previous event; auto: where the log has points in time"
    )
    request_time: Switch = option(
        "auto", "see the time from the last event to the moment for which is recommended"
    )
    clock: Switch = option("off", "see hour of day and day of week, of events and of the moment")
    content: Switch = option(
        "auto", "see what the table of items says of them; auto: where it says something"
    )
    event_kinds: Switch = option("auto", "see the kinds of events; auto: where the log has kinds")
    request_kind: Switch = option(
        "auto", "see which kind of event is wanted; auto: where the log has kinds"
    )
    context: Switch = option("auto", "see the context of events; auto: where the log has any")
    user_table: Switch = option(
        "auto", "see what the table of users says of them; auto: where it says something"
    )
    id_dropout: float = option(
        0.1,
        "with content: share of the items seen by it alone in a training step",
        low=0,
        high=0.95,
    )
    repeats: Switch = option(
        "auto",
        "mix the user's own items into the catalogue; auto: where many training events repeat one",
    )
    inner_size: int = option(256, "width inside the feed-forward layers", low=1)
    norm: Literal["pre", "post"] = option("post", "layer norm before or after each sub-layer")
    residual: Literal["plain", "gated"] = option(
        "plain", "what a sub-layer gives is added as it is, or times a gate made of its input"
    )
    feed_forward: Literal["gelu", "swiglu", "none"] = option(
        "gelu", "feed-forward of a layer: two matrices with GELU, three with SwiGLU, or none"
    )
    state_size: int = option(
        32, "Mamba4Rec: numbers that each channel of a layer keeps", low=1, high=256
    )
    dropout: float = option(
        0.2, "dropout after embeddings, attention and feed-forward", low=0, high=0.95
    )
    block_size: int = option(16, "Blossom: events in a block", low=1, high=LARGEST_PATTERN)
    top_n: int = option(4, "Blossom: selected blocks for each event", low=1, high=LARGEST_PATTERN)
    window: int = option(
        8,
        "recent events the short-term path of Blossom always sees, or all that attention window "
        "does",
        low=1,
        high=LARGEST_PATTERN,
    )
    sinks: int = option(
        0,
        "Blossom: events at the edge of the history that everyone sees",
        low=0,
        high=LARGEST_PATTERN,
    )
    compress: Literal["mlp", "mean"] = option("mlp", "Blossom: how a block of keys becomes one key")
    compress_window: int = option(
        32, "Blossom: keys that one block key is made of", low=1, high=LARGEST_PATTERN
    )
    share: float = option(
        1.0,
        "Blossom: blocks are taken until they have this share of the importance, top_n at most",
        low=0.01,
        high=1,
    )
    power_base: float = option(
        2.0, "Blossom: base of the power law of the short-term path's distances", low=1.1, high=64
    )
    paths: Literal["both", "long", "short"] = option(
        "both", "Blossom: both gated paths, or one alone to see what it gives"
    )
    fusion: Literal["gated", "union"] = option(
        "union", "Blossom: one softmax over both paths, or two and a gate, as published"
    )
    gate: Literal["independent", "convex"] = option(
        "independent", "Blossom: weights of the two paths, as published, or ones that sum up to 1"
    )
    selector_weight: float = option(
        1.0, "Blossom: weight of the distillation loss of the selector, 0 for none", low=0
    )
    attention_impl: Literal["auto", "reference", "torch", "cpu", "triton", "cuda"] = option(
        "auto", "implementation of Blossom attention"
    )

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads, G."""
        return self.kv_heads or self.heads


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, validation and stopping."""

    loss: str = named(LOSSES, "cross_entropy", "training loss, the first over the whole catalogue")
    negatives: int = option(256, "sampled items per batch for the sampled losses", low=1)
    gbce_t: float = option(
        0.75, "gBCE calibration, 0 is plain BCE, 1 removes overconfidence", low=0, high=1
    )
    mask_probability: float = option(
        0.2, "BERT4Rec: share of events that are masked", low=0.01, high=0.99
    )
    targets: str = option(
        "",
        "kinds of events that are predicted and how much they count, such as buy=1,click=0.2; a "
        "kind that is not named counts 0, one with a comma is in double quotes; without, all count "
        "the same",
    )
    weights: Switch = option(
        "auto", "how much an event counts as a target: its weight; auto: where the log has weights"
    )
    epochs: int = option(100, "most epochs to train", low=1)
    minutes: float = option(
        0.0, "minutes after which training ends, with the step it is at; 0 for no limit", low=0
    )
    events: Literal["new", "all"] = option(
        "new", "with --from: train on the events that the run was not trained on, or on all"
    )
    replay: float = option(
        0.5,
        "with --from and new events: share of an epoch that is old events, against forgetting",
        low=0,
        high=0.95,
    )
    tokens_per_batch: int = option(4_096, "events in a batch, all users together", low=1)
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", low=0)
    weight_decay: float = option(0.01, "decoupled weight decay on matrices", low=0)
    warmup_steps: int = option(
        100, "steps over which the learning rate rises, at most a tenth of all", low=0
    )
    schedule: Literal["constant", "cosine"] = option("constant", "learning rate after the warm-up")
    clip_norm: float = option(1.0, "largest gradient norm, 0 for no clipping", low=0)
    ema_decay: float = option(
        0.998,
        "decay a step of the moving average of the weights that is validated and kept; 0 keeps the "
        "weights themselves",
        low=0,
        high=0.99999,
    )
    validate_every: int = option(1, "epochs between validations", low=1)
    validation_users: int = option(10_000, "most cases in a validation, a fixed sample", low=1)
    patience: int = option(10, "validations without a better NDCG@10 before training stops", low=1)
    seed: int = option(0, "seed of everything random", low=0, high=LARGEST_SEED)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train")
    precision: Literal["auto", "32-true", "bf16-mixed"] = option(
        "auto", "auto is bf16-mixed on a GPU and 32-true elsewhere"
    )
    graph: Literal["auto", "on", "off"] = option(
        "auto",
        "replay steps as a CUDA graph, batches padded to one shape; auto: on a GPU where it can be",
    )
    checkpoint_overhead: float = option(
        0.05,
        "share of time spent on checkpoints; they are as frequent as it allows",
        low=0.001,
        high=1,
    )
    tensorboard: bool = option(False, "also write TensorBoard logs (extra: track)")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a recommender is measured."""

    split: Literal["leave-one-out", "global-time"] = option(
        "leave-one-out", "how test events are held out"
    )
    last_events: int = option(
        1, "leave-one-out: events of each user's end that are tested, one by one", low=1
    )
    kinds: str = option(
        "",
        "kinds of events that are test and validation targets, such as buy or buy,cart; all "
        "without it",
    )
    valid_share: float = option(
        0.1, "global-time: share of events held out for validation", low=0, high=0.5
    )
    test_share: float = option(
        0.1, "global-time: share of events held out for the test", low=0, high=0.5
    )
    ranking: Literal["full", "uni100"] = option(
        "full", "rank among all items, or among 100 uniform items the user never met"
    )
    filter_seen: Literal["auto", "yes", "no"] = option(
        "auto", "leave items already seen out of the ranking; auto: when the log has no repeats"
    )
    ks: tuple[int, ...] = option((5, 10, 20), "cut-offs of the metrics", low=1, high=10_000)
    seed: int = option(
        0, "seed of sampled candidates and of the bootstrap", low=0, high=LARGEST_SEED
    )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a run, besides the data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


# Configurations by name, as nested values: what differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # BlossomRec as published (arXiv 2512.13368): ids alone, all dimensions rotated, gated paths, no
    # average of the weights.
    "paper": {
        "model": {
            "fusion": "gated",
            "kv_heads": 2,
            "rotary_share": 1.0,
            "repeats": "off",
            **dict.fromkeys(("time_gap", "request_time", "event_kinds", "request_kind"), "off"),
            **dict.fromkeys(("content", "context", "user_table"), "off"),
        },
        "training": {"weights": "off", "ema_decay": 0.0},
    }
}


def preset(name: str) -> RunConfig:
    """The configuration of a name in ``PRESETS``.

    Raises:
        ConfigError: there is none of that name.

    Example:
        >>> preset("paper").model.fusion
        'gated'
    """
    if name not in PRESETS:
        raise ConfigError(f"preset is {shortened(name)}: choose one of {', '.join(PRESETS)}")
    return from_dict(PRESETS[name])


@dataclass(frozen=True)
class ServingConfig:
    """Options of a server, checked by :meth:`checked`."""

    max_len: int = option(
        0,
        "events of a history that the model sees, 0 for as many as in training",
        low=0,
        high=LARGEST_HISTORY,
    )
    step: int = option(
        1,
        "events by which a history longer than max_len is cut at a time",
        low=1,
        high=LARGEST_HISTORY,
    )
    cache_mib: int = option(1_024, "memory for encoded histories, in MiB", low=0)
    warm: int = option(1_000, "users whose histories are encoded for a new model", low=0)
    warm_seconds: float = option(300.0, "longest time for that, before the model is used", low=0)
    probes: int = option(0, "lists of items looked into (faiss), 0 ranks all items", low=0)
    batch: int = option(32, "most requests that are computed together", low=1, high=4_096)
    wait_ms: float = option(0.5, "longest wait for more requests to compute together", low=0)
    queue: int = option(256, "requests that may wait; more are refused", low=1)
    in_flight: int = option(512, "requests that may be open at a time", low=1)
    connections: int = option(4_096, "connections that may be open at a time", low=1)
    head_seconds: float = option(10.0, "seconds for the head of a request to arrive", low=0.001)
    timeout: float = option(10.0, "seconds until a request is given up", low=0.001)
    max_k: int = option(1_000, "most recommendations for a request", low=1)
    max_items: int = option(10_000, "most ids in a list of a request", low=1)
    max_events: int = option(1_000, "most events appended by a request", low=1)
    max_similar: int = option(20, "most items of a request for similar ones", low=1)
    max_future: float = option(
        86_400.0, "seconds after now that an event may have as its time", low=0
    )
    max_body: int = option(1 << 20, "largest body of a request, in bytes", low=1)
    unknown_values: Literal["keep", "refuse"] = option(
        "keep",
        "events with a kind, a context column or a category that the model does not know: keep, "
        "to store them and see these as unknown, or refuse",
    )

    def checked(self, longest: int) -> ServingConfig:
        """This configuration, for a model that sees ``longest`` events by itself.

        Raises:
            ConfigError: an option is out of bounds, or ``step`` is longer than the history.
        """
        check(self)
        if self.step > (self.max_len or longest):
            raise ConfigError(
                f"step is {self.step}: it must be at most max_len, {self.max_len or longest}"
            )
        return self


# What a field of a type takes, and what to call it.
_NEEDED: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
}


def check(config: Any, where: str = "") -> None:
    """Raise ConfigError, naming option and value, where a type is wrong or a bound is broken."""
    hints = get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        name, value = f"{where}{entry.name}", getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        else:
            check_option(entry, hints[entry.name], name, value)
    if isinstance(config, ModelConfig):
        _check_model(config, where)


def check_option(entry: dataclasses.Field[Any], hint: Any, name: str, value: Any) -> None:
    """Raise ConfigError unless a value is of the type of its field and within the bounds."""
    if "registry" in entry.metadata:
        entry.metadata["registry"].check(name, value)
    elif "column" not in entry.metadata:
        _check_value(name, value, hint)
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if low is not None and not number >= low:
            raise ConfigError(f"{name} is {shortened(value)}: it must be at least {low}")
        if high is not None and not number <= high:
            raise ConfigError(f"{name} is {shortened(value)}: it must be at most {high}")


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless the value is of the type, or among the choices, of its field."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise ConfigError(f"{name} is {shortened(value)}: choose one of {choices}")
    elif get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)) or not value:
            raise ConfigError(f"{name} is {shortened(value)}: a list of numbers is needed")
        for place, number in enumerate(value):
            _check_value(f"{name}[{place}]", number, get_args(hint)[0])
    elif hint is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} is {shortened(value)}: a text is needed")
    elif hint in _NEEDED:
        kinds, needed = _NEEDED[hint]
        # A bool counts as an int in Python, not in an option.
        wrong = hint is not bool and isinstance(value, bool)
        if wrong or not isinstance(value, kinds) or not abs(value) < math.inf:
            raise ConfigError(f"{name} is {shortened(value)}: {needed} is needed")


def _check_model(model: ModelConfig, where: str) -> None:
    if model.hidden_size % model.heads:
        raise ConfigError(
            f"{where}hidden_size is {model.hidden_size}: "
            f"it must be a multiple of heads, {model.heads}"
        )
    if (model.hidden_size // model.heads) % 2:
        raise ConfigError(
            f"{where}hidden_size / heads is {model.hidden_size // model.heads}: "
            "rotary embedding needs it even"
        )
    if model.rotary_share + model.time_share > 1:
        raise ConfigError(
            f"{where}time_share is {model.time_share}: with rotary_share, {model.rotary_share}, it "
            "must be at most 1"
        )
    if model.heads % model.num_kv_heads:
        raise ConfigError(
            f"{where}kv_heads is {model.kv_heads}: it must divide heads, {model.heads}"
        )
    if model.fusion == "union" and model.gate != "independent":
        raise ConfigError(
            f"{where}gate is {model.gate}: with fusion union there is none, take fusion gated"
        )
    if model.compress_window % model.block_size:
        raise ConfigError(
            f"{where}compress_window is {model.compress_window}: "
            f"it must be a multiple of block_size, {model.block_size}"
        )


def with_options(config: RunConfig, options: dict[str, Any]) -> RunConfig:
    """``config`` with single options, named without their section, overridden and checked."""
    sections = {"model": ModelConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}
    changed: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for name, value in options.items():
        homes = [
            section
            for section, kind in sections.items()
            if name in {entry.name for entry in dataclasses.fields(kind)}
        ]
        if not homes:
            raise ConfigError(f"unknown option {name}")
        # Of the names in two sections, seed means the training's and kinds the model's.
        changed["training" if "training" in homes else homes[0]][name] = value
    config = dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in changed.items()
        },
    )
    check(config)
    return config


def registries() -> dict[str, Registry[Any]]:
    """The registries by the option that names something in them, such as ``model.backbone``."""
    return {
        f"{section.name}.{entry.name}": entry.metadata["registry"]
        for section in dataclasses.fields(RunConfig)
        for entry in dataclasses.fields(get_type_hints(RunConfig)[section.name])
        if "registry" in entry.metadata
    }


def to_dict(config: Any) -> dict[str, Any]:
    """The nested, JSON-ready form of a configuration."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any], cls: type = RunConfig, where: str = "") -> Any:
    """A checked configuration from nested values; unknown names raise ConfigError."""
    known = {entry.name: entry for entry in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            shown = name if isinstance(name, str) and len(name) <= 80 else shortened(name)
            raise ConfigError(f"unknown option {where}{shown}: {instead(shown, list(known))}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{where}{name} is {shortened(value)}: a table of options is needed"
                )
            value = from_dict(value, hints[name], f"{where}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        elif hints[name] is float and type(value) is int:
            value = float(value)
        given[name] = value
    config = cls(**given)
    check(config, where)
    return config


def instead(name: str, known: list[str]) -> str:
    """What may be meant by an unknown name: those like it, or all where there are few or none."""
    near = get_close_matches(name, known) if len(known) > FEW_NAMES else []
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "known are " + shorten(", ".join(known), LONGEST_LIST, placeholder=" ...")


def read_file(path: str | Path) -> dict[str, Any]:
    """The nested values of a YAML, TOML or JSON file, or of a preset where its name is given."""
    path = Path(path)
    if not path.is_file():
        if str(path) in PRESETS:
            return PRESETS[str(path)]
        presets = ", ".join(PRESETS)
        raise ConfigError(f"no configuration file {path}, and no preset: {presets}")
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError(f"{path} is larger than {LARGEST_FILE:,} bytes: it is no configuration")
    try:
        values = _parse(path.read_text(encoding="utf-8"), path.suffix)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}: a table of options is needed")
    return values


def _parse(text: str, suffix: str) -> Any:
    if suffix in (".yaml", ".yml"):
        import yaml

        class Loader(yaml.SafeLoader):
            """YAML in which 1e-3 is a number, as it is in version 1.2 and in every other format.

            Aliases are refused: a few lines of them stand for millions of values.
            """

            def compose_node(self, parent: Any, index: Any) -> Any:
                if self.check_event(yaml.AliasEvent):
                    raise ConfigError(f"*{self.peek_event().anchor} is an alias: write it out")
                return super().compose_node(parent, index)

        number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
        Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
        values = yaml.load(text, Loader)
        return {} if values is None else values
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text)
    raise ConfigError("a configuration file ends in .yaml, .yml, .toml or .json")
