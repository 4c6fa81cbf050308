"""The image by rules: pinned, small, nobody's root, and made of what is there.

No test builds it; ``test_image_steps.py`` carries its steps out in an environment.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.util import find_spec

import pytest
from recipe import DEPLOY, DOCKERFILE, ROOT, instructions, last_stage, steps

from blossomrec.cli import build_app
from blossomrec.serving import Client

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_base_is_pinned_or_a_stage():
    every = instructions()
    arguments = dict(one.text.split("=") for one in every if not one.stage)
    stages = set()
    for one in every:
        if one.name == "FROM":
            base, stage = one.text.split(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
            assert base in stages or re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base), base
            stages.add(stage)
    assert {"torch-cpu", "torch-cuda"} <= stages and f"torch-{arguments['DEVICE']}" in stages


def test_python_is_one_that_the_project_supports():
    arguments = dict(one.text.split("=") for one in instructions() if not one.stage)
    minor = re.findall(r"^3\.\d+", arguments["PYTHON"])[0]
    assert f"Programming Language :: Python :: {minor}" in PROJECT["classifiers"]


def test_only_the_image_for_a_processor_takes_builds_without_cuda():
    cpu, cuda = (steps(stage)[0].text for stage in ("torch-cpu", "torch-cuda"))
    assert "download.pytorch.org/whl/cpu" in cpu and "download.pytorch.org" not in cuda
    assert "-c constraints.txt" in cpu and cuda.endswith("-c constraints.txt torch")


def test_the_image_is_made_of_what_is_there():
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [one.text for one in instructions() if one.name == "COPY"]
    for text in copied:
        if not text.startswith("--from="):
            for name in shlex.split(text)[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in sent, name
    extras = re.findall(r'"\.\[([\w,]+)\]"', steps("build")[-1].text)[0].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_the_last_stage_takes_the_environment_and_builds_nothing():
    (copy,) = [one for one in steps("server") if one.name == "COPY"]
    assert copy.text == "--from=build /opt/blossomrec /opt/blossomrec"
    assert not any(word in one.text for one in steps("server") for word in ("pip", "curl", "git"))
    assert steps("build")[-1].text.endswith("pip uninstall --yes pip")


def test_it_is_not_root_and_its_folders_are_its_own():
    last = last_stage()
    user, group = map(int, last["USER"].text.split(":"))
    made = "\n".join(one.text for one in steps("server"))
    assert user and f"--gid {group} " in made and f"--uid {user} " in made
    folders = last["VOLUME"].words
    owned = re.findall(r"install -d -o blossomrec -g blossomrec (.+)", made)[0].split()
    assert owned == folders
    # With a root file system that is read only, code is compiled into a volume all the same.
    environment = dict(word.split("=", 1) for word in shlex.split(last["ENV"].text))
    for name in ("XDG_CACHE_HOME", "TRITON_CACHE_DIR"):
        assert any(f"{environment[name]}/".startswith(f"{folder}/") for folder in folders), name


def test_signals_reach_the_server_and_it_serves_by_itself():
    last = last_stage()
    # In the form of a list there is no shell between.
    assert last["ENTRYPOINT"].words == ["blossomrec"]
    verb, run, *options = last["CMD"].words
    known = build_app()[verb].assemble_argument_collection()
    names = {name for argument in known for name in argument.names}
    assert {word for word in options if word.startswith("--")} <= names
    for path in (run, options[options.index("--store") + 1]):
        assert any(path.startswith(f"{folder}/") for folder in last["VOLUME"].words), path
    (default,) = [argument for argument in known if "--port" in argument.names]
    assert last["EXPOSE"].text == str(default.field_info.default)


@pytest.mark.skipif(find_spec("fastapi") is None, reason="the extra serve is not installed")
def test_its_health_is_a_route_of_the_server():
    from blossomrec.serving.command import openapi_schema

    last = last_stage()
    *_, program = last["HEALTHCHECK"].words
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", program)[0]
    assert path in openapi_schema()["paths"] and port == last["EXPOSE"].text
    assert hasattr(Client, "ready")


def test_labels_say_what_it_is():
    labels = dict(word.split("=", 1) for word in shlex.split(last_stage()["LABEL"].text))
    named = {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()}
    assert named["title"] == PROJECT["name"] and named["licenses"] == PROJECT["license"]
    # The version stands in the package alone: it is given to the build.
    assert named["version"] == "${VERSION}" and named["revision"] == "${REVISION}"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
