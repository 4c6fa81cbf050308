"""Tables of what each step takes from a laptop to a cluster: measured where it was, else computed.

python -m benchmarks plan --gpu-price 3 --machine-price 0.2
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tables import speed_tables
from benchmarks.tables.catalogue_tables import gpu_lines
from benchmarks.tables.measured_lines import Line, read, table
from benchmarks.tables.planning import (
    EPOCHS,
    EVENT_BYTES,
    EVENTS_EACH,
    RECOMMENDATION_BYTES,
    SIZES,
    SORTING_BYTES,
    USER_BYTES,
    K,
    Size,
    Traffic,
    cost,
    event_seconds,
    gpu_hours,
    kept_gib,
    least_gpus,
    replicas,
    table_mib,
)
from blossomrec.errors import ConfigError

HOW = {True: "measured", False: "computed"}
HIDDEN = 128
GROWTH = {"append": "append to", "merge": "merge", "forget": "forget some users of"}
ITEMS = tuple(size.items for size in SIZES)


def preparing() -> str:
    """Time and memory of preparing logs, and of letting them grow, as they were measured; and of
    preparing in proportion to the events.
    """
    grown = {line["bench"]: line for line in read("growth.jsonl") if line.get("bench") in GROWTH}
    measured = [("prepare", line) for line in _preparing()]
    measured += [(GROWTH[bench], grown[bench]) for bench in GROWTH if bench in grown]
    rows = [
        [
            f"{what} {line['events']:,} events",
            "measured",
            shown_time(line["seconds"]),
            f"{line['peak_mib']:,.0f}",
        ]
        for what, line in measured
    ]
    each = _seconds_to_prepare()
    for size in SIZES:
        time = shown_time(size.events * each)
        rows.append([f"prepare {size.events:,} events", "computed", time, ""])
    return table(["what", "how", "time of two cores", "peak MiB"], rows)


def laptop() -> str:
    """Epochs of small public logs on processors alone."""
    found = {
        (line["dataset"], line["model"]): line
        for line in read("accuracy.jsonl")
        if line.get("seconds_per_epoch") and "NVIDIA" not in line["hardware"]
    }
    rows = [
        [
            f"{dataset}, {line['max_len']}: {model}",
            "measured",
            shown_time(line["seconds_per_epoch"]),
            f"{line['epochs']:,}",
        ]
        for (dataset, model), line in found.items()
    ]
    return table(["data, longest history: model", "how", "an epoch, two cores", "epochs"], rows)


def training() -> str:
    """GPU-hours of an epoch by catalogue and loss, and what the item table takes."""
    rows = []
    for loss in ("exact", "sampled"):
        for items in ITEMS:
            seconds, known = _training_seconds(items, loss)
            mib = table_mib(items, HIDDEN, loss)
            gpus = least_gpus(mib)
            hours = (gpu_hours(size.events, seconds, gpus, _of_two(items, loss)) for size in SIZES)
            row = [f"{items:,} items: {loss}", HOW[known], f"{1e6 * seconds:,.2f}"]
            rows.append([*row, *map(shown_hours, hours), f"{mib / 1024:,.1f}", str(gpus)])
    header = ["catalogue: loss", "how", "microseconds an event"]
    header += [f"GPU-hours, {size.events:,} events" for size in SIZES]
    return table([*header, "table GiB", "GPUs at least"], rows)


def bulk() -> str:
    """Time of recommendations for all users, by catalogue and device."""
    rows = []
    for device, seconds_of, catalogues in (
        ("one GPU", _gpu_seconds, ITEMS),
        # More items than these are no work for two cores.
        ("two cores", _core_seconds, ITEMS[:2]),
    ):
        for items in catalogues:
            each, known = seconds_of(items)
            times = [shown_time(size.users * each) for size in SIZES]
            rows.append([f"{items:,} items, {device}", HOW[known], f"{1 / each:,.0f}", *times])
    header = ["catalogue, device", "how", "users a second"]
    return table([*header, *(f"{size.users:,} users" for size in SIZES)], rows)


def serving() -> str:
    """Replicas by users, and what they keep; the rate and the KiB of a user as measured."""
    traffic, rate, kib = Traffic(), _server_rate(), _user_kib()
    rows = [
        ["one replica, two cores", "measured", f"{rate:,.0f}", "1", f"{kib:,.0f} KiB a user", ""]
    ]
    for size in SIZES:
        count, gib = replicas(size.users, rate, traffic), kept_gib(size.users, kib, traffic)
        row = [f"{size.users:,} users", "computed", f"{traffic.peak_rate(size.users):,.0f}"]
        rows.append([*row, str(count), f"{gib:,.1f} GiB", f"{gib / count:,.2f}"])
    header = ["users", "how", "requests a second", "replicas", "histories kept, all"]
    return table([*header, "GiB of each replica"], rows)


def storage() -> str:
    """Disk by size: the log, what lies beside it while it is prepared, a run, and all lists."""
    rows = []
    for size in SIZES:
        log = size.events * EVENT_BYTES + size.users * USER_BYTES
        weights = 4 * HIDDEN * size.items
        found = (
            log,
            size.events * SORTING_BYTES,
            weights,
            # Weights, two moments and the average.
            4 * weights,
            size.users * K * RECOMMENDATION_BYTES,
        )
        rows.append([_named(size), "computed", *(f"{each / 2**30:,.2f}" for each in found)])
    header = ["GiB of", "how", "log", "while it is prepared", "run", "checkpoint"]
    return table([*header, "lists of all users"], rows)


def costs(gpu_price: float = 1.0, machine_price: float = 1.0) -> str:
    """Hours of all steps by size, and what they cost together."""
    rows = []
    for size in SIZES:
        prepared = size.events * _seconds_to_prepare() / 3_600
        loss, epochs = _cheaper_training(size)
        lists = size.users * _gpu_seconds(size.items)[0] / 3_600
        served = 24 * replicas(size.users, _server_rate(), Traffic())
        price = cost(epochs + lists, prepared + served, gpu_price, machine_price)
        hours = (prepared, epochs, lists, served)
        rows.append([f"{_named(size)}, {loss} loss", "computed", *map(shown_hours, hours)])
        rows[-1].append(f"{price:,.1f}")
    header = ["size", "how", "prepare, machine-hours", f"{EPOCHS} epochs, GPU-hours"]
    header += ["lists of all users, GPU-hours", "a day of serving, machine-hours"]
    paid = f"cost at {gpu_price:g} a GPU-hour, {machine_price:g} a machine-hour"
    return table([*header, paid], rows)


def print_plan(*, gpu_price: float = 1.0, machine_price: float = 1.0) -> None:
    """Hours and cost from a laptop to a cluster, at prices of your own, from the lines in results/.

    Args:
        gpu_price: of an hour of one GPU, in any currency
        machine_price: of an hour of a machine with two cores
    """
    for name, price in (("gpu_price", gpu_price), ("machine_price", machine_price)):
        if not 0 <= price < float("inf"):
            raise ConfigError(f"{name} is {price}; a price is 0 at least, and finite")
    print(costs(gpu_price, machine_price), end="")


def shown_time(seconds: float) -> str:
    """A time in the largest unit that it has one of.

    >>> [shown_time(each) for each in (0.33, 90, 7_200, 864_000)]
    ['0.3 s', '1.5 min', '2.0 h', '10.0 d']
    """
    for unit, long in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= long:
            return f"{seconds / long:,.1f} {unit}"
    return f"{seconds:.1f} s"


def shown_hours(hours: float) -> str:
    """Hours with two digits that count.

    >>> [shown_hours(each) for each in (0.000123, 0.5, 12.34, 5_678.9)]
    ['0.00012', '0.5', '12', '5,679']
    """
    return (
        f"{hours:,.0f}" if hours >= 10 else f"{float(f'{hours:.2g}'):.10f}".rstrip("0").rstrip(".")
    )


def _named(size: Size) -> str:
    return f"{size.events:,} events, {size.items:,} items"


def _preparing() -> list[Line]:
    """Lines of preparing Parquet files: folders of several sizes where they were measured."""
    lines = read("data.jsonl")
    folders = [line for line in lines if line["bench"] == "prepare folder"]
    files = [line for line in lines if line.get("source") == "integers.parquet"]
    last = {line["events"]: line for line in folders or files}
    return [last[events] for events in sorted(last)]


def _seconds_to_prepare() -> float:
    """Of an event, by the largest log that was measured."""
    largest = _preparing()[-1]
    return largest["seconds"] / largest["events"]


def _trained(loss: str) -> dict[tuple[int, int], Line]:
    """Lines by items and GPUs, of the shortest histories, with as many events for each GPU."""
    found: dict[tuple[int, int], Line] = {}
    lines = [line for line in gpu_lines("scale", "scale.jsonl") if line["loss"] == loss]
    for line in sorted(lines, key=lambda line: (-line["length"], line["tokens_per_rank"])):
        if line["hidden_size"] == HIDDEN:
            found[line["items"], line["gpus"]] = line
    return found


def _training_seconds(items: int, loss: str) -> tuple[float, bool]:
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


def _of_two(items: int, loss: str) -> float:
    """How many times the events of one GPU two train on, in the nearest catalogue below."""
    trained = _trained(loss)
    both = [each for each, gpus in trained if gpus == 2 and (each, 1) in trained]
    nearest = max([each for each in both if each <= items], default=min(both))
    one, two = (trained[nearest, gpus]["events_per_second"] for gpus in (1, 2))
    return two / one


def _cheaper_training(size: Size) -> tuple[str, float]:
    """The loss that takes fewer GPU-hours, and those of its epochs."""
    found = {}
    for loss in ("exact", "sampled"):
        seconds, _ = _training_seconds(size.items, loss)
        gpus = least_gpus(table_mib(size.items, HIDDEN, loss))
        of_two = _of_two(size.items, loss)
        found[loss] = EPOCHS * gpu_hours(size.events, seconds, gpus, of_two)
    loss = min(found, key=found.__getitem__)
    return loss, found[loss]


def _gpu_seconds(items: int) -> tuple[float, bool]:
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


def _core_seconds(items: int) -> tuple[float, bool]:
    """Of a user on two cores, files included, in proportion to the items."""
    lines = [line for line in read("bulk.jsonl") if line["rules"] == "none"]
    line = lines[-1]
    return items / line["items"] / line["users_per_second"], items == line["items"]


def _server(field: str, **wanted: str) -> list[Line]:
    return [
        line
        for line in read("serving.jsonl")
        if field in line and all(line.get(name) == value for name, value in wanted.items())
    ]


def _server_rate() -> float:
    """Requests a second of one server over Redis, as many as it can."""
    return _server("throughput", scenario="mixed", store="redis")[-1]["throughput"]


def _user_kib() -> float:
    """KiB of an encoded history, of the shortest that is as long as those of the sizes."""
    last = {line["history"]: line["kib_per_user"] for line in _server("kib_per_user")}
    return last[min(each for each in last if each >= EVENTS_EACH)]


TABLES: dict[str, Callable[[], str]] = {
    "planning-prepare": preparing,
    "planning-laptop": laptop,
    "planning-training": training,
    "planning-bulk": bulk,
    "planning-serving": serving,
    "planning-storage": storage,
    "planning-cost": costs,
}
