"""Settings of a RecBole configuration as options: each mapped, without effect, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blossomrec.config import RunConfig, read_file, with_options
from blossomrec.errors import ConfigError, shortened

Options = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a configuration of RecBole comes to.

    Attributes:
        config: of the model, its training and its evaluation; what is not set is as it is here by
            default, not as in RecBole.
        prepare: options of :meth:`EventLog.prepare`.
        without_effect: names of settings that decide nothing here, such as ``gpu_id``.
    """

    config: RunConfig
    prepare: Options
    without_effect: tuple[str, ...]


def read_settings(
    source: str | Path | Mapping[str, Any], *, ignore: Collection[str] = ()
) -> Settings:
    """Map the settings of a RecBole configuration.

    Args:
        source: a YAML file, or the settings by name.
        ignore: names of settings to leave out.

    Raises:
        ConfigError: settings have no counterpart here, or one has a wrong value; one message names
            all of them, with their values.

    Example:
        >>> settings = read_settings({"n_layers": 2, "MAX_ITEM_LIST_LENGTH": 50})
        >>> settings.config.model.max_len
        50
    """
    named = not isinstance(source, Mapping)
    values = read_file(Path(source)) if named else dict(source)  # pyright: ignore[reportArgumentType]
    where = f"{source}: " if named else ""
    options, prepare, refused = Options(), Options(), list[str]()
    for name, value in values.items():
        if name in ignore or name in WITHOUT_EFFECT:
            continue
        try:
            if name in PREPARE:
                prepare |= PREPARE[name](value)
            elif name in OPTIONS:
                options |= OPTIONS[name](value)
            else:
                refused.append(f"{name} ({shortened(value)})")
        except NoCounterpartError as error:
            refused.append(f"{name} ({shortened(value)}: {error})")
    if refused:
        raise ConfigError(
            f"{where}settings without a counterpart here: {'; '.join(refused)}. Leave them away, "
            "or name them in ignore"
        )
    try:
        config = with_options(RunConfig(), options)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    return Settings(config, prepare, tuple(name for name in values if name in WITHOUT_EFFECT))


class NoCounterpartError(Exception):
    """A value stands for nothing here; the message says what does."""


def _plain(name: str, kind: Callable[[Any], Any] = lambda value: value) -> Callable[[Any], Options]:
    return lambda value: {name: kind(value)}


def _choice(choices: Mapping[Any, Options]) -> Callable[[Any], Options]:
    """By a value's text, in whatever case."""
    known = {str(one).lower(): options for one, options in choices.items()}

    def choose(value: Any) -> Options:
        if str(value).lower() not in known:
            raise NoCounterpartError(f"known are {', '.join(map(str, choices))}")
        return known[str(value).lower()]

    return choose


def _eval_args(value: Any) -> Options:
    if not isinstance(value, Mapping):
        raise NoCounterpartError("a table is needed")
    options, rest = Options(), dict(value)
    split, mode = rest.pop("split", None), rest.pop("mode", None)
    group, order = rest.pop("group_by", "user"), rest.pop("order", "TO")
    if rest:
        raise NoCounterpartError(f"{', '.join(map(str, rest))} is unknown")
    if order != "TO":
        raise NoCounterpartError(f"order {order} is none in time: TO is")
    if split is not None:
        options |= _split(split, group)
    if mode is not None:
        options |= _mode(mode)
    return options


def _split(split: Any, group: Any) -> Options:
    (how, parts), *others = (
        split.items() if isinstance(split, Mapping) and split else [(None, None)]
    )
    if how == "LS" and not others and parts == "valid_and_test":
        return {"split": "leave-one-out"}
    shares = _shares(parts)
    if how == "RS" and not others and shares and group in (None, "none", "None"):
        _, valid, test = shares
        return {"split": "global-time", "valid_share": valid, "test_share": test}
    raise NoCounterpartError(
        "known are the splits LS valid_and_test, and RS with three shares and group_by none"
    )


def _shares(parts: Any) -> list[float]:
    """Three numbers as shares of their sum; empty for anything else."""
    if not isinstance(parts, (list, tuple)) or len(parts) != 3:
        return []
    if not all(isinstance(part, (int, float)) and part >= 0 for part in parts) or not sum(parts):
        return []
    return [part / sum(parts) for part in parts]


def _mode(mode: Any) -> Options:
    modes = set(map(str, mode.values() if isinstance(mode, Mapping) else [mode]))
    if len(modes) == 1 and modes <= {"full", "uni100"}:
        return {"ranking": modes.pop()}
    raise NoCounterpartError("known are the modes full and uni100, the same for all")


