"""The loop itself: epochs, steps, validations, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from blossomrec.config import TrainingConfig
from blossomrec.errors import TrainingError
from blossomrec.training import state as stored
from blossomrec.training.average import WeightAverage
from blossomrec.training.checkpoint import Checkpoint, Checkpoints, Pace
from blossomrec.training.objective import Step, device_steps
from blossomrec.training.progress import Silence
from blossomrec.training.ranks.update import ShardedUpdate
from blossomrec.training.setup import Parts, peak_mib
from blossomrec.training.state import TrainingState
from blossomrec.training.update import Update, build_update
from blossomrec.training.validation import Validation
from blossomrec.training.watch import (
    Interrupts,
    LossWatch,
    Reading,
    RunLog,
    StepRecord,
    TrainingInterrupted,
)

# The metric by which weights are the best.
DECISIVE = "ndcg@10"
# Called with each line of the log; training ends where it gives True.
AfterEpoch = Callable[[Mapping[str, Any]], bool]


class Trainer:
    """Turns the parts of a training until it is over, keeping its state in ``state``."""

    def __init__(
        self,
        parts: Parts,
        validation: Validation,
        checkpoints: Checkpoints,
        log: RunLog,
        display: Silence,
        config: TrainingConfig,
        identity: dict[str, Any],
        after_epoch: AfterEpoch | None = None,
    ):
        self.after_epoch, self._told_to_stop, self._over = after_epoch, False, False
        self.parts, self.validation, self.display = parts, validation, display
        self.checkpoints, self.log, self.identity = checkpoints, log, identity
        self.config = config
        self.state = TrainingState()
        self.device = parts.fabric.device
        kind = Update if parts.ranks.alone else ShardedUpdate
        self.update = build_update(parts, config.clip_norm, kind)
        self.average = WeightAverage(parts.model, config.ema_decay, parts.table)
        self.watch = LossWatch(self.device)
        self.pace = Pace(self.config.checkpoint_overhead)
        self._clock = time.monotonic()

    def start(self, checkpoint: Checkpoint | None, *, keep: bool = False) -> None:
        """Go back to a checkpoint, weights and log included, or begin afresh.

        Args:
            keep: the weights to begin with are worth keeping, until there are better ones.
        """
        if checkpoint is not None:
            self.state = stored.restore(checkpoint.tensors, checkpoint.state, self._stored())
            if checkpoint.best is not None:
                # The weights in the run folder may be from epochs that are to be trained again.
                self.checkpoints.publish(checkpoint.best)
            self.display.note(f"resuming from {checkpoint.path}")
        self.log.start(self.state.log_size, self.state.step)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._clock = time.monotonic()
        if keep and checkpoint is None:
            self._keep_start()
        self._over = self._time_is_up()

    def _keep_start(self) -> None:
        """Publish the weights to begin with, and save a checkpoint that knows all of the start."""
        state = self.state
        state.best = self.validation() if self.validation else {}
        weights = stored.host_copy(self.parts.model.state_dict())
        self.checkpoints.save_best(state.step, self._finite(weights))
        if state.best:
            self.display.note(f"before training: {DECISIVE} {state.best[DECISIVE]:.4f}")
        self._tick(training=False)
        self._save()

    def run(self, interrupts: Interrupts) -> str:
        """Train epochs until one of the reasons to stop, which is returned."""
        try:
            while (reason := self._reason_to_stop()) is None:
                self._train_epoch(interrupts)
                self._finish_epoch()
                due, signum, _ = self._asked(interrupts)
                if due or signum or self._reason_to_stop() is not None:
                    self._save()
                if signum:
                    raise TrainingInterrupted(signum)
        except TrainingError as error:
            self.checkpoints.finish()
            kept = self.checkpoints.latest
            last = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved yet"
            raise TrainingError(f"{error}: training stopped, {last}") from error
        finally:
            self.checkpoints.finish()
            self.update.close()
        return reason

    def _reason_to_stop(self) -> str | None:
        if self._told_to_stop:
            return "told"
        if self.state.not_better >= self.config.patience:
            return "early"
        if self.state.epoch >= self.config.epochs:
            return "epochs"
        # As it was when the last epoch was finished: its weights are validated then.
        return "minutes" if self._over else None

    def _time_is_up(self) -> bool:
        """The same on all ranks, by the clock of any."""
        return self.config.minutes > 0 and bool(self.parts.ranks.agree(self._own_time_is_up())[0])

    def _own_time_is_up(self) -> bool:
        seconds = self.state.seconds + time.monotonic() - self._clock
        return 0 < self.config.minutes <= seconds / 60

    def _train_epoch(self, interrupts: Interrupts) -> None:
        state, batches = self.state, self.parts.batches
        self._tick(training=False)
        self.display.start_epoch(state.epoch + 1, batches.steps(state.epoch), state.epoch_step)
        self.parts.objective.train()
        with closing(batches.epoch(state.epoch, state.epoch_step, self.parts.division)) as ahead:
            for step in self._steps(ahead):
                self._account(self._take(step))
                # Of many ranks, the hosts meet as often as losses come back from a device.
                if not self.parts.ranks.alone and state.step % self.watch.interval:
                    continue
                due, signum, over = self._asked(interrupts)
                if due or signum:
                    self._tick(training=True)
                    self._save()
                if signum:
                    raise TrainingInterrupted(signum)
                if over:
                    break
        self._account(self.watch.flush())
        self._tick(training=True)

    def _steps(self, ahead: Iterator[Any]) -> Iterator[Step]:
        if self.parts.division is None:
            return device_steps(ahead, self.device, self.parts.shape)
        return self.parts.division.steps(ahead)

    def _asked(self, interrupts: Interrupts) -> tuple[int, ...]:
        """Whether a checkpoint is due, by which signal training is to stop (0 for none), and
        whether its time is up: the same on all ranks."""
        asked = self.pace.due(), interrupts.received or 0, self._own_time_is_up()
        return self.parts.ranks.agree(*asked)

    def _take(self, step: Step) -> list[Reading]:
        """One update of the weights; gives the readings of earlier steps that came back."""
        state = self.state
        rate = self.parts.learning_rate(state.step)
        values = self.update(step, rate)
        state.step += 1
        state.epoch_step += 1
        self.average.update(state.step)
        epoch, events = state.epoch + 1, step.num_events
        record = StepRecord(epoch, state.step, rate, events, step.importance)
        return self.watch.push(record, values)

    def _account(self, readings: list[Reading]) -> None:
        """Add what came back from the device to the sums of the epoch."""
        state = self.state
        for reading in readings:
            record, values = reading.record, reading.values
            state.epoch_events += record.events
            state.epoch_targets += record.targets
            state.loss_sum += values["loss"] * record.targets
            if "selector loss" in values:
                state.selector_sum = (state.selector_sum or 0.0) + values["selector loss"]
        if readings:
            events = sum(reading.record.events for reading in readings)
            self.display.advance(len(readings), events, readings[-1].values["loss"])

    def _finish_epoch(self) -> None:
        """Validate where it is time to, keep better weights, write the log."""
        state = self.state
        self._over = self._time_is_up()
        last = state.epoch + 1 == self.config.epochs or self._over
        validated, better = {}, False
        if self.parts.table is not None:
            # After every epoch, validated or not: how sums are rounded depends on when.
            self.parts.table.catch_up()
        if last or (state.epoch + 1) % self.config.validate_every == 0:
            with self.average.in_place():
                validated, better = self._validate()
        self._tick(training=False)
        record = self._record(validated, better)
        self.log.write(record)
        self.display.finish_epoch(record)
        told = self.after_epoch is not None and self.after_epoch(record)
        self._told_to_stop = bool(self.parts.ranks.agree(told)[0])
        state.next_epoch()

    def _validate(self) -> tuple[dict[str, float], bool]:
        """Metrics of the weights as they are, kept where they are better than those before."""
        state = self.state
        validated = self.validation() if self.validation else {}
        better = self._is_better(validated)
        state.not_better = 0 if better else state.not_better + 1
        if better:
            state.best_epoch, state.best = state.epoch + 1, validated
            weights = stored.host_copy(self.parts.model.state_dict())
            self.checkpoints.save_best(state.step, self._finite(weights))
        return validated, better

    def _is_better(self, validated: dict[str, float]) -> bool:
        if not validated:
            return True
        return not self.state.best or validated[DECISIVE] > self.state.best[DECISIVE]

    def _record(self, validated: dict[str, float], better: bool) -> dict[str, Any]:
        """The line of the log for the epoch under way."""
        state = self.state
        state.peak_mib = max(state.peak_mib, peak_mib(self.device))
        selector = state.selector_sum
        return {
            "epoch": state.epoch + 1,
            "step": state.step,
            # Of masked events there may be none that count.
            "loss": state.loss_sum / (state.epoch_targets or 1),
            "selector_loss": None if selector is None else selector / state.epoch_step,
            "lr": self.parts.learning_rate(state.step - 1),
            "events_per_second": state.epoch_events / state.epoch_seconds,
            "seconds": state.epoch_seconds,
            "total_seconds": state.seconds,
            "validation": validated or None,
            "best": better,
            "peak_mib": state.peak_mib,
        }

    def _save(self) -> None:
        """Write a checkpoint, unless something in it is not finite."""
        begun = time.monotonic()
        self._account(self.watch.flush())
        state = self.state
        state.log_size = self.log.size
        tensors, numbers = stored.capture(state, self._stored())
        self._finite(tensors)
        self.checkpoints.save(state.step, tensors, {**numbers, "identity": self.identity})
        self.pace.saved(time.monotonic() - begun)

    def _stored(self) -> stored.Stored:
        parts = self.parts
        return stored.Stored(
            parts.model, parts.optimizer, parts.loss, self.average, self.device, parts.table
        )

    def _finite(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors; TrainingError where one of them holds NaN or infinity."""
        wrong = (name for name, value in tensors.items() if not _is_finite(value))
        # Of the item table every rank has others.
        found = next((each for each in self.parts.ranks.gathered(next(wrong, None)) if each), None)
        if found is not None:
            rate = self.parts.learning_rate(self.state.step - 1)
            raise TrainingError(
                f"{found} is not finite after epoch {self.state.epoch + 1}, "
                f"step {self.state.step}, learning rate {rate:g}"
            )
        return tensors

    def _tick(self, *, training: bool) -> None:
        """Count the time since the last call, as time of the epoch where it was training."""
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        self.state.seconds += elapsed
        if training:
            self.state.epoch_seconds += elapsed


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; looked at once, and nothing of its size made."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both are NaN where any number is.
    low, high = tensor.aminmax()
    return bool(low.isfinite() & high.isfinite())
