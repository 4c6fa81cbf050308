import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import SMALL_TRAINING

from blossomrec.errors import ConfigError
from blossomrec.training.setup import open_fabric, peak_mib


def precision(fabric):
    return fabric._precision.precision


def test_the_processor_trains_in_float32():
    fabric = open_fabric(replace(SMALL_TRAINING, device="cpu"))
    assert fabric.device.type == "cpu"
    assert precision(fabric) == "32-true"


def test_precision_can_be_chosen_and_is_not_announced(capfd):
    fabric = open_fabric(replace(SMALL_TRAINING, device="cpu", precision="bf16-mixed"))
    assert precision(fabric) == "bf16-mixed"
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named():
    assert open_fabric(replace(SMALL_TRAINING, device="auto")).device.type == "cpu"
    with pytest.raises(ConfigError, match=r"training\.device is 'cuda'"):
        open_fabric(replace(SMALL_TRAINING, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_in_bfloat16():
    fabric = open_fabric(replace(SMALL_TRAINING, device="auto"))
    assert fabric.device.type == "cuda"
    assert precision(fabric) == "bf16-mixed"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_at_least_what_is_held_now():
    held = torch.ones(64 << 20, dtype=torch.uint8)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * resource.getpagesize() / 2**20
    assert len(held) / 2**20 < now <= 1.01 * peak_mib(torch.device("cpu")) < 100 * now
