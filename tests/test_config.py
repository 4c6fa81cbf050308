import dataclasses
import json
import math
from itertools import pairwise
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from blossomrec.config import (
    PRESETS,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    check,
    from_dict,
    preset,
    read_file,
    to_dict,
)
from blossomrec.errors import ConfigError

SECTIONS = {"model": ModelConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}
FIELDS = [
    pytest.param(section, entry, get_type_hints(kind)[entry.name], id=f"{section}.{entry.name}")
    for section, kind in SECTIONS.items()
    for entry in dataclasses.fields(kind)
]


def refused(section, name, value):
    """The message with which one option is refused inside of a whole configuration."""
    with pytest.raises(ConfigError) as error:
        from_dict({section: {name: value}})
    assert str(error.value).startswith((f"{section}.{name} is ", f"{section}.{name}[0] is "))
    return str(error.value)


def test_the_defaults_are_fine_and_fit_each_other():
    check(RunConfig())
    check(from_dict({}))
    assert from_dict({}) == RunConfig()


@pytest.mark.parametrize("section, entry, hint", FIELDS)
def test_every_option_explains_itself(section, entry, hint):
    assert len(entry.metadata["help"]) > 5


@pytest.mark.parametrize("section, entry, hint", FIELDS)
def test_every_option_refuses_other_types(section, entry, hint):
    # A text that is no name of anything may be any.
    text = hint is str and "registry" not in entry.metadata
    wrong = [None, {"a": 1}, [], *([] if text else ["1"])]
    if hint is bool:
        wrong += [0, 1.0, "true"]
    elif hint in (int, float):
        wrong += [True, False, math.nan, math.inf, [1]]
    else:
        wrong += [True, 1.5]
    if hint is int:
        wrong += [1.5, 3.0]
    for value in wrong:
        shown = tuple(value) if isinstance(value, list) else value
        assert repr(shown) in refused(section, entry.name, value)


@pytest.mark.parametrize(
    "section, entry, hint", [one for one in FIELDS if one.values[2] in (int, float)]
)
def test_every_number_has_its_bounds(section, entry, hint):
    low, high = entry.metadata["low"], entry.metadata["high"]
    assert low is not None
    step = 1 if hint is int else 1e-6
    message = refused(section, entry.name, low - step)
    assert f"is {hint(low - step)}: it must be at least {low}" in message
    if high is not None:
        message = refused(section, entry.name, high + step)
        assert f"is {hint(high + step)}: it must be at most {high}" in message


@pytest.mark.parametrize("entry", dataclasses.fields(TrainingConfig), ids=lambda entry: entry.name)
def test_bounds_are_inclusive(entry):
    for bound in ("low", "high"):
        if entry.metadata[bound] is not None:
            check(dataclasses.replace(TrainingConfig(), **{entry.name: entry.metadata[bound]}))


@pytest.mark.parametrize(
    "section, entry, hint", [one for one in FIELDS if get_origin(one.values[2]) is Literal]
)
def test_every_choice_is_taken_and_no_other(section, entry, hint):
    for choice in get_args(hint):
        # A union has no gate to choose.
        others = {"fusion": "gated"} if entry.name == "gate" else {}
        config = from_dict({section: {entry.name: choice, **others}})
        assert getattr(getattr(config, section), entry.name) == choice
    message = refused(section, entry.name, "another")
    assert message.endswith("is 'another': choose one of " + ", ".join(get_args(hint)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"hidden_size": 100}, ["model.hidden_size is 100", "multiple of heads, 8"]),
        ({"hidden_size": 24}, ["model.hidden_size / heads is 3", "even"]),
        ({"heads": 4, "kv_heads": 3}, ["model.kv_heads is 3", "divide heads, 4"]),
        ({"fusion": "union", "gate": "convex"}, ["model.gate is convex", "with fusion union"]),
        ({"kv_heads": 16}, ["model.kv_heads is 16", "divide heads, 8"]),
        (
            {"compress_window": 24},
            ["model.compress_window is 24", "multiple of block_size, 16"],
        ),
    ],
)
def test_options_that_do_not_fit_each_other(options, words):
    with pytest.raises(ConfigError) as error:
        from_dict({"model": options})
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "ks, message",
    [
        ([10, 0], "evaluation.ks is (10, 0): it must be at least 1"),
        ([5.5], "evaluation.ks[0] is 5.5: a whole number is needed"),
        ([5, "10"], "evaluation.ks[1] is '10': a whole number is needed"),
        ([True], "evaluation.ks[0] is True: a whole number is needed"),
        ([], "evaluation.ks is (): a list of numbers is needed"),
        (10, "evaluation.ks is 10: a list of numbers is needed"),
    ],
)
def test_cut_offs_are_whole_numbers_of_at_least_one(ks, message):
    with pytest.raises(ConfigError) as error:
        from_dict({"evaluation": {"ks": ks}})
    assert str(error.value) == message


