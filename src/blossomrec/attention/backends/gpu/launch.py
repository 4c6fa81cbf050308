"""What the kernels written in Triton take, and how a program of theirs is launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blossomrec.attention.spec import Target

HEAD_SIZES = (16, 32, 64, 128)
HEADS_PER_GROUP = (1, 2, 4, 8, 16)
BLOCK_SIZES = (16, 32)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Shape:
    """Warps of a program, stages of its loops, and the most registers a thread may take."""

    warps: int
    stages: int
    registers: int | None = None

    def options(self) -> dict[str, int | None]:
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.registers,
        }


def unsupported(target: Target) -> str:
    """What the kernels do not take, as a sentence; empty where all is well."""
    for name, value, choices in (
        ("the head size", target.heads.size, HEAD_SIZES),
        ("the number of query heads a key/value head", target.heads.per_group, HEADS_PER_GROUP),
        ("block_size", target.spec.block_size, BLOCK_SIZES),
        ("power_base", target.spec.power_base, (2,)),
        ("the type", target.dtype, DTYPES),
    ):
        if value not in choices:
            return f"{name} is {value}, the kernels take {', '.join(map(str, choices))}"
    return ""
