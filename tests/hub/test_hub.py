"""Publishing on the Hub and coming from it, with the network's place taken by a folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, MissingExtraError, RunError
from blossomrec.hub.card import model_card
from blossomrec.hub.repository import is_repository
from blossomrec.recommender import BlossomRec
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")
REPOSITORY = "someone/walks-1.0"


class FakeHub:
    """What is used of the package; repositories are folders below ``root``."""

    def __init__(self, root: Path):
        self.root, self.calls = root, []

    def HfApi(self, **given):  # noqa: N802
        self.calls.append(("HfApi", given))
        return self

    def create_repo(self, repo_id, **given):
        self.calls.append(("create_repo", given))
        return f"https://hub/{repo_id}"

    def create_branch(self, repo_id, **given):
        self.calls.append(("create_branch", given))

    def upload_folder(self, *, repo_id, folder_path, revision, **given):
        self.calls.append(("upload_folder", given))
        shutil.copytree(folder_path, self.root / repo_id / (revision or "main"))

    def snapshot_download(self, repo_id, *, revision, allow_patterns):
        self.calls.append(("snapshot_download", allow_patterns))
        if not (self.root / repo_id).exists():
            raise ValueError("404 Client Error.\n\nRepository Not Found")
        return str(self.root / repo_id / (revision or "main"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.fixture(scope="module")
def fitted(tiny_log):
    return BlossomRec(**SMALL).fit(tiny_log, progress=False)


def test_what_is_published_comes_back_the_same(hub, fitted):
    told = fitted.evaluate()
    address = fitted.push_to_hub(REPOSITORY, evaluation=told, private=True, token="secret")
    assert address == f"https://hub/{REPOSITORY}"
    assert hub.calls[0][1]["token"] == "secret"
    assert hub.calls[1][1] == {"private": True, "exist_ok": True, "repo_type": "model"}
    again = BlossomRec.from_pretrained(REPOSITORY, fitted.log)
    assert again.recommend(k=3).equals(fitted.recommend(k=3))
    folder = hub.root / REPOSITORY / "main"
    names = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    tables = {"vocabulary/ids.parquet", "vocabulary/vocabulary.json"}
    assert names == {"README.md", "config.json", "model.safetensors"} | tables


def test_no_path_of_this_machine_is_published(hub, fitted):
    fitted.push_to_hub(REPOSITORY, revision="try")
    folder = hub.root / REPOSITORY / "try"
    assert json.loads((folder / "config.json").read_text())["data"] == "/unpublished"
    here = str(Path(fitted.log.folder).parent).encode()
    assert not any(here in one.read_bytes() for one in folder.rglob("*") if one.is_file())
    again = BlossomRec.from_pretrained(REPOSITORY, revision="try")
    assert again.log is None
    history = [50_003, 50_010]
    assert again.recommend_history(history).equals(fitted.recommend_history(history))


def test_the_run_that_a_model_began_as_is_not_published(hub, fitted, tmp_path):
    first, second = tmp_path / "secret" / "first", tmp_path / "second"
    BlossomRec(**SMALL).fit(fitted.log, first, progress=False)
    given = {"from_run": first, "progress": False}
    updated = BlossomRec(events="all").fit(fitted.log, second, **given)
    assert updated._info.ancestor["run"] == str(first.resolve())
    assert str(first) in (second / "config.json").read_text()
    updated.push_to_hub(REPOSITORY)
    folder = hub.root / REPOSITORY / "main"
    assert json.loads((folder / "config.json").read_text())["ancestor"] is None
    files = [one for one in folder.rglob("*") if one.is_file()]
    assert not any(str(tmp_path).encode() in one.read_bytes() for one in files)
    # What it is on this machine stays.
    assert updated._info.ancestor["run"] == str(first.resolve())


def test_users_are_published_only_where_that_is_said(hub, tiny_events):
    users = tiny_events.select("user_id").unique().sort("user_id").with_row_index("age")
    log = EventLog.prepare(tiny_events, users=users)
    seeing = BlossomRec(**SMALL | {"user_table": "on"}).fit(log, progress=False)
    with pytest.raises(ConfigError, match=r"with_users is False: .* table of 60 users"):
        seeing.push_to_hub(REPOSITORY)
    assert not hub.root.exists()
    seeing.push_to_hub(REPOSITORY, with_users=True)
    again = BlossomRec.from_pretrained(REPOSITORY, log)
    assert again.recommend(k=2).equals(seeing.recommend(k=2))


def test_names_of_repositories_are_told_from_folders(hub, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted.save_pretrained("runs/mine")
    assert not is_repository("runs/mine") and is_repository("runs/other")
    for name in (Path("runs/other"), "/runs/other", "other", "a/b/c", "../a", "a/..", "a/bä"):
        assert not is_repository(name)
    BlossomRec.from_pretrained("runs/mine")
    assert not hub.calls
    with pytest.raises(RunError, match=r"runs/other is neither a folder .* Repository Not Found"):
        BlossomRec.from_pretrained("runs/other")


def test_without_the_package_the_line_that_installs_it_is_told(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[hub\]'"):
        fitted.push_to_hub(REPOSITORY)
    with pytest.raises(RunError, match=r"is not a run folder; .* pip install 'blossomrec\[hub\]'"):
        BlossomRec.from_pretrained(REPOSITORY)


def test_only_files_of_a_model_are_downloaded(hub, fitted):
    fitted.push_to_hub(REPOSITORY)
    BlossomRec.from_pretrained(REPOSITORY)
    patterns = hub.calls[-1][1]
    assert "*" not in patterns and not any(
        one.endswith((".bin", ".pkl", ".py")) for one in patterns
    )


class TestCard:
    def test_it_tells_metrics_with_their_intervals(self, fitted):
        told = fitted.evaluate()
        card = model_card(REPOSITORY, fitted.model, fitted.items, fitted._info, told)
        _, front, body = card.split("---\n", 2)
        (model,) = yaml.safe_load(front)["model-index"]
        values = {one["type"]: one["value"] for one in model["results"][0]["metrics"]}
        assert values == {name: round(value, 6) for name, value in told.metrics.items()}
        low, high = told.intervals["ndcg@10"]
        row = f"| ndcg@10 | {told.metrics['ndcg@10']:.4f} | {low:.4f} to {high:.4f} |"
        assert row in body.splitlines()
        assert f"the {fitted.items.size} items" in body
        assert f'BlossomRec.from_pretrained("{REPOSITORY}")' in body

    def test_without_an_evaluation_it_claims_nothing(self, fitted):
        card = model_card(REPOSITORY, fitted.model, fitted.items, fitted._info)
        assert "model-index" not in card and "No evaluation was published" in card

    def test_its_example_runs(self, fitted):
        card = model_card(REPOSITORY, fitted.model, fitted.items, fitted._info)
        program = card.split("```python\n")[1].split("```")[0]
        lines = [line for line in program.splitlines() if line.startswith("recommender.")]
        (line,) = lines
        assert len(eval(line, {"recommender": fitted})) == 10

    def test_the_hub_reads_it(self, fitted):
        hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
        told = fitted.evaluate()
        card = hub.ModelCard(model_card(REPOSITORY, fitted.model, fitted.items, fitted._info, told))
        assert card.data.library_name == "blossomrec"
        found = {one.metric_type: one.metric_value for one in card.data.eval_results}
        assert found["ndcg@10"] == round(told.metrics["ndcg@10"], 6)
        assert card.data.model_name == "walks-1.0"


def test_the_fake_takes_what_the_package_takes(tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    import inspect

    wanted = {
        hub.HfApi.upload_folder: ("repo_id", "folder_path", "revision", "commit_message"),
        hub.HfApi.create_repo: ("private", "exist_ok", "repo_type"),
        hub.HfApi.create_branch: ("branch", "exist_ok"),
        hub.snapshot_download: ("revision", "allow_patterns"),
        hub.HfApi.__init__: ("token", "library_name"),
    }
    for function, names in wanted.items():
        assert set(names) <= set(inspect.signature(function).parameters)
    assert "delete_patterns" in inspect.signature(hub.HfApi.upload_folder).parameters
