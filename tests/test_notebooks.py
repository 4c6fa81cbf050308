"""The notebooks in ``examples/notebooks``: every cell runs, and shows something where it should."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

pytestmark = pytest.mark.usefixtures("one_thread")
by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source: str, name: str, namespace: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; gives the value of its last line, None without one."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Runs a notebook in this process, in a folder of its own; gives what each cell shows."""
    plots = pytest.importorskip("matplotlib.pyplot", reason="the notebooks draw with matplotlib")
    pytest.importorskip("fastapi", reason="a notebook starts a server")
    plots.switch_backend("agg")
    monkeypatch.chdir(tmp_path)

    def run(notebook: Path) -> list[str]:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        outputs = []
        for number, source in enumerate(code_of(notebook), 1):
            value = run_cell(source, f"{notebook.name}, code cell {number}", namespace)
            printed = capsys.readouterr().out
            drawn = "".join(f"figure {figure}" for figure in plots.get_fignums())
            plots.close("all")
            outputs.append(printed + drawn + ("" if value is None else repr(value)))
        return outputs

    return run


@by_name
def test_every_cell_runs_and_shows_something(notebook, shown):
    outputs = shown(notebook)
    sources = code_of(notebook)
    assert len(outputs) == len(sources) > 4
    assert [source for source, output in zip(sources, outputs, strict=True) if not output] == []


@by_name
def test_notebooks_run_in_a_kernel(notebook, tmp_path):
    reason = "in a kernel notebooks are run by nbclient and ipykernel"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    stored = pytest.importorskip("nbformat", reason=reason).read(notebook, as_version=4)
    where = {"metadata": {"path": tmp_path}}
    done = nbclient.NotebookClient(stored, timeout=300, resources=where).execute()
    assert all(cell.outputs for cell in done.cells if cell.cell_type == "code")


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
