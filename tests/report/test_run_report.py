import html
import json
import re

import numpy as np
import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import DataError, RunError
from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
from blossomrec.measure import evaluate_baseline, evaluate_run
from blossomrec.recommender import BlossomRec
from blossomrec.report.report import model_report, write_run_report
from small_options import SMALL

pytest.importorskip("matplotlib", reason="a report draws its plots with matplotlib")


@pytest.fixture(scope="module")
def place(tiny_log, tmp_path_factory):
    """Run folders of two models and the folder of a baseline, all evaluated. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {"dense": {"attention": "full"}, "sparse": {"epochs": 2}}.items():
        BlossomRec(**SMALL | options).fit(tiny_log, folder / name, progress=False)
        for ranking in ("full", "uni100"):
            measured = evaluate_run(folder / name, ranking=ranking)
            save_evaluation(measured, evaluation_path(folder / name, ranking=ranking))
    measured = evaluate_baseline("popularity", tiny_log)
    save_evaluation(measured, evaluation_path(folder / "popular"))
    return folder


def write(runs, tmp_path):
    write_run_report(runs, tmp_path / "report.html", title="A title")
    return (tmp_path / "report.html").read_text()


def test_the_page_shows_every_model_by_its_folder(place, tmp_path):
    page = write([place / name for name in ("popular", "dense", "sparse")], tmp_path)
    for name in ("popular", "dense", "sparse"):
        assert re.search(rf"<th[^>]*>{name}\b", page)
    assert "Differences from popular" in page
    for section in ("Results", "Sampled ranking", "Learning curves", "Gates", "Attended blocks"):
        assert f">{section}</h2>" in page
    assert "history 1, 20 events from 2023-11-14, layer 1" in page
    assert "A title" in page
    for name in ("dense", "sparse"):
        assert f"<h3>{name}</h3>" in page


def test_names_may_be_given(place, tmp_path):
    runs = {"SASRec <full>": place / "dense", "Most popular": str(place / "popular")}
    page = write(runs, tmp_path)
    assert "SASRec &lt;full&gt;" in page and "Most popular" in page
    assert "Differences from SASRec &lt;full&gt;" in page
    assert "<h3>SASRec &lt;full&gt;</h3>" in page
    assert ">Gates</h2>" not in page


def test_a_report_knows_what_a_run_wrote(place, tiny_log):
    report = model_report("sparse", place / "sparse", tiny_log)
    assert [line["epoch"] for line in report.log_lines] == [1, 2]
    assert report.gates.shape == (1, 2, 2) and report.is_union
    assert report.block_size == 4
    assert [title for title, _ in report.selections] == [
        f"history {number}, 20 events from 2023-11-14, layer 1" for number in (1, 2, 3)
    ]
    assert all(blocks.shape == (20, 1, 1) for _, blocks in report.selections)
    assert report.sampled.protocol.ranking == "uni100"
    dense = model_report("dense", place / "dense", tiny_log)
    assert dense.gates is None and dense.selections == []
    popular = model_report("popular", place / "popular", tiny_log)
    assert popular.sampled is None and list(popular.log_lines) == []


def test_what_was_saved_without_its_log_can_be_shown(place, tmp_path):
    BlossomRec.from_pretrained(place / "sparse").save_pretrained(tmp_path / "saved")
    save_evaluation(evaluate_run(tmp_path / "saved"), evaluation_path(tmp_path / "saved"))
    page = write([tmp_path / "saved", place / "popular"], tmp_path)
    assert ">Gates</h2>" in page
    assert ">Learning curves</h2>" not in page


def test_histories_within_one_block_have_no_map(repeat_log, tmp_path):
    BlossomRec(**SMALL | {"block_size": 64, "compress_window": 64}).fit(
        repeat_log, tmp_path / "run", progress=False
    )
    save_evaluation(evaluate_run(tmp_path / "run"), evaluation_path(tmp_path / "run"))
    page = write([tmp_path / "run"], tmp_path)
    assert ">Gates</h2>" in page
    assert ">Attended blocks</h2>" not in page


def test_a_folder_without_an_evaluation_is_named(place, tiny_log, tmp_path):
    BlossomRec.from_pretrained(place / "dense").save_pretrained(tmp_path / "new")
    with pytest.raises(RunError, match=r"holds no test-full\.json") as error:
        write([place / "sparse", tmp_path / "new"], tmp_path)
    command = f"blossomrec evaluate {tmp_path / 'new'} --on test --ranking full"
    assert str(error.value).endswith(f"{tmp_path / 'new'} holds no test-full.json: run  {command}")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_one_folder_is_no_list_of_folders(place, tmp_path, kind):
    with pytest.raises(RunError, match="a list of folders is needed"):
        write(kind(place / "sparse"), tmp_path)


def test_baselines_alone_make_no_report(place, tmp_path):
    with pytest.raises(RunError, match=r"none of .*popular is a trained run"):
        write([place / "popular"], tmp_path)


def test_two_of_the_same_name_are_refused(place, tmp_path):
    folder = tmp_path / "other" / "sparse"
    BlossomRec.from_pretrained(place / "dense").save_pretrained(folder)
    save_evaluation(evaluate_run(folder), evaluation_path(folder))
    with pytest.raises(DataError, match="names of models in a report must differ"):
        write([place / "sparse", folder], tmp_path)
    page = write({"first": place / "sparse", "second": folder}, tmp_path)
    assert "<h3>first</h3>" in page and "<h3>second</h3>" in page


def test_runs_of_different_vocabularies_are_refused(place, repeat_log, tmp_path):
    BlossomRec(**SMALL).fit(repeat_log, tmp_path / "other", progress=False)
    save_evaluation(evaluate_run(tmp_path / "other"), evaluation_path(tmp_path / "other"))
    for runs in ([place / "sparse", tmp_path / "other"], [tmp_path / "other", place / "sparse"]):
        with pytest.raises(RunError, match="another vocabulary") as error:
            write(runs, tmp_path)
        assert str(runs[1]) in str(error.value)


def test_a_log_that_was_prepared_again_is_refused(tiny_events, tmp_path):
    log = EventLog.prepare(tiny_events, tmp_path / "log")
    BlossomRec(**SMALL).fit(log, tmp_path / "run", progress=False)
    save_evaluation(evaluate_run(tmp_path / "run"), evaluation_path(tmp_path / "run"))
    EventLog.prepare(tiny_events.with_columns(pl.col("timestamp") + 1), tmp_path / "log")
    with pytest.raises(RunError, match=r"trained on other data than .* has now \(times\)"):
        write([tmp_path / "run"], tmp_path)


def test_different_cases_are_refused(place, tiny_log, tmp_path):
    measured = evaluate_baseline("popularity", tiny_log, split="global-time")
    save_evaluation(measured, evaluation_path(tmp_path / "later"))
    with pytest.raises(DataError, match="cannot be compared"):
        write([place / "dense", tmp_path / "later"], tmp_path)


def test_a_log_that_is_gone_is_named(place, tmp_path):
    BlossomRec.from_pretrained(place / "dense").save_pretrained(tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    values = json.loads(path.read_text()) | {"data": str(tmp_path / "gone")}
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="gone is not a prepared log"):
        write([tmp_path / "moved"], tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_items_have_their_titles_and_kinds_their_metrics(tmp_path):
    """Titles are cut and escaped, categories beside them; metrics by kind with tests."""
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(40), 20)
    events = pl.DataFrame(
        {
            "user_id": users,
            "item_id": (rng.random(800) ** 2 * 30).astype(int),
            "timestamp": 1_700_000_000 + 86_400 * np.arange(800),
            "kind": rng.choice(["view", "<buy>"], 800),
        }
    )
    items = pl.DataFrame(
        {
            "item_id": np.arange(30),
            "title": [f"<b>{n}</b>" + " and more" * n for n in range(30)],
            "main_genre": [f"genre & {n % 3}" for n in range(30)],
        }
    )
    people = pl.DataFrame({"user_id": np.arange(40), "plan": ["free", "<paid>"] * 20})
    log = EventLog.prepare(events, tmp_path / "log", kind="kind", items=items, users=people)
    own = {"own_metrics": ["diversity:main_genre"], "segments": ["plan"]}
    for name, asked in {"popularity": {}, "transitions": own}.items():
        found = evaluate_baseline(name, log, **asked)
        save_evaluation(found, evaluation_path(tmp_path / name))
    BlossomRec(**SMALL | {"epochs": 1}).fit(log, tmp_path / "run", progress=False)
    save_evaluation(evaluate_run(tmp_path / "run"), evaluation_path(tmp_path / "run"))
    runs = [tmp_path / name for name in ("popularity", "transitions", "run")]
    write_run_report(runs, tmp_path / "page.html", title="Page")
    page = (tmp_path / "page.html").read_text()
    assert ">Items recommended most</h2>" in page and ">Metrics by kind of event</h2>" in page
    assert "<b>" not in page and "&lt;b&gt;0&lt;/b&gt;" in page
    assert "Main genre" in page and "genre &amp; 1" in page
    # The most popular item; every list holds it.
    best = log.item_vocabulary.ids([0]).item()
    table = page[page.index("What popularity recommends most often") :]
    assert re.search(rf"<tbody>\s*<tr><th scope=\"row\">\s*{best}</th>", table)
    titles = re.findall(r"&lt;b&gt;[^<]*", table)
    assert any(title.endswith("…") for title in titles)
    assert max(len(html.unescape(title)) for title in titles) <= 60
    assert "&lt;buy&gt;" in page
    assert "Differences from popularity in NDCG@10 by kind of the target" in page
    # What only one model was measured by is shown of that one.
    assert ">Metrics by segment of users</h2>" in page and "&lt;paid&gt;" in page
    assert "Diversity@10 (main_genre)" in page and "Diversity@k (main_genre)" in page
    model = model_report("run", tmp_path / "run", log)
    assert all("events from 2023-" in title for title, _ in model.selections)
