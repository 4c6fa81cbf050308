"""How time is cut into periods, and how a model is kept up to date, as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config import TrainingConfig, option
from blossomrec.errors import ConfigError, shortened

STALE, UPDATE, RETRAIN = STRATEGIES = ("stale", "update", "retrain")


@dataclass(frozen=True)
class RollingOptions:
    """The periods, what is tested in each, and which strategies are compared."""

    period: str = option(
        "1d", "length of a period, a number and s, m, h, d or w: 1d is a day, 2w are two weeks"
    )
    periods: int = option(30, "periods, counted back from the end", low=1, high=10_000)
    until: str = option(
        "",
        "where the last period ends, a moment in ISO 8601 or a time since 1970, itself not in it; "
        "just after the last event without it",
    )
    strategies: str = option(
        ",".join(STRATEGIES),
        "with commas between them: stale, trained before the first period; update, yesterday's "
        "model brought up to date before each; retrain, trained from nothing before each",
    )
    targets: Literal["all", "first"] = option(
        "all", "test all events of a period, or the first one of each user"
    )
    validation: float = option(
        0.1,
        "share of users whose last event before a period chooses the best epoch, and is not "
        "trained on; 0 takes the last epoch and trains on all",
        low=0,
        high=0.5,
    )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The strategies that are named, each once, in their own order.

        Raises:
            ConfigError: one of them is unknown, or there is none.
        """
        given = [name.strip() for name in self.strategies.split(",") if name.strip()]
        for name in given:
            if name not in STRATEGIES:
                raise ConfigError(
                    f"strategies names {shortened(name)}: choose from {', '.join(STRATEGIES)}"
                )
        if not given:
            raise ConfigError(f"strategies is {shortened(self.strategies)}: it names none")
        return tuple(name for name in STRATEGIES if name in given)


@dataclass(frozen=True)
class UpdateOptions:
    """How yesterday's model is brought up to date, where that is other than the first training."""

    epochs: int = option(5, "epochs of an update", low=1)
    minutes: float = option(0.0, "minutes after which an update ends; 0 for no limit", low=0)
    learning_rate: float = option(1e-3, "peak learning rate of an update", low=0)
    tokens_per_batch: int = option(
        1_024, "events in a batch of an update: a period has few, and needs some steps", low=1
    )
    replay: float = option(
        0.9,
        "share of an epoch that is old events, against forgetting: a period has few new ones",
        low=0,
        high=0.95,
    )
    events: Literal["new", "all"] = option("new", "train on what is new since the last one, or all")
    validate: bool = option(
        False,
        "hold out as the first training does and keep the best epoch, or what there was; without, "
        "train on all and keep the last epoch",
    )

    def of(self, training: TrainingConfig) -> dict[str, object]:
        """The options of a training that are another one's in an update, by name."""
        names = ("epochs", "minutes", "learning_rate", "replay", "events")
        found: dict[str, object] = {name: getattr(self, name) for name in names}
        # Smaller than those of the first training, never larger.
        tokens = min(self.tokens_per_batch, training.tokens_per_batch)
        return found | {"tokens_per_batch": tokens}
