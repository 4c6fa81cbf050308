"""What the command line says of itself: help, the table of verbs, flags, and its version."""

import dataclasses
import importlib
import inspect
import subprocess
import sys

import pytest

import blossomrec
from blossomrec.cli import VERBS, build_app
from blossomrec.commands.measuring import EvaluateOptions
from blossomrec.config import ServingConfig
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.reading.options import PrepareOptions, ReadOptions
from blossomrec.exporting.options import VectorOptions
from blossomrec.recommendation.options import BulkOptions, RecommendOptions, RuleOptions
from blossomrec.rolling.options import RollingOptions
from blossomrec.tuning.options import TuneOptions
from blossomrec.updating.options import DailyOptions
from small_options import MODEL, TRAINING

pytestmark = pytest.mark.usefixtures("wide_terminal")


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_imports_nothing_heavy(verb):
    arguments = ["--help"] if verb is None else [verb, "--help"]
    code = (
        f"import sys; from blossomrec.cli import main; assert main({arguments}) == 0; "
        "print('imported', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout[done.stdout.index("\nimported") :].split())
    assert "cyclopts" in imported
    if verb is None:
        assert all(known in done.stdout for known in VERBS)
    assert not imported & {"torch", "polars", "numpy", "scipy", "lightning_fabric", "matplotlib"}


def test_the_table_of_verbs_is_what_the_commands_say():
    for name, verb in VERBS.items():
        first = inspect.getdoc(function_of(name)).splitlines()[0]
        assert first.startswith(verb.help.rstrip("."))


def function_of(verb):
    room, name = VERBS[verb].function.split(":")
    return getattr(importlib.import_module(f"blossomrec.commands.{room}"), name)


# Verbs with a section whose options stand without its name before them.
UNNAMED_SECTIONS = {
    "serve": (ServingConfig, RuleOptions),
    "prepare": PrepareOptions,
    "append": AppendOptions,
    "import-events": ReadOptions,
    "evaluate": EvaluateOptions,
    "export": VectorOptions,
    "recommend": (BulkOptions, RecommendOptions, RuleOptions),
    "tune": TuneOptions,
    "rolling": RollingOptions,
    "update": DailyOptions,
}
# In the order in which help shows them.
FLAGS = {
    "evaluate": (
        "model log on ranking filter-seen split last-events kinds ks own-metrics segments out "
        "device"
    ),
    "recommend": (
        "run user history k log all users out shards rows-per-file engine items filter-viewed "
        "max-len at kind filter boost max-per diversity exclude-seen-days fallback reranker "
        "rerank-depth item-table unknown json device"
    ),
}


@pytest.mark.parametrize("verb", FLAGS)
def test_a_section_without_a_name_leaves_the_flags_plain(verb):
    arguments = build_app()[verb].assemble_argument_collection(parse_docstring=True)
    shown = [one.names[0].lstrip("-") for one in arguments if one.show]
    assert shown == FLAGS[verb].split()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_is_explained(cli, verb):
    shown = " ".join(cli(verb, "--help").replace("│", " ").split())
    names = set(inspect.signature(function_of(verb)).parameters)
    if verb in UNNAMED_SECTIONS:
        sections = UNNAMED_SECTIONS[verb]
        sections = sections if isinstance(sections, tuple) else (sections,)
        names -= {"bulk", "options", "by_rule"}
        names |= {field.name for section in sections for field in dataclasses.fields(section)}
    arguments = build_app()[verb].assemble_argument_collection(parse_docstring=True)
    explained = {one.names[0] for one in arguments if one.parameter.help}
    for one in arguments:
        if not one.show:
            continue
        assert one.names[0] in explained, f"{verb} {one.names[0]} has no help"
        assert one.names[0] in shown
        # The plain words, as far as the terminal shows them.
        assert one.parameter.help.split("`")[0].strip()[:30] in shown
    flags = {name.lstrip("-").split(".")[0].replace("-", "_") for name in explained}
    # The flag is a keyword of Python.
    names = {"from" if name == "from_run" else name for name in names}
    assert names <= flags
    assert "--empty-" not in shown


def test_every_option_of_the_configuration_is_a_flag_of_train(cli):
    shown = cli("train", "--help")
    for section, options in (("model", MODEL), ("training", TRAINING)):
        for name in options:
            assert f"--{section}.{name.replace('_', '-')}" in shown


def test_the_version_is_printed(cli):
    assert cli("--version").strip() == blossomrec.__version__
