"""Which inputs a model has: what its configuration asks for, as far as a log can give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.features import Categories, Feature, Numbers, Vectors
from blossomrec.errors import ConfigError
from blossomrec.registry import BACKBONES

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog

# What is looked up when an option says "auto".
TIMES = ("time_gap", "request_time", "clock")


def resolve_inputs(config: RunConfig, log: EventLog) -> RunConfig:
    """The configuration with "auto" decided: on where the log has it and the model sees it.

    Raises:
        ConfigError: something is asked for that the log has not.
    """
    model, backbone = config.model, BACKBONES.get(config.model.backbone)
    has_times, has_content = log.has_times, says_something(log.item_features)
    times = f"{log.folder} has an order, no times"
    content = f"{log.folder} has no table of items that says something of them"
    if not backbone.takes_features:
        has_times = has_content = False
        times = content = f"backbone {model.backbone} sees ids alone"
    if model.time_share and not has_times:
        raise ConfigError(f"model.time_share is {model.time_share}: {times}")
    if not backbone.causal and model.request_time == "off":
        model = _masked_without_times(model)
    changes = {name: _decided(model, name, has_times, times) for name in TIMES}
    changes["content"] = _decided(model, "content", has_content, content)
    return replace(config, model=replace(model, **changes))


def _masked_without_times(model: ModelConfig) -> ModelConfig:
    """A masked event has a time, which is the moment for which is recommended."""
    sees = model.time_gap == "on" or model.clock == "on" or model.time_share > 0
    if sees and model.request_time == "off":
        raise ConfigError(
            f"model.request_time is 'off': {model.backbone} that sees times sees the moment for "
            "which it recommends"
        )
    return replace(model, time_gap="off")


def _decided(model: ModelConfig, name: str, there: bool, reason: str) -> str:
    value = getattr(model, name)
    if value == "on" and not there:
        raise ConfigError(f"model.{name} is 'on': {reason}")
    return ("on" if there else "off") if value == "auto" else value


def says_something(features: Mapping[str, Feature] | None) -> bool:
    """Whether a table has more than titles."""
    kinds = (Categories, Numbers, Vectors)
    return features is not None and any(isinstance(one, kinds) for one in features.values())


def inputs_of(config: ModelConfig) -> tuple[str, ...]:
    """Names of the arrays of a history that a model of this configuration takes."""
    asks = config.request_time == "on"
    sees = config.time_gap == "on" or config.clock == "on" or config.time_share > 0
    return ("items", *(["times"] if sees or asks else []), *(["asked"] if asks else []))
