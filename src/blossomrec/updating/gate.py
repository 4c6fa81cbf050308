"""A new run against the one in use, on the newest events, in pairs: is it taken?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.batch import Batch
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, Split, make_split, split_name
from blossomrec.data.windows import boundaries
from blossomrec.device import resolve_device
from blossomrec.errors import RunError
from blossomrec.evaluation import RankingOptions, compare, evaluate, resolve_filter_seen
from blossomrec.measure import load_seeing
from blossomrec.models.own_history.items import OwnItems
from blossomrec.models.sequence import SequenceModel
from blossomrec.run.description import RunInfo, read_run_config
from blossomrec.training.warm_start.seen import seen_events

METRIC, K = "ndcg@10", 10


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison.

    Attributes:
        taken: whether the new run is to be used.
        why: in words.
        metrics: of the new run, of that in use, their difference with its interval, the p-value,
            and of how many users; empty where nothing was compared.
    """

    taken: bool
    why: str
    metrics: dict[str, Any]


class GrownCatalogue:
    """A model as a scorer of a catalogue that has grown since: it never recommends a new item.

    As in a server, events of items that it does not know are left out of its histories. Rows of
    items that it knows are the same.

    Args:
        num_items: of the grown catalogue.
    """

    def __init__(self, model: SequenceModel, num_items: int):
        self._model, self.num_items = model, num_items
        self.inputs, self.max_len = model.inputs, model.max_len
        self.own_history, self.own_scores = model.own_history, model.own_scores

    def queries(self, batch: Batch) -> Tensor:
        """[B, D]; every history must have an item that is known."""
        return self._model.queries(self._known(batch))

    def history_items(self, batch: Batch) -> OwnItems | None:
        return self._model.history_items(self._known(batch))

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the items start .. stop-1, -inf for new ones."""
        known = self._model.scores(queries, start, min(stop, self._model.num_items))
        return torch.nn.functional.pad(known, (0, stop - start - known.shape[1]), value=-torch.inf)

    def _known(self, batch: Batch) -> Batch:
        there = batch.items < self._model.num_items
        if there.all():
            return batch
        rows = there.nonzero().squeeze(1)
        ends = torch.cat([there.new_zeros(1, dtype=torch.int64), there.cumsum(0)])
        edges = ends[batch.cu_seqlens.long()]
        known = batch.take(rows, edges.int(), batch.max_length)
        # What is asked for after the last event is asked for after the last one that is left.
        for name in ("asked", "asked_kinds"):
            if (asked := getattr(batch, name)) is not None:
                getattr(known, name)[known.last_rows] = asked[batch.last_rows]
        return known


class _Measured(NamedTuple):
    scorer: Any
    columns: dict[str, Any]


def judge(new: Path, used: Path, log: EventLog, *, tolerance: float, most: int) -> Verdict:
    """Whether a new run is as good as the one in use, on the test events of its split.

    Both rank the same events of the same users among the same catalogue: those users of whom the
    new run was trained on events that the other was not, or all where there is none, as far as both
    know an item of their history.

    Args:
        tolerance: share of the NDCG@10 of the run in use that the new one may lack.
        most: users; a fixed sample where there are more.

    Raises:
        RunError: a run is damaged, or that in use belongs to another log.
    """
    info, other = read_run_config(new), read_run_config(used)
    split = make_split(log, info.config.evaluation)
    cases = newest_cases(used, log, split)
    cases = cases.take(_known_histories(log, cases, other)).sample(
        most, info.config.evaluation.seed
    )
    if not len(cases):
        return Verdict(True, "nobody has a history that the run in use knows", {})
    options = RankingOptions(
        filter_seen=resolve_filter_seen(info.config.evaluation, log),
        ks=(K,),
        seed=info.config.evaluation.seed,
        split=split_name(info.config.evaluation),
        popularity=False,
    )
    device = resolve_device(info.config.training.device)
    measured = [
        evaluate(each.scorer, log, cases, options, columns=each.columns, device=device)
        for each in (_scorer(new, info, log, device), _scorer(used, other, log, device))
    ]
    test = compare(measured[0], measured[1])[METRIC]
    enough = test.first >= (1 - tolerance) * test.second
    metrics = {
        "new": test.first,
        "used": test.second,
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p": test.p_permutation,
        "users": test.users,
        "events": measured[0].protocol.num_targets,
    }
    return Verdict(enough, _why(metrics, tolerance, enough), metrics)


def newest_cases(used: Path, log: EventLog, split: Split) -> Cases:
    """Test cases of the users with training events that a run was not trained on; all without."""
    try:
        seen = seen_events(used, log, split.train_end)
    except RunError:
        # A run that does not tell it, such as one of an earlier version.
        return split.test
    newer = (split.train_end > seen)[split.test.users]
    return split.test.take(newer) if newer.any() else split.test


def _known_histories(log: EventLog, cases: Cases, used: RunInfo) -> np.ndarray:
    """Which cases have an event of an item that a run knows among those that its model sees."""
    vocabulary = log.item_vocabulary
    same = (vocabulary.size, vocabulary.fingerprint) == (used.num_items, used.fingerprint)
    if not same and not vocabulary.begins_with(used.num_items, used.fingerprint):
        raise RunError(
            f"the run in use does not belong to {log.folder}, whose items have other rows: where "
            "that was prepared anew, begin a new folder of runs"
        )
    known = boundaries(np.asarray(log.items) < used.num_items)
    ends = np.asarray(log.offsets)[cases.users] + cases.history_end
    starts = ends - np.minimum(cases.history_end, used.config.model.max_len)
    return known[ends] > known[starts]


def _scorer(run: Path, info: RunInfo, log: EventLog, device: str) -> _Measured:
    model, columns = load_seeing(run, info, log, device)
    grown = model.num_items < log.num_items
    return _Measured(GrownCatalogue(model, log.num_items) if grown else model, columns)


def _why(metrics: dict[str, Any], tolerance: float, enough: bool) -> str:
    new, used = metrics["new"], metrics["used"]
    change = f"{new / used - 1:+.1%}" if used else "no share"
    return (
        f"{METRIC} {new:.4f}, that in use {used:.4f} ({change}; {metrics['low']:+.4f} to "
        f"{metrics['high']:+.4f}) on the newest events of {metrics['users']:,} users: "
        + ("not worse" if enough else "worse")
        + f" by more than {tolerance:.1%}"
    )