@pytest.mark.parametrize(
    "values, words",
    [
        ({"modle": {}}, ["unknown option modle", "model, training, evaluation"]),
        ({"model": {"hidden": 3}}, ["unknown option model.hidden:", "hidden_size"]),
        ({"training": {"max_len": 3}}, ["unknown option training.max_len:", "epochs"]),
        ({"model": 3}, ["model is 3", "table of options"]),
        ({"model": None}, ["model is None", "table of options"]),
        ({"evaluation": ["ks"]}, ["evaluation is ['ks']", "table of options"]),
    ],
)
def test_unknown_names_and_missing_tables_are_named_with_their_place(values, words):
    with pytest.raises(ConfigError) as error:
        from_dict(values)
    assert all(word in str(error.value) for word in words)


def test_the_nested_form_comes_back_the_same():
    config = RunConfig(
        ModelConfig(backbone="bert4rec", max_len=7, dropout=0.5, kv_heads=8, norm="pre"),
        TrainingConfig(loss="gbce", learning_rate=2e-4, tracker="tensorboard", seed=2**40),
        EvaluationConfig(split="global-time", ks=(1, 100), filter_seen="no"),
    )
    nested = to_dict(config)
    assert from_dict(nested) == config
    assert from_dict(json.loads(json.dumps(nested))) == config
    assert nested["evaluation"]["ks"] == [1, 100]
    assert list(nested) == ["model", "training", "evaluation"]


def test_whole_numbers_are_numbers():
    dropout = from_dict({"model": {"dropout": 0}}).model.dropout
    assert (dropout, type(dropout)) == (0.0, float)


FILES = {
    "options.yaml": """
model: {max_len: 50, dropout: 0.25, norm: pre}
training:
  learning_rate: 1e-3  # as everybody writes it
  weight_decay: 1.5E-2
  tracker: tensorboard
evaluation:
  ks: [1, 10]
""",
    "options.toml": """
[model]
max_len = 50
dropout = 0.25
norm = "pre"
[training]
learning_rate = 1e-3
weight_decay = 1.5E-2
tracker = "tensorboard"
[evaluation]
ks = [1, 10]
""",
    "options.json": """
{"model": {"max_len": 50, "dropout": 0.25, "norm": "pre"},
 "training": {"learning_rate": 1e-3, "weight_decay": 1.5E-2, "tracker": "tensorboard"},
 "evaluation": {"ks": [1, 10]}}
""",
}
FILES["options.yml"] = FILES["options.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind_say_the_same(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    assert from_dict(read_file(tmp_path / name)) == RunConfig(
        ModelConfig(max_len=50, dropout=0.25, norm="pre"),
        TrainingConfig(learning_rate=1e-3, weight_decay=1.5e-2, tracker="tensorboard"),
        EvaluationConfig(ks=(1, 10)),
    )


