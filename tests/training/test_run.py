import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_training import small_config

import blossomrec
from blossomrec.config import to_dict
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import RunError
from blossomrec.models import build_model
from blossomrec.run import weights
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_vocabulary
from blossomrec.run.weights import load_model, save_model
from blossomrec.run.writing import write_metrics, write_run_config


@pytest.fixture
def run(tiny_log, tmp_path):
    """A run folder with untrained weights."""
    config = small_config(hidden_size=12)
    write_run_config(tmp_path / "run", config, tiny_log)
    torch.manual_seed(0)
    save_model(tmp_path / "run", build_model(config.model, tiny_log.num_items))
    return tmp_path / "run"


def test_configuration_comes_back(run, tiny_log):
    info = read_run_config(run)
    assert info.config == small_config(hidden_size=12)
    assert info.num_items == tiny_log.num_items
    assert info.fingerprint == tiny_log.item_vocabulary.fingerprint
    assert info.data == tiny_log.folder.resolve()
    assert info.log == tiny_log.identity
    # Nobody meets an item again: they are left out where the run is measured.
    assert info.filter_viewed is True


def test_a_run_that_does_not_know_its_log_is_read(run):
    path = run / "config.json"
    values = json.loads(path.read_text())
    del values["log"]
    path.write_text(json.dumps(values))
    assert read_run_config(run).log is None


def test_a_run_of_the_first_format_turns_all_dimensions(run):
    path = run / "config.json"
    values = json.loads(path.read_text())
    assert read_run_config(run).config.model.rotary_share == 0.5
    del values["config"]["model"]["rotary_share"]
    path.write_text(json.dumps(values | {"format": 1}))
    assert read_run_config(run).config.model.rotary_share == 1.0


def test_a_run_from_before_the_union_is_gated(run):
    path = run / "config.json"
    values = json.loads(path.read_text())
    values["config"]["model"]["fusion"] = "union"
    path.write_text(json.dumps(values))
    assert read_run_config(run).config.model.fusion == "union"
    del values["config"]["model"]["fusion"]
    path.write_text(json.dumps(values))
    assert read_run_config(run).config.model.fusion == "gated"


def test_the_cpu_backend_by_its_earlier_name(run):
    path = run / "config.json"
    values = json.loads(path.read_text())
    values["config"]["model"]["attention_impl"] = "native"
    path.write_text(json.dumps(values))
    assert read_run_config(run).config.model.attention_impl == "cpu"


def test_a_run_of_ids_alone_stays_one(run):
    path = run / "config.json"
    values = json.loads(path.read_text())
    for name in ("time_gap", "request_time", "content"):
        del values["config"]["model"][name]
    path.write_text(json.dumps(values))
    model = read_run_config(run).config.model
    assert (model.time_gap, model.request_time, model.content) == ("off", "off", "off")


def test_configuration_is_complete_json(run, tiny_log):
    values = json.loads((run / "config.json").read_text())
    assert values["format"] == 2
    assert values["blossomrec"] == blossomrec.__version__
    assert values["config"] == to_dict(small_config(hidden_size=12))


def test_vocabulary_is_the_items(run, tiny_log):
    copy = Vocabulary.open(run / "vocabulary")
    assert copy.fingerprint == tiny_log.item_vocabulary.fingerprint
    rows = range(tiny_log.num_items)
    assert copy.ids(rows).to_list() == tiny_log.item_vocabulary.ids(rows).to_list()


@pytest.mark.parametrize("damage", ["foreign", "empty", "missing"])
def test_a_vocabulary_that_does_not_fit_is_written_again(run, tiny_log, repeat_log, damage):
    shutil.rmtree(run / "vocabulary")
    if damage == "foreign":
        repeat_log.item_vocabulary.save(run / "vocabulary")
    elif damage == "empty":
        (run / "vocabulary").mkdir()
    write_run_config(run, small_config(), tiny_log)
    copy = Vocabulary.open(run / "vocabulary")
    assert copy.fingerprint == tiny_log.item_vocabulary.fingerprint


