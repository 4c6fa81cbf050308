"""Options of optimisation, validation and stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config.options import LARGEST_SEED, Switch, named, option
from blossomrec.errors import ConfigError
from blossomrec.registry import LOSSES, TRACKERS


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, validation and stopping."""

    loss: str = named(LOSSES, "cross_entropy", "training loss, the first over the whole catalogue")
    negatives: int = option(256, "sampled items per batch for the sampled losses", low=1)
    uniform_share: float = option(
        0.0,
        "sampled_softmax: share of the sampled items drawn uniformly, the others by their events",
        low=0,
        high=1,
    )
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
        0.9,
        "with --from and new events: share of an epoch that is old events, against forgetting",
        low=0,
        high=0.95,
    )
    tokens_per_batch: int = option(4_096, "events in a batch, all users together", low=1)
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", low=0)
    weight_decay: float = option(0.01, "decoupled weight decay on matrices", low=0)
    table_optimizer: Literal["adamw", "lazy_adamw", "rowwise_adagrad"] = option(
        "adamw",
        "what updates the embeddings of items: adamw all of them at every step; the others, with a "
        "sampled loss and without content, those of the batch: lazy_adamw to the same numbers, "
        "rowwise_adagrad with one number of state an item",
    )
    table_learning_rate: float = option(
        0.0,
        "peak learning rate of the embeddings of items where table_optimizer is not adamw; 0 for "
        "learning_rate",
        low=0,
    )
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
    devices: int = option(
        1,
        "ranks that train together on this machine, each on a GPU of its own where there are; "
        "torchrun starts them on several",
        low=1,
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = option(
        "auto", "auto is bf16-mixed on a GPU and 32-true elsewhere"
    )
    graph: Literal["auto", "on", "off"] = option(
        "auto",
        "replay steps as a CUDA graph, batches padded to one shape; auto: on GPUs if it can be",
    )
    checkpoint_overhead: float = option(
        0.05,
        "share of time spent on checkpoints; they are as frequent as it allows",
        low=0.001,
        high=1,
    )
    tracker: str = option(
        "",
        "experiment trackers to tell as well, with commas between them (extras: track, mlflow, "
        "wandb): " + ", ".join(TRACKERS.names()),
    )
    track_model: bool = option(False, "give the trackers the model, too")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in ``tracker``, each once."""
        names = (name.strip() for name in self.tracker.split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    def check_together(self, where: str = "") -> None:
        """Raise ConfigError where options do not fit each other."""
        if self.table_learning_rate and self.table_optimizer == "adamw":
            raise ConfigError(
                f"{where}table_learning_rate is {self.table_learning_rate:g}, but "
                f"{where}table_optimizer is 'adamw', which has learning_rate: leave it away, or "
                "choose lazy_adamw or rowwise_adagrad"
            )
