"""Weights and moments follow ids and names, against looking each one up in a dictionary."""

import numpy as np
import pytest
import torch
from small_training import small_config
from two_periods import SEES_ALL, begin

from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.data.known import KnownHistories
from blossomrec.errors import ConfigError, RunError
from blossomrec.models import build_model
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_users
from blossomrec.run.weights import read_weights
from blossomrec.training.warm_start.tables import item_tables, origins
from blossomrec.training.warm_start.weights import check_architecture


def scores_of(model, known, log, items, users, second):
    """Scores of some items of the model after the histories of some users of a log."""
    histories = [
        known.history(row).asked_for(
            second,
            model.fields.kind("buy") if model.fields.kinds else 0,
            context=len(model.fields.context),
        )
        for row in users
    ]
    with torch.no_grad():
        batch = pack(histories, model.inputs)
        queries = model.queries(batch)
        scores = model.scores(queries, 0, model.num_items)
        own = model.history_items(batch)
        if own is not None:
            found = scores[own.history, own.items]
            # Of the catalogue without what the other one does not know.
            own_scores = model.own_scores(queries, scores[:, items].logsumexp(1), own, found)
            scores[own.history, own.items] = own_scores
    return scores[:, items]


def same_scores(begun, run, old_log, new_log):
    """Whether known items have their scores after the histories of the first period."""
    info = read_run_config(run)
    table = open_users(run, info)
    before = KnownHistories(
        old_log, old_log.item_vocabulary, None if table is None else table[0], begun.old.fields
    )
    users = new_log.user_vocabulary if begun.model.users is not None else None
    after = KnownHistories(old_log, new_log.item_vocabulary, users, begun.model.fields)
    rows = np.flatnonzero(begun.items >= 0)
    second, chosen = old_log.last_second + 500, range(0, old_log.num_users, 4)
    theirs = scores_of(begun.old, before, old_log, begun.items[rows], chosen, second)
    mine = scores_of(begun.model, after, old_log, rows, chosen, second)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    return theirs


def test_rows_of_items_follow_their_ids(old_run, first_log, both_log):
    begun = begin(both_log, old_run)
    known = dict(
        zip(
            first_log.item_vocabulary.read().to_list(),
            read_weights(old_run / "model.safetensors")["item_embeddings.weight"],
            strict=True,
        )
    )
    kept = 0
    for row, item in enumerate(both_log.item_vocabulary.read().to_list()):
        if item in known:
            assert torch.equal(begun.model.item_embeddings.weight[row], known[item])
            kept += 1
    assert (begun.taken.kept, begun.taken.new) == (kept, both_log.num_items - kept)
    assert begun.taken.new == 9
    # Otherwise the test would pass with rows as they are.
    assert not np.array_equal(begun.items[begun.items >= 0], np.arange(kept))


def test_known_items_have_their_scores(old_run, first_log, both_log):
    scores = same_scores(begin(both_log, old_run), old_run, first_log, both_log)
    assert scores.std() > 0.05


def test_a_model_that_sees_all_there_is_has_its_scores(seeing_run, first_tables, both_tables):
    begun = begin(both_tables, seeing_run)
    assert begun.model.fields.kinds != begun.old.fields.kinds
    same_scores(begun, seeing_run, first_tables, both_tables)


