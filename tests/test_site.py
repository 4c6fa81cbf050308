"""The site of the documentation: its reference is that of the code, and it builds strictly."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from blossomrec.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_at(address):
    return SimpleNamespace(file=SimpleNamespace(src_uri=address))


def filled(hooks, name):
    text = (DOCS / "reference" / name).read_text()
    assert "<!-- generated: " in text
    return hooks.on_page_markdown(text, page=page_at(f"reference/{name}"))


def test_every_verb_has_its_part_of_the_reference(hooks):
    page = filled(hooks, "command-line.md")
    assert set(re.findall(r"^## (\S+)$", page, re.MULTILINE)) == set(VERBS)
    assert all(verb.help in page for verb in VERBS.values())
    assert "`--training.learning-rate FLOAT`" in page and "`--store STR`" in page


def test_every_option_has_its_row(hooks):
    page = filled(hooks, "options.md")
    rows = dict(re.findall(r"^\| `--(\S+)` \| (.*) \|$", page, re.MULTILINE))
    names = {
        f"{prefix}{entry.name.replace('_', '-')}"
        for _, config, prefix, _ in hooks.SECTIONS
        for entry in dataclasses.fields(config)
    }
    assert set(rows) == names
    assert rows["model.max-len"].startswith(
        "`200` | whole number, at least 2, at most 10,000,000 |"
    )
    assert rows["evaluation.ks"].startswith("`5 10 20` | whole numbers, at least 1,")
    assert rows["training.track-model"].startswith("`false` | true or false |")
    assert rows["separator"].startswith(" | text |")
    assert rows["model.norm"].startswith("`post` | `pre`, `post` |")


def test_a_page_that_loads_from_elsewhere_is_refused(hooks):
    page = page_at("index.md")
    link = '<a href="https://example.org">there</a><link href="site.css" rel="stylesheet">'
    assert hooks.on_post_page(link, page=page) == link
    for part in ('<script src="https://cdn.example/x.js">', "<img alt=x src=//cdn.example/x.png>"):
        with pytest.raises(ValueError, match=r"index\.md loads from elsewhere"):
            hooks.on_post_page(link + part, page=page)


def test_links_to_files_of_the_checkout_become_their_paths(hooks):
    text = "[x](../results/speed.jsonl), [y](../missing.py), [z](events.md), [c](../docs/runs.md)"
    changed = hooks.on_page_markdown(text, page=page_at("index.md"))
    assert changed == text.replace("[x](../results/speed.jsonl)", "`results/speed.jsonl`")


def test_roles_of_docstrings_become_plain_names(hooks):
    html = "see :meth:<code>~a.B.fit</code> and <code>c</code>"
    assert hooks.on_page_content(html) == "see <code>a.B.fit</code> and <code>c</code>"


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_builds_strictly_and_every_page_is_in_it(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")]
    assert not [page for page in pages if not (tmp_path / page).exists()]
    assert not list(tmp_path.rglob("*.py"))
    python = (tmp_path / "reference" / "python.html").read_text()
    public = ["BlossomRec", "EventLog", "attention.BlossomSpec", "attention.blossom_attention"]
    assert all(f'id="blossomrec.{name}"' in python for name in [*public, "serving.Client"])
    assert "generated:" not in (tmp_path / "reference" / "options.html").read_text()
