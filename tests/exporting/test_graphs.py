"""What ONNX Runtime and PyTorch make of exported files is what the model says."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from exported_models import (
    LENGTHS,
    USERS,
    all_tables,
    exported_model,
    filled_up,
    history,
)

from blossomrec.data.batch import pack
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, MissingExtraError
from blossomrec.exporting.export import Source, Wanted, write_export
from small_models import NUM_ITEMS, small_model
from whole_history import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")
K = 7
ITEM_IDS = [f"item {row}" for row in range(NUM_ITEMS)]
USER_IDS = list(range(100, 100 + USERS))


def exported(folder: Path, model: Any, to: str) -> dict[str, Any]:
    """Write a model; gives its description, read from the file."""
    users = None if model.users is None else Vocabulary(pl.Series(USER_IDS))
    source = Source(model, Vocabulary(pl.Series(ITEM_IDS)), users, "0123456789ab", True)
    told = write_export(folder, source, Wanted(to, k=K))
    read = json.loads((folder / "export.json").read_text())
    # JSON knows no tuples.
    assert json.loads(json.dumps(told)) == read
    return read


class OnnxGraph:
    """A graph of an export in ONNX Runtime, held to what is said of it."""

    def __init__(self, folder: Path, told: dict[str, Any]):
        runtime = pytest.importorskip("onnxruntime")
        self.session = runtime.InferenceSession(folder / told["file"])
        for there, said in (
            (self.session.get_inputs(), told["inputs"]),
            (self.session.get_outputs(), told["outputs"]),
        ):
            types = {"tensor(int64)": "int64", "tensor(float)": "float32"}
            found = [(each.name, types[each.type], list(each.shape)) for each in there]
            assert found == [(each["name"], each["dtype"], each["shape"]) for each in said]

    def __call__(self, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        arrays = {name: each.numpy() for name, each in given.items()}
        return [torch.from_numpy(each) for each in self.session.run(None, arrays)]


class TorchGraph:
    """A graph of an export as a module."""

    def __init__(self, folder: Path, told: dict[str, Any]):
        self.module = torch.export.load(folder / told["file"]).module()

    def __call__(self, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            found = self.module(*given.values())
        return [found] if isinstance(found, torch.Tensor) else list(found)


GRAPHS = {"onnx": OnnxGraph, "torch": TorchGraph}


def check(folder: Path, model: Any, to: str) -> None:
    """Export a model and hold encoder and ranking to it, together and history by history."""
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="writing ONNX needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    told = exported(folder, model, to)
    encoder, ranking = (GRAPHS[to](folder, told[name]) for name in ("encoder", "ranking"))
    histories = [history(length, length) for length in LENGTHS]
    expected = model.queries(pack(histories, model.inputs))
    (vectors,) = encoder(filled_up(histories, model.inputs))
    assert relative_error(vectors, expected) < 1e-5
    for number in (0, 1, 4):
        (alone,) = encoder(filled_up([histories[number]], model.inputs))
        assert relative_error(alone, expected[number : number + 1]) < 1e-5
    scores = model.scores(expected, 0, NUM_ITEMS)
    left_out = torch.tensor([[0, NUM_ITEMS - 1, -1]] * len(LENGTHS))
    items, found = ranking({"vectors": vectors, "left_out": left_out})
    best = scores.index_fill(1, torch.tensor([0, NUM_ITEMS - 1]), -torch.inf).topk(K)
    assert torch.equal(items, best.indices)
    assert relative_error(found, best.values) < 1e-5
    items, _ = ranking({"vectors": vectors[:1], "left_out": torch.tensor([[-1]])})
    assert torch.equal(items, scores[:1].topk(K).indices)


def test_onnx_equals_a_model_that_sees_more_than_items(tmp_path):
    options = {"near_bias": "on", "share": 0.7, "block_size": 16, "compress_window": 16}
    model = exported_model(all_tables(), time_gap="on", event_kinds="on", **options)
    check(tmp_path / "out", model, "onnx")


def test_onnx_equals_a_bidirectional_model_and_has_its_table_once(tmp_path):
    onnx = pytest.importorskip("onnx", reason="writing ONNX needs the extra onnx")
    model, out = exported_model(backbone="bert4rec", attention="full"), tmp_path / "out"
    check(out, model, "onnx")
    table = np.fromfile(out / "item_vectors.bin", np.float32).reshape(NUM_ITEMS + 1, -1)
    assert np.array_equal(table, model.item_vectors().detach().numpy())
    # The last row is the mask, which the ranking does not have.
    for name, rows in (("encoder", NUM_ITEMS + 1), ("ranking", NUM_ITEMS)):
        graph = onnx.load(out / f"{name}.onnx", load_external_data=False).graph
        kept = {each.name: each for each in graph.initializer}
        assert list(kept["item_vectors"].dims) == [rows, table.shape[1]]
        assert kept["item_vectors"].data_location == onnx.TensorProto.EXTERNAL
        others = [each.dims for each in kept.values() if each.name != "item_vectors"]
        assert not any(rows in dims or NUM_ITEMS in dims for dims in others)


def test_an_exported_program_equals_the_model_and_holds_nothing_pickled(tmp_path):
    model = exported_model(all_tables(), time_gap="on", content="on", user_table="on")
    check(tmp_path / "out", model, "torch")
    ids = pl.read_parquet(tmp_path / "out" / "items.parquet")["id"].to_list()
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")["id"].to_list()
    assert (ids, users) == (ITEM_IDS, USER_IDS)
    for name in ("encoder", "ranking"):
        with zipfile.ZipFile(tmp_path / "out" / f"{name}.pt2") as file:
            names = file.namelist()
            configs = [each for each in names if each.endswith("_config.json")]
            assert not any(each.endswith(".pkl") for each in names) and len(configs) == 2
            for each in configs:
                assert b'"use_pickle": true' not in file.read(each)
            (sample,) = [each for each in names if "sample_inputs" in each]
            assert file.read(sample) == b""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "gru4rec"}, "model.backbone is 'gru4rec': sasrec and bert4rec can be"),
        ({"backbone": "hstu"}, "model.backbone is 'hstu'"),
        ({"attention": "linrec"}, "model.attention is 'linrec': blossom, full and window can be"),
        ({"repeats": "on"}, "model.repeats is 'on'"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_named(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        exported(tmp_path / "out", small_model(**options), "torch")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[onnx\]'"):
        exported(tmp_path / "out", small_model(), "onnx")
    assert not list(tmp_path.iterdir())
