"""The wheel at work: installed outside the tree, it trains, recommends, compiles and serves."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

import pytest

from implementations import CPU_MISSING
from small_options import small_flags

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed"),
]


class Installed:
    """An environment that holds the wheel and sees the dependencies of this one."""

    def __init__(self, folder: Path):
        self.home = folder / "work"
        self.cache = folder / "cache"
        self.bin = folder / "venv" / "bin"
        self.home.mkdir()
        self.cache.mkdir()
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        run(*build, inside=ROOT)
        (wheel,) = folder.glob("*.whl")
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", inside=folder)
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet"]
        run(*pip, "--no-deps", "--no-index", wheel, inside=folder)
        # After the installation, which would take the package of this environment for its own. A
        # path in a .pth file does not bring the .pth files there along: not our editable source.
        (packages,) = folder.glob("venv/lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(get_path("purelib") + "\n")

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {"XDG_CACHE_HOME": str(self.cache), "OMP_NUM_THREADS": "1"}

    def __call__(self, command: str, *arguments: object) -> str:
        """Run a command of the environment outside the tree; gives what it printed."""
        return run(self.bin / command, *arguments, inside=self.home, env=self.environment())


def run(*command, inside, env=None):
    done = subprocess.run(
        list(map(str, command)),
        cwd=inside,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory, tiny_events):
    """The environment, with a prepared ``log`` and a ``run`` trained on it."""
    installed = Installed(tmp_path_factory.mktemp("installed"))
    tiny_events.write_csv(installed.home / "events.csv")
    installed("blossomrec", "prepare", "events.csv", "log")
    backend = ["--model.attention-impl", "auto" if CPU_MISSING else "cpu"]
    installed("blossomrec", "train", "log", "run", "--quiet", *small_flags(), *backend)
    return installed


def test_the_package_is_that_of_the_wheel(installed):
    place = installed("python", "-c", "import blossomrec; print(blossomrec.__file__)")
    assert Path(place.strip()).is_relative_to(installed.bin.parent)


def test_it_recommends(installed, tiny_events):
    user = tiny_events["user_id"].unique().sort()[-1]
    rows = json.loads(
        installed("blossomrec", "recommend", "run", "--user", user, "--k", 3, "--json")
    )
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert {row["item_id"] for row in rows} <= set(tiny_events["item_id"])


def test_it_offers_the_command_and_the_extras(installed):
    program = (
        "from importlib.metadata import distribution, entry_points\n"
        "(command,) = entry_points(group='console_scripts', name='blossomrec')\n"
        "assert callable(command.load())\n"
        "print(*distribution('blossomrec').metadata.get_all('Provides-Extra'))"
    )
    extras = set(installed("python", "-c", program).split())
    assert {"all", "gpu", "redis", "serve"} <= extras


def test_it_finds_its_templates(installed):
    program = (
        "from jinja2 import Environment, PackageLoader\n"
        "for package in ('blossomrec.report', 'blossomrec.hub'):\n"
        "    print(*Environment(loader=PackageLoader(package)).list_templates())"
    )
    assert {"report.html", "inspect.html", "card.md"} <= set(
        installed("python", "-c", program).split()
    )


@pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
def test_it_has_compiled_the_native_operator_into_an_empty_cache(installed):
    libraries = list((installed.cache / "blossomrec" / "cpu").glob("*.so"))
    assert libraries and all(library.stat().st_size for library in libraries)


@pytest.mark.skipif(find_spec("fastapi") is None, reason="the extra serve is not installed")
def test_it_serves_the_page(installed):
    command = [installed.bin / "blossomrec", "serve", "run", "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(
        list(map(str, command)),
        cwd=installed.home,
        env=installed.environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://\S+?:\d+/", line)
        assert found, line + server.communicate(timeout=30)[1]
        with urllib.request.urlopen(found[0], timeout=30) as page:
            assert page.status == 200 and "<title>" in page.read().decode()
        for path in ("healthz", "readyz", "metrics"):
            with urllib.request.urlopen(found[0] + path, timeout=30) as answer:
                assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.communicate()
