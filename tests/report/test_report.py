import dataclasses
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from blossomrec.config import EvaluationConfig, RunConfig, to_dict
from blossomrec.data.split import make_split
from blossomrec.errors import DataError, MissingExtraError
from blossomrec.evaluation import RankingOptions, evaluate
from blossomrec.report import plots, sections
from blossomrec.report.report import ModelReport, ReportData, render_report, write_report
from ranking_oracle import DotScorer

SECTIONS = {
    "results": "Results",
    "sampled": "Sampled ranking",
    "learning": "Learning curves",
    "lengths": "Metrics by history length",
    "gates": "Gates",
    "attended": "Attended blocks",
    "data": "Data",
    "protocol": "Protocol",
    "configuration": "Configuration",
}


class Reader(HTMLParser):
    """Collects tags with their attributes and refuses badly nested ones."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader.tags


def log_lines(epochs):
    return [
        {
            "epoch": epoch,
            "loss": 5 / epoch,
            "seconds": 2.0,
            "events_per_second": 1e5,
            "peak_mib": 321.0,
            "validation": {"ndcg@10": 0.1 - abs(epoch - 3) / 100} if epoch % 2 else None,
        }
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture(scope="module")
def data(tiny_log):
    cases = make_split(tiny_log, EvaluationConfig()).test

    def measure(size, ranking="full"):
        scorer = DotScorer(tiny_log.num_items, size)
        options = {"ranking": ranking, "filter_seen": True, "split": "leave-one-out"}
        return evaluate(scorer, tiny_log, cases, RankingOptions(**options))

    rng = np.random.default_rng(0)
    selected = rng.integers(-1, 2, (90, 2, 4))
    models = [
        ModelReport("Popularity <all time>", measure(2)),
        ModelReport("SASRec & full", measure(4), measure(4, "uni100"), log_lines(4)),
        ModelReport(
            "Blossom",
            measure(8),
            measure(8, "uni100"),
            log_lines(1),
            rng.random((2, 4, 2)),
            [("User 7, layer 1", selected)],
        ),
    ]
    return ReportData(
        "A title", "tiny", models, "SASRec & full", tiny_log.summary, to_dict(RunConfig())
    )


@pytest.fixture(scope="module")
def page(data):
    return render_report(data)


def test_every_section_is_there_and_linked(page):
    tags = read(page)
    ids = [attributes.get("id") for tag, attributes in tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert ids == list(SECTIONS)
    assert links == [f"#{name}" for name in SECTIONS]
    for name, heading in SECTIONS.items():
        assert f'<h2 id="{name}-heading">{heading}</h2>' in page


def test_the_page_needs_nothing_from_outside(page):
    assert not re.search(r"https?:", page)
    for tag, attributes in read(page):
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)|@import", page)


def test_ids_are_unique_and_references_lead_to_them(page):
    tags = read(page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {first or second for first, second in references} <= set(ids)


def test_figures_and_tables_can_be_read_aloud(page):
    tags = read(page)
    figures = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(figures) == 9
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)
    assert all("width" not in figure for figure in figures)
    headers = [attributes for tag, attributes in tags if tag == "th"]
    assert all(header["scope"] in ("row", "col") for header in headers)
    assert page.count("<caption>") == page.count("<table>") >= 5


def test_figures_take_their_colours_from_the_page(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--ink)" in figures
    assert "var(--series-3)" in figures
    assert not re.search(r"#0a0[bc]", figures)
    assert "prefers-color-scheme: dark" in page


def test_names_are_escaped(page):
    assert "Popularity &lt;all time&gt;" in page
    assert "<all time>" not in page
    assert "SASRec &amp; full" in page


HOSTILE = "<script>alert('x')</script> & \"y\" {{ 7 * 7 }}"


def page_that_names(data, name):
    """A page in which everything that users name has the same name, in one place or another."""
    first, second, third = data.models
    models = [
        dataclasses.replace(first, name=name),
        dataclasses.replace(second, name=f"second {name}"),
        dataclasses.replace(third, selections=[(name, third.selections[0][1])]),
    ]
    dropped = [{"reason": f"item {name}", "events": 1}]
    summary = {**data.summary, name: name, "dropped": dropped}
    config = {name: {name: name}, f"alone {name}": name}
    return render_report(ReportData(name, name, models, name, summary, config))


def test_nothing_that_users_name_becomes_markup(data):
    page = page_that_names(data, HOSTILE)
    tags = read(page)
    assert {tag for tag, _ in tags} == {tag for tag, _ in read(page_that_names(data, "plain"))}
    assert "<script" not in page and "&amp;lt;" not in page
    assert "Dropped: item &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; " in page
    assert "{{ 7 * 7 }}" in page
    labels = [attributes["aria-label"] for tag, attributes in tags if tag == "svg"]
    assert any(label.startswith(f"Difference from {HOSTILE} in ") for label in labels)


def test_numbers_are_those_of_the_evaluations(data, page):
    results = page[page.index('id="results"') : page.index('id="sampled"')]
    for model in data.models:
        low, high = model.evaluation.intervals["ndcg@10"]
        assert f"{model.evaluation.metrics['ndcg@10']:.4f}" in results
        assert f"{low:.4f}–{high:.4f}" in results
    assert "uni100" not in results


def test_sampled_ranking_says_so(page):
    sampled = page[page.index('<section id="sampled"') : page.index('<section id="learning"')]
    assert "20 to 77 items that the user never met" in sampled
    assert sampled.count("(uni20-77)</th>") == 3


def test_protocol_is_told_in_words(page):
    protocol = page[page.index('<section id="protocol"') :]
    for words in ("Leave-one-out: the last event", "count against the target", "bootstrap", "Holm"):
        assert words in protocol


def test_sections_without_anything_to_show_are_left_out(data):
    plain = ReportData("A title", "tiny", data.models[:1], data.models[0].name)
    tags = read(render_report(plain))
    ids = [attributes.get("id") for tag, attributes in tags if tag == "section"]
    assert ids == ["results", "lengths", "protocol"]


def test_significance_is_marked(data, tiny_log):
    cases = make_split(tiny_log, EvaluationConfig()).test

    class Oracle(DotScorer):
        """Knows that the next item is the next one on the ring."""

        def queries(self, batch):
            rows = batch.items[batch.last_rows].numpy()
            ids = tiny_log.item_vocabulary.ids(rows).to_numpy() + 7
            ids = np.where(ids >= 50_003 + 7 * 80, 50_003, ids)
            return torch.from_numpy(tiny_log.item_vocabulary.rows(ids))

        def scores(self, queries, start, stop):
            return (queries[:, None] == torch.arange(start, stop)).float()

    oracle = evaluate(
        Oracle(tiny_log.num_items),
        tiny_log,
        cases,
        RankingOptions(filter_seen=True, split="leave-one-out"),
    )
    assert oracle.metrics["hr@5"] == 1
    models = [data.models[0], ModelReport("Oracle", oracle)]
    forth = render_report(ReportData("A title", "tiny", models, models[0].name))
    assert "significantly better than Popularity" in forth
    assert "<strong>Oracle</strong> ranks better than" in forth
    back = render_report(ReportData("A title", "tiny", models, "Oracle"))
    assert "significantly worse than Oracle" in back
    assert "significantly better" not in back.replace("significantly better and worse", "")


def test_the_page_is_the_same_every_time(data, page):
    assert render_report(data) == page


def test_it_is_written_whole(data, page, tmp_path):
    write_report(tmp_path / "new" / "report.html", data)
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_without_matplotlib_the_extra_is_named(data, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"blossomrec\[plots\]"):
        write_report(tmp_path / "report.html", data)
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_named(data):
    first, second, _ = data.models
    with pytest.raises(DataError, match="baseline 'GRU' is none of"):
        ReportData("A title", "tiny", data.models, "GRU")
    with pytest.raises(DataError, match="must differ"):
        ReportData("A title", "tiny", [first, first], first.name)
    with pytest.raises(DataError, match="a sampled ranking is given as the full one"):
        ReportData("A title", "tiny", [ModelReport("x", second.sampled)], "x")
    with pytest.raises(DataError, match="a full ranking is given as the sampled one"):
        ReportData("A title", "tiny", [ModelReport("x", first.evaluation, first.evaluation)], "x")


def test_a_union_has_shares_instead_of_gates(data):
    *others, blossom = data.models
    for union, words in (
        (False, "Mean over layers"),
        (True, "Mean share of one softmax, mean over"),
    ):
        model = dataclasses.replace(blossom, is_union=union)
        (figure,) = sections.gates(dataclasses.replace(data, models=[*others, model]))
        assert figure.heading == model.name and words in figure.caption


def test_a_selection_without_blocks_leaves_an_empty_figure():
    nothing = np.full((10, 2, 4), -1)
    drawing = plots.distances([nothing], 16, "nothing selected")
    assert drawing.box and drawing.body.startswith("<") and drawing.alt == "nothing selected"
