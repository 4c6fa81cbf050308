"""``inspect``: its figures against those of one batch, its page, and what it refuses."""

import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
import torch

from benchmarks.selector.measured_selection import gate_balance, measure_selection
from blossomrec.attention import BlossomSpec
from blossomrec.attention.reference import short_term_mask
from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError, MissingExtraError, RunError
from blossomrec.recommender import BlossomRec
from blossomrec.report.attention_profile import recorded
from blossomrec.report.inspect import inspect_page, inspect_tables, inspection, selection_measures
from blossomrec.report.inspect.inspect_page import octaves
from blossomrec.report.inspect.selection_totals import quantiles_of_counts
from blossomrec.run.weights import load_model
from command_line import refuse
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")
OPTIONS = SMALL | {"layers": 2, "heads": 4, "kv_heads": 2, "max_len": 40, "top_n": 2}


def train(log, folder, **options):
    BlossomRec(**OPTIONS | options).fit(log, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def run(tiny_log, tmp_path_factory):
    """A run with two layers and two key/value heads. Read only."""
    folder = tmp_path_factory.mktemp("inspected") / "some <run>"
    return train(tiny_log, folder, fusion="gated")


@pytest.fixture(scope="module")
def bidirectional(tiny_log, tmp_path_factory):
    return train(tiny_log, tmp_path_factory.mktemp("bert") / "run", backbone="bert4rec", sinks=1)


@pytest.fixture(scope="module")
def union(tiny_log, tmp_path_factory):
    return train(tiny_log, tmp_path_factory.mktemp("union") / "run", fusion="union")


@pytest.fixture(params=["run", "bidirectional", "union"])
def either(request):
    return request.getfixturevalue(request.param)


def histories(log, max_len):
    """The test histories, as long as they are looked at; those without a choice as well."""
    for user in range(log.num_users):
        history = log.history(user)
        if len(history) >= 3:
            # For when it is asked changes nothing that is selected.
            yield history[:-1][-max_len:].asked_for(-1)


def heads(inspection):
    return [head for layer in inspection.layers for head in layer.heads]


def test_the_figures_are_those_of_one_batch_of_everything(either, tiny_log):
    """All test histories in one batch and every event of them, by the measures of a batch."""
    found = inspection.inspect_run(either, max_len=30)
    everything = list(histories(tiny_log, 30))
    model = load_model(either)
    batch = pack(everything, model.inputs)
    assert found.choice.histories == len(everything) == 58
    assert found.choice.events == len(batch.items)
    with torch.no_grad(), recorded(model) as attended:
        model.encode(batch)
    form = {"block_size": 4, "causal": model.config.backbone == "sasrec"}
    rows = selection_measures.choosing_rows(batch.cu_seqlens, len(batch.items), top_n=2, **form)
    assert found.choice.choosing_events == found.choice.measured_events == len(rows)
    measures = measure_selection(model, batch, rows=rows)
    for layer, wanted, each in zip(found.layers, measures.layers, attended, strict=True):
        for name in ("covered", "best", "own"):
            assert [getattr(head, name) for head in layer.heads] == pytest.approx(
                getattr(wanted, f"mass_{name}"), rel=1e-5
            )
        assert [head.ratio.value for head in layer.heads] == pytest.approx(
            wanted.mass_ratio, rel=1e-5
        )
        shares = each.shares(batch.cu_seqlens)[rows]
        np.testing.assert_allclose(layer.gates, shares.double().mean(0), rtol=1e-5)
        balance = gate_balance(shares)
        np.testing.assert_allclose(layer.gate_balance, balance, rtol=1e-5)
        check_choices(layer, each.output.selected, batch.cu_seqlens.tolist(), set(rows.tolist()))


def check_choices(layer, selected, edges, choosing):
    """Distances and hubs of every head, against loops over the events with a choice."""
    for group, head in enumerate(layer.heads):
        distances, largest, entropy, count = [], 0.0, 0.0, 0
        for first, last in itertools.pairwise(edges):
            counts = np.zeros((last - first) // 4)
            for row in choosing & set(range(first, last)):
                for block in selected[row, group].tolist():
                    distances.append(4 * abs((row - first) // 4 - block))
                    counts[block] += 1
            if counts.sum():
                largest, count = largest + counts.max(), count + counts.sum() / 2
                part = counts[counts > 0] / counts.sum()
                entropy -= counts.sum() / 2 * (part * np.log(part)).sum() / math.log(len(counts))
        shares = np.bincount(np.array(distances) // 4, minlength=len(head.distance_shares))
        np.testing.assert_allclose(head.distance_shares, shares / len(distances))
        wanted = np.quantile(distances, (0.1, 0.25, 0.5, 0.75, 0.9), method="inverted_cdf")
        assert list(head.distances) == wanted.tolist()
        assert head.hub_shares[0] == pytest.approx(largest / count)
        assert head.entropy == pytest.approx(entropy / count, abs=1e-6)


def test_batches_do_not_change_what_is_found(either, monkeypatch):
    whole = inspection.inspect_run(either, events=300)
    monkeypatch.setattr(inspection, "TOKENS_PER_BATCH", 64)
    parts = inspection.inspect_run(either, events=300)
    assert parts.choice == whole.choice and whole.choice.measured_events == 300

    def close(one, other):
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            return all(close(one[name], other[name]) for name in one)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(close, one, other))
        # A near tie may fall differently where sums run in another order.
        return one == pytest.approx(other, abs=1e-2) if isinstance(one, float) else one == other

    assert close(parts.to_dict(), whole.to_dict())


def test_random_and_short_term_shares_against_loops():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(47, 4, 8, generator=generator)
    k = torch.randn(47, 2, 8, generator=generator)
    edges, rows = [0, 18, 47], torch.randperm(47, generator=generator)
    cu_seqlens = torch.tensor(edges, dtype=torch.int32)
    selected = torch.full((47, 2, 3), -1, dtype=torch.int32)
    for causal in (True, False):
        spec = BlossomSpec(window=2, sinks=3, causal=causal)
        mass = selection_measures.attention_coverage(
            q, k, selected, cu_seqlens, rows, block_size=4, causal=causal
        )
        short = selection_measures.pattern_coverage(q, k, cu_seqlens, rows, spec=spec)
        for place, row in enumerate(rows.tolist()):
            first, last = (0, 18) if row < 18 else (18, 47)
            grouped = q[row].view(2, 2, 8) / math.sqrt(8)
            scores = torch.einsum("grd,lgd->grl", grouped, k[first:last])
            if causal:
                scores[..., row - first + 1 :] = -math.inf
            share = scores.softmax(-1).mean(1)
            mask = short_term_mask(last - first, spec, q.device)[row - first]
            torch.testing.assert_close(short[place], share[:, mask].sum(-1))
            own, complete = (row - first) // 4, (last - first) // 4
            able = [j for j in range(own if causal else complete) if j != own]
            by_block = [share[:, 4 * j : 4 * j + 4].sum(-1) for j in able]
            wanted = sum(by_block, torch.zeros(2)) * min(1, 3 / max(1, len(able)))
            torch.testing.assert_close(mass.random[place], wanted)


def test_shares_keep_their_order(run):
    found = inspection.inspect_run(run)
    for head in heads(found):
        assert 0 < head.covered <= head.best and 0 < head.random < head.best
        assert head.best + head.own <= 1 + 1e-6 and 0 < head.short_term < 1
        assert head.ratio.low <= head.ratio.value <= head.ratio.high <= 1
        assert head.ratio.low < head.ratio.high
    values = [head.ratio.value for head in heads(found)]
    assert min(values) <= found.ratio.value <= max(values)
    assert found.ratio.low < found.ratio.value < found.ratio.high


def test_users_are_a_fixed_sample(run):
    first, again, other = (
        inspection.inspect_run(run, users=10, events=50, seed=seed) for seed in (0, 0, 1)
    )
    assert first.to_dict() == again.to_dict() != other.to_dict()
    assert first.choice.sampled_histories == 10 and first.choice.measured_events == 50
    everyone = inspection.inspect_run(run)
    assert everyone.choice.choosing_histories == everyone.choice.sampled_histories
    assert first.choice.choosing_histories == everyone.choice.choosing_histories
    # Of the histories with 2 to 59 events before the test, those with more than 12.
    assert everyone.choice.choosing_histories == 47


def test_more_of_a_history_than_in_training_may_be_looked_at(run):
    long = inspection.inspect_run(run, max_len=59)
    assert long.max_len == 59 and len(heads(long)[0].distance_shares) == 15
    # Farther than in the last 40 events, whose blocks are at most 9 apart.
    assert all(head.distance_shares[10:].any() for head in heads(long))


def test_quantiles_and_octaves():
    assert quantiles_of_counts(np.array([0, 1, 0, 8, 1])).tolist() == [1, 3, 3, 3, 3]
    assert octaves(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])).tolist() == [1, 5, 22, 8]
    assert octaves(np.array([0, 1, 2])).tolist() == [1, 2]
    assert octaves(np.array([0, 1, 2, 3])).tolist() == [1, 5]


def test_the_command_prints_tables_and_writes_page_and_figures(cli, run, tmp_path):
    pytest.importorskip("matplotlib", reason="the page draws its plots with matplotlib")
    out = tmp_path / "pages" / "one.html"
    shown = cli("inspect", run, "--out", out, "--users", 20, "--seed", 3, "--max-len", 36)
    found = inspection.inspect_run(run, users=20, seed=3, max_len=36)
    written = json.loads(out.with_suffix(".json").read_text())
    assert written == found.to_dict()
    assert sorted(path.name for path in out.parent.iterdir()) == ["one.html", "one.json"]
    page = out.read_text()
    assert "What some &lt;run&gt; selects" in page and "<run>" not in page
    assert shown.count("layer 2, head 2") == 3 and "layer 2, query head 4" in shown
    for head in heads(found):
        for value in (head.covered, head.best, head.random, head.own, head.ratio.value):
            assert f"{value:.1%}" in shown and f"{value:.1%}" in page
        assert f"{head.hub_shares[0]:.1%}" in shown and f"{head.entropy:.3f}" in page
    assert f"{found.choice.choosing_events:,} of {found.choice.events:,}" in shown
    assert f"wrote {out} and one.json" in shown
    for heading in (
        "Attention covered",
        "Distances",
        "Hubs",
        "Examples",
        "Where there is a choice",
    ):
        assert f">{heading}</h2>" in page
    assert page.count("<svg") == 7
    # Nothing is loaded from elsewhere.
    assert not re.search(r'(src|href)="(?!#)|@import|<script|url\((?!#)', page)


def test_the_page_lies_in_the_run_folder(cli, bidirectional):
    pytest.importorskip("matplotlib", reason="the page draws its plots with matplotlib")
    cli("inspect", bidirectional)
    page = (bidirectional / "inspect.html").read_text()
    assert "early blocks can be selected by more events" not in page
    assert json.loads((bidirectional / "inspect.json").read_text())["causal"] is False


def test_a_union_has_shares_instead_of_gates(cli, union, run):
    pytest.importorskip("matplotlib", reason="the page draws its plots with matplotlib")
    cli("inspect", union)
    shares = json.loads((union / "inspect.json").read_text())["layers"][0]["gates"]
    assert np.sum(shares, -1) == pytest.approx(1)
    assert "Mean shares of one softmax" in (union / "inspect.html").read_text()
    page = inspect_page.render_inspection(inspection.inspect_run(run))
    assert "Mean gates" in page and "Mean shares of one softmax" not in page


def test_examples_say_what_the_last_events_select(either, tiny_log):
    found = inspection.inspect_run(either, max_len=30)
    ids, model = tiny_log.item_vocabulary, load_model(either)
    assert len(found.examples) == 3
    for example in found.examples:
        user = int(tiny_log.user_vocabulary.rows([int(example.user)])[0])
        whole = tiny_log.history(user)
        seen = whole[:-1][-30:]
        assert (example.events, example.heads, example.days) == (30, 4, "2023-11-14")
        assert example.target == str(ids.ids(whole.items[-1:]).item())
        batch = pack([seen.asked_for(-1)], model.inputs)
        with torch.no_grad(), recorded(model) as attended:
            model.encode(batch)
        counts = np.zeros(8, int)
        for each in attended:
            chosen = each.output.selected[-1]
            np.add.at(counts, chosen[chosen >= 0].numpy(), 1)
        own, *others = example.blocks
        assert own.heads is None and (own.first, own.last) == (29, 30)
        assert sorted((b.heads for b in others), reverse=True) == [b.heads for b in others]
        assert len(others) == min(6, np.count_nonzero(counts))
        for block in example.blocks:
            part = seen.items[block.first - 1 : block.last]
            assert block.heads is None or block.heads == counts[(block.first - 1) // 4]
            assert block.items == tuple(map(str, ids.ids(part[::-1]).to_list())) and not block.more
    page = inspect_page.render_inspection(found)
    assert ">Examples</h2>" in page and f"User {found.examples[0].user}: 30 events" in page


def test_examples_say_what_comes_from_the_history_itself(tiny_log, tmp_path):
    run = train(tiny_log, tmp_path / "run", repeats="on")
    examples = inspection.inspect_run(run, tiny_log, device="cpu").examples
    for each in examples:
        (user,) = tiny_log.user_vocabulary.rows([int(each.user)])
        *before, target = tiny_log.history(user).items.tolist()
        seen = before[-each.events :].count(target)
        words = {0: "not in the history", 1: "in the history once"}
        assert each.own.startswith(words.get(seen, f"in the history {seen} times"))
        assert not seen or re.search(r": \d+% of its probability", each.own)
        assert f"({each.own})" in inspect_tables.example(each).caption


def test_without_matplotlib_there_are_tables_and_figures(capsys, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["'matplotlib'", "blossomrec[plots]"]
    shown, _ = refuse(capsys, "inspect", run, "--out", tmp_path / "page.html", words=words)
    assert "layer 1, head 1" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]
    with pytest.raises(MissingExtraError):
        inspect_page.render_inspection(inspection.inspect_run(run))


def test_one_selected_block_reads_well(tiny_log, tmp_path):
    pytest.importorskip("matplotlib", reason="the page draws its plots with matplotlib")
    run = train(tiny_log, tmp_path / "run", top_n=1)
    page = inspect_page.render_inspection(inspection.inspect_run(run))
    assert "The selected block covers <strong>" in page


@pytest.mark.parametrize("options", [{"attention": "full"}, {"backbone": "gru4rec"}], ids=str)
def test_models_without_blossom_attention_are_refused(tiny_log, tmp_path, options):
    run = train(tiny_log, tmp_path / "run", **options)
    with pytest.raises(RunError, match="has no Blossom attention") as error:
        inspection.inspect_run(run)
    assert str(run) in str(error.value) and next(iter(options.values())) in str(error.value)
    kind = "without" if "backbone" in options else "full"
    assert str(error.value).endswith(f", {kind} attention")


def test_histories_too_short_for_a_choice_are_refused(capsys, run, tmp_path):
    out = tmp_path / "page.html"
    words = ["has 12 events, too short for a choice", "2 selected blocks of 4 events", "to 12 ev"]
    shown, _ = refuse(capsys, "inspect", run, "--max-len", 12, "--out", out, words=words)
    assert shown == "" and not any(tmp_path.iterdir())
    assert inspection.inspect_run(run, max_len=13).choice.choosing_events == 47


@pytest.mark.parametrize(
    "options, words",
    [
        ({"users": 0}, "users is 0: it must be from 1"),
        ({"events": 0}, "events is 0: it must be from 1"),
        ({"max_len": 1}, "max_len is 1: it must be at least 2"),
        ({"seed": -1}, "seed is -1: it must be from 0"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_wrong_options_are_named(run, options, words):
    with pytest.raises(ConfigError, match=words):
        inspection.inspect_run(run, **options)


def test_a_page_has_the_name_of_a_page(capsys, run, tmp_path):
    words = [tmp_path / "page.json", "ends in .html"]
    refuse(capsys, "inspect", run, "--out", tmp_path / "page.json", words=words)


def test_the_log_must_be_there_and_belong_to_the_run(run, tiny_log, repeat_log, tmp_path):
    named = inspection.inspect_run(run, tiny_log.folder)
    assert named.to_dict() == inspection.inspect_run(run).to_dict()
    with pytest.raises(RunError, match="another vocabulary"):
        inspection.inspect_run(run, repeat_log.folder)
    with pytest.raises(DataError, match="gone is not a prepared log"):
        inspection.inspect_run(run, tmp_path / "gone")
    BlossomRec.from_pretrained(run).save_pretrained(tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match="is not there: give the log"):
        inspection.inspect_run(tmp_path / "moved")
