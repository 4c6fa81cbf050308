"""Options of a training on associative recall."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.selector.recall_task import RecallConfig, RecallTask, make_recall_task
from blossomrec.config import option

# Events of the histories that a training begins with.
SHORTEST = 64


@dataclass(frozen=True)
class RecallTraining:
    """The task, and how a model is trained on it.

    Training begins with histories of 64 events and doubles the length, and with it the distances,
    each time the model has mastered one: attention to 64 events is dense, which is where a model
    learns to look something up at all.
    """

    length: int = option(8_192, "events of a history at the end, 64 times a power of two", low=64)
    nearest: float = option(0.35, "smallest distance over the length", low=0, high=1)
    farthest: float = option(0.7, "largest distance over the length", low=0, high=1)
    items: int = option(10_000, "catalogue", low=4)
    cue_items: int = option(1_000, "items that serve as cues", low=1)
    distractors: int = option(1, "for each cue, how often its answer is shown elsewhere", low=0)
    control: bool = option(False, "whether the answers lie among the last 16 events instead")
    tokens_per_batch: int = option(16_384, "events in a batch", low=64)
    learning_rate: float = option(2e-3, "peak learning rate of AdamW", low=0)
    weight_decay: float = option(0.01, "decoupled weight decay of AdamW", low=0)
    beta2: float = option(0.999, "AdamW's memory of squared gradients", low=0, high=1)
    warmup_steps: int = option(50, "steps over which the learning rate rises", low=1)
    first_steps: int = option(3_000, "most steps at 64 events", low=1)
    stage_steps: int = option(1_500, "most steps at each further length but the last", low=1)
    last_steps: int = option(3_000, "steps at the last length; the rate falls in the last half")
    selector_weight: float = option(1.0, "weight of the distillation loss of the selector", low=0)
    selector_falls: bool = option(
        False, "whether that weight falls with the learning rate at the last length"
    )
    early_top_n: int = option(
        0,
        "blocks selected when histories become longer, halved until there are as many as in use; "
        "0: always as many as in use",
        low=0,
    )
    early_steps: int = option(300, "steps over which they become fewer", low=1)
    seconds: float = option(
        1e9, "most seconds; where they will not do, the rate falls in the last half of them", low=0
    )
    seed: int = option(0, "seed of everything random", low=0)

    def histories(self, length: int) -> int:
        """Histories in a batch."""
        return max(1, self.tokens_per_batch // length)

    def queries(self, length: int) -> int:
        """Queries in a history."""
        return max(2, length // 256)

    def most_steps(self, length: int) -> int:
        """Steps after which training goes on to longer histories, or ends."""
        if length == self.length:
            return self.last_steps
        return self.first_steps if length == SHORTEST else self.stage_steps

    def selected(self, top_n: int, length: int, since: int) -> int:
        """Blocks selected in a step, ``since`` steps after the histories have become as long.

        top_n: blocks selected in use.
        """
        more = []
        while length > SHORTEST and self.early_top_n >> len(more) > top_n:
            more.append(self.early_top_n >> len(more))
        part = since * len(more) // self.early_steps
        return more[part] if part < len(more) else top_n

    def task(self, length: int, histories: int, seed: int) -> RecallTask:
        """Histories of a stage of the training."""
        return make_recall_task(
            RecallConfig(
                histories=histories,
                length=length,
                items=self.items,
                cue_items=self.cue_items,
                queries=self.queries(length),
                cues=max(4, length // 128),
                min_distance=max(2, int(length * self.nearest) // 2 * 2),
                max_distance=max(2, int(length * self.farthest) // 2 * 2),
                distractors=self.distractors,
                control=self.control,
                seed=seed,
            )
        )

    @property
    def distance(self) -> str:
        """Distances from a cue to its return at the last length, in events."""
        if self.control:
            return "1-16"
        task = self.task(self.length, 1, 0).config
        return f"{task.min_distance}-{task.max_distance}"
