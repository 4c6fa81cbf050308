"""One update of the weights: launched operation by operation, or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from blossomrec.training.objective import Step
from blossomrec.training.setup import Parts

# Steps that are taken operation by operation before one is captured: what is compiled, planned or
# allocated once is then there. They are steps like others, so that nothing has to be undone.
WARM_UP = 3

# Scalars on the device by name: loss, gradient norm, and selector loss where there is one.
Values = dict[str, Tensor]


class Update:
    """Losses, gradients, clipping and the optimizer's step, without a wait for the device."""

    def __init__(self, parts: Parts, clip_norm: float):
        self.parts, self.clip_norm = parts, clip_norm

    def __call__(self, step: Step, rate: float) -> Values:
        """Update the weights with learning rate ``rate``."""
        self.start(step)
        self.set_rate(rate)
        return self.run(step)

    def start(self, step: Step) -> None:
        """Do what the host does for a step each time, also where it is replayed."""

    def set_rate(self, rate: float | Tensor) -> None:
        """Let the optimizer's next step have this learning rate."""
        for group in self.parts.optimizer.param_groups:
            group["lr"] = rate
        if self.parts.table is not None:
            self.parts.table.set_rate(rate)

    def close(self) -> None:
        """Give up what is not for other trainings."""

    def run(self, step: Step) -> Values:
        """Update the weights with the learning rate that is set."""
        parts = self.parts
        losses = parts.objective(step)
        parts.fabric.backward(losses.total)
        values = {"loss": losses.loss.detach()}
        if losses.selector is not None:
            values["selector loss"] = losses.selector.detach()
        values = self._reduced(values)
        values = {"loss": values["loss"], "gradient norm": self._clip()} | values
        parts.stepper.step()
        parts.stepper.zero_grad(set_to_none=True)
        if parts.table is not None:
            parts.table.step()
        return values

    def _reduced(self, values: Values) -> Values:
        """The values, and the gradients in place, of the whole batch."""
        return values

    def _clip(self) -> Tensor:
        """Norm of all gradients before they were clipped."""
        parameters: list[Tensor] = [p for p in self.parts.model.parameters() if p.grad is not None]
        table = self.parts.table
        if table is not None and table.vectors is not None:
            # One row for each item, so that their norm is that of the gradient of all items.
            parameters.append(table.vectors)
        # Never asked whether it is finite: the answer would have to come from the device.
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip_norm > 0:
            clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm


class GraphUpdate:
    """An update whose operations are captured once, on inputs that stay where they are.

    Batches that are not padded, since they do not fit the shape, are taken operation by operation.
    Random numbers go on in the generator's stream as they would without a graph. Elsewhere than on
    a GPU nothing is captured.

    What ranks tell each other is captured with the rest, so that all of them take the same steps in
    the same way, and :meth:`close` comes before they part.
    """

    def __init__(self, update: Update):
        self.update, self.device = update, update.parts.fabric.device
        self.rate = torch.zeros((), device=self.device)
        self._fixed: Step | None = None
        self.warm_up, self._taken = WARM_UP, 0
        self._replay: Callable[[], Values] | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)

    def __call__(self, step: Step, rate: float) -> Values:
        """As :class:`Update`; the values are those of this step until the next one is taken."""
        if not step.padded:
            return self.update(step, rate)
        fixed = self._taken_over(step)
        self.update.start(step)
        self.rate.fill_(rate)
        if self.device.type != "cuda":
            self.update.set_rate(rate)
            return self.update.run(fixed)
        if self._replay is None and self._taken >= self.warm_up:
            self._replay = self._captured(fixed)
        self._taken += 1
        return self._replay() if self._replay else self._aside(fixed)

    @property
    def captured(self) -> bool:
        """Whether steps are replayed by now."""
        return self._replay is not None

    def close(self) -> None:
        """Give up the graph; another one is captured where steps go on."""
        self._replay, self._taken = None, 0

    def _taken_over(self, step: Step) -> Step:
        """The step on tensors that are the same for every step."""
        if self._fixed is None:

            def room(tensor: Tensor) -> Tensor:
                return torch.empty_like(tensor, device=self.device)

            self._fixed = step.map(room)
        self._fixed.copy_(step)
        return self._fixed

    def _aside(self, fixed: Step) -> Values:
        """A step operation by operation, on the stream that it is captured on later."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        self.update.set_rate(self.rate)
        with torch.cuda.stream(self._stream):
            values = self.update.run(fixed)
        current.wait_stream(self._stream)
        return values

    def _captured(self, fixed: Step) -> Callable[[], Values]:
        """The step as a graph; nothing is computed yet."""
        graph, optimizer = torch.cuda.CUDAGraph(), self.update.parts.optimizer
        self.update.set_rate(self.rate)
        for group in optimizer.param_groups:
            group["capturable"] = True
        # Other threads may go on to use the device.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            values = self.update.run(fixed)
        for group in optimizer.param_groups:
            group["capturable"] = False

        def replay() -> Values:
            graph.replay()
            return values

        return replay


def build_update(
    parts: Parts, clip_norm: float, kind: type[Update] = Update
) -> Update | GraphUpdate:
    """A graph where batches have a shape."""
    update = kind(parts, clip_norm)
    return update if parts.shape is None else GraphUpdate(update)
