"""Configurations by name, and those in files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from blossomrec.config.run import RunConfig, from_dict, rename_options
from blossomrec.errors import ConfigError, shortened

# A configuration has some hundred lines; no file that is larger is read.
LARGEST_FILE = 1 << 20
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
    rename_options(values)
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

            def construct_mapping(self, node: Any, deep: bool = False) -> Any:
                _named_once([(str(name.value), None) for name, _ in node.value])
                return super().construct_mapping(node, deep)

        number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
        Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
        values = yaml.load(text, Loader)
        return {} if values is None else values
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text, object_pairs_hook=_named_once)
    raise ConfigError("a configuration file ends in .yaml, .yml, .toml or .json")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a table; ConfigError where a name stands twice, of which one would be lost."""
    found = dict[str, Any]()
    for name, value in pairs:
        if name in found:
            raise ConfigError(f"{name} stands twice in a table")
        found[name] = value
    return found
