"""Tables of what each step takes from a laptop to a cluster: measured where it was, else computed.

python -m benchmarks plan --gpu-price 3 --machine-price 0.2
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.tables.measured_lines import read, table
from benchmarks.tables.planning import (
    EPOCHS,
    EVENT_BYTES,
    HIDDEN,
    RECOMMENDATION_BYTES,
    SIZES,
    SORTING_BYTES,
    USER_BYTES,
    K,
    Size,
    Traffic,
    cost,
    gpu_hours,
    kept_gib,
    least_gpus,
    replicas,
    table_mib,
)
from benchmarks.tables.planning_rates import (
    core_seconds,
    gpu_seconds,
    of_two,
    prepared_logs,
    seconds_to_prepare,
    server_rate,
    training_seconds,
    user_kib,
)
from blossomrec.errors import ConfigError

HOW = {True: "measured", False: "computed"}
GROWTH = {"append": "append to", "merge": "merge", "forget": "forget some users of"}
LOSSES = ("exact", "sampled")
ITEMS = tuple(size.items for size in SIZES)


def preparing() -> str:
    """Time and memory of preparing logs, and of letting them grow, as they were measured; and of
    preparing in proportion to the events.
    """
    grown = {line["bench"]: line for line in read("growth.jsonl") if line.get("bench") in GROWTH}
    measured = [("prepare", line) for line in prepared_logs()]
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
    each = seconds_to_prepare()
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
    """GPU-hours of an epoch by catalogue and loss."""
    rows = []
    for loss in LOSSES:
        for items in ITEMS:
            seconds, known = training_seconds(items, loss)
            gpus, two = least_gpus(table_mib(items, HIDDEN, loss)), of_two(items, loss)
            hours = (gpu_hours(size.events, seconds, gpus, two) for size in SIZES)
            row = [f"{items:,} items: {loss}", HOW[known], f"{1e6 * seconds:,.2f}"]
            rows.append([*row, *map(shown_hours, hours)])
    header = ["GPU-hours by catalogue, loss", "how", "µs an event"]
    return table([*header, *(f"{size.events:,} events" for size in SIZES)], rows)


def item_table() -> str:
    """Memory of the item table in training, and how many GPUs it needs."""
    rows = []
    for items in ITEMS:
        row = [f"{items:,} items", "computed"]
        for mib in (table_mib(items, HIDDEN, loss) for loss in LOSSES):
            row += [f"{mib / 1024:,.1f}", str(least_gpus(mib))]
        rows.append(row)
    header = ["item table", "how"]
    return table([*header, *(f"{loss}, {of}" for loss in LOSSES for of in ("GiB", "GPUs"))], rows)


def bulk() -> str:
    """Time of recommendations for all users, by catalogue and device."""
    rows = []
    for device, seconds_of, catalogues in (
        ("one GPU", gpu_seconds, ITEMS),
        # More items than these are no work for two cores.
        ("two cores", core_seconds, ITEMS[:2]),
    ):
        for items in catalogues:
            each, known = seconds_of(items)
            times = [shown_time(size.users * each) for size in SIZES]
            rows.append([f"{items:,} items, {device}", HOW[known], f"{1 / each:,.0f}", *times])
    header = ["catalogue, device", "how", "users a second"]
    return table([*header, *(f"{size.users:,} users" for size in SIZES)], rows)


def serving() -> str:
    """Replicas by users, and what they keep; the rate and the KiB of a user as measured."""
    traffic, rate, kib = Traffic(), server_rate(), user_kib()
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
        prepared = size.events * seconds_to_prepare() / 3_600
        loss, epochs = _cheaper_training(size)
        lists = size.users * gpu_seconds(size.items)[0] / 3_600
        served = 24 * replicas(size.users, server_rate(), Traffic())
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


def _cheaper_training(size: Size) -> tuple[str, float]:
    """The loss that takes fewer GPU-hours, and those of its epochs."""
    found = {}
    for loss in LOSSES:
        seconds, _ = training_seconds(size.items, loss)
        gpus = least_gpus(table_mib(size.items, HIDDEN, loss))
        two = of_two(size.items, loss)
        found[loss] = EPOCHS * gpu_hours(size.events, seconds, gpus, two)
    loss = min(found, key=found.__getitem__)
    return loss, found[loss]


TABLES: dict[str, Callable[[], str]] = {
    "planning-prepare": preparing,
    "planning-laptop": laptop,
    "planning-training": training,
    "planning-item-table": item_table,
    "planning-bulk": bulk,
    "planning-serving": serving,
    "planning-storage": storage,
    "planning-cost": costs,
}
