"""``deploy/Dockerfile`` as data: its instructions, stage by stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"


class Instruction(NamedTuple):
    """A line of a Dockerfile; ``stage`` is empty before the first FROM."""

    stage: str
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Of an instruction in exec form; ValueError where it has the form of a shell."""
        return json.loads(self.text[self.text.index("[") :])


def instructions() -> list[Instruction]:
    """All of them, continued lines as one."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            name, rest = line.split(None, 1)
            if name == "FROM":
                stage = rest.split(" AS ")[1]
            found.append(Instruction(stage, name, rest.strip()))
    return found


def last_stage() -> dict[str, Instruction]:
    """By name, the last one of each: what the image is in the end."""
    every = instructions()
    return {one.name: one for one in every if one.stage == every[-1].stage}


def steps(*stages: str) -> list[Instruction]:
    """RUN and COPY of these stages, in order."""
    return [one for one in instructions() if one.stage in stages and one.name in ("RUN", "COPY")]
