import pytest
import torch

from blossomrec.errors import TrainingError
from blossomrec.training.watch import LossWatch, StepRecord

CPU = torch.device("cpu")


def record(step, events=10, targets=5):
    return StepRecord(3, step, 0.001, events, targets)


def values(loss, norm=1.0, **more):
    named = {"loss": loss, "gradient norm": norm, **more}
    return {name: torch.tensor(value) for name, value in named.items()}


@pytest.fixture(params=[1, 4])
def watch(request):
    watch = LossWatch(CPU)
    watch._interval = request.param
    return watch


def test_every_step_comes_back_once_and_in_order(watch):
    readings = []
    for step in range(11):
        readings += watch.push(record(step), values(float(step)))
    readings += watch.flush()
    assert [reading.record.step for reading in readings] == list(range(11))
    assert [reading.values["loss"] for reading in readings] == list(range(11))
    assert watch.flush() == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "gradient norm", "selector loss"])
def test_what_is_not_finite_stops_with_its_place(watch, bad, name):
    good = {"loss": 2.5, "gradient norm": 1.0, "selector loss": 0.5}
    named = {key: torch.tensor(value) for key, value in {**good, name: bad}.items()}
    with pytest.raises(TrainingError, match=f"{name} is {bad} at epoch 3, step 7.*rate 0.001"):
        watch.push(record(7), named)
        watch.flush()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_values_travel_in_groups():
    device = torch.device("cuda")
    watch, readings = LossWatch(device), []
    for step in range(100):
        loss = torch.tensor(float(step), device=device)
        readings.append(watch.push(record(step), {"loss": loss}))
    assert 0 < sum(1 for group in readings if group) < 10
    flat = [reading for group in [*readings, watch.flush()] for reading in group]
    assert [reading.values["loss"] for reading in flat] == list(range(100))
