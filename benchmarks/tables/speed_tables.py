"""Tables and pictures of time and memory from results/speed.jsonl.

Each has the lines of one device, and of one commit for each layout of heads, those measured last:
times of two machines never stand together, nor do those of two states of the code in one layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.speed.bench_options import FASTEST_DENSE, PUBLISHED, UNION, Layout
from benchmarks.tables.measured_lines import Line, read, table

NAMES = {
    "dense": "dense",
    "cudnn": "dense, cuDNN",
    "flash": "dense, FlashAttention",
    "naive": "dense, all scores in memory, float32",
    "torch": "Blossom in PyTorch, {}",
    "cpu": "Blossom, {}",
    "cuda": "Blossom, {}",
    "paged": "Blossom, {}, in pages",
    "triton": "Blossom in Triton, {}",
    "dense-cache": "dense, kept",
    "recompute": "recomputed, {}",
    "full": "dense",
    "linrec": "linear, LinRec",
    "mamba": "state space, Mamba",
}
NAMES |= {impl + UNION: f"{NAMES[impl]}, union" for impl in ("torch", "cpu", "cuda", "triton")}


def lines(bench: str, gpu: bool, field: str = "bench") -> list[Line]:
    """Lines of a bench on one kind of device, by rising length: those of the machine that measured
    last, of all that have something in ``field``, and of the code that did for each layout of
    heads. Rows of a layout are beside each other: they were measured together.
    """
    found = [
        line
        for line in read("speed.jsonl")
        if line["bench"] == bench and ("NVIDIA" in line["hardware"]) == gpu
    ]
    having = [line for line in found if line.get(field)]
    newest = {_heads(line): line for line in having if line["hardware"] == having[-1]["hardware"]}
    last = [
        line
        for line in found
        if (of := newest.get(_heads(line)))
        and all(line[each] == of[each] for each in ("hardware", "commit"))
    ]
    # What has no length stays in the order in which it was measured.
    return sorted(last, key=lambda line: line.get("length", 0))


def _heads(line: Line) -> tuple[Any, ...]:
    """The layout of heads, of a bench that has some."""
    return tuple(line.get(name) for name in ("heads", "kv_heads", "head_dim"))


def layout(line: Line) -> Layout:
    return Layout(line["heads"], line["kv_heads"], line["head_dim"])


def name(line: Line) -> str:
    return NAMES[line["impl"]].format(line["compress"])


def attention(gpu: bool) -> str:
    """Time and memory of the operation, and of dense attention, over the length."""
    digits = 2 if gpu else 1
    rows = [
        [
            f"{line['length']:,}",
            ", ".join(map(str, layout(line))),
            name(line),
            f"{line['forward_ms']:.{digits}f}",
            f"{line['forward_backward_ms']:.{digits}f}",
            f"{line['peak_mib']:.0f}",
        ]
        for line in lines("attention", gpu)
        if line["length"] and line["impl"] in NAMES and line["impl"] != "naive"
    ]
    header = ["length", "H, G, d", "attention", "forward, ms", "forward and backward, ms"]
    return table([*header, "peak MiB"], rows)


def beside_cudnn() -> list[Line]:
    """Lines of the operation on a GPU, without those that stand beside a ragged batch alone."""
    measured = lines("attention", gpu=True)
    lengths = {line["length"] for line in measured if line["impl"] == "cudnn"}
    return [line for line in measured if line["length"] in lengths]


def of_hidden_size(size: int, given: list[Line]) -> list[Line]:
    return [line for line in given if line["heads"] * line["head_dim"] == size]


def speed_up() -> str:
    """Forward and backward of dense attention by cuDNN over that of Blossom, and that over the
    floor; with the published heads.
    """
    rows = []
    measured = beside_cudnn()
    for length in sorted({line["length"] for line in measured}):
        time = {
            (line["impl"], line["compress"], layout(line)): line["forward_backward_ms"]
            for line in measured
            if line["length"] == length
        }
        floor = time.get(("floor", "none", PUBLISHED))
        row = [f"{length:,}"]
        for dense in (PUBLISHED, FASTEST_DENSE):
            row += [
                _over(time.get(("cudnn", "none", dense)), time.get(("cuda", way, PUBLISHED)))
                for way in ("mean", "mlp")
            ]
        row.append(_over(time.get(("cuda", "mean", PUBLISHED)), floor))
        rows.append(row)
    header = ["length", "mean", "mlp", "mean, fastest dense", "mlp, fastest dense"]
    return table([*header, "mean, over the floor"], rows)


def _over(time: float | None, other: float | None) -> str:
    """One time over another, where both were measured."""
    return f"{time / other:.1f}" if time and other else ""


def ragged() -> str:
    """Time of histories as long as real ones over that of equally long ones."""
    rows = []
    measured = lines("attention", gpu=True, field="ragged")
    for line in measured:
        if not line.get("ragged") or line["impl"] != "cuda":
            continue
        equal = next(
            other
            for other in measured
            if other["length"] == round(line["ragged"]["mean"])
            and [other[each] for each in ("impl", "compress", "heads", "head_dim")]
            == [line[each] for each in ("impl", "compress", "heads", "head_dim")]
        )
        ratio = line["forward_backward_ms"] / equal["forward_backward_ms"]
        given = line["ragged"]
        rows.append(
            [
                f"{given['log']}, {name(line)}",
                ", ".join(map(str, layout(line))),
                f"{given['histories']:,}",
                f"{given['mean']:.0f}",
                f"{given['longest']:,}",
                f"{ratio:.2f}",
            ]
        )
    return table(["log", "H, G, d", "histories", "mean", "longest", "over equal lengths"], rows)


def of_layers(gpu: bool) -> list[Line]:
    """Lines of two layers, without those of Triton."""
    return [line for line in lines("encoder", gpu) if not line["impl"].startswith("triton")]


def encoder(gpu: bool) -> str:
    """A training step and inference of two layers."""
    digits = 1 if gpu else 0
    rows = [
        [
            f"{line['length']:,}",
            ", ".join(map(str, layout(line))),
            name(line) + (", distilled" if line.get("lessons") else ""),
            f"{line['forward_backward_ms']:,.{digits}f}" + " (graph)" * bool(line.get("graph")),
            f"{line['peak_mib']:,.0f}",
            f"{line['forward_ms']:,.{digits}f}",
            f"{line['inference_peak_mib']:,.0f}",
        ]
        for line in of_layers(gpu)
    ]
    header = ["length", "H, G, d", "attention", "training step, ms", "peak MiB"]
    return table([*header, "inference, ms", "peak MiB"], rows)


def training() -> str:
    """An epoch of a prepared log."""
    rows = [
        [
            f"{line['log']}, {line['length']:,}",
            ", ".join(map(str, layout(line))),
            name(line),
            f"{line['tokens']:,}",
            "graph" if line.get("graph") else "step by step",
            f"{line['forward_backward_ms']:.1f}",
            f"{line['epoch_seconds']:.2f}",
            f"{line['peak_mib']:,.0f}",
        ]
        for line in lines("training", gpu=True)
    ]
    header = ["log, longest history", "H, G, d", "attention", "events a batch", "how"]
    return table([*header, "step, ms", "epoch, seconds", "peak MiB"], rows)


def incremental(gpu: bool) -> str:
    """One more event of a number of users, and what is kept of them, over the length."""
    rows = [
        [
            f"{line['length']:,}",
            *([f"{line['users']:,}"] if gpu else []),
            name(line),
            f"{line['forward_ms']:.3f}",
            "" if line["impl"] == "recompute" else f"{line['peak_mib']:,.1f}",
        ]
        for line in lines("incremental", gpu)
    ]
    header = ["events before", *(["users"] if gpu else []), "attention", "one more event, ms"]
    return table([*header, "kept, MiB"], rows)


def backends() -> str:
    """The same operation by each implementation that takes it, on one GPU."""
    rows = [
        [
            ", ".join(map(str, (*layout(line), line["block_size"], line["sinks"]))),
            f"{line['length']:,}",
            f"`{line['impl']}`, {line['dtype']}",
            f"{line['forward_ms']:.2f}",
            f"{line['forward_backward_ms']:.2f}",
            f"{line['peak_mib']:,.0f}",
        ]
        for line in read("backends.jsonl")
        if line["bench"] == "attention"
    ]
    header = ["H, G, d, block, sinks", "length", "implementation", "forward, ms"]
    return table([*header, "forward and backward, ms", "peak MiB"], rows)


def backends_used() -> str:
    """Time and memory of encoding histories together and of a training step, by implementation."""
    rows = []
    for line in read("backends.jsonl"):
        if line.get("around") != "kernels":
            continue
        how = f"`{line['impl']}`, {line['dtype']}"
        if line["bench"] == "recommend" and line["batch"] == line["histories"]:
            rows.append([f"encoding by {how}", line["encode_ms"], line["peak_mib"]])
        elif line["bench"] == "step":
            rows.append([f"training step by {how}", line["step_ms"], line["peak_mib"]])
    shown = [[name, f"{ms:.0f}", f"{mib:,.0f}"] for name, ms, mib in rows]
    return table(["what", "ms", "peak MiB"], shown)


def backends_accuracy() -> str:
    """Metrics of one model on two logs, by what encodes the histories."""
    rows = [
        [
            f"{line['log']}, `{line['impl']}`, {line['dtype']}",
            *(f"{line['metrics'][name]:.4f}" for name in ("ndcg@10", "hr@10")),
            f"{line['lists_as_float32_triton']:.1%}",
            f"{line['sets_as_float32_triton']:.1%}",
        ]
        for line in read("backends.jsonl")
        if line["bench"] == "accuracy" and line["around"] == "kernels"
    ]
    header = ["log, implementation", "NDCG@10", "HR@10", "same order", "same items"]
    return table(header, rows)


def ranking() -> str:
    """The best items for many users, beside the bare product and beside ``torch.topk``."""
    return ranking_rows(lines("ranking", gpu=True))


def ranking_rows(lines: list[Line]) -> str:
    """The table of such lines."""

    def key(line: Line, *names: str) -> tuple[Any, ...]:
        return tuple(line[name] for name in ("impl", "items", "hidden", "dtype", *names))

    measured = {key(line, "k", "filters"): line for line in lines}
    rows = []
    for line in measured.values():
        if line["impl"] != "blossomrec":
            continue
        bare = measured["product", *key(line)[1:], None, False]
        other = measured["topk", *key(line, "k", "filters")[1:]]
        rate = line["users_per_second"]
        rows.append(
            [
                f"{line['items']:,}",
                str(line["hidden"]),
                line["dtype"],
                str(line["k"]),
                "half, 200 seen" if line["filters"] else "",
                f"{1e3 * line['seconds']:.1f}",
                f"{rate:,}",
                f"{bare['users_per_second'] / rate:.2f}",
                f"{rate / other['users_per_second']:.1f}",
                f"{line['peak_mib']:,.0f}",
            ]
        )
    header = ["items", "D", "vectors", "k", "left out", "ms", "users a second"]
    return table([*header, "of the time of the product", "times topk", "peak MiB"], rows)


def ranking_quantised() -> str:
    """The best items on a processor by vectors in 8 bits, for some users at once."""
    measured = lines("ranking-quantised", gpu=False)
    users = sorted({line["users"] for line in measured})
    cases: dict[tuple[Any, ...], dict[int, str]] = {}
    for line in measured:
        key = tuple(line[name] for name in ("items", "hidden", "vectors", "k", "filters"))
        times = line["float32_seconds"] / line["seconds"]
        cases.setdefault(key, {})[line["users"]] = f"{1e3 * line['seconds']:,.1f} ({times:.1f})"
    rows = [
        [
            f"{items:,}",
            str(size),
            vectors,
            str(k),
            "half, 200 seen" if filters else "",
            *(found.get(count, "") for count in users),
        ]
        for (items, size, vectors, k, filters), found in sorted(cases.items())
    ]
    each = [f"{count:,} user" + "s" * (count > 1) for count in users]
    return table(["items", "D", "vectors", "k", "left out", *each], rows)


TABLES: dict[str, Callable[[], str]] = {
    "attention-gpu": lambda: attention(gpu=True),
    "attention-cpu": lambda: attention(gpu=False),
    "speed-up": speed_up,
    "ragged": ragged,
    "encoder": lambda: encoder(gpu=True),
    "encoder-cpu": lambda: encoder(gpu=False),
    "training-speed": training,
    "incremental": lambda: incremental(gpu=False),
    "incremental-gpu": lambda: incremental(gpu=True),
    "ranking-gpu": ranking,
    "ranking-quantised": ranking_quantised,
    "backends": backends,
    "backends-use": backends_used,
    "backends-accuracy": backends_accuracy,
}


def as_graphs() -> list[Line]:
    """Lines of two layers as CUDA graphs."""
    return [line for line in of_layers(gpu=True) if line["graph"]]


# Files in docs/images/: whose lines they show, and which.
PICTURES: dict[str, tuple[str, Callable[[], list[Line]]]] = {
    "speed-attention": ("attention", lambda: of_hidden_size(128, beside_cudnn())),
    "speed-attention-256": ("attention", lambda: of_hidden_size(256, beside_cudnn())),
    "speed-encoder": ("encoder", as_graphs),
    "speed-incremental": ("incremental", lambda: lines("incremental", gpu=False)),
}
