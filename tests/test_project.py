"""What belongs to a project beside its code: the wheel, licence, citation and guides."""

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from blossomrec import __version__

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
PACKAGE = ROOT / "src" / "blossomrec"
# What Python does not import, and the wheel must not forget.
SUFFIXES = {".cpp", ".h", ".cu", ".cuh", ".html", ".css", ".js", ".toml", ".typed", ".md"}

TEMPLATES = {"base.html", "inspect.html", "parts.html", "report.html", "style.css"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    wanted = {
        str(path.relative_to(PACKAGE.parent)) for path in files if "__pycache__" not in path.parts
    }
    assert names == wanted
    assert {Path(name).suffix for name in names} == SUFFIXES | {".py"}
    assert {"blossomrec/py.typed", "blossomrec/serving/page/index.html"} <= names
    templates = {name for name in names if name.startswith("blossomrec/report/templates/")}
    assert {Path(name).name for name in templates} == TEMPLATES


def test_the_wheel_says_what_it_is(wheel):
    folder = f"blossomrec-{__version__}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Author: The blossomrec authors\n" in metadata
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "blossomrec = blossomrec.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_the_version_stands_in_one_place(project):
    assert "version" in project["dynamic"] and "version" not in project
    # Those of examples are of packages of their own, those of results of what was measured.
    suffixes = {".py", ".toml", ".md", ".cff", ".yaml", ".yml", ".conf", ""}
    places = [ROOT, ROOT / ".ci", *map(ROOT.joinpath, ("benchmarks", "deploy", "docs", "src"))]
    files = {
        path
        for place in places
        for path in (place.iterdir() if place == ROOT else place.rglob("*"))
        if path.is_file() and path.suffix in suffixes
    }
    assert {"pyproject.toml", "CITATION.cff", "Dockerfile", "prometheus.yaml"} <= {
        path.name for path in files
    }
    version = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    named = {str(path.relative_to(ROOT)) for path in files if version.search(path.read_text())}
    # The change log names it as well, from its release on.
    assert named - {"CHANGELOG.md"} == {"src/blossomrec/__init__.py"}


def test_the_change_log_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", one) for one in versions[1:]]
    assert all(released), versions
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_all_is_every_extra_that_can_live_with_the_others(project):
    extras = project["optional-dependencies"]
    named = re.findall(r"blossomrec\[([\w,]+)\]", " ".join(extras["all"]))
    gathered = [extra for one in named for extra in one.split(",")]
    assert sorted(gathered) == sorted(extras.keys() - {"all", "dev", "docs", "recbole", "rectools"})


def test_one_licence_everywhere(project):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == project["license"]
    assert [one["name"] for one in cited["authors"]] == [one["name"] for one in project["authors"]]
    paper = cited["references"][0]
    assert paper["url"] == project["urls"]["Paper"] and "2512.13368" in paper["doi"]
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("name", GUIDES)
def test_links_and_paths_of_the_guides_lead_to_files(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https:") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:src|tests|docs|\.ci)/[^`\s]+)`", text):
        assert (ROOT / path).exists(), path


def test_names_in_the_guide_are_those_of_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path, name in [
        ("losses/__init__.py", "build_loss"),
        ("losses/__init__.py", "TrainingLoss"),
        ("losses/sampled.py", "SampledLoss"),
        ("registry.py", "LOSSES"),
        ("config/training.py", "TrainingConfig"),
        ("models/scorer.py", "Scorer"),
        ("models/sequence.py", "SequenceModel"),
        ("models/building.py", "build_model"),
        ("registry.py", "BACKBONES"),
        ("models/baselines/base.py", "Baseline"),
        ("models/baselines/__init__.py", "BASELINES"),
        ("evaluation/metrics.py", "METRICS"),
        ("evaluation/list_metrics.py", "LIST_METRICS"),
        ("evaluation/list_metrics.py", "CATALOGUE_METRICS"),
        ("serving/stores/store.py", "EventStore"),
        ("serving/stores/store.py", "new_events"),
        ("serving/stores/store.py", "carried_out"),
        ("serving/stores/__init__.py", "store_opener"),
        ("serving/stores/__init__.py", "STORES"),
        ("serving/testing/__init__.py", "StoreContract"),
        ("attention/api.py", "IMPLEMENTATIONS"),
    ]:
        assert f"`{name}" in text
        assert re.search(rf"^(class |def )?{name}\b", (PACKAGE / path).read_text(), re.MULTILINE)


def test_machines_elsewhere_run_the_same_checks():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["check"]["steps"] if "run" in step] == ["bash .ci/run"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in hooks] == ["local"]
    commands = re.findall(r"\$\(BIN\)/(ruff \w+|pyright)", (ROOT / "Makefile").read_text())
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    for command in commands:
        assert any(entry.startswith(f".venv/bin/{command}") for entry in entries), command
