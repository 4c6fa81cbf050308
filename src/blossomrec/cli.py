"""The command line: a table from verb to function; each verb is imported when it is used."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, UnusedCliTokensError

from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.terminal import show_everything


class Verb(NamedTuple):
    """Where the function of a verb stands in ``commands``, and what it does."""

    function: str
    help: str


VERBS = {
    "prepare": Verb(
        "logs:prepare", "Read a table of events, check it, write the memory-mapped log."
    ),
    "append": Verb(
        "logs:append", "Append a table of events to a log, at the cost of what is appended."
    ),
    "compact": Verb("logs:compact", "Merge what was appended to a log, as opening it does."),
    "forget": Verb(
        "logs:forget", "Remove a user from a log, so that nothing of that user is left on disk."
    ),
    "train": Verb(
        "training:train", "Train a model on a prepared log; --resume auto continues after a stop."
    ),
    "update": Verb(
        "training:update",
        "Take what is new into log and model, and the model into use if it is not worse.",
    ),
    "rollback": Verb(
        "training:rollback", "Use the run again that was in use before the last update."
    ),
    "tune": Verb(
        "training:tune", "Search for the options that do best on the validation events of a log."
    ),
    "evaluate": Verb(
        "measuring:evaluate",
        "Measure a run, or a simple baseline, on the held-out events of a log.",
    ),
    "rolling": Verb(
        "measuring:rolling",
        "Train and test a model period after period: left as it is, updated, trained anew.",
    ),
    "compare": Verb(
        "measuring:compare", "Compare two evaluations of the same cases with a paired test."
    ),
    "recommend": Verb(
        "recommending:recommend", "Recommend items for users of the log or for any list of items."
    ),
    "similar": Verb(
        "recommending:similar", "Show the items that a model holds to be closest to others."
    ),
    "export": Verb(
        "exporting:export", "Write a model for other engines: as graphs, or as vectors."
    ),
    "inspect": Verb(
        "measuring:inspect",
        "Show what the selector of a run selects, as tables and as an HTML page.",
    ),
    "serve": Verb(
        "serving:serve", "Answer requests over HTTP: append events, recommend, forget users."
    ),
    "openapi": Verb(
        "serving:openapi", "Print what requests a server takes, as an OpenAPI schema in JSON."
    ),
    "import-events": Verb(
        "serving:import_events", "Load histories into the store of events of a server."
    ),
    "report": Verb(
        "measuring:report", "Write one self-contained HTML page about several evaluated runs."
    ),
    "demo": Verb("recommending:demo", "The whole path on simulated events or on your own file."),
}


def build_app(defaults: dict[str, Any] | None = None) -> App:
    """The application; ``defaults`` are option values from a configuration file."""
    from blossomrec import __version__

    app = App(
        name="blossomrec",
        version=__version__,
        help="Sequential recommendation over whole histories with Blossom sparse attention.",
        # Training saves a checkpoint and says so when it is stopped; main turns that into a code.
        suppress_keyboard_interrupt=False,
        # A list is left out, never emptied by a flag.
        default_parameter=Parameter(negative_iterable=()),
    )
    for name, verb in VERBS.items():
        app.command(f"blossomrec.commands.{verb.function}", name=name, help=verb.help)
    given = (_options(defaults),) if defaults else ()
    app.config = (*given, _own_options, refuse_fractions, _refuse_unknown_names)
    return app


def _options(values: dict[str, Any]) -> Callable[..., None]:
    """A source of values for options that were given none before."""
    from cyclopts.config import Dict

    # Validated before, with messages of our own; a verb takes the sections it knows.
    return Dict(values, allow_unknown=True, use_commands_as_keys=False)


def _own_options(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """What a run was begun with, where ``train`` goes on with it, or ``train`` or ``update`` brings
    it up to date, and nothing else is given."""
    given = {one.name: one.tokens[0].value for one in arguments if one.tokens}
    if commands == ("update",) and "--runs" in given:
        from blossomrec.updating.runs import Runs

        runs = Runs(given["--runs"])
        if (current := runs.current()) is not None:
            given = {"--from": str(runs.path(current))}
    elif commands != ("train",):
        return
    goes_on = given.get("--resume") == "auto" and "--run" in given
    if goes_on or "--from" in given:
        from blossomrec.training.resume import begun_options

        run = Path(given["--run"]) if goes_on else None
        before = Path(given["--from"]) if "--from" in given else None
        _options(begun_options(run, before))(app, commands, arguments)


def refuse_fractions(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raise ConfigError where a whole number is needed and another is given, never round it."""
    for argument in arguments:
        for token in argument.tokens if _is_whole(argument.hint) else ():
            try:
                whole = float(token.value).is_integer()
            except (ValueError, OverflowError):
                continue  # no number at all, or one such as 0x1f: left to cyclopts
            if not whole:
                name = token.keyword or argument.name
                raise ConfigError(f"{name} is {token.value}: a whole number is needed")


def _refuse_unknown_names(
    app: App, commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Raise ConfigError where an option is to be a name in a registry and is not."""
    from blossomrec.config import registries

    known = {f"--{name.replace('_', '-')}": registry for name, registry in registries().items()}
    for argument in arguments:
        if (registry := known.get(argument.name)) is None:
            continue
        for token in argument.tokens:
            if token.value not in registry:
                names = ", ".join(registry.names())
                raise ConfigError(
                    f'Invalid value "{token.value}" for {argument.name}. Choose from: {names}.'
                )


def _is_whole(hint: Any) -> bool:
    """Whether a type takes whole numbers: int, int | None, tuple[int, ...]."""
    return hint is int or any(map(_is_whole, get_args(hint)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns the exit code: 0, 2 for bad input, 128 and the number of the signal when stopped.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_everything()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app = build_app(_file_options(arguments))
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader of our output has seen enough; what is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnusedCliTokensError as error:
        unused, verb = " ".join(error.unused_tokens or ()), arguments[0]
        return _complain(f"{verb} has no place for {unused!r}: see blossomrec {verb} --help")
    except (CycloptsError, BlossomRecError, OSError) as error:
        return _complain(str(error))
    except KeyboardInterrupt as stop:
        # Where something was saved, the same command goes on unless another one is named.
        command = getattr(stop, "command", None)
        if command is not None:
            command = command or shlex.join(["blossomrec", *arguments])
        _complain((str(stop) or "stopped") + (f"; to go on: {command}" if command else ""))
        return 128 + getattr(stop, "signum", signal.SIGINT)


def _file_options(arguments: list[str]) -> dict[str, Any]:
    """Options of the file named by --config, checked."""
    from blossomrec.config import from_dict, read_file

    for place, argument in enumerate(arguments):
        name, _, given = argument.partition("=")
        if name == "--config" and (given or place + 1 < len(arguments)):
            path = Path(given or arguments[place + 1])
            values = read_file(path)
            try:
                from_dict(values)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
            return values
    return {}


def _complain(message: str) -> int:
    # One line, whatever wrote the message; none where the terminal is gone.
    with contextlib.suppress(OSError):
        print("blossomrec:", *map(str.strip, message.splitlines()), file=sys.stderr)
    return 2


def _warn(message: Warning | str, *place: Any, **others: Any) -> None:
    """Show a warning like an error, without the line of code that gave it."""
    print(f"blossomrec: warning: {message}", file=sys.stderr)
