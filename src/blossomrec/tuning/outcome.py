"""What a search has found: trials as data and tables, the best configuration, importances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from blossomrec.config import to_dict
from blossomrec.files import remove, replacing, write_text
from blossomrec.training.trainer import DECISIVE
from blossomrec.tuning.study import Search, load_optuna
from blossomrec.tuning.trial import trial_folder

if TYPE_CHECKING:
    import optuna

    from blossomrec.tuning.search import TuneResult

# Rows of the table of trials.
SHOWN = 10
# Of a trial that is not among the best, what tells how it went.
REMAINS = {"config.json", "log.jsonl"}
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def trials_of(study: optuna.Study) -> list[dict[str, Any]]:
    """The trials that have ended, by their numbers, as in ``trials.jsonl``."""
    return [_line(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _line(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    facts = trial.user_attrs
    epochs = trial.intermediate_values
    return {
        "trial": trial.number,
        "state": STATES[trial.state.name],
        # Of one that was pruned, the best that it came to.
        DECISIVE: max(epochs.values()) if epochs else None,
        "epochs": facts.get("epochs", max(epochs, default=0)),
        "best_epoch": facts.get("best_epoch", max(epochs, key=lambda one: epochs[one], default=0)),
        "seconds": facts.get("seconds"),
        "parameters": facts.get("parameters"),
        "options": trial.params,
        "validation": facts.get("validation"),
        "reason": facts.get("reason"),
    }


def ranked(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials that came to their end, the best first; of equals the earlier one."""
    complete = [trial for trial in trials if trial["state"] == "complete"]
    return sorted(complete, key=lambda trial: (-trial[DECISIVE], trial["trial"]))


def write_outcome(folder: Path, search: Search, trials: list[dict[str, Any]]) -> None:
    """Write ``trials.jsonl`` and ``best.yaml``; drop what trials leave that are not the best."""
    write_text(folder / "trials.jsonl", "".join(json.dumps(trial) + "\n" for trial in trials))
    best = ranked(trials)
    if best:
        config = to_dict(search.space.config(search.config, best[0]["options"]))
        told = f"# trial {best[0]['trial']} of {folder.name}, validation {DECISIVE} "
        told += f"{best[0][DECISIVE]:.4f}\n"
        write_text(folder / "best.yaml", told + yaml.safe_dump(config, sort_keys=False))
    kept = {trial["trial"] for trial in best[: search.options.keep]}
    for trial in trials:
        run = trial_folder(folder, trial["trial"])
        for path in run.iterdir() if run.is_dir() else ():
            wanted = path.name != "checkpoints" if trial["trial"] in kept else False
            if not wanted and path.name not in REMAINS:
                remove(path)


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each searched option in what the trials differ by, the largest first.

    PED-ANOVA of the trials that came to their end; empty where there are too few of them, or none
    is better than another.
    """
    optuna = load_optuna()
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def write_importances(folder: Path, shares: dict[str, float]) -> None:
    """Draw ``importances.svg``, where matplotlib is installed and there is something to draw."""
    from blossomrec.errors import MissingExtraError
    from blossomrec.report.page import SERIES, finish, new_axes

    if not shares:
        return
    try:
        figure, axes = new_axes(0.9 + 0.3 * len(shares))
    except MissingExtraError:
        return
    axes.barh(list(shares), list(shares.values()), color=SERIES[0], height=0.6)
    axes.invert_yaxis()
    finish(axes, "share of the differences between trials", grid="x")
    with replacing(folder / "importances.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def outcome_table(result: TuneResult) -> Group:
    """The best trials, and how much each option matters."""
    best = ranked(result.trials)[:SHOWN]
    table = Table()
    table.add_column("trial", justify="right")
    names = list(best[0]["options"]) if best else []
    for column in (DECISIVE, "epochs", "seconds", *(name.split(".")[1] for name in names)):
        table.add_column(column, justify="right")
    for trial in best:
        options = (_shown(trial["options"].get(name)) for name in names)
        cells = (f"{trial[DECISIVE]:.4f}", str(trial["epochs"]), f"{trial['seconds']:.0f}")
        table.add_row(str(trial["trial"]), *cells, *map(Text, options))
    counts = [
        f"{sum(trial['state'] == state for trial in result.trials)} {state}"
        for state in STATES.values()
    ]
    title = f"{len(result.trials)} trials: {', '.join(counts)}; {DECISIVE} of validation events"
    parts: list[Any] = [Text(title, style="bold"), table]
    if result.importances:
        shares = Table()
        shares.add_column("option")
        shares.add_column("importance", justify="right")
        for name, share in result.importances.items():
            shares.add_row(Text(name), f"{share:.1%}")
        parts.append(shares)
    return Group(*parts)


def trial_line(trial: dict[str, Any], trials: int) -> str:
    """One line about a trial that has ended."""
    value = trial[DECISIVE]
    parts = [
        f"trial {trial['trial']} ({trials} in all)",
        trial["state"],
        *([f"{DECISIVE} {value:.4f}"] if value is not None else []),
        f"epochs {trial['epochs']}",
        *(f"{name.split('.')[1]} {_shown(one)}" for name, one in trial["options"].items()),
    ]
    return "  ".join(parts) + (f": {trial['reason']}" if trial["reason"] else "")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
