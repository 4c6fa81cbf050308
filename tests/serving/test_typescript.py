"""The client of ``examples/typescript``, its types made of the schema, against a live server."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from serving_runs import Process

from example_files import EXAMPLES

FOLDER = EXAMPLES / "typescript"
PACKAGES = FOLDER / "node_modules"
pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir() or shutil.which("npm") is None,
    reason="the packages of examples/typescript are not installed: npm install there",
)


def test_the_typescript_client(run, item_ids, cli, tmp_path):
    def npm(*words: str) -> str:
        command = ["npm", "run", "--silent", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for name in ("package.json", "tsconfig.json", "client.ts"):
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    (tmp_path / "openapi.json").write_text(cli("openapi"))
    npm("types")
    npm("build")
    with Process(run, tmp_path / "events.sqlite") as process:
        shown = npm("start", "--", process.url, *map(str, item_ids[:3])).splitlines()
    assert shown[0] == "stored: 3"
    assert shown[1].startswith("recommended: [")
    assert shown[-1] == "deleted: 3 events"
