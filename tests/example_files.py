"""What ``examples/`` holds, for tests: its programs as modules, its package as an installed one."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    """A program of the folder, loaded anew."""
    known = f"example_{name}"
    spec = importlib.util.spec_from_file_location(known, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[known] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretend_installed(folder: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """Write into ``folder`` what makes a package with entry points an installed one."""
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [
        line
        for group, points in groups.items()
        for line in [f"[{group}]", *(f"{one} = {place}" for one, place in points.items())]
    ]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))


def install_own_backbone(folder: Path) -> list[Path]:
    """Pretend that ``examples/own_backbone`` is installed; gives what must be on the path."""
    project = tomllib.loads((EXAMPLES / "own_backbone" / "pyproject.toml").read_text())["project"]
    pretend_installed(folder, project["name"], project["entry-points"])
    return [folder, EXAMPLES / "own_backbone"]
