import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.speed import bench_attention, run_bench
from benchmarks.speed.instruments.parity import Check
from benchmarks.speed.length_plots import PANELS, curves, draw, fingerprint

SMALL = ("--device", "cpu", "--tokens", 128)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_printed_appended_and_drawn(benchmarks, tmp_path):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "speed.jsonl", tmp_path / "speed.svg"
    asked = ("speed", "attention", *SMALL, "--lengths", 32, 64, "--impls", "torch", "floor")
    shown = benchmarks(*asked, "--out", out, "--plot", plot)
    lines = read(out)
    # The floor of three layouts, of two of them two ways to make block keys, at two lengths.
    assert len(lines) == len(shown.splitlines()) == 14
    assert [line["length"] for line in lines] == [32] * 7 + [64] * 7
    assert all(line["bench"] == "attention" and line["commit"] for line in lines)
    text = plot.read_text()
    ElementTree.fromstring(text)
    for words in ("(torch), mean, 8/2/16", "floor, 4/2/64", "hidden size 256", "peak, MiB"):
        assert words in text
    benchmarks(*asked, "--out", out)
    assert len(read(out)) == 28


def test_every_bench_is_reached(benchmarks, tiny_log):
    shown = benchmarks("speed", "encoder", *SMALL, "--lengths", 32, "--impls", "torch")
    assert "not distilled" in shown
    shown = benchmarks(
        *("speed", "training", *SMALL, "--lengths", 20, "--steps", 1),
        *("--log", tiny_log.folder, "--impls", "torch"),
    )
    assert "events/s" in shown
    shown = benchmarks("speed", "incremental", *SMALL, "--lengths", 32, "--users", 1, 2)
    assert "recompute" in shown and "2 users" in shown


def test_a_red_check_prints_no_timing(capsys, monkeypatch, tmp_path):
    checks = [Check("green", 0.0, 1.0), Check("torch mlp", 0.5, 1e-5)]
    monkeypatch.setattr(bench_attention, "checks", lambda options: iter(checks))
    monkeypatch.setattr(bench_attention, "measure", lambda *_: pytest.fail("measured"))
    out = tmp_path / "speed.jsonl"
    assert main(["speed", "attention", "--device", "cpu", "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and not out.exists()
    assert "parity of torch mlp is broken: error 5.0e-01" in shown.err
    assert "green" not in shown.err and "nothing is timed" in shown.err


def test_what_does_not_fit_is_said_and_the_rest_goes_on(benchmarks, monkeypatch):
    original = bench_attention.measure

    def measure(case, options):
        if case.compress == "mean":
            raise torch.OutOfMemoryError
        return None if case.impl == "naive" else original(case, options)

    monkeypatch.setattr(bench_attention, "measure", measure)
    shown = benchmarks("speed", "attention", *SMALL, "--lengths", 32, "--impls", "torch", "naive")
    assert shown.count("torch: does not fit in memory") == 2
    assert shown.count("naive: does not fit in memory") == 3
    assert shown.count(" mlp ") == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("attention", "--impls", "fast"), ("'fast'", "dense", "torch")),
        (("attention", "--steps", 3), ("--steps", "training")),
        (("encoder", "--log", "x"), ("--log", "training")),
        (("training",), ("--log is needed",)),
        (("attention", "--lengths-of", "nowhere"), ("nowhere",)),
        (("attention", "--lengths", 0), ("lengths is 0",)),
        (("everything",), ("everything",)),
    ],
)
def test_wrong_options_are_named(refused, arguments, words):
    refused("speed", *arguments, "--device", "cpu", words=words)


def line(impl, length, value, compress="none", **others):
    layout = {"heads": 8, "kv_heads": 2, "head_dim": 16}
    shared = {"bench": "attention", "compress": compress, "peak_mib": value, **layout}
    return {**shared, "impl": impl, "length": length, "forward_backward_ms": value, **others}


def test_curves_rise_by_length_ours_first_the_floor_last():
    lines = [
        line("floor", 64, 1.0),
        line("flash", 64, 2.0),
        line("triton", 128, 4.0, "mean"),
        line("triton", 64, 3.0, "mean"),
        line("triton", 64, 5.0, "mean"),
        line("triton", 64, 6.0, "mean", lessons=True),
        line("triton-short", 64, 1.0),
        line("triton-union", 64, 6.0, "mean"),
        line("paged", 64, 6.0, "mean"),
    ]
    found = curves(lines)
    assert list(found) == [
        "Blossom (triton), mean, 8/2/16",
        "Blossom (triton), mean, 8/2/16, distilled",
        "Blossom (triton, union), mean, 8/2/16",
        "Blossom (paged), mean, 8/2/16",
        "flash, 8/2/16",
        "triton-short, 8/2/16",
        "floor, 8/2/16",
    ]
    ours = found["Blossom (triton), mean, 8/2/16"]
    assert [(each["length"], each["peak_mib"]) for each in ours] == [(64, 5.0), (128, 4.0)]
    graphs = [line("floor", 64, 1.0), line("flash", 64, 2.0, graph=True)]
    assert list(curves(graphs)) == ["flash, 8/2/16", "floor, 8/2/16"]
    assert "flash, 8/2/16, graph" in curves([*graphs, line("flash", 64, 2.0)])


@pytest.mark.parametrize("bench", PANELS)
def test_plots_of_lines_with_gaps(bench, tmp_path):
    pytest.importorskip("matplotlib")
    fields = {"forward_ms": 1.0, "epoch_seconds": 2.0}
    lines = [
        line("torch", 64, 3.0, "mlp", **fields),
        line("torch", 128, None, "mlp", **fields),
        line("ragged", 0, 3.0, **fields),
    ]
    lines = [each | {"bench": bench} for each in lines]
    draw(lines, bench, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "(torch), mlp" in text and fingerprint(lines, bench) in text and "ragged" not in text
    # Lines that are not drawn do not count, those that are do.
    assert (
        fingerprint(lines[:2], bench) == fingerprint(lines, bench) != fingerprint(lines[1:], bench)
    )
    draw([], bench, tmp_path / "empty.svg")
    assert (tmp_path / "empty.svg").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bench", run_bench.BENCHES)
def test_on_a_gpu(benchmarks, bench, tiny_log, tmp_path):
    out = tmp_path / "speed.jsonl"
    own = {
        "attention": ("--lengths-of", tiny_log.folder),
        "training": ("--log", tiny_log.folder, "--steps", 2),
        "incremental": ("--users", 1, 4),
        "encoder": (),
    }
    tokens = ("--tokens", 1_024, "--lengths", 256)
    benchmarks("speed", bench, "--device", "cuda", *tokens, *own[bench], "--out", out)
    lines = read(out)
    names = {each["impl"] for each in lines}
    if bench == "attention":
        assert {"triton", "cudnn", "flash", "naive", "flex-short", "triton-short"} <= names
        floor = next(each for each in lines if each["impl"] == "floor")
        assert floor["gather_tb_s"] > 0
    assert all(each["hardware"].startswith("NVIDIA") for each in lines)
    assert all(each["forward_ms"] or each["forward_backward_ms"] for each in lines)
