"""What the selector finds: on associative recall over long histories, and on prepared logs.

    python benchmarks/selector.py recall --out results/selector.jsonl --candidates mlp full short
    python benchmarks/selector.py logs /data/logs --out results/selector.jsonl --datasets ml-1m
    python benchmarks/selector.py cost --out results/selector.jsonl

``recall`` trains each candidate of ``experiments/selector_candidates.py`` with each seed on the
task of ``data/recall.py``. ``logs`` trains SASRec with dense and with Blossom attention, alike in
all else, with histories of up to 1,024 events, compares the two, and measures what the selected
blocks cover of the attention of users with a choice. Several trainings share a device, and devices
are taken in turn. ``cost`` times a training step and an encoding of each candidate in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from blossomrec.config import ModelConfig, RunConfig, TrainingConfig
from blossomrec.evaluation.results import append_result, provenance
from blossomrec.experiments.recall_training import (
    RecallTraining,
    as_numbers,
    max_recall_layer,
    train_recall,
)
from blossomrec.experiments.selector_candidates import CANDIDATES, build_candidate

MAX_LEN = 1_024


def device_of(number: int) -> torch.device:
    """The device of the ``number``-th job."""
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(number % torch.cuda.device_count())
    return torch.device("cuda")


def recall_line(number: int, name: str, model: dict[str, Any], training: RecallTraining) -> dict:
    """Train one candidate and measure it."""
    device = device_of(number)
    config = dataclasses.replace(
        ModelConfig(max_len=training.length, norm="pre", dropout=0.0), **model
    )
    if not CANDIDATES[name].taught:
        training = dataclasses.replace(training, selector_weight=0.0)
    torch.manual_seed(training.seed)
    began = time.monotonic()
    built = build_candidate(name, config, training.items).to(device)

    def report(line: str) -> None:
        print(f"{name} {model} seed {training.seed}: {line}", flush=True)

    trained = train_recall(built, training, device=device, report=report)
    measures = trained.measures
    layer = max_recall_layer(measures)
    return {
        "task": "recall-control" if training.control else "recall",
        "candidate": name,
        "seed": training.seed,
        "n": config.top_n,
        "block_size": config.block_size,
        "layers": config.layers,
        "options": model,
        "length": measures.length,
        "distance": training.distance,
        "recall_at_n": None if layer is None else round(measures.recall[layer], 4),
        **shares(measures, layer),
        "metrics": as_numbers(measures),
        "steps": trained.steps,
        "finished": trained.finished,
        "gradient_norms": {
            str(length): {part: float(f"{norm:.3g}") for part, norm in norms.items()}
            for length, norms in trained.gradient_norms.items()
        },
        "seconds": round(time.monotonic() - began, 1),
        **provenance(device),
    }


def shares(measures: Any, layer: int | None) -> dict[str, float | None]:
    """Attention that the selected blocks cover, and that the best ones would, mean over heads."""
    if layer is None or measures.selection is None:
        return {"mass_covered": None, "mass_best": None}
    found = measures.selection.layers[layer]
    return {
        name: round(sum(values) / len(values), 4)
        for name, values in (("mass_covered", found.mass_covered), ("mass_best", found.mass_best))
    }


def log_line(
    number: int, dataset: str, attention: str, model: dict, training: dict, logs: Path, runs: Path
) -> dict:
    """Train and evaluate one attention on one log, and inspect what it selects."""
    device_of(number)
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import make_split
    from blossomrec.evaluation.storage import save_evaluation
    from blossomrec.experiments.inspect_run import inspect_run
    from blossomrec.experiments.measure import evaluate_run
    from blossomrec.models import build_model
    from blossomrec.training import train

    config = RunConfig(
        ModelConfig(max_len=MAX_LEN, kv_heads=2, attention=attention, **model),
        TrainingConfig(tokens_per_batch=8_192, **training),
    )
    log = EventLog.open(logs / dataset)
    run = runs / f"{dataset}-{attention}-{config.training.seed}"
    torch.manual_seed(config.training.seed)
    built = build_model(config.model, log.num_items)
    began = time.monotonic()
    result = train(built, log, make_split(log, config.evaluation), config, run, progress=False)
    seconds = time.monotonic() - began
    evaluation = evaluate_run(run, log)
    save_evaluation(evaluation, runs / f"{run.name}.json")
    names = ("hr@10", "ndcg@10", "mrr@10")
    metrics = {name: round(evaluation.metrics[name], 6) for name in names}
    metrics["ndcg@10_interval"] = [round(each, 6) for each in evaluation.intervals["ndcg@10"]]
    covered = best = None
    if attention == "blossom":
        found = inspect_run(run, logs / dataset)
        heads = [head for layer in found.layers for head in layer.heads]
        mean = {
            name: sum(getattr(head, name) for head in heads) / len(heads)
            for name in ("covered", "best", "random", "own", "short_term")
        }
        covered, best = round(mean["covered"], 4), round(mean["best"], 4)
        metrics |= {name: round(mean[name], 4) for name in ("random", "own", "short_term")}
        metrics["ratio"] = [
            round(each, 4) for each in (found.ratio.value, found.ratio.low, found.ratio.high)
        ]
        metrics["choosing_events"] = found.choice.choosing_events / found.choice.events
        metrics["long_gate"] = [
            round(float(layer.gate_balance.mean()), 4) for layer in found.layers
        ]
    return {
        "task": dataset,
        "candidate": "mlp" if attention == "blossom" else attention,
        "seed": config.training.seed,
        "n": config.model.top_n,
        "block_size": config.model.block_size,
        "layers": config.model.layers,
        "options": model,
        "length": MAX_LEN,
        "distance": None,
        "recall_at_n": None,
        "mass_covered": covered,
        "mass_best": best,
        "metrics": metrics,
        "epochs": result.epochs,
        "seconds": round(seconds, 1),
        **provenance("cuda" if torch.cuda.is_available() else "cpu"),
    }


def difference_line(dataset: str, seed: int, runs: Path) -> dict:
    """Blossom less dense attention on the same test users, with a paired test."""
    from blossomrec.evaluation.significance import compare
    from blossomrec.evaluation.storage import load_evaluation

    blossom, full = (
        load_evaluation(runs / f"{dataset}-{name}-{seed}.json") for name in ("blossom", "full")
    )
    tests = compare(blossom, full)
    metrics = {
        name: [round(each, 6) for each in (test.difference, test.low, test.high)]
        for name, test in tests.items()
        if name in ("ndcg@10", "hr@10")
    }
    metrics["p"] = tests["ndcg@10"].p_permutation
    return {"task": dataset, "candidate": "mlp - full", "seed": seed, "metrics": metrics}


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


def run_all(jobs: list[tuple[Any, tuple]], out: Path, together: int) -> None:
    """Run all jobs, ``together`` at a time, and append their lines."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(together, mp_context=spawn, max_tasks_per_child=1) as pool:
        waiting = [pool.submit(job, number, *given) for number, (job, given) in enumerate(jobs)]
        for done in as_completed(waiting):
            try:
                line = done.result()
            except Exception:
                traceback.print_exc()
                continue
            append_result(out, line)
            shown = ("task", "candidate", "options", "seed", "length", "recall_at_n")
            print({name: line[name] for name in (*shown, "metrics", "seconds")}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", choices=("recall", "logs", "cost"))
    parser.add_argument("logs", type=Path, nargs="?", help="folder of prepared logs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/selector"))
    parser.add_argument("--candidates", nargs="+", default=["mlp"], choices=CANDIDATES)
    parser.add_argument("--datasets", nargs="+", default=["ml-1m", "assist2017"])
    parser.add_argument("--attentions", nargs="+", default=["full", "blossom"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--together", type=int, default=1, help="trainings at a time")
    parser.add_argument("--training", type=json.loads, default={}, help="options as JSON")
    parser.add_argument(
        "--model", type=json.loads, nargs="+", default=[{}], help="options as JSON, each a variant"
    )
    given = parser.parse_args()
    variants = [(model, seed) for seed in given.seeds for model in given.model]
    if given.bench == "cost":
        for line in cost_lines(given.candidates):
            append_result(given.out, line)
            print(line["candidate"], line["metrics"])
        return
    if given.bench == "recall":
        jobs = [
            (recall_line, (name, model, RecallTraining(**given.training, seed=seed)))
            for model, seed in variants
            for name in given.candidates
        ]
    else:
        if given.logs is None:
            parser.error("logs needs the folder of prepared logs")
        jobs = [
            (
                log_line,
                (data, each, model, {**given.training, "seed": seed}, given.logs, given.runs),
            )
            for model, seed in variants
            for data in given.datasets
            for each in given.attentions
        ]
    run_all(jobs, given.out, given.together)
    if given.bench == "logs" and len(given.attentions) == 2:
        for seed in given.seeds:
            for data in given.datasets:
                append_result(given.out, difference_line(data, seed, given.runs) | provenance())


if __name__ == "__main__":
    main()
