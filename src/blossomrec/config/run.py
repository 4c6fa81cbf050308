"""All that decides the outcome of a run, and its nested form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from difflib import get_close_matches
from textwrap import shorten
from typing import Any

from blossomrec.config.evaluation import EvaluationConfig
from blossomrec.config.model import ModelConfig
from blossomrec.config.options import check, hints_of
from blossomrec.config.training import TrainingConfig
from blossomrec.errors import ConfigError, shortened
from blossomrec.registry import Registry

# Names that are listed whole where one is unknown, and characters of a longer list.
FEW_NAMES, LONGEST_LIST = 8, 300


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a run, besides the data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


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
        for entry in dataclasses.fields(hints_of(RunConfig)[section.name])
        if "registry" in entry.metadata
    }


def to_dict(config: Any) -> dict[str, Any]:
    """The nested, JSON-ready form of a configuration."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The options of a nested configuration by names such as ``model.dropout``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def rename_options(values: Any) -> None:
    """Give options of earlier versions, in nested values, the names that they have now."""
    training = values.get("training") if isinstance(values, dict) else None
    if isinstance(training, dict) and isinstance(training.get("tensorboard"), bool):
        name = "tensorboard" if training.pop("tensorboard") else ""
        training.setdefault("tracker", name)


def from_dict(values: dict[str, Any], cls: type = RunConfig, where: str = "") -> Any:
    """A checked configuration from nested values; unknown names raise ConfigError."""
    known = {entry.name: entry for entry in dataclasses.fields(cls)}
    hints = hints_of(cls)
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
