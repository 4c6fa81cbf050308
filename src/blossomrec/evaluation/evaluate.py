"""Rank the targets of every case among the candidates of a protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.batches import HistoryBatches
from blossomrec.data.windows import each_once
from blossomrec.errors import DataError, one_of, true_or_false, whole_number
from blossomrec.evaluation import metrics, scoring
from blossomrec.evaluation.candidates import (
    Targets,
    before_cases,
    popularity_percentiles,
    sample_unseen,
    seen_pieces,
    targets_of,
)
from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.evaluation.on_shards import Ranked, RankingTask, ShardedRanking
from blossomrec.evaluation.protocol import EvaluationProtocol, Ranking
from blossomrec.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import Cases

TOKENS_PER_BATCH = 16_384


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Against which candidates targets are ranked, and which metrics follow from that.

    Attributes:
        filter_seen: leave items before the target in the history out of a full ranking.
        ranking: ``full`` ranks among all items, ``uni100`` among 100 sampled items the user never
            met; metrics of the latter are named ``uni100_...``. Where the catalogue has fewer such
            items, all of them are candidates, and the name says how many: ``uni11_...``, or
            ``uni20-79_...`` where users differ.
        ks: cut-offs of the metrics.
        seed: of sampled candidates and of the bootstrap.
        max_len: most recent events shown to the scorer; None stands for ``scorer.max_len``.
        split: how the cases were held out, kept with the protocol.
        own_metrics: names in ``METRICS`` to measure besides hr, recall, ndcg and mrr.
        popularity: measure how popular recommended items are, for which all events are counted.
    """

    filter_seen: bool
    ranking: Ranking = "full"
    ks: Sequence[int] = (5, 10, 20)
    seed: int = 0
    max_len: int | None = None
    split: str | None = None
    own_metrics: Sequence[str] = ()
    popularity: bool = True

    def checked(self) -> RankingOptions:
        """These options as they are used, the cut-offs sorted; ConfigError names a wrong one."""
        one_of("ranking", self.ranking, get_args(Ranking))
        if self.max_len is not None:
            whole_number("max_len", self.max_len)
        return replace(
            self,
            filter_seen=true_or_false("filter_seen", self.filter_seen),
            ks=metrics.check_ks(self.ks),
            own_metrics=metrics.check_own(self.own_metrics),
        )


def evaluate(
    scorer: Any,
    log: EventLog,
    cases: Cases,
    options: RankingOptions,
    *,
    train_end: np.ndarray | None = None,
    columns: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    score_elements: int = scoring.SCORE_ELEMENTS,
    processes: Ranks = ALONE,
) -> Evaluation:
    """Rank the targets of every case.

    Ties count against a target, targets of one case do not compete with each other, and the
    target itself is always a candidate. Ranks do not depend on ``tokens_per_batch``.

    Args:
        scorer: model or baseline with ``num_items``, ``max_len``, ``queries(batch)`` [B, ...] and
            ``scores(queries, start, stop)`` [B, stop - start]; it already lies on ``device``.
        log: the log whose rows the scorer knows.
        cases: what to predict.
        options: the candidates and the metrics.
        train_end: how many of each user's first events were trained on, int64 [U], by which items
            are popular; without it all that stand before the first case of each user.
        columns: arrays [E] of the inputs of the scorer, in its numbers; those of the log without
            them.
        device: where batches go.
        tokens_per_batch: events encoded at a time.
        score_elements: scores held at a time, or one row of the catalogue if that is more.
        processes: ranks that share the item table of the scorer, a model, and all call this with
            the same; all get the whole evaluation.

    Raises:
        ConfigError: an option is out of bounds.
        DataError: there is nothing to evaluate, users are not in order, or the scorer knows
            another number of items.
        TrainingError: a score is not a number.
    """
    started = perf_counter()
    options, device = options.checked(), torch.device(device)
    full = options.ranking == "full"
    if scorer.num_items != log.num_items:
        raise DataError(f"the model knows {scorer.num_items} items and the log {log.num_items}")
    if np.any(np.diff(cases.users) < 0):
        raise DataError("the cases of a user must stand side by side, users in rising order")
    targets = targets_of(log, cases)
    columns = log.columns(scorer.inputs) if columns is None else columns

    def histories(some: Cases) -> HistoryBatches:
        return HistoryBatches(
            log,
            some.users,
            some.history_end,
            # Simple baselines look at one event, or none; batches have at least two.
            max_len=max(2, scorer.max_len) if options.max_len is None else options.max_len,
            tokens_per_batch=tokens_per_batch,
            inputs=scorer.inputs,
            columns=columns,
        )

    asked = _asked_for_first(columns, cases, targets)
    task = RankingTask(log, cases, targets, options, histories, asked)
    with scoring.scoring_mode(scorer):
        if processes.alone:
            found = _ranked(scorer, task, device, score_elements)
        else:
            found = ShardedRanking(scorer, processes, device, score_elements).ranked(task)
    popularity = None
    if full and options.popularity:
        ends = before_cases(log, cases) if train_end is None else train_end
        percentiles = popularity_percentiles(log, ends, processes)
        values = metrics.popularity(found.top, percentiles, options.ks)
        popularity = np.stack(list(values.values()), 1)
    return Evaluation(
        protocol=_protocol(task, scorer.inputs, found),
        users=cases.users,
        lengths=cases.history_end,
        offsets=targets.offsets,
        ranks=found.ranks,
        top=found.top if full else None,
        popularity=popularity,
        seconds=perf_counter() - started,
        kinds=targets.kinds,
        of_kinds=targets.of_kinds,
    )