def test_weights_come_back_in_evaluation_mode(run, tiny_log):
    torch.manual_seed(0)
    saved = build_model(small_config(hidden_size=12).model, tiny_log.num_items)
    loaded = load_model(run)
    assert not loaded.training
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_loading_needs_neither_polars_nor_fabric_nor_a_compiler(run):
    code = (
        "import sys\n"
        "for name in ('polars', 'lightning_fabric', 'lightning'): sys.modules[name] = None\n"
        "from blossomrec.run.weights import load_model\n"
        f"print(load_model({str(run)!r}).num_items, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "80 False", done.stderr


def test_training_needs_no_polars(tiny_log, tmp_path):
    code = (
        "import sys; sys.modules['polars'] = None\n"
        f"sys.path.insert(0, {str(__file__.rsplit('/', 1)[0])!r})\n"
        "from pathlib import Path\n"
        "from blossomrec.data.log import EventLog\n"
        "from small_training import small_config, small_train\n"
        f"log = EventLog.open({str(tiny_log.folder)!r})\n"
        f"run = Path({str(tmp_path / 'run')!r})\n"
        "print(small_train(log, small_config(epochs=1), run).epochs)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_missing_or_damaged_file_is_named(run, name, damage):
    path = run / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        load_model(run)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"nowhere.*is not a run folder"):
        read_run_config(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 3}, "format 3"),
        ({"config": {"model": {"hidden_size": 7}}}, "hidden_size is 7"),
        ({"config": {"model": {"colour": 1}}}, r"unknown option model\.colour"),
        ({"num_items": None}, "config.json is not the configuration of a run: num_items is None"),
        ({"num_items": True}, "num_items is True"),
        ({"num_items": "80"}, "num_items is '80'"),
        ({"vocabulary": 7}, "vocabulary is 7"),
        ({"data": None}, "data is None"),
        ({"log": [1]}, r"log is \[1\]"),
        ({"config": None}, "config is None"),
        ({"config": [1]}, r"config is \[1\]"),
        ({"config": {"model": None}}, "model is None: a table of options is needed"),
        ({"config": {"model": {"layers": 10**9}}}, "layers is 1000000000: it must be at most"),
        ({"config": {"model": {"top_n": 10**9}}}, "top_n is 1000000000: it must be at most"),
        ({"config": {"model": {"max_len": 10**9}}}, "max_len is 1000000000: it must be at most"),
        ({"config": {"model": {"backbone": "x" * 10**6}}}, "model.backbone is 'xxx"),
    ],
)
def test_a_foreign_configuration_is_named(run, change, message):
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=message) as error:
        read_run_config(run)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("opening", ["[", '{"config":'])
def test_json_nested_too_deeply_is_refused(run, opening):
    (run / "config.json").write_text(opening * 100_000)
    with pytest.raises(RunError, match=r"config\.json is damaged: it is nested too deeply"):
        read_run_config(run)


def test_a_description_of_gigabytes_is_not_read(run):
    with (run / "config.json").open("r+b") as file:
        file.truncate(5 << 30)
    with pytest.raises(RunError, match=r"damaged: it has 5,368,709,120 bytes, more than"):
        read_run_config(run)


@pytest.mark.parametrize(
    "change",
    [
        {"num_items": 10**9},
        {"num_items": 10**18},
        {"num_items": 0},
        {"hidden_size": 2 * 10**9},
        {"hidden_size": 2 * 10**18},
        {"inner_size": 10**9},
        {"inner_size": 10**30},
        {"layers": 1_000},
        {"compress_window": 65_536},
        {"heads": 6, "kv_heads": 6},
    ],
)
def test_sizes_that_the_weights_do_not_have_take_no_memory(run, change, monkeypatch):
    path = run / "config.json"
    values = json.loads(path.read_text())
    for name, value in change.items():
        (values if name == "num_items" else values["config"]["model"])[name] = value
    path.write_text(json.dumps(values))
    monkeypatch.setattr(weights, "_read_into", lambda *_: pytest.fail("weights were read"))
    real = torch.empty

    def small(*sizes, **options):
        made = real(*sizes, **options)
        assert made.device.type == "meta" or made.numel() < 10**6
        return made

    with torch.device("meta"):
        # PyTorch looks up once what such a device is asked for: before it is another function.
        torch.empty(1)
    monkeypatch.setattr(torch, "empty", small)
    with pytest.raises(RunError) as error:
        load_model(run)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_vocabulary_of_another_size_is_refused(run):
    Vocabulary(np.arange(7)).save(run / "vocabulary")
    with pytest.raises(RunError, match=r"vocabulary/ does not belong to config\.json"):
        open_vocabulary(run, read_run_config(run))


def test_a_configuration_without_a_field_is_named(run):
    path = run / "config.json"
    values = json.loads(path.read_text())
    del values["vocabulary"]
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="'vocabulary' is missing"):
        read_run_config(run)
    path.write_text("[1]")
    with pytest.raises(RunError, match="format 'list'"):
        read_run_config(run)


def test_weights_of_another_model_are_named(run, tiny_log):
    save_model(run, build_model(small_config(hidden_size=8).model, tiny_log.num_items))
    with pytest.raises(RunError, match=r"bias has shape \(8,\).*needs \(12,\)"):
        load_model(run)


def test_another_vocabulary_is_refused_and_nothing_changes(run, repeat_log):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="another vocabulary") as error:
        write_run_config(run, small_config(), repeat_log)
    assert str(run) in str(error.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_damaged_metrics_are_named(run, text):
    (run / "metrics.json").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.json is damaged: .*evaluate again"):
        write_metrics(run, "test-full", {"ndcg@10": 0.5})


def test_a_folder_with_brackets_is_a_run_like_any_other(run, tmp_path):
    run.rename(tmp_path / "run[1]*")
    info = read_run_config(tmp_path / "run[1]*")
    assert open_vocabulary(tmp_path / "run[1]*", info).ids([0, 1]).len() == 2
    assert load_model(tmp_path / "run[1]*").num_items == 80
