import dataclasses
import io
import json
import re
import shlex

import polars as pl
import pytest
from rich.console import Console

from blossomrec import demo
from blossomrec.config import ModelConfig
from blossomrec.data.log import EventLog
from blossomrec.data.simulate import SimulationConfig, simulate
from blossomrec.demo import later
from blossomrec.errors import BlossomRecError, ConfigError, DataError, RunError
from blossomrec.training import trainer
from blossomrec.updating.runs import Runs

pytest.importorskip("matplotlib", reason="the demo's report draws its plots with matplotlib")

COUNTING = ["popularity", "recent-popularity", "transitions", "item-knn", "ease"]
PERSONAL = ["personal-frequency", "personal-recency"]
MODELS = ["SASRec", "BlossomRec", *COUNTING]
TINY = SimulationConfig(
    users=50, items=80, events_per_user=15.0, interests=4, interests_per_user=2, tastes=2
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    small = ModelConfig(
        max_len=20,
        hidden_size=16,
        heads=2,
        kv_heads=1,
        layers=1,
        inner_size=16,
        block_size=4,
        compress_window=8,
        top_n=1,
        window=2,
    )
    monkeypatch.setattr(demo, "MODEL", small)


def run(folder, **options):
    """Run the demo for an epoch; gives what it printed."""
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    demo.run_demo(folder, console=console, **{"epochs": 1} | options)
    return shown.getvalue()


def renamed(events):
    """The events with ids and columns as others have them."""
    return events.select(
        pl.format("[/{}]", "user_id").alias("who"),
        pl.format("[b]{}", "item_id").alias("what"),
        pl.col("timestamp").alias("when"),
    )


COLUMNS = {"user": "who", "item": "what", "timestamp": "when"}


def test_the_demo_on_a_file_writes_everything_and_goes_on(tmp_path, monkeypatch):
    file, folder = tmp_path / "mine.csv", tmp_path / "new" / "demo"
    renamed(simulate(TINY)).write_csv(file)
    shown = run(folder, events=file, **COLUMNS)
    for name in MODELS:
        assert name in shown
        assert (folder / name / "evaluations/test-full.json").is_file()
    assert f"Report with plots: {folder / 'report.html'}" in shown
    assert shown.count("[b]") >= 10 and "User [/" in shown
    page = (folder / "report.html").read_text()
    assert "<h1>mine.csv</h1>" in page
    assert all(name in page for name in MODELS)
    assert ">Gates</h2>" in page and ">Learning curves</h2>" in page
    config = json.loads((folder / "BlossomRec/config.json").read_text())["config"]
    assert config["model"]["attention"] == "blossom"
    config = json.loads((folder / "SASRec/config.json").read_text())["config"]
    assert config["model"]["attention"] == "full"

    (folder / "report.html").unlink()
    monkeypatch.setattr(trainer, "device_steps", lambda *_: pytest.fail("trained again"))
    again = run(folder, events=file, **COLUMNS)
    assert again == shown
    assert (folder / "report.html").read_text() == page


def test_own_items_are_a_baseline_where_items_repeat(tmp_path):
    users, items = zip(*((user, step % 5) for user in range(9) for step in range(12)), strict=True)
    events = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": range(len(users))})
    events.write_csv(tmp_path / "repeats.csv")
    shown = run(tmp_path / "demo", events=tmp_path / "repeats.csv")
    page = (tmp_path / "demo" / "report.html").read_text()
    for name in PERSONAL:
        assert name in shown and name in page
    # Every model has a colour of its own.
    key = re.findall(r'--series-(\d)\)">(.)</span>([\w-]+)</li>', page)
    kinds = {name: (colour, mark) for colour, mark, name in key}
    assert set(kinds) >= {*MODELS, *PERSONAL}
    assert len({kinds[name] for name in (*MODELS, *PERSONAL)}) == len(MODELS) + len(PERSONAL)


def test_the_last_lines_are_commands_that_work(tmp_path, monkeypatch, capsys):
    tmp_path = tmp_path / "with spaces"
    tmp_path.mkdir()
    pytest.importorskip("fastapi", reason="the demo's last command serves")
    from blossomrec.cli import main
    from blossomrec.serving.http import server

    renamed(simulate(TINY)).write_csv(tmp_path / "mine.csv")
    shown = run(tmp_path / "demo", events=tmp_path / "mine.csv", **COLUMNS)
    ask, load, serve = (
        shlex.split(line.split("blossomrec ", 1)[1].split("    then")[0])
        for line in shown.splitlines()
        if "blossomrec " in line
    )
    capsys.readouterr()
    assert main([*ask, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 10
    assert main(load) == 0
    served = []
    monkeypatch.setattr(server, "run_server", lambda *given, **options: served.append(given))
    assert main(serve) == 0
    (given,) = served
    assert given[:2] == (tmp_path / "demo/BlossomRec", str(tmp_path / "demo/events.sqlite"))


def test_the_demo_simulates_events_of_its_own(tmp_path, monkeypatch):
    asked = []

    def tiny(config):
        asked.append(config)
        return simulate(TINY)

    monkeypatch.setattr(demo, "simulate", tiny)
    shown = run(tmp_path, seed=4)
    assert asked == [dataclasses.replace(demo.SIMULATION, seed=4)]
    assert "<h1>Simulated events</h1>" in (tmp_path / "report.html").read_text()
    order = ("item-knn", "Training BlossomRec", "A first report", "Training SASRec", "Later")
    assert [shown.index(words) for words in order] == sorted(map(shown.index, order))
    config = json.loads((tmp_path / "BlossomRec/config.json").read_text())["config"]
    assert (config["training"]["seed"], config["training"]["epochs"]) == (4, 1)


def test_an_update_shows_what_later_events_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "simulate", lambda config: simulate(TINY))
    shown = run(tmp_path)
    events, kept = simulate(TINY), later.keep_back(simulate(TINY))
    assert len(kept.events) == round(0.05 * len(events)) and len(kept.new_items) == 1
    assert kept.before["timestamp"].max() <= kept.events["timestamp"].min()
    (new,) = kept.new_items
    assert new in kept.events["item_id"] and new not in kept.before["item_id"]
    assert EventLog.open(tmp_path / "log").num_events == len(kept.before)
    grown = EventLog.open(tmp_path / "later/log")
    assert grown.num_events == len(kept.before) + len(kept.events)
    runs = Runs(tmp_path)
    (line,) = runs.history()
    assert (line["run"], line["from"]) == ("00001", "BlossomRec")
    assert runs.current() == ("00001" if line["taken"] else "BlossomRec")
    page = (tmp_path / "report.html").read_text()
    assert ">After an update</h2>" in page and ">before</th>" in page
    assert f"new items (1): {new}" in shown.split("Later: new events")[1]
    # Again, there is nothing new to train on, and the same is shown.
    again = run(tmp_path)
    assert "nothing is new" in again and len(list(tmp_path.glob("0*"))) == 1
    assert (tmp_path / "report.html").read_text() == page


@pytest.mark.parametrize(
    "rows, words",
    [
        pytest.param([(1, 1), (1, 2), (1, 3)], "single user", id="one user"),
        pytest.param([(1, 1), (2, 1), (1, 1)], "single item", id="one item"),
        pytest.param([(1, 1), (1, 2), (2, 2)], "no user has 3 events", id="short histories"),
        pytest.param(
            [(1, 1), (1, 2), (1, 3), (2, 2)], "at least 2 training events", id="nothing to learn"
        ),
    ],
)
def test_a_file_too_small_for_the_demo_is_refused(tmp_path, rows, words):
    users, items = zip(*rows, strict=True)
    events = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": range(len(rows))})
    events.write_csv(tmp_path / "events.csv")
    with pytest.raises(DataError, match=words):
        run(tmp_path / "demo", events=tmp_path / "events.csv")
    assert not (tmp_path / "demo" / "report.html").exists()


def test_the_smallest_file_that_can_be_learned_from_is_enough(tmp_path):
    rows = [(user, item) for user in (1, 2) for item in range(4)]
    users, items = zip(*rows, strict=True)
    events = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": range(len(rows))})
    events.write_csv(tmp_path / "events.csv")
    run(tmp_path / "demo", events=tmp_path / "events.csv")
    assert "BlossomRec" in (tmp_path / "demo" / "report.html").read_text()


def test_other_events_need_another_folder(tmp_path):
    for name, seed in (("first", 0), ("second", 1)):
        events = simulate(SimulationConfig(**vars(TINY) | {"seed": seed}))
        events.write_parquet(tmp_path / f"{name}.parquet")
    run(tmp_path / "demo", events=tmp_path / "first.parquet")
    with pytest.raises(RunError, match="another vocabulary"):
        run(tmp_path / "demo", events=tmp_path / "second.parquet")


def test_wrong_input_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.epochs is 0"):
        run(tmp_path / "demo", epochs=0)
    with pytest.raises(BlossomRecError, match=r"none\.csv does not exist"):
        run(tmp_path / "demo", events=tmp_path / "none.csv")
    assert list(tmp_path.iterdir()) == []
