"""Tables of what a large catalogue costs in training, from results/speed.jsonl and scale.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.speed.step_parts import PARTS
from benchmarks.tables.measured_lines import Line, read, table
from benchmarks.tables.more_gpus import computed

NAMES = {
    "products": "the three products, logits in memory",
    "blossomrec": "BlossomRec",
    "liger": "Liger",
    "cut-cross-entropy": "cut-cross-entropy",
    "cut-cross-entropy, all": "cut-cross-entropy, all gradients",
}
# What tells apart the cases of a step, and of training on several GPUs.
STEPS = ("form", "items", "events", "length", "negatives")
SCALES = ("items", "loss", "length", "gpus", "tokens_per_rank", "hidden_size")


def gpu_lines(bench: str, name: str = "speed.jsonl", case: Sequence[str] = ()) -> list[Line]:
    """Lines of a bench on a GPU, those of the machine and the code that were measured last.

    Args:
        case: fields by which the last line of each case stands, whatever the code it is of and the
            processor beside the GPU; for benches of which only a part is measured again.
    """
    found = [line for line in read(name) if line["bench"] == bench and "NVIDIA" in line["hardware"]]
    if not case:
        same = ("hardware", "commit")
        return [line for line in found if all(line[each] == found[-1][each] for each in same)]
    found = [line for line in found if _gpu(line) == _gpu(found[-1])]
    last = {tuple(line.get(each) for each in case): line for line in found}
    return list(last.values())


def _gpu(line: Line) -> str:
    """The name of the GPU."""
    return line["hardware"].partition(";")[0]


def loss() -> str:
    """Time and memory of the exact softmax, beside its products and other kernels."""
    lines = sorted(gpu_lines("loss"), key=lambda line: (line["items"], line["rows"]))
    rows = [
        [
            f"{line['rows']:,} x {line['items']:,}: {NAMES[line['impl']]}",
            f"{line['forward_backward_ms']:,.2f}",
            f"{line['forward_backward_ms'] / line['floor_ms']:.2f}",
            f"{line['peak_mib']:,.0f}",
            "" if line["error"] is None else f"{100 * line['error']:.1f} %",
        ]
        for line in lines
    ]
    header = ["predictions x items: implementation", "forward and backward, ms"]
    return table([*header, "of the floor", "peak MiB", "largest error"], rows)


def sampled_step() -> str:
    """Time and memory of a training step, by what it minimises and what updates the items."""
    rows = [
        [
            f"{line['items']:,} items, {line['events']:,} events: {line['form']}",
            f"{line['negatives']:,}" if line["negatives"] else "",
            f"{line['ms']:,.1f}",
            f"{line['peak_mib']:,.0f}",
        ]
        for line in gpu_lines("sampled step", case=STEPS)
    ]
    return table(["catalogue, batch: loss", "sampled items", "step, ms", "peak MiB"], rows)


def step_parts() -> str:
    """Time of a training step, and the shares of its parts in the time of all kernels."""
    rows = []
    for line in gpu_lines("step parts", case=("case", "hidden_size")):
        total = sum(line["parts_ms"].values())
        shares = (f"{100 * line['parts_ms'][name] / total:.0f} %" for name in PARTS)
        size = (
            f"{line['items']:,} items, {line['events']:,} events of histories of {line['length']:,}"
        )
        rows.append([f"{size}: {line['form']}", f"{line['ms']:.1f}", f"{total:.1f}", *shares])
    return table(["catalogue, batch: loss", "step, ms", "kernels, ms", *PARTS], rows)


def trained_lines() -> list[Line]:
    """Lines of training on one GPU and several."""
    return gpu_lines("scale", "scale.jsonl", SCALES)


def scale_lines() -> list[Line]:
    """Lines of training on one GPU and several, those that were computed last."""
    measured = trained_lines()
    return measured + computed(measured, gpu_lines("collectives", "scale.jsonl"))


def collectives() -> str:
    """Time and rate of what ranks tell each other, by size."""
    lines = gpu_lines("collectives", "scale.jsonl")
    rows = [
        [
            line["collective"],
            str(line["gpus"]),
            f"{line['mib']:,g}",
            f"{line['microseconds']:,.0f}",
            f"{line['gb_per_second']:,.1f}",
        ]
        for line in sorted(lines, key=lambda line: (line["collective"], line["mib"]))
    ]
    return table(["collective", "GPUs", "MiB", "microseconds", "GB a second"], rows)


def scale() -> str:
    """Events a second on several GPUs beside one, and memory of the item table on each; below what
    was measured, what follows for more GPUs.
    """
    lines, rows = scale_lines(), []
    what = ("items", "length", "loss", "hidden_size")
    alone = {tuple(line[name] for name in what): line for line in lines if line["gpus"] == 1}
    for line in lines:
        one = alone.get(tuple(line[name] for name in what))
        rate = line["events_per_second"]
        rows.append(
            [
                f"{line['items']:,} items, histories of {line['length']:,}: {line['loss']}",
                f"{line['gpus']}{', computed' if line.get('computed') else ''}",
                f"{line['tokens_per_rank']:,}",
                f"{rate / 1e6:.2f}",
                "" if one is None else f"{rate / one['events_per_second']:.2f}",
                "" if line.get("computed") else f"{line['peak_mib']:,.0f}",
                f"{line['table_mib']:,.0f}",
            ]
        )
    header = ["catalogue: loss", "GPUs", "events of each", "million events a second"]
    return table([*header, "of one GPU's", "peak MiB", "table MiB"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "loss": loss,
    "sampled-step": sampled_step,
    "step-parts": step_parts,
    "scale": scale,
    "collectives": collectives,
}