def _protocol(task: RankingTask, inputs: Sequence[str], found: Ranked) -> EvaluationProtocol:
    log, cases, targets, options = task.log, task.cases, task.targets, task.options
    fewest_and_most = None
    if options.ranking != "full":
        fewest_and_most = int(found.sampled.min()), int(found.sampled.max())
    return EvaluationProtocol(
        split=options.split,
        ranking=options.ranking,
        filter_seen=options.filter_seen,
        ks=tuple(options.ks),
        seed=options.seed,
        num_cases=len(cases.users),
        num_targets=len(targets.items),
        num_items=log.num_items,
        fingerprint=_fingerprint(cases, targets),
        num_users=len(each_once(cases.users)),
        own_metrics=tuple(options.own_metrics),
        moments="asked" in inputs,
        asked_kinds="asked_kinds" in inputs,
        kinds=log.fields.kinds,
        sampled=fewest_and_most,
    )


def _asked_for_first(
    columns: Mapping[str, Any], cases: Cases, targets: Targets
) -> dict[str, np.ndarray]:
    """Moment and kind of the first target of each case, int64 [M], where they are asked for.

    Empty where the first target is the next event of every history, as which it is asked for.
    """
    if not cases.kinds:
        return {}
    names = [name for name in ("asked", "asked_kinds") if name in columns]
    # What is asked for at an event is what the next one is.
    return {name: columns[name][targets.first - 1] for name in names}


def _ranked(scorer: Any, task: RankingTask, device: torch.device, score_elements: int) -> Ranked:
    """All cases ranked by a process that has the whole catalogue."""
    log, cases, targets, options = task.log, task.cases, task.targets, task.options
    full, count = options.ranking == "full", len(cases.users)
    block = scoring.ScoreBlock(scorer, count, device=device, score_elements=score_elements)
    ranks = np.empty(len(targets.items), dtype=np.int64)
    top = np.empty((count, options.ks[-1] if full else 0), dtype=np.int32)
    sampled = np.zeros(0 if full else count, dtype=np.int64)
    batches = task.batches(cases)
    for part, queries in _query_blocks(scorer, batches, task.columns, device, block.rows):
        with scoring.full_precision(device):
            scores = block.fill(queries)
        places = slice(targets.offsets[part.start], targets.offsets[part.stop])
        if full:
            seen = _history_items(log, cases, part) if options.filter_seen else ()
            ranks[places], top[part] = _rank_all(scores, targets, part, seen, options.ks[-1])
        else:
            unseen = sample_unseen(log, cases.users[part], options.seed)
            sampled[part] = (unseen >= 0).sum(1)
            ranks[places] = _rank_sampled(scores, targets, part, unseen)
    return Ranked(ranks, top, sampled)


