"""Steps of two GPUs that are replayed as graphs, with what ranks tell each other, are the steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from replayed_cases import REPLAYED
from safetensors.torch import load_file
from small_training import logged

from blossomrec.training.update import WARM_UP


@pytest.fixture(scope="module")
def twice(log, tmp_path_factory) -> Path:
    """The folder of what two ranks trained, ``replayed`` and ``stepwise``."""
    folder = tmp_path_factory.mktemp("twice")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(Path(__file__).with_name("replayed_cases.py"))]
    done = subprocess.run(
        [*command, str(log.folder), str(folder), "cuda"],
        # Multicast is not everywhere where two GPUs are.
        env={**os.environ, "OMP_NUM_THREADS": "1", "NCCL_NVLS_ENABLE": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", REPLAYED)
def test_two_ranks_replay_the_step_that_they_take(twice, name):
    replayed, stepwise = (twice / kind / name for kind in ("replayed", "stepwise"))
    lines, others = logged(replayed), logged(stepwise)
    assert lines == others
    assert lines[-1]["step"] > 2 * WARM_UP
    weights, before = (load_file(run / "model.safetensors") for run in (replayed, stepwise))
    for key, weight in weights.items():
        assert torch.equal(weight, before[key]), key
