"""What the selector finds: on associative recall over long histories, and on prepared logs.

    python benchmarks/selector.py parity --out results/selector.jsonl
    python benchmarks/selector.py drift study --out results/selector.jsonl --together 8
    python benchmarks/selector.py recall --out results/selector.jsonl --candidates mlp full short
    python benchmarks/selector.py logs --logs runs/logs --out results/selector.jsonl
    python benchmarks/selector.py cost --out results/selector.jsonl

``recall`` trains each candidate of ``experiments/selector_candidates.py`` with each seed on the
task of ``data/recall.py``. ``logs`` trains SASRec with the attention of each, alike in all else,
with histories of up to 1,024 events, compares them, and measures what the selected blocks cover of
the attention of users with a choice. ``study`` is all trainings that
docs/selector.md is made of, those on logs only where ``--logs`` names their folder; ``drift``
compares ways to train at the last length; more than one may be named. Several trainings share a
device (``--together``), devices are taken in turn, and after ``--seconds`` all ends: trainings on
recall are cut short in time to be measured. ``cost`` times a training step and an encoding of each
candidate in turn, and wants the device for itself. ``parity`` compares steps that are replayed as
CUDA graphs with steps taken operation by operation, and fails where they differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from blossomrec.config import ModelConfig
from blossomrec.evaluation.results import append_result, provenance
from blossomrec.experiments.job_queue import run_jobs
from blossomrec.experiments.recall_options import RecallTraining
from blossomrec.experiments.recall_step import RecallStep, optimizer_of, stage_batches
from blossomrec.experiments.selector_candidates import CANDIDATES, build_candidate
from blossomrec.experiments.selector_jobs import LogJob, RecallJob
from blossomrec.experiments.selector_study import drift, study_logs, study_recall

JOBS = ("drift", "study", "recall", "logs")


def cost_lines(names: list[str], rounds: int = 7) -> list[dict]:
    """Median time of a training step and of encoding, the candidates taking turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length, tokens = (4_096, 131_072) if device.type == "cuda" else (1_024, 8_192)
    items = torch.randint(0, 10_000, (tokens,), device=device)
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    config = ModelConfig(max_len=length)
    models = {name: build_candidate(name, config, 10_000).to(device) for name in names}

    def encode(name: str, training: bool) -> float:
        lessons = torch.arange(tokens, device=device) if training else None
        if not CANDIDATES[name].taught:
            lessons = None
        began = time.perf_counter()
        with (
            torch.set_grad_enabled(training),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ):
            given = models[name].train(training).encode(items, cu_seqlens, length, lessons=lessons)
        if training:
            loss = given.hidden.float().square().mean()
            (loss if given.selector_loss is None else loss + given.selector_loss).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    times: dict[tuple[str, bool], list[float]] = {}
    for turn in range(rounds + 2):
        for name in names:
            for training in (True, False):
                taken = encode(name, training)
                if turn >= 2:
                    times.setdefault((name, training), []).append(taken)
    return [
        {
            "task": "cost",
            "candidate": name,
            "seed": 0,
            "n": config.top_n,
            "block_size": config.block_size,
            "layers": config.layers,
            "length": length,
            "metrics": {
                "training_ms": round(statistics.median(times[name, True]), 2),
                "encoding_ms": round(statistics.median(times[name, False]), 2),
            },
            **provenance(device),
        }
        for name in names
    ]


def parity(names: list[str], length: int = 8_192, steps: int = 40) -> bool:
    """Whether graphs and single operations give the same losses; prints them and their times."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = RecallTraining()
    batches = next(stage_batches(training, length, 0)).to(device)[:steps]
    same = True
    for name in names:
        losses, times = [], []
        for graph in (False, True):
            torch.manual_seed(0)
            config = ModelConfig(max_len=length, norm="pre", dropout=0.0)
            model = build_candidate(name, config, training.items).to(device)
            weight = training.selector_weight if CANDIDATES[name].taught else 0.0
            options = dataclasses.replace(training, selector_weight=weight)
            optimizer = optimizer_of(model, options, device)
            step = RecallStep(model, optimizer, options, length, graph=graph, device=device)
            losses.append([])
            for number, batch in enumerate(batches):
                if number == steps // 2:
                    began = time.perf_counter()
                step(batch)
                if number < steps // 2:
                    losses[-1].append(float(step.loss))
            float(step.loss)
            times.append(2e3 * (time.perf_counter() - began) / steps)
        worst = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
        good = worst < 1e-3 and all(map(math.isfinite, losses[1]))
        same &= good
        print(
            f"{name}: losses {losses[0][0]:.4f} to {losses[0][-1]:.4f} and {losses[1][-1]:.4f}, "
            f"apart by at most {worst:.1e}; {times[0]:.2f} and {times[1]:.2f} ms a step"
            f"{'' if good else ': DIFFERENT'}",
            flush=True,
        )
    return same


def jobs_of(given: argparse.Namespace, bench: str) -> Sequence[RecallJob | LogJob]:
    """What the command line asks for."""
    if bench == "drift":
        return drift()
    if bench == "study":
        on_logs = [] if given.logs is None else study_logs(given.logs, given.runs)
        return [*study_recall(), *on_logs]
    variants = [(model, seed) for seed in given.seeds for model in given.model]
    if bench == "recall":
        return [
            RecallJob(name, model, RecallTraining(**given.training, seed=seed))
            for model, seed in variants
            for name in given.candidates
        ]
    return [
        LogJob(name, dataset, given.logs, given.runs, seed, model, given.training)
        for model, seed in variants
        for dataset in given.datasets
        for name in given.candidates
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", nargs="+", choices=(*JOBS, "parity", "cost"))
    parser.add_argument("--logs", type=Path, help="folder of prepared logs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/selector"))
    parser.add_argument("--candidates", nargs="+", default=["mlp"], choices=CANDIDATES)
    parser.add_argument("--datasets", nargs="+", default=["ml-1m", "assist2017"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--together", type=int, default=1, help="trainings at a time")
    parser.add_argument("--seconds", type=float, default=1e9, help="until all has to end")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--training", type=json.loads, default={}, help="options as JSON")
    parser.add_argument(
        "--model", type=json.loads, nargs="+", default=[{}], help="options as JSON, each a variant"
    )
    given = parser.parse_args()
    if given.bench == ["cost"]:
        for line in cost_lines(given.candidates):
            append_result(given.out, line)
            print(line["candidate"], line["metrics"])
        return
    if given.bench == ["parity"]:
        raise SystemExit(not parity(given.candidates))
    if not set(given.bench) <= set(JOBS):
        parser.error("parity and cost want the device for themselves")
    if "logs" in given.bench and given.logs is None:
        parser.error("logs needs --logs, the folder of prepared logs")
    jobs = [job for bench in given.bench for job in jobs_of(given, bench)]
    if given.eager:
        jobs = [
            dataclasses.replace(job, graph=False) if isinstance(job, RecallJob) else job
            for job in jobs
        ]
    left = run_jobs(jobs, given.out, together=given.together, seconds=given.seconds)
    for job in left:
        print(f"not done: {job}")


if __name__ == "__main__":
    main()
