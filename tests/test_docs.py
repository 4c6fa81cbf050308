"""The documentation says what the results say, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_tables_are_those_of_the_results():
    command = [sys.executable, "-m", "benchmarks", "tables", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https:") or (page.parent / target).exists(), target


def test_every_verb_stands_in_the_readme():
    from blossomrec.cli import VERBS

    named = set(re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == set(VERBS)


def code_of(page):
    """Inline code and the lines of fenced blocks; a command over several lines is one of them."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [re.sub(r"\s*\\?\n\s*", " ", one) for one in inline] + [
        line for block in fenced for line in block.replace("\\\n", " ").splitlines()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_those_of_the_command_line(page):
    from blossomrec.cli import VERBS, build_app

    app = build_app()
    for line in code_of(page):
        found = re.match(r"(?:\S+=\S+ )*blossomrec ([a-z][\w-]*)([^#]*)", line)
        if found:
            verb, rest = found.groups()
            assert verb in VERBS, line
            known = app[verb].assemble_argument_collection()
            names = {name for argument in known for name in argument.names}
            assert set(re.findall(r"(?<!\S)--[a-z][\w.-]*", rest)) <= names, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_docs_is_python(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        compile(block, str(page), "exec")