def _cut_offs(value: Any) -> Options:
    return {"ks": tuple(value) if isinstance(value, (list, tuple)) else (value,)}


def _metrics(value: Any) -> Options:
    names = value if isinstance(value, (list, tuple)) else [value]
    strange = [name for name in names if str(name).lower() not in ("recall", "mrr", "ndcg", "hit")]
    if strange:
        raise NoCounterpartError("known are Recall, MRR, NDCG and Hit")
    return {}


def _clip(value: Any) -> Options:
    if value is None:
        return {"clip_norm": 0.0}
    given = {"norm_type": 2, **value} if isinstance(value, Mapping) else {}
    if given.keys() == {"norm_type", "max_norm"} and given["norm_type"] == 2:
        return {"clip_norm": given["max_norm"]}
    raise NoCounterpartError("known is max_norm, of norm_type 2")


def _least(option: str) -> Callable[[Any], Options]:
    """An interval of counts without an upper end."""

    def read(value: Any) -> Options:
        found = re.fullmatch(r"\s*([\[(])\s*(\d+)\s*,\s*inf\s*[\])]\s*", str(value))
        if value is not None and not found:
            raise NoCounterpartError("an interval such as [5,inf) is needed")
        return {option: int(found[2]) + (found[1] == "(")} if found else {}

    return read


# What a setting comes to: options of a run by name.
OPTIONS: dict[str, Callable[[Any], Options]] = {
    "model": _choice(
        {
            "SASRec": {"backbone": "sasrec", "attention": "full"},
            "BERT4Rec": {"backbone": "bert4rec", "attention": "full"},
            "GRU4Rec": {"backbone": "gru4rec"},
            "BlossomRec": {"backbone": "sasrec", "attention": "blossom"},
        }
    ),
    "MAX_ITEM_LIST_LENGTH": _plain("max_len"),
    "hidden_size": _plain("hidden_size"),
    "n_layers": _plain("layers"),
    "n_heads": _plain("heads"),
    "inner_size": _plain("inner_size"),
    "hidden_dropout_prob": _plain("dropout"),
    "mask_ratio": _plain("mask_probability"),
    "hidden_act": _choice({"gelu": {"feed_forward": "gelu"}}),
    "epochs": _plain("epochs"),
    # A row of a batch is an event that is predicted.
    "train_batch_size": _plain("tokens_per_batch"),
    "learning_rate": _plain("learning_rate"),
    "learner": _choice({"adam": {}, "adamw": {}}),
    "weight_decay": _plain("weight_decay"),
    "clip_grad_norm": _clip,
    "loss_type": _choice({"CE": {"loss": "cross_entropy"}, "BPR": {"loss": "bpr"}}),
    "train_neg_sample_args": _choice({None: {}}),
    "eval_step": _plain("validate_every"),
    "stopping_step": _plain("patience"),
    "valid_metric": _choice({"NDCG@10": {}}),
    "seed": _plain("seed"),
    "use_gpu": _choice({True: {"device": "auto"}, False: {"device": "cpu"}}),
    "enable_amp": _choice({True: {"precision": "bf16-mixed"}, False: {"precision": "32-true"}}),
    "eval_args": _eval_args,
    "topk": _cut_offs,
    "metrics": _metrics,
    "repeatable": _choice({True: {"filter_seen": "no"}, False: {"filter_seen": "yes"}}),
}
# And options of preparing a log.
PREPARE: dict[str, Callable[[Any], Options]] = {
    "USER_ID_FIELD": _plain("user"),
    "ITEM_ID_FIELD": _plain("item"),
    "TIME_FIELD": _plain("timestamp"),
    "field_separator": _plain("separator"),
    "seq_separator": _choice({" ": {}}),
    "user_inter_num_interval": _least("min_user_events"),
    "item_inter_num_interval": _least("min_item_events"),
}
# Where things lie and how they are shown, names of what is made on the way, and columns that are
# named anew when a log is prepared.
WITHOUT_EFFECT = frozenset(
    (
        *("dataset", "data_path", "checkpoint_dir", "load_col"),
        *("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"),
        *("gpu_id", "worker", "state", "show_progress", "log_wandb", "wandb_project"),
        *("loss_decimal_place", "metric_decimal_place", "eval_batch_size", "valid_metric_bigger"),
        *("reproducibility", "shuffle", "require_pow"),
        *("RATING_FIELD", "LABEL_FIELD", "NEG_PREFIX", "LIST_SUFFIX"),
        *("ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD"),
    )
)
