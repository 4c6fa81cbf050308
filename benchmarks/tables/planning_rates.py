"""Rates of each step as they were measured, for what is computed from them."""

from __future__ import annotations

from benchmarks.tables import speed_tables
from benchmarks.tables.catalogue_tables import gpu_lines, trained_lines
from benchmarks.tables.measured_lines import Line, read
from benchmarks.tables.planning import EVENTS_EACH, HIDDEN, K, event_seconds


def prepared_logs() -> list[Line]:
    """Lines of preparing Parquet files: folders of several sizes where they were measured."""
    lines = read("data.jsonl")
    folders = [line for line in lines if line["bench"] == "prepare folder"]
    files = [line for line in lines if line.get("source") == "integers.parquet"]
    last = {line["events"]: line for line in folders or files}
    return [last[events] for events in sorted(last)]


def seconds_to_prepare() -> float:
    """Of an event, by the largest log that was measured."""
    largest = prepared_logs()[-1]
    return largest["seconds"] / largest["events"]


def _trained(loss: str) -> dict[tuple[int, int], Line]:
    """Lines by items and GPUs, of the shortest histories, with as many events for each GPU."""
    found: dict[tuple[int, int], Line] = {}
    lines = [line for line in trained_lines() if line["loss"] == loss]
    for line in sorted(lines, key=lambda line: (-line["length"], line["tokens_per_rank"])):
        if line["hidden_size"] == HIDDEN:
            found[line["items"], line["gpus"]] = line
    return found


def training_seconds(items: int, loss: str) -> tuple[float, bool]:
    measured = {
        each: 1 / line["events_per_second"]
        for (each, gpus), line in _trained(loss).items()
        if gpus == 1
    }
    return event_seconds(measured, _seconds_of_item() if loss == "exact" else 0.0, items)


def _seconds_of_item() -> float:
    """What one item of the catalogue adds to an event, by the largest loss that was measured."""
    lines = [line for line in gpu_lines("loss") if line["impl"] == "blossomrec"]
    largest = max(lines, key=lambda line: line["rows"] * line["items"])
    return largest["forward_backward_ms"] / 1e3 / (largest["rows"] * largest["items"])


def of_two(items: int, loss: str) -> float:
    """How many times the events of one GPU two train on, in the nearest catalogue below."""
    trained = _trained(loss)
    both = [each for each, gpus in trained if gpus == 2 and (each, 1) in trained]
    nearest = max([each for each in both if each <= items], default=min(both))
    one, two = (trained[nearest, gpus]["events_per_second"] for gpus in (1, 2))
    return two / one


def gpu_seconds(items: int) -> tuple[float, bool]:
    """Of a user: the history is encoded, the catalogue ranked, in proportion to its items."""
    lines = speed_tables.lines("ranking", gpu=True)
    measured = {
        line["items"]: 1 / line["users_per_second"]
        for line in lines
        if (line["impl"], line["dtype"], line["hidden"], line["k"], line["filters"])
        == ("blossomrec", "float32", HIDDEN, K, False)
    }
    nearest = max([each for each in measured if each <= items], default=min(measured))
    return _seconds_to_encode() + measured[nearest] * items / nearest, False


def _seconds_to_encode() -> float:
    """Of a user's events by a GPU, operation by operation, in the shortest histories measured."""
    line = next(
        line
        for line in speed_tables.lines("encoder", gpu=True)
        if (line["impl"], line["compress"], line["graph"]) == ("cuda", "mlp", False)
        and line["heads"] * line["head_dim"] == HIDDEN
    )
    return EVENTS_EACH * line["forward_ms"] / 1e3 / line["tokens"]


def core_seconds(items: int) -> tuple[float, bool]:
    """Of a user on two cores, files included, in proportion to the items."""
    lines = [
        line
        for line in read("bulk.jsonl")
        if line.get("rules") == "none" and line.get("engine", "local") == "local"
    ]
    line = lines[-1]
    return items / line["items"] / line["users_per_second"], items == line["items"]


def _server(field: str, **wanted: str) -> list[Line]:
    return [
        line
        for line in read("serving.jsonl")
        if field in line and all(line.get(name) == value for name, value in wanted.items())
    ]


def server_rate() -> float:
    """Requests a second of one server over Redis, as many as it can."""
    return _server("throughput", scenario="mixed", store="redis")[-1]["throughput"]


def user_kib() -> float:
    """KiB of an encoded history, of the shortest that is as long as those of the sizes."""
    last = {line["history"]: line["kib_per_user"] for line in _server("kib_per_user")}
    return last[min(each for each in last if each >= EVENTS_EACH)]
