"""The command line of the benchmarks: a table from verb to function, imported when it is used."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from blossomrec.cli import refuse_fractions
from blossomrec.errors import BlossomRecError

VERBS = {
    "speed": (
        "speed.run_bench:run_bench",
        "Time and memory over the length of histories, beside peers.",
    ),
    "data": (
        "speed.bench_data:measure_data",
        "Time and peak memory of preparing events and of ranking a large catalogue.",
    ),
    "accuracy": (
        "accuracy.accuracy_study:measure_all",
        "The models side by side on prepared logs, into a results file.",
    ),
    "reproduce": (
        "accuracy.reproduce:reproduce",
        "What a table of the paper needs, after saying what that costs.",
    ),
    "tuned": (
        "accuracy.tuned_study:measure_tuned",
        "The models of the paper beside each other, each tuned by the same number of trials.",
    ),
    "rolling": (
        "accuracy.rolling_study:measure_rolling",
        "A model over periods of time: left as it is, brought up to date, trained from nothing.",
    ),
    "features": (
        "accuracy.feature_study:measure_features",
        "Times, moments, content and kinds among the inputs, beside ids alone.",
    ),
    "sampled": (
        "accuracy.sampled_study:measure_sampled",
        "Accuracy for equal time with the softmax over all items, and over a sample of them.",
    ),
    "sampled-step": (
        "speed.sampled_step:measure_sampled_step",
        "Time and peak memory of a training step with a catalogue of a million items.",
    ),
    "step-parts": (
        "speed.step_parts:measure_parts",
        "Where the time of a training step goes: attention, loss, optimizer, and the rest.",
    ),
    "data-sizes": (
        "speed.bench_data:measure_sizes",
        "Time, peak memory and disk of preparing folders of Parquet files of several sizes.",
    ),
    "ids": (
        "speed.bench_ids:measure_ids",
        "Time and memory of preparing and of opening logs with very many ids.",
    ),
    "append": (
        "speed.bench_growth:measure_append",
        "Time and peak memory of appending tables of several sizes to a log.",
    ),
    "growth": (
        "speed.bench_growth:measure_growth",
        "Time and peak memory of appending to a large log, of merging it and of forgetting a user.",
    ),
    "inputs": (
        "speed.input_cost:measure_inputs",
        "Time of a training step, or of one more event, with each input besides items.",
    ),
    "events": (
        "speed.event_cost:measure_events",
        "Time of one more event of one user on a processor, by model and history.",
    ),
    "loss": (
        "speed.catalogue_loss:measure_loss",
        "Time and memory of the exact softmax over a large catalogue, beside its products.",
    ),
    "ranking": (
        "speed.ranking:measure_ranking",
        "Time and memory of the best items of a large catalogue, beside the bare product.",
    ),
    "ranking-quantised": (
        "speed.quantised_ranking:measure_quantised",
        "Time of the best items of a catalogue on a processor, by vectors in 8 bits.",
    ),
    "scale": (
        "speed.scale:measure_scale",
        "Events a second of training on one GPU and on several, and memory of the catalogue.",
    ),
    "bulk": (
        "speed.bulk_rate:measure_bulk",
        "Users for whom a catalogue is ranked in a second, with and without rules.",
    ),
    "bulk-engines": (
        "speed.bulk_engines:measure_engines",
        "Time of recommending to all users by this process and by the workers of Ray.",
    ),
    "selector": (
        "selector.run_study:run_study",
        "What the selector finds: on associative recall, and on prepared logs.",
    ),
    "serving": (
        "serving.server_load:measure_server",
        "Throughput and latency of a server with kept histories.",
    ),
    "swap": (
        "serving.larger_swap:measure_swap",
        "Latency of a server while it takes a run with a tenth more items.",
    ),
    "serving-step": (
        "serving.kept_step:measure_step",
        "One new event of each of many users on a GPU, beside encoding all histories again.",
    ),
    "explain": (
        "serving.removed_events:measure_removed",
        "Whether explanations name the events that count.",
    ),
    "approximate": (
        "serving.approximate_recall:measure_approximate",
        "Time and recall of looking for the best items in some of the lists.",
    ),
    "rules": (
        "serving.rule_cost:measure_rules",
        "Time of an answer with rules beside one without, of the engine and of the library.",
    ),
    "plan": (
        "tables.planning_tables:print_plan",
        "Hours and cost of each step from a laptop to a cluster, at prices of your own.",
    ),
    "tables": (
        "tables.pages:write_pages",
        "Fill the tables of the docs and draw their pictures, from the lines in results/.",
    ),
}


def build_app() -> App:
    """The application."""
    app = App(
        name="python -m benchmarks",
        help="What is measured of blossomrec, and the tables of the docs.",
        suppress_keyboard_interrupt=False,
        # One flag, several values behind it.
        default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    )
    for verb, (function, help) in VERBS.items():
        app.command(f"benchmarks.{function}", name=verb, help=help)
    app.config = (refuse_fractions,)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns the exit code: 0, 1 where a verb says that a check failed, 2 for bad input.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        held = build_app()(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        return 1 if held is False else 0
    except (CycloptsError, BlossomRecError, OSError) as error:
        print("benchmarks:", *map(str.strip, str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