def _query_blocks(
    scorer: Any,
    batches: HistoryBatches,
    asked: dict[str, np.ndarray],
    device: torch.device,
    rows: int,
) -> Iterator[tuple[slice, scoring.Queries]]:
    """Queries in blocks of exactly ``rows`` cases, the last one shorter.

    Blocks end at the same cases whatever the batches of the encoder are, so that every score
    comes from a call of the same shape.
    """
    done, waiting, held = 0, list[scoring.Queries](), 0
    for part, batch in batches:
        for name, values in asked.items():
            getattr(batch, name)[batch.last_rows] = torch.from_numpy(values[part])
        queries = scoring.Queries.of(scorer, batch.to(device))
        waiting.append(queries)
        held += len(queries)
        while held >= rows:
            joined = scoring.Queries.join(waiting)
            yield slice(done, done + rows), joined.part(0, rows)
            waiting, done, held = [joined.part(rows, held)], done + rows, held - rows
    if held:
        yield slice(done, done + held), scoring.Queries.join(waiting)


def _history_items(
    log: EventLog, cases: Cases, part: slice
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return seen_pieces(log, cases.users[part], cases.history_end[part])


def _rank_all(
    scores: Tensor, targets: Targets, part: slice, seen: Any, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the targets of a block of cases among all items, and its k best items."""
    rows, items = _target_pairs(targets, part, scores.device)
    own = scores[rows, items]
    for seen_rows, seen_items in seen:
        scores[_tensor(seen_rows, scores.device), _tensor(seen_items, scores.device)] = -torch.inf
    scores[rows, items] = own
    top, _ = scoring.best(scores, k)
    # From here on no target is counted, neither against itself nor against another of its case.
    scores[rows, items] = -torch.inf
    ranks = torch.empty_like(rows)
    for which, of in _by_ordinal(targets.counts[part], scores.device):
        ranks[which] = scoring.count_at_least(scores, of, own[which])
    return ranks.cpu().numpy(), top.int().cpu().numpy()


def _rank_sampled(scores: Tensor, targets: Targets, part: slice, unseen: np.ndarray) -> np.ndarray:
    """Ranks of the targets of a block of cases among the items sampled for each user."""
    rows, items = _target_pairs(targets, part, scores.device)
    own, sampled = scores[rows, items], _tensor(unseen, scores.device)
    candidates = scores.gather(1, sampled.clamp(min=0)).masked_fill(sampled < 0, -torch.inf)
    scoring.refuse_nan(own)
    scoring.refuse_nan(candidates)
    ranks = torch.empty_like(rows)
    for which, of in _by_ordinal(targets.counts[part], scores.device):
        ranks[which] = scoring.count_at_least(candidates, of, own[which])
    return ranks.cpu().numpy()


def _target_pairs(targets: Targets, part: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows inside a block and items of all its targets."""
    counts = targets.counts[part]
    rows = np.repeat(np.arange(len(counts)), counts)
    items = targets.items[targets.offsets[part.start] : targets.offsets[part.stop]]
    return _tensor(rows, device), _tensor(items, device)


def _by_ordinal(counts: np.ndarray, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """For the first, second, ... target of the cases: places among the targets, and rows.

    Rows are None where every case has such a target, which spares a copy of the scores.
    """
    first = np.cumsum(counts) - counts
    for ordinal in range(counts.max()):
        rows = np.flatnonzero(counts > ordinal)
        of = None if len(rows) == len(counts) else _tensor(rows, device)
        yield _tensor(first[rows] + ordinal, device), of


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)


def _fingerprint(cases: Cases, targets: Targets) -> str:
    """Changes with the users, positions or target items of the cases."""
    digest = hashlib.sha256()
    for array in (cases.users, cases.history_end, cases.target_end, targets.items):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()[:32]
