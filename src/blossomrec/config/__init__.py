"""What a run is made of: frozen dataclasses whose fields carry their own explanation.

A value comes from the defaults here, then a YAML or TOML file, then a flag; the resolved form is
printed and saved as ``config.json`` in the run folder.
"""

from blossomrec.config.evaluation import EvaluationConfig
from blossomrec.config.model import ModelConfig
from blossomrec.config.options import (
    LARGEST_SEED,
    Switch,
    check,
    check_option,
    column,
    hints_of,
    named,
    option,
)
from blossomrec.config.presets import PRESETS, preset, read_file
from blossomrec.config.run import (
    RunConfig,
    flat,
    from_dict,
    instead,
    registries,
    rename_options,
    to_dict,
    with_options,
)
from blossomrec.config.serving import ServingConfig
from blossomrec.config.training import TrainingConfig

__all__ = [
    "LARGEST_SEED",
    "PRESETS",
    "EvaluationConfig",
    "ModelConfig",
    "RunConfig",
    "ServingConfig",
    "Switch",
    "TrainingConfig",
    "check",
    "check_option",
    "column",
    "flat",
    "from_dict",
    "hints_of",
    "instead",
    "named",
    "option",
    "preset",
    "read_file",
    "registries",
    "rename_options",
    "to_dict",
    "with_options",
]