def shaken(model):
    """With weights that all differ, as after a long training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_names_of_what_is_seen_keep_their_rows(seeing_run, both_tables):
    begun = begin(both_tables, seeing_run)
    new, old = begun.model, shaken(begun.old)
    made = origins(new, old, begun.items)
    theirs = dict(old.named_parameters())

    def row(model, name):
        """The row of each name among the embeddings of events, by hand."""
        inputs, where = model.event_inputs, dict[tuple[str, str], int]()
        for number, kind in enumerate(model.fields.kinds, 1):
            where["kind", kind] = inputs.starts[2] + number
        shop = next(one for one in model.fields.context if one.name == "shop")
        for number, one in enumerate(shop.names, 1):
            where["shop", one] = inputs.starts[3] + number
        where["price", ""] = inputs.starts[4]
        for number, one in enumerate(model.users["town"].names[n] for n in range(3)):
            where["town", one] = inputs.starts[4] + 2 + number
        where["stranger", ""] = len(inputs.embeddings.weight) - 1
        return where[name]

    like = new.event_inputs.embeddings.weight
    found = made["event_inputs.embeddings.weight"].taken(theirs, like)
    table = old.event_inputs.embeddings.weight
    names = [("kind", "buy"), ("kind", "view"), ("shop", "web"), ("shop", "app"), ("price", "")]
    for name in [*names, ("stranger", ""), *(("town", f"t{n}") for n in range(3))]:
        assert torch.equal(found[row(new, name)], table[row(old, name)]), name
    # What is new begins as what is not known.
    assert torch.equal(found[row(new, ("kind", "gift"))], table[old.event_inputs.starts[2]])
    assert torch.equal(found[row(new, ("shop", "kiosk"))], table[old.event_inputs.starts[3]])
    asked = made["request_inputs.embeddings.weight"].taken(
        theirs, new.request_inputs.embeddings.weight
    )
    number = {model: model.fields.kinds.index("buy") + 1 for model in (new, old)}
    assert torch.equal(
        asked[new.request_inputs.starts[2] + number[new]],
        old.request_inputs.embeddings.weight[old.request_inputs.starts[2] + number[old]],
    )


def test_numbers_of_the_context_keep_their_scale(seeing_run, both_tables):
    begun = begin(both_tables, seeing_run)
    scale = {one.name: one.mean for one in begun.model.fields.context if one.kind == "number"}
    theirs = {one.name: one.mean for one in begun.old.fields.context if one.kind == "number"}
    there = {one.name: one.mean for one in both_tables.fields.context if one.kind == "number"}
    assert scale == theirs != there
    assert begun.model.event_inputs.scales[:, 0].tolist() == pytest.approx([*theirs.values()])


def test_categories_of_items_keep_their_rows_and_new_ones_are_the_mean(seeing_run, both_tables):
    begun = begin(both_tables, seeing_run)
    (mine, theirs) = (
        {
            model.features["genre"].names[n]: part.bag.weight[n + 1]
            for n in range(model.features["genre"].size - 1)
        }
        for model in (begun.model, begun.old)
        for part in [model.content.categories[0]]
    )
    assert set(mine) == {*theirs, "new"}
    for name, row in theirs.items():
        assert torch.equal(mine[name], row)
    torch.testing.assert_close(mine["new"], torch.stack([*theirs.values()]).mean(0))


def test_moments_follow_the_weights(old_run, first_log, both_log):
    begun = begin(both_log, old_run)
    last = max((old_run / "checkpoints").glob("step-*"))
    stored = read_weights(last / "tensors.safetensors")
    assert begun.taken.moments
    names = {id(one): name for name, one in begun.model.named_parameters()}
    met = 0
    for parameter, state in begun.optimizer.state.items():
        name = names[id(parameter)]
        assert state["step"] == stored[f"optimizer.{name}:step"] > 0
        for key in ("exp_avg", "exp_avg_sq"):
            theirs = stored[f"optimizer.{name}:{key}"]
            if name == "item_embeddings.weight":
                for row, other in enumerate(begun.items):
                    expected = theirs[other] if other >= 0 else torch.zeros(theirs.shape[1])
                    assert torch.equal(state[key][row], expected)
            else:
                assert torch.equal(state[key], theirs)
            met += 1
    assert met == 2 * len(names)


def test_without_a_checkpoint_moments_begin_afresh(old_run, both_log, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(old_run, run, ignore=shutil.ignore_patterns("checkpoints"))
    begun = begin(both_log, run)
    assert not begun.taken.moments and not begun.optimizer.state


def test_the_mask_of_bert4rec_stays_behind_the_catalogue(first_log, both_log, tmp_path):
    config = small_config(backbone="bert4rec").model
    new, old = (build_model(config, log.num_items) for log in (both_log, first_log))
    items = first_log.item_vocabulary.rows(both_log.item_vocabulary.read())
    made = origins(new, old, items)["item_embeddings.weight"]
    theirs = dict(old.named_parameters())
    found = made.taken(theirs, new.item_embeddings.weight)
    assert torch.equal(found[new.mask_item], old.item_embeddings.weight[old.mask_item])
    assert item_tables(new) == ["item_embeddings.weight"]


@pytest.mark.parametrize("longer", [60, 9])
def test_another_max_len_keeps_the_buckets_of_gaps(repeat_log, longer):
    def model(max_len):
        config = small_config(backbone="gru4rec", repeats="on", max_len=max_len).model
        return shaken(build_model(config, repeat_log.num_items))

    old, new = model(20), model(longer)
    made = origins(new, old, np.arange(repeat_log.num_items))
    theirs, parameters = dict(old.named_parameters()), dict(new.named_parameters())
    starts = {m: m.own_history.scales[0].starts.tolist() for m in (old, new)}
    for name in ("own_history.of_state.bias", "own_history.scales.0.of_gap.weight"):
        found = made[name].taken(theirs, parameters[name])
        for place, start in enumerate(starts[new]):
            # The bucket that such a gap was in.
            known = max(n for n, one in enumerate(starts[old]) if one <= start)
            if name.endswith("bias"):
                assert found[place] == theirs[name][known]
            else:
                assert found[place, place] == theirs[name][known, known]
                assert found[-1, place] == theirs[name][-1, known]


@pytest.mark.parametrize("option, value", [("hidden_size", 32), ("fusion", "gated"), ("top_n", 2)])
def test_another_architecture_is_refused_by_its_option(tmp_path, option, value):
    known = small_config().model
    given = small_config(**{option: value}).model
    message = rf"model\.{option} is {value!r}, but {tmp_path} has {getattr(known, option)!r}"
    with pytest.raises(ConfigError, match=message):
        check_architecture(given, known, tmp_path)


def test_what_does_not_change_the_weights_may_change(tmp_path):
    free = {"max_len": 30, "dropout": 0.5, "attention_impl": "torch"}
    check_architecture(small_config(**free).model, small_config().model, tmp_path)
    assert {**free}.keys() <= {name for name in vars(ModelConfig())}


def test_a_column_that_is_gone_is_refused(periods, seeing_run, tmp_path):
    from blossomrec.data.log import EventLog

    items = periods.items.drop("genre")
    log = EventLog.prepare(
        periods.both,
        tmp_path,
        items=items,
        users=periods.users,
        kind="kind",
        context=("shop", "price"),
    )
    with pytest.raises(ConfigError, match=r"model\.content: the column 'genre' is missing"):
        begin(log, seeing_run)


def test_a_log_of_other_items_is_refused(periods, old_run, tmp_path):
    import polars as pl

    from blossomrec.data.log import EventLog

    others = periods.both.select("user_id", pl.col("item_id") + 10**6, "timestamp")
    log = EventLog.prepare(others, tmp_path)
    with pytest.raises(RunError, match="knows no item of"):
        begin(log, old_run)


def test_all_of_what_a_model_may_see_is_on():
    config = small_config(**SEES_ALL).model
    assert {getattr(config, name) for name in SEES_ALL} == {"on"}
