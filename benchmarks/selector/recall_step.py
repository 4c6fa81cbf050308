"""A step of a training on associative recall: operation by operation, or as one CUDA graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.selector.recall_options import RecallTraining
from blossomrec.data.batch import Batch
from blossomrec.models.sequence import SequenceModel

# Batches made at a time: many histories at once cost less for each.
BATCHES = 50
# Steps before one is captured, so that what is compiled or allocated once is there. They count.
WARM_UP = 3
# Weight of the newest step in the running accuracy.
NEWEST = 0.07


def stage_batches(training: RecallTraining, length: int, first_step: int) -> Iterator[Tensor]:
    """Batches of histories of one length without end, int64 [BATCHES, T + 2 M] at a time.

    A batch is its T items, the M packed rows of its queries, rising, and their M answers.
    """
    histories = training.histories(length)
    for step in itertools.count(first_step, BATCHES):
        task = training.task(length, BATCHES * histories, training.seed * 10_000_000 + step)
        items = task.items.reshape(BATCHES, -1)
        answers = task.items.ravel()[task.rows + 1].reshape(BATCHES, -1)
        rows = task.rows.reshape(BATCHES, -1) % items.shape[1]
        yield torch.cat([torch.from_numpy(each) for each in (items, rows, answers)], dim=1)


def optimizer_of(
    model: SequenceModel, training: RecallTraining, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW whose learning rate is a tensor on the device, as a captured step reads it."""
    return torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad],
        lr=torch.tensor(training.learning_rate, device=device),
        betas=(0.9, training.beta2),
        weight_decay=training.weight_decay,
        capturable=device.type == "cuda",
        fused=True,
    )


class RecallStep:
    """Updates of a model on batches of one shape, without a wait for the device.

    On a GPU a step is captured once and replayed; elsewhere, and where ``graph`` is false, its
    operations run one by one.

    Args:
        model: on ``device``.
        optimizer: its learning rate is a tensor on ``device``.
        training: the task.
        length: events of each history.
        graph: whether a step can be captured: nothing in it may wait for the device.
    """

    def __init__(
        self,
        model: SequenceModel,
        optimizer: torch.optim.Optimizer,
        training: RecallTraining,
        length: int,
        *,
        graph: bool,
        device: torch.device,
    ):
        self.model, self.optimizer, self.length = model, optimizer, length
        histories = training.histories(length)
        queries = histories * training.queries(length)
        self.sizes = (histories * length, queries, queries)
        self.numbers = torch.zeros(sum(self.sizes), dtype=torch.int64, device=device)
        self.cu_seqlens = torch.arange(
            0, self.sizes[0] + 1, length, dtype=torch.int32, device=device
        )
        self.distils = training.selector_weight > 0
        self.selector_weight = torch.tensor(training.selector_weight, device=device)
        # Share of right answers, the newest counting most; of the last step, what was minimised and
        # the norm of its gradients.
        self.accuracy, self.loss, self.norm = torch.zeros(3, device=device).unbind()
        self.graph = graph and device.type == "cuda"
        self._taken, self._replay = 0, None

    def __call__(self, numbers: Tensor) -> None:
        """One update; ``numbers`` is a batch of :func:`stage_batches`."""
        self.numbers.copy_(numbers, non_blocking=True)
        if not self.graph:
            return self._run()
        if self._replay is None and self._taken >= WARM_UP:
            self._replay = self._captured()
        self._taken += 1
        if self._replay is None:
            return _aside(self._run)
        return self._replay()

    def capture_again(self) -> None:
        """To be called when something of the model has changed that is no tensor."""
        if self._replay is not None:
            torch.cuda.synchronize()  # it may be at work
        self._taken, self._replay = 0, None

    def _run(self) -> None:
        loss, right = self._losses()
        self.optimizer.zero_grad()
        loss.backward()
        self.accuracy += NEWEST * (right - self.accuracy)
        self.loss.copy_(loss.detach())
        self.norm.copy_(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        self.optimizer.step()

    def _losses(self) -> tuple[Tensor, Tensor]:
        """What is minimised, and the share of right answers."""
        items, rows, answers = self.numbers.split(self.sizes)
        device = items.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            batch = Batch(items, self.cu_seqlens, self.length)
            encoded = self.model.encode(batch, distil_rows=rows if self.distils else None)
        logits = encoded.hidden.index_select(0, rows).float() @ self.model.output_weight().T
        loss = nn.functional.cross_entropy(logits, answers)
        right = (logits.detach().argmax(-1) == answers).float().mean()
        if encoded.selector_loss is not None:
            loss = loss + self.selector_weight * encoded.selector_loss
        return loss, right

    def _captured(self) -> Callable[[], None]:
        """The step as a graph; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # Gradients are allocated anew, in the graph's own memory.
        self.optimizer.zero_grad()
        # The thread that makes batches may go on to use the device.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run()
        return graph.replay


def _aside(run: Callable[[], None]) -> None:
    """Run on a stream of its own, as what is to be captured has to be first."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        run()
    current.wait_stream(side)
