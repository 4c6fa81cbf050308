"""Hooks of MkDocs: the pages of the reference are filled from the code when the site is built.

A page names what it wants in a comment, ``<!-- generated: options -->``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from blossomrec.cli import build_app
from blossomrec.config import EvaluationConfig, ModelConfig, ServingConfig, TrainingConfig
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.reading.options import PrepareOptions
from blossomrec.rolling.options import RollingOptions, UpdateOptions

# Heading, dataclass, what stands before a name in a flag, and what the options are for.
SECTIONS = [
    ("Model", ModelConfig, "model.", "Of `train`, and `model` in a configuration file."),
    ("Training", TrainingConfig, "training.", "Of `train`, and `training` in such a file."),
    ("Evaluation", EvaluationConfig, "evaluation.", "Of `train`, and `evaluation` there."),
    ("Reading a table", PrepareOptions, "", "Of `prepare`; `import-events` takes the first ones."),
    ("Appending a table", AppendOptions, "", "Of `append`."),
    ("Periods", RollingOptions, "", "Of `rolling`, which takes those of `train` as well."),
    ("Updates", UpdateOptions, "update.", "Of `rolling`."),
    ("Server", ServingConfig, "", "Of `serve`."),
]
DOCS = Path(__file__).resolve().parent
OUTWARD = re.compile(r"\[[^\]]+\]\((\.\./[^)#\s]+)\)")
MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
# A role of Sphinx, as docstrings have it, once its target has become code.
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?([\w.]+)</code>")
FOREIGN = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace each mark by what it asks for, and each link that leaves the site by a path."""
    folder = (DOCS / page.file.src_uri).parent
    markdown = OUTWARD.sub(lambda link: _path_in_checkout(link, folder), markdown)
    return MARK.sub(lambda mark: PARTS[mark[1]](), markdown)


def _path_in_checkout(link: re.Match[str], folder: Path) -> str:
    """The path of what a link leads to outside of the docs; MkDocs judges all other links."""
    target = (folder / link[1]).resolve()
    outside = target.exists() and not target.is_relative_to(DOCS)
    return f"`{target.relative_to(DOCS.parent)}`" if outside else link[0]


def on_page_content(html: str, **_: Any) -> str:
    """Leave of a role in a docstring the name alone."""
    return ROLE.sub(r"<code>\1</code>", html)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Refuse a page whose reader would fetch something from another place."""
    if found := FOREIGN.search(output):
        raise ValueError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output


def command_line() -> str:
    """Every verb with its arguments and options."""
    text = build_app().generate_docs(output_format="markdown", heading_level=1)
    # Title and contents are those of the page and of the theme.
    verbs = text[text.index("\n## blossomrec ") :]
    return re.sub(r"``(.*?)``", r"`\1`", verbs.replace("\n## blossomrec ", "\n## "))


def options() -> str:
    """A table for each dataclass of options: flag, default, what it takes, explanation."""
    return "\n".join(line for section in SECTIONS for line in _section(*section))


def _section(title: str, config: type, prefix: str, use: str) -> Iterator[str]:
    yield f"\n## {title}\n\n{use}\n"
    yield "| option | default | takes | |\n|---|---|---|---|"
    hints = get_type_hints(config)
    for entry in dataclasses.fields(config):
        flag = f"--{prefix}{entry.name.replace('_', '-')}"
        cells = f"`{flag}`", _default(entry.default), _takes(hints[entry.name], entry.metadata)
        yield f"| {' | '.join(cells)} | {entry.metadata['help'].replace('|', chr(92) + '|')} |"


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _takes(hint: Any, bounds: Any) -> str:
    """The choices of an option, or its type and bounds."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    kinds = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    several = next((one for one in (hint, *get_args(hint)) if get_origin(one) is tuple), None)
    inner = next((one for one in get_args(several or hint) if one in kinds), hint)
    words = [kinds[inner] + ("s" if several else "")]
    for name, word in (("low", "at least"), ("high", "at most")):
        if bounds.get(name) is not None:
            words.append(f"{word} {bounds[name]:,}")
    return ", ".join(words)


PARTS: dict[str, Callable[[], str]] = {"command-line": command_line, "options": options}
