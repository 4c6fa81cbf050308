"""The card of a model: what it is, how to use it, and what was measured of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from blossomrec import __version__

if TYPE_CHECKING:
    from blossomrec.data.vocabulary import Vocabulary
    from blossomrec.evaluation import Evaluation
    from blossomrec.models.sequence import SequenceModel
    from blossomrec.run.description import RunInfo

# Counts that the identity of a log tells.
COUNTS = {"users": "users trained on", "events": "events"}
EXAMPLES = 2


def model_card(
    repo_id: str,
    model: SequenceModel,
    items: Vocabulary,
    info: RunInfo,
    evaluation: Evaluation | None = None,
) -> str:
    """The README.md of a repository: YAML for the Hub, then Markdown.

    Args:
        repo_id: ``OWNER/NAME`` of the repository.
        info: of the run of the model.
        evaluation: of the model; None for a card without measurements.
    """
    environment = Environment(
        loader=PackageLoader("blossomrec.hub"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        repo_id=repo_id,
        name=_name(repo_id),
        version=__version__,
        items=items.size,
        facts=_facts(model, info),
        example=items.ids(range(min(EXAMPLES, items.size))).to_list(),
        protocol=None if evaluation is None else evaluation.protocol,
        rows=[] if evaluation is None else _rows(evaluation),
        front_matter=yaml.safe_dump(_front_matter(repo_id, evaluation), sort_keys=False),
    )


def _name(repo_id: str) -> str:
    return repo_id.rpartition("/")[2]


def _facts(model: SequenceModel, info: RunInfo) -> dict[str, str]:
    """Architecture and data in words and numbers, by label."""
    config = info.config.model
    attention = "" if config.backbone == "gru4rec" else f", attention {config.attention}"
    known = info.log or {}
    return {
        "model": f"{config.backbone}{attention}",
        "layers, width": f"{config.layers}, {config.hidden_size}",
        "parameters": f"{model.num_parameters:,}",
        "longest history seen": f"{config.max_len:,} events",
        "loss": info.config.training.loss,
        **{label: f"{known[name]:,}" for name, label in COUNTS.items() if name in known},
        "sees besides items": ", ".join(name for name in model.inputs if name != "items") or "no",
    }


def _rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {"name": name, "value": value, "interval": _interval(evaluation, name)}
        for name, value in evaluation.metrics.items()
    ]


def _interval(evaluation: Evaluation, name: str) -> str:
    if name not in evaluation.intervals:
        return ""
    low, high = evaluation.intervals[name]
    return f"{low:.4f} to {high:.4f}"


def _front_matter(repo_id: str, evaluation: Evaluation | None) -> dict[str, Any]:
    """What the Hub reads of a card."""
    told: dict[str, Any] = {
        "library_name": "blossomrec",
        "tags": ["recommendation", "sequential-recommendation"],
    }
    if evaluation is None:
        return told
    measured = [
        {"type": name, "name": name, "value": round(value, 6)}
        for name, value in evaluation.metrics.items()
    ]
    result = {
        "task": {"type": "recommendation", "name": "Sequential recommendation"},
        "dataset": {"type": "events", "name": "held-out events"},
        "metrics": measured,
    }
    return told | {"model-index": [{"name": _name(repo_id), "results": [result]}]}
