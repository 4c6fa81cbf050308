"""What the selector of a trained run selects, measured over the test histories of a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention import BlossomAttention
from blossomrec.config import LARGEST_SEED, ModelConfig
from blossomrec.data.batch import Batch
from blossomrec.data.batches import HistoryBatches
from blossomrec.data.history import History
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, make_split
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.evaluation import scoring
from blossomrec.measure import load_seeing, open_log
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.transformer import TransformerModel
from blossomrec.report.attention_profile import recorded
from blossomrec.report.inspect.selection_measures import (
    SelectionForm,
    UniformChoice,
    first_choosing,
    sample_choosing,
    uniform_choice,
)
from blossomrec.report.inspect.selection_totals import (
    LayerChoices,
    LayerTotals,
    Ratio,
    mass_ratio,
)
from blossomrec.report.wording import ItemWords, habit, period
from blossomrec.run.description import read_run_config

# Events of a batch; only a history that is longer by itself goes over it.
TOKENS_PER_BATCH = 16_384
# Histories that are shown, and blocks and items of each.
EXAMPLES, EXAMPLE_BLOCKS, EXAMPLE_ITEMS = 3, 6, 5


@dataclass(frozen=True)
class Choice:
    """Where the selector has a choice: events with more than ``top_n`` blocks to choose from.

    Attributes:
        histories, choosing_histories: test histories, and those with at least one such event.
        events, choosing_events: events of all test histories, and such events among them.
        sampled_histories, sampled_events: what was drawn of the two, for all measures.
        measured_events: drawn from the latter, for the shares of attention.
    """

    histories: int
    choosing_histories: int
    events: int
    choosing_events: int
    sampled_histories: int
    sampled_events: int
    measured_events: int


@dataclass(frozen=True)
class ExampleBlock:
    """A block of a history, and by how many heads of all layers it is selected.

    Attributes:
        first, last: numbers of its first and last event in what was looked at, from 1.
        days: of these events; empty where times are not known.
        heads: how many select it; None for the own block of the last event, which is always seen.
        items: ids and titles of its last distinct items, the latest first.
        more: how many other items there are.
    """

    first: int
    last: int
    days: str
    heads: int | None
    items: tuple[str, ...]
    more: int


@dataclass(frozen=True)
class Example:
    """What is selected at the last event of a history.

    Attributes:
        user: id.
        events: how many were looked at.
        days: of these events; empty where times are not known.
        heads: of all layers together.
        blocks: the last event's own, then those that most heads select.
        target: id and title of the item of the test event.
        own: what of its probability comes from the history itself, where the model mixes in the
            user's own items; empty elsewhere.
    """

    user: str
    events: int
    days: str
    heads: int
    blocks: tuple[ExampleBlock, ...]
    target: str
    own: str = ""


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a run selects.

    Attributes:
        run, dataset: name of the run's folder and of the log's.
        max_len: events of each history that were looked at, the last ones.
        seed: of everything drawn.
        model: the architecture.
        causal: whether blocks after an event's own cannot be selected.
        choice: where there was something to choose.
        uniform: what a uniform choice would do on the sampled histories.
        ratio: covered over best attention, layers and heads together.
        layers: in order.
        examples: the longest of the sampled histories.
    """

    run: str
    dataset: str
    max_len: int
    seed: int
    model: ModelConfig
    causal: bool
    choice: Choice
    uniform: UniformChoice
    ratio: Ratio
    layers: tuple[LayerChoices, ...]
    examples: tuple[Example, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form."""
        return _plain(asdict(self))


def inspect_run(
    run: str | Path,
    log: str | Path | None = None,
    *,
    users: int = 500,
    events: int = 20_000,
    max_len: int | None = None,
    min_events: int = 1,
    seed: int = 0,
    device: str = "auto",
) -> Inspection:
    """Measure the selectors of a run on histories before the test events of its split.

    Args:
        run: a run folder with Blossom attention.
        log: prepared log; None is the one the run was trained on.
        users: most histories that are looked at, a fixed sample of those with a choice.
        events: most events whose attention is measured, a fixed sample of those with a choice.
        max_len: events of each history, the last ones; None is the run's own.
        min_events: shorter histories are not sampled.
        seed: of both samples and of the intervals.
        device: auto, cpu or cuda.

    Raises:
        RunError: the run is incomplete or has no Blossom attention, its log is gone, or the log
            has another vocabulary.
        DataError: no history of the log is long enough for a choice.
        ConfigError: an option is out of bounds, or the device is not there.
    """
    for name, value, low in (("users", users, 1), ("events", events, 1), ("seed", seed, 0)):
        if not low <= value <= LARGEST_SEED:
            raise ConfigError(f"{name} is {value}: it must be from {low} to {LARGEST_SEED}")
    info = read_run_config(run)
    opened = open_log(run, info, log)
    model, columns = load_seeing(run, info, opened, resolve_device(device))
    form = _form(run, model)
    max_len = info.config.model.max_len if max_len is None else max_len
    if max_len < 2:
        raise ConfigError(f"max_len is {max_len}: it must be at least 2")
    cases = make_split(opened, info.config.evaluation).test.last_of_each_user()
    lengths = np.minimum(cases.history_end, max_len)
    choosing = lengths - first_choosing(lengths, form)
    choosing[cases.history_end < min_events] = 0
    sampled = _with_choice(opened, cases, choosing, lengths, form).sample(users, seed)
    own = np.minimum(sampled.history_end, max_len)
    totals, measured = _measure(model, columns, opened, sampled, max_len, form, events, seed)
    return Inspection(
        run=Path(run).resolve().name,
        dataset=opened.folder.name,
        max_len=max_len,
        seed=seed,
        model=info.config.model,
        causal=form.causal,
        choice=Choice(
            histories=len(cases),
            choosing_histories=int((choosing > 0).sum()),
            events=int(lengths.sum()),
            choosing_events=int(choosing.sum()),
            sampled_histories=len(sampled),
            sampled_events=int((own - first_choosing(own, form)).sum()),
            measured_events=int(measured.sum()),
        ),
        uniform=uniform_choice(own, form),
        ratio=mass_ratio(np.sum([each.mass.sum(-1) for each in totals], 0), measured, seed),
        layers=tuple(each.choices(measured, seed) for each in totals),
        examples=_examples(model, columns, opened, sampled, max_len, form),
    )


def _form(run: str | Path, model: SequenceModel) -> SelectionForm:
    """What the model's layers, all alike, may select."""
    for layer in model.modules():
        if isinstance(layer, BlossomAttention):
            return SelectionForm(layer.spec.block_size, layer.spec.top_n, layer.spec.causal)
    config = model.config
    is_transformer = isinstance(model, TransformerModel)
    kind = f"{config.attention} attention" if is_transformer else "without attention"
    raise RunError(
        f"{run} has no Blossom attention, so nothing is selected there: its backbone is "
        f"{config.backbone}, {kind}"
    )


def _with_choice(
    log: EventLog, cases: Cases, choosing: np.ndarray, lengths: np.ndarray, form: SelectionForm
) -> Cases:
    kept = choosing > 0
    if kept.any():
        return cases.take(kept)
    raise DataError(
        f"{log.folder}: the longest history looked at has {lengths.max()} events, too short for a "
        f"choice among blocks: with {form.top_n} selected blocks of {form.block_size} events all "
        f"of them are attended in histories up to {(form.top_n + 1) * form.block_size} events"
    )


def _measure(
    model: SequenceModel,
    columns: Mapping[str, Any],
    log: EventLog,
    cases: Cases,
    max_len: int,
    form: SelectionForm,
    events: int,
    seed: int,
) -> tuple[list[LayerTotals], np.ndarray]:
    """Totals of each layer over all cases, and how many events of each were measured."""
    lengths = np.minimum(cases.history_end, max_len)
    history, position = sample_choosing(lengths, form, events, seed)
    batches = _histories(model, columns, log, cases, max_len)
    totals: list[LayerTotals] = []
    device = model.item_embeddings.weight.device
    for part, batch in batches:
        batch = batch.to(device)
        with torch.no_grad(), recorded(model) as found:
            model.encode(batch)
        here = slice(*np.searchsorted(history, (part.start, part.stop)))
        within = torch.from_numpy(history[here] - part.start).to(device)
        rows = batch.cu_seqlens.long()[within] + torch.from_numpy(position[here]).to(device)
        totals = totals or [
            LayerTotals(each.layer, histories=len(cases), longest=int(lengths.max()))
            for each in found
        ]
        with torch.no_grad():
            for total, each in zip(totals, found, strict=True):
                total.add(each, batch.cu_seqlens, rows, history[here])
    return totals, np.bincount(history, minlength=len(cases))


def _histories(
    model: SequenceModel, columns: Mapping[str, Any], log: EventLog, cases: Cases, max_len: int
) -> HistoryBatches:
    """What the model sees of cases."""
    return HistoryBatches(
        log,
        cases.users,
        cases.history_end,
        max_len=max_len,
        tokens_per_batch=TOKENS_PER_BATCH,
        inputs=model.inputs,
        columns=columns,
    )


def _examples(
    model: SequenceModel,
    columns: Mapping[str, Any],
    log: EventLog,
    cases: Cases,
    max_len: int,
    form: SelectionForm,
) -> tuple[Example, ...]:
    """What the last events of the longest histories select."""
    shown = cases.take(np.argsort(-cases.history_end, kind="stable")[:EXAMPLES])
    batches = _histories(model, columns, log, shown, max_len)
    words, device, found = ItemWords(log), model.item_embeddings.weight.device, list[Example]()
    for part, batch in batches:
        with torch.no_grad(), recorded(model) as attended:
            model.encode(batch.to(device))
        layers = [each.output.selected for each in attended]
        selected = torch.stack([each for each in layers if each is not None]).cpu().numpy()
        shares = _own_shares(model, batch.to(device))
        for number, row in zip(range(part.start, part.stop), batch.last_rows.tolist(), strict=True):
            user, end = int(shown.users[number]), int(shown.history_end[number])
            history = log.history(user)
            first = _first_target(history, shown, number)
            target = int(history.items[first])
            moment = -1 if history.times is None else int(history.times[first])
            seen = history[max(0, end - max_len) : end]
            blocks = _example_blocks(selected[:, row], seen, form.block_size, words)
            found.append(
                Example(
                    user=str(log.user_vocabulary.ids([user]).item()),
                    events=len(seen),
                    days=period(seen.times),
                    heads=selected.shape[0] * selected.shape[2],
                    blocks=blocks,
                    target=words.name(target),
                    own=_own(shares, number - part.start, target, seen.asked_for(moment)),
                )
            )
    return tuple(found)


def _own_shares(model: SequenceModel, batch: Batch) -> Tensor | None:
    """What of the probability of each item comes from the history itself, [B, I]; None where
    nothing does."""
    if not scoring.mixes_own(model):
        return None
    scores = []
    with torch.no_grad():
        queries = scoring.Queries.of(model, batch)
        for each in (queries, scoring.Queries(queries.states)):
            block = scoring.ScoreBlock(
                model,
                len(queries),
                device=queries.states.device,
                score_elements=scoring.SCORE_ELEMENTS,
            )
            scores.append(block.fill(each)[:, : model.num_items])
    mixed, catalogue = scores
    return -(catalogue - mixed).expm1()


def _own(shares: Tensor | None, row: int, item: int, seen: History) -> str:
    if shares is None:
        return ""
    known = habit(seen, item)
    if not known:
        return "not in the history"
    return f"{known}: {float(shares[row, item]):.0%} of its probability is the history's own"


def _first_target(history: History, cases: Cases, number: int) -> int:
    """Position of the first target of a case in its user's history."""
    start, end = int(cases.history_end[number]), int(cases.target_end[number])
    if not cases.kinds or history.kinds is None:
        return start
    return start + int(np.argmax(np.isin(history.kinds[start:end], cases.kinds)))


def _example_blocks(
    selected: np.ndarray, seen: History, size: int, words: ItemWords
) -> tuple[ExampleBlock, ...]:
    """The last event's own block and those that most heads select.

    selected: numbers of blocks, [layers, G, n], -1 for none.
    """
    own = (len(seen) - 1) // size
    counts = np.bincount(selected[selected >= 0], minlength=own + 1)
    order = np.argsort(-counts, kind="stable")[:EXAMPLE_BLOCKS]
    blocks = []
    for block in [own, *(int(each) for each in order if counts[each])]:
        first, last = block * size, min((block + 1) * size, len(seen))
        items = list(dict.fromkeys(seen.items[first:last][::-1].tolist()))
        blocks.append(
            ExampleBlock(
                first=first + 1,
                last=last,
                days=period(None if seen.times is None else seen.times[first:last]),
                heads=int(counts[block]) if blocks else None,
                items=tuple(words.name(item) for item in items[:EXAMPLE_ITEMS]),
                more=max(0, len(items) - EXAMPLE_ITEMS),
            )
        )
    return tuple(blocks)


def _plain(value: Any) -> Any:
    """Arrays as lists, at any depth."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
