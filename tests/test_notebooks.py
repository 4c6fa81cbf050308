"""The notebooks in ``examples/notebooks``: every cell runs, and shows something where it should."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Runs a notebook once in a kernel, in a folder of its own; gives what each code cell shows."""
    reason = "notebooks are run by nbclient and ipykernel"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("matplotlib", reason="the notebooks draw with matplotlib")
    pytest.importorskip("fastapi", reason="a notebook starts a server")

    @cache
    def run(notebook: Path) -> list[str]:
        stored = nbformat.read(notebook, as_version=4)
        where = {"metadata": {"path": tmp_path_factory.mktemp(notebook.stem)}}
        done = nbclient.NotebookClient(stored, timeout=300, resources=where).execute()
        code = [cell for cell in done.cells if cell.cell_type == "code"]
        return ["".join(map(text_of, cell.outputs)) for cell in code]

    return run


def text_of(output: Any) -> str:
    """What is printed, or is the value of a cell, or stands for a picture; not a warning."""
    if output.output_type == "stream":
        return output["text"] if output["name"] == "stdout" else ""
    return output["data"]["text/plain"]


@by_name
def test_every_cell_runs_and_shows_something(notebook, shown):
    outputs = shown(notebook)
    assert len(outputs) > 4
    assert [number for number, output in enumerate(outputs, 1) if not output] == []


def test_the_errors_of_own_data_name_what_is_wrong(shown):
    (refused,) = (text for text in shown(FOLDER / "own_data.ipynb") if text.startswith("- "))
    assert refused.count("\n- ") == 3
    assert all(word in refused for word in ("song", "track", "yesterday", "min_events"))


@by_name
def test_notebooks_are_stored_without_outputs(notebook):
    stored = json.loads(notebook.read_text())
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    cells = stored["cells"]
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_docs_lead_to_every_notebook():
    page = (ROOT / "docs" / "tutorial.md").read_text()
    found = re.findall(r"\(\.\./examples/notebooks/([\w.]+)\)", page)
    assert sorted(found) == [notebook.name for notebook in NOTEBOOKS]
