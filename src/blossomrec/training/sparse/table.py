"""A table of which a step touches only the rows it needs, and its moving average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from blossomrec.models import fused
from blossomrec.models.fused.embedding import embedding
from blossomrec.training.sparse.distinct import distinct
from blossomrec.training.sparse.rules import LazyAdamW, Rule

if TYPE_CHECKING:
    from blossomrec.models.fused.lazy_adamw import LazyRows

# Steps within which every row is brought up to date, needed or not: so few that what happened to a
# row since then is a number by its age.
LONGEST_AGE = 512
# Rows that are brought up to date at a time where all are.
PIECE_ROWS = 1 << 16


class RowTable:
    """A parameter [I, D], its optimizer's state and its moving average, as of different steps.

    Each row has an age: how many steps it has not followed. :meth:`take` brings the rows of a step
    up to date, and a few others in turn, and gives a small table of them that the step works on;
    :meth:`step` makes new rows of its gradient. :meth:`catch_up` brings up all, and then the table
    is what the dense form of the rule has. Nothing waits for the device, and all tensors stay where
    they are, so that a step may be a CUDA graph.

    Args:
        name: of the parameter, under which its state is stored.
        weight: the parameter, which gets no gradient itself.
        rule: how rows are updated.
        rate_factor: learning rate over the one that :meth:`set_rate` is given.
        may_fuse: whether kernels of a GPU may do the arithmetic of the rows.

    Attributes:
        vectors: the rows of the step, [K, D], a leaf; None before the first.
        mean: moving average of the weights, [I, D]; None without one.

    Example:
        >>> table = RowTable("items", nn.Parameter(torch.ones(1_000, 4)), LazyAdamW())
        >>> (places,) = table.take(torch.tensor([5, 7, 5]))
        >>> F.embedding(places, table.vectors).sum().backward()
        >>> table.step()
    """

    def __init__(
        self,
        name: str,
        weight: nn.Parameter,
        rule: Rule,
        *,
        rate_factor: float = 1.0,
        may_fuse: bool = True,
    ):
        self.name, self.weight, self.rule, self.may_fuse = name, weight, rule, may_fuse
        self.rate_factor, self.decay = rate_factor, 0.0
        device, exact = weight.device, torch.float64
        self.rows_state = rule.start(weight)
        # As AdamW counts its steps, which go on where a run is brought up to date.
        self.steps = torch.zeros((), device=device)
        self.updates = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = torch.zeros(len(weight), dtype=torch.int64, device=device)
        # By age: how far rows have moved along their direction; how much of the average of then is
        # left in that of now; and how far behind the weights of then that is.
        self.moved = torch.zeros(LONGEST_AGE + 1, dtype=exact, device=device)
        self.left, self.behind = torch.zeros_like(self.moved), torch.zeros_like(self.moved)
        self.left[0] = 1.0
        self._shrinking = rule.ratio ** torch.arange(LONGEST_AGE + 1, dtype=exact, device=device)
        self._in_turn = torch.arange(-(-len(weight) // LONGEST_AGE), device=device)
        self._rate: float | Tensor = 0.0
        self.mean: Tensor | None = None
        self.vectors: Tensor | None = None

    def start_average(self, decay: float) -> Tensor:
        """Keep a moving average from the weights as they are; :class:`WeightAverage` says which."""
        self.decay, self.mean = decay, self.weight.detach().clone()
        return self.mean

    def set_rate(self, rate: float | Tensor) -> None:
        """Let the next steps have this learning rate, times ``rate_factor``.

        A tensor is looked at when a step is taken, so that a captured one sees what it holds then.
        """
        self._rate = rate

    @torch.no_grad()
    def take(self, *given: Tensor) -> Sequence[Tensor]:
        """Where rows, int64 tensors of any shape, are in the ``vectors`` of the step."""
        turn = self._in_turn.add(self.updates, alpha=len(self._in_turn)) % len(self.weight)
        found = distinct([*given, turn], len(self.weight), fused=self._fused)
        self._rows, self._own, (*places, _), self._ordered = found
        self.vectors = self._catch_up(self._rows, self._own).requires_grad_()
        return places

    def look_up(self, *given: Tensor) -> Tensor:
        """Vectors of the rows of a step, one after the other, [N, D], for a step that looks nothing
        else up; see :meth:`take`."""
        places = torch.cat([each.flatten() for each in self.take(*given)])
        assert self.vectors is not None
        return embedding(places, self.vectors, ordered=self._ordered, may_fuse=self.may_fuse)

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows of :meth:`take` by the gradient of their ``vectors``."""
        assert self.vectors is not None and self.vectors.grad is not None
        gradient, self.vectors.grad = self.vectors.grad, None
        if self._fused:
            table = self._of_kernels(self._rows, self._own)
            by_age = self.moved, self.left, self.behind
            table.step(
                gradient, *by_age, rate=self._rate, factor=self.rate_factor, decay=self.decay
            )
            return
        self.steps += 1
        self.updates += 1
        rows, step = self._rows, self.steps.double()
        rate = torch.ones_like(step) * self._rate * self.rate_factor
        force = self.rule.force(step, rate)
        # A row that stands there twice is computed twice, from the same numbers.
        gradient = gradient.index_select(0, self._own)
        state = {name: each[rows] for name, each in self.rows_state.items()}
        weight, state = self.rule.update(self.weight[rows], gradient, state, step, force)
        self._grow_older(force)
        mean = None
        if self.mean is not None:
            mean = self.mean[rows].lerp(weight, (1 - self._decay_now).to(weight.dtype))
        self._put(rows, weight, state, mean)

    @torch.no_grad()
    def catch_up(self) -> None:
        """Bring all rows up to date."""
        for piece in torch.arange(len(self.weight), device=self.weight.device).split(PIECE_ROWS):
            self._catch_up(piece, piece - piece[0])

    @property
    def _decay_now(self) -> Tensor:
        """Of the moving average at this step."""
        step = self.updates.double()
        return ((1 + step) / (10 + step)).clamp(max=self.decay)

    def _grow_older(self, force: Tensor) -> None:
        """Let what is known by age be that after one more step, for rows that did not follow it."""
        one_more = force * self._shrinking[1:]
        self.moved[1:] = self.moved[:-1] + one_more
        if self.mean is None:
            return
        decay = self._decay_now
        self.left[1:] = decay * self.left[:-1]
        self.behind[1:] = decay * self.behind[:-1] + (1 - decay) * self.moved[1:]

    def _catch_up(self, rows: Tensor, own: Tensor) -> Tensor:
        """Bring rows up to date, and give them, [K, D]; one that is there several times gets the
        same each time.

        Args:
            own: where each has its row first, int64 [K].
        """
        if self._fused:
            return self._of_kernels(rows, own).catch_up(self.moved, self.left, self.behind)
        age = self.updates - self.seen[rows]
        weight, mean = self.weight[rows], None
        state = {name: each[rows] for name, each in self.rows_state.items()}

        def by_age(known: Tensor) -> Tensor:
            return known[age][:, None].to(weight.dtype)

        direction = self.rule.direction(state, (self.steps.double() - age)[:, None])
        if self.mean is not None:
            left = by_age(self.left)
            mean = left * self.mean[rows] + (1 - left) * weight
        if direction is not None:
            mean = None if mean is None else mean - by_age(self.behind) * direction
            weight = weight - by_age(self.moved) * direction
        self._put(rows, weight, self.rule.skipped(state, age.double()[:, None]), mean)
        return weight

    @property
    def _fused(self) -> bool:
        """Whether kernels do the arithmetic of the rows."""
        known = isinstance(self.rule, LazyAdamW) and self.weight.dtype == torch.float32
        return known and self.may_fuse and fused.usable(self.weight)

    def _of_kernels(self, rows: Tensor, own: Tensor) -> LazyRows:
        """Rows whose arithmetic kernels do."""
        from blossomrec.models.fused.lazy_adamw import LazyRows

        kept = self.rows_state
        numbers = self.weight.detach(), kept["exp_avg"], kept["exp_avg_sq"], self.mean
        counted = self.seen, self.updates, self.steps
        rule = cast(LazyAdamW, self.rule)
        return LazyRows(rows, own, *numbers, *counted, betas=rule.betas, eps=rule.eps)

    def _put(
        self, rows: Tensor, weight: Tensor, state: dict[str, Tensor], mean: Tensor | None
    ) -> None:
        self.weight.detach().index_copy_(0, rows, weight)
        for name, each in state.items():
            self.rows_state[name].index_copy_(0, rows, each)
        if mean is not None and self.mean is not None:
            self.mean.index_copy_(0, rows, mean)
        self.seen.index_copy_(0, rows, self.updates.expand(len(rows)))

    def state_dict(self) -> dict[str, Tensor]:
        """All there is but the weights and their average, which are stored with those of others."""
        names = ("updates", "seen", "moved", "left", "behind")
        known = {name: getattr(self, name) for name in names}
        return {"step": self.steps, **known, **self.rows_state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave; what is missing stays as it is."""
        for name, mine in self.state_dict().items():
            if name in state:
                mine.copy_(state[name])
