"""The steps of the image in a fresh environment, and the server that comes of them.

They install PyTorch anew, from the registry, so that this runs only if it is asked for:
``BLOSSOMREC_IMAGE=1 python -m pytest tests/deploy/test_image_steps.py``. Of the image for a
processor it leaves out what needs root, such as packages of the system, and, unless
``BLOSSOMREC_IMAGE=cpu``, the index with builds of PyTorch without CUDA.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe import ROOT, last_stage, steps

from implementations import CPU_MISSING
from small_options import small_flags

WANTED = os.environ.get("BLOSSOMREC_IMAGE", "")
TOKEN = "a token of the image's test"
# Seconds for the installation of everything, and for a start, on a machine that may be slow.
INSTALLATION, START = 1_800, 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * INSTALLATION),
    pytest.mark.skipif(not WANTED, reason="BLOSSOMREC_IMAGE=1 carries out the steps of the image"),
]


class Image:
    """A folder in the place of ``/``, in which the steps were carried out."""

    def __init__(self, folder: Path):
        self.root = folder
        self.source = folder / "source"
        self.source.mkdir()
        for one in steps("environment", "torch-cpu", "build"):
            if one.name == "COPY":
                self._copy(shlex.split(one.text))
            else:
                self._run(one.text)
        for path in last_stage()["VOLUME"].words:
            (folder / path.lstrip("/")).mkdir()

    def _copy(self, words: list[str]) -> None:
        *names, target = words
        for name in names:
            if (ROOT / name).is_dir():
                # As Dockerfile.dockerignore leaves out what was compiled.
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, self.source / target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, self.source / target)

    def _run(self, text: str) -> None:
        if WANTED != "cpu":
            text = re.sub(r"--extra-index-url \S+ ", "", text)
        text = self.here(text).replace("python -m venv", f"{sys.executable} -m venv", 1)
        done = subprocess.run(
            ["sh", "-ec", text],
            cwd=self.source,
            env=self._bare(),
            capture_output=True,
            text=True,
            timeout=INSTALLATION,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    def here(self, text: str) -> str:
        """With the folders of the image as those of this one."""
        folders = ["/opt/blossomrec", *last_stage()["VOLUME"].words]
        return re.sub(
            rf"(?<![\w.])({'|'.join(folders)})\b", lambda found: f"{self.root}{found[1]}", text
        )

    def _bare(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        return kept | {"BLOSSOMREC_TOKEN": TOKEN}

    def environment(self) -> dict[str, str]:
        """That of the image's processes."""
        text = self.here(last_stage()["ENV"].text).replace("$PATH", os.environ["PATH"])
        # A home that is not there, so that what is written to it is seen.
        home = {"HOME": str(self.root / "home")}
        return self._bare() | home | dict(word.split("=", 1) for word in shlex.split(text))

    def command(self, name: str) -> list[str]:
        """Of an instruction in exec form."""
        return [self.here(word) for word in last_stage()[name].words]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return Image(tmp_path_factory.mktemp("image"))


def written(image):
    """What lies in the image beside its volumes."""
    return {path for folder in ("opt", "home") for path in (image.root / folder).rglob("*")}


def run(image, *command):
    done = subprocess.run(
        list(map(str, command)),
        env=image.environment(),
        cwd=image.root,
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def healthy(image, port):
    *_, last = check = image.command("HEALTHCHECK")
    check[-1] = last.replace(":8000/", f":{port}/")
    done = subprocess.run(check, env=image.environment(), cwd=image.root, capture_output=True)
    return done.returncode == 0


def test_it_has_what_it_needs_and_no_pip(image):
    found = run(image, "blossomrec", "--version")
    assert re.search(r"\d+\.\d+", found)
    assert not (image.root / "opt/blossomrec/bin/pip").exists()
    program = "import blossomrec, redis, faiss, fastapi; print(blossomrec.__file__)"
    place = run(image, "python", "-c", program).strip()
    assert Path(place).is_relative_to(image.root / "opt")


def test_it_trains_serves_says_that_it_is_healthy_and_ends(image, tiny_events):
    tiny_events.write_csv(image.root / "events.csv")
    run(image, "blossomrec", "prepare", "events.csv", "log")
    run(image, "blossomrec", "train", "log", "runs/00001", "--quiet", *small_flags())
    (image.root / "runs" / "current").symlink_to("00001")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*image.command("ENTRYPOINT"), *image.command("CMD"), "--port", str(port)]
    command[command.index("0.0.0.0")] = "127.0.0.1"
    assert not healthy(image, port)
    before = written(image)
    server = subprocess.Popen(
        command, cwd=image.root, env=image.environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + START
        while not healthy(image, port):
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        assert (image.root / "events" / "events.sqlite").exists()
        assert written(image) == before
        assert CPU_MISSING or list((image.root / "cache/blossomrec/cpu").glob("*.so"))
        server.send_signal(signal.SIGTERM)
        errors = server.communicate(timeout=START)[1]
        assert server.returncode == 0, errors
    finally:
        server.kill()
        server.wait()