def test_the_switch_of_earlier_files_is_the_tracker(tmp_path):
    path = tmp_path / "old.toml"
    for switch, tracker in (("true", "tensorboard"), ("false", "")):
        path.write_text(f"training = {{tensorboard = {switch}}}")
        assert from_dict(read_file(path)).training == TrainingConfig(tracker=tracker)


def test_trackers_are_listed_with_commas():
    assert TrainingConfig(tracker=" mlflow,tensorboard, ,mlflow").trackers == (
        "mlflow",
        "tensorboard",
    )
    assert TrainingConfig().trackers == ()


def test_only_numbers_become_numbers_in_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("[1e-3, -2E5, 1e3x, e3, '1e3', 1.e2, 12]")
    (tmp_path / "b.yaml").write_text("values: [1e-3, -2E5, 1e3x, e3, '1e3', 1.e+2, 12]")
    with pytest.raises(ConfigError, match="holds list"):
        read_file(tmp_path / "a.yaml")
    expected = [1e-3, -2e5, "1e3x", "e3", "1e3", 100.0, 12]
    assert read_file(tmp_path / "b.yaml") == {"values": expected}


def test_an_empty_yaml_file_changes_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert from_dict(read_file(tmp_path / "a.yaml")) == RunConfig()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.yaml", b"model: [1, 2\nx"),
        ("a.yaml", b"\xff\xfe\x00model"),
        ("a.toml", b"model = = 3"),
        ("a.json", b'{"model": '),
        ("a.json", b'{"model": {"max_len": 3, "max_len": 4}}'),
        ("a.json", b"[1, 2]"),
        ("a.yaml", b"17"),
        ("a.yaml", b"0"),
        ("a.json", b"[" * 200_000),
        ("a.yaml", b"[" * 200_000),
        ("a.toml", b"model = " + b"[" * 200_000),
        ("a.yaml", b"model: {max_len: !!python/object/apply:os.getcwd []}"),
        ("a.yaml", b"x" * (2 << 20)),
        ("a.ini", b"[model]"),
        ("options", b"model: {}"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert len(str(error.value)) < 500


BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise("abcdefghi")]
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "model: &m {layers: 1}\ntraining: {<<: *m}"])
def test_aliases_are_refused_before_they_are_followed(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"a\.yaml cannot be read: \*\w is an alias: write it out"
    ):
        read_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"layers": ["x"] * 10**6}},
        {"model": {"backbone": "x" * 10**6}},
        {"model": [["x"] * 10**6] * 10},
        {"evaluation": {"ks": [0] * 10**6}},
        {"x" * 10**6: 1},
        {"model": {("x",) * 10**6: 1}},
    ],
)
def test_large_values_are_not_told_whole(values):
    with pytest.raises(ConfigError) as error:
        from_dict(values)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_wrong_extension_says_which_are_right(tmp_path):
    (tmp_path / "a.ini").write_text("")
    with pytest.raises(ConfigError, match=r"\.yaml, \.yml, \.toml or \.json"):
        read_file(tmp_path / "a.ini")


@pytest.mark.parametrize("name", ["nothing.yaml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match="no configuration file") as error:
        read_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_the_published_form_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published = preset("paper")
    assert read_file("paper") == PRESETS["paper"] and from_dict(read_file("paper")) == published
    assert (published.model.fusion, published.model.num_kv_heads) == ("gated", 2)
    assert published.model.repeats == published.model.time_gap == "off"
    # A file goes before a preset of its name.
    (tmp_path / "paper").write_text("model: {}")
    with pytest.raises(ConfigError, match="paper cannot be read"):
        read_file("paper")
    with pytest.raises(ConfigError, match="preset is 'papers': choose one of paper"):
        preset("papers")


def test_there_are_as_many_key_value_heads_as_query_heads_unless_told():
    assert ModelConfig(heads=4).num_kv_heads == 4
    assert ModelConfig(heads=4, kv_heads=2).num_kv_heads == 2
