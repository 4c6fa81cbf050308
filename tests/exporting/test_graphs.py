"""What ONNX Runtime and PyTorch make of exported files is what the model says.

ONNX Runtime is given a few forms of models, which between them use all operators that any form
does; ``BLOSSOMREC_ONNX=all python -m pytest tests/exporting`` gives it all, about ten seconds each.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from exported_models import FORMS, USERS, exported_model, filled_up, histories_of

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
FEW_FORMS = (
    "sasrec near_bias=on share=0.7 block_size=16 compress_window=16",
    "sasrec fusion=gated gate=convex sinks=3",
    "bert4rec sees all",
)
# From named tensors to what a graph gives.
Graph = Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]


def exported(folder: Path, model: Any, to: str) -> dict[str, Any]:
    """Write a model; gives its description, read from the file."""
    users = None if model.users is None else Vocabulary(pl.Series(USER_IDS))
    source = Source(model, Vocabulary(pl.Series(ITEM_IDS)), users, "0123456789ab", True)
    told = write_export(folder, source, Wanted(to, k=K))
    read = json.loads((folder / "export.json").read_text())
    # JSON knows no tuples.
    assert json.loads(json.dumps(told)) == read
    return read


def onnx_graph(folder: Path, told: dict[str, Any]) -> Graph:
    """A graph of an export in ONNX Runtime, held to what is said of it."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(folder / told["file"], options)
    for there, said in (
        (session.get_inputs(), told["inputs"]),
        (session.get_outputs(), told["outputs"]),
    ):
        types = {"tensor(int64)": "int64", "tensor(float)": "float32"}
        found = [(each.name, types[each.type], list(each.shape)) for each in there]
        assert found == [(each["name"], each["dtype"], each["shape"]) for each in said]

    def run(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        arrays = {name: each.numpy() for name, each in given.items()}
        return [torch.from_numpy(each) for each in session.run(None, arrays)]

    return run


def torch_graph(folder: Path, told: dict[str, Any]) -> Graph:
    """A graph of an export as a module."""
    module = torch.export.load(folder / told["file"]).module()

    def run(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            found = module(*given.values())
        return [found] if isinstance(found, torch.Tensor) else list(found)

    return run


GRAPHS = {"onnx": onnx_graph, "torch": torch_graph}


def check(folder: Path, model: Any, to: str) -> None:
    """Export a model and hold encoder and ranking to it, together and history by history."""
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="writing ONNX needs the extra onnx")
    told = exported(folder, model, to)
    encoder, ranking = (GRAPHS[to](folder, told[name]) for name in ("encoder", "ranking"))
    histories = histories_of(model)
    assert len(histories[-1]) == told["max_len"]
    expected = model.queries(pack(histories, model.inputs))
    (vectors,) = encoder(filled_up(histories, model.inputs))
    assert relative_error(vectors, expected) < 1e-5
    for each, one in zip(histories, expected, strict=True):
        (alone,) = encoder(filled_up([each], model.inputs))
        assert relative_error(alone, one[None]) < 1e-5
    scores = model.scores(expected, 0, NUM_ITEMS)
    few = [[row, NUM_ITEMS - 1, -1] for row in range(len(histories))]
    for left_out in (few, [[-1]] * len(histories), [list(range(NUM_ITEMS - 3))] * len(histories)):
        rows = torch.tensor(left_out)
        items, found = ranking({"vectors": vectors, "left_out": rows})
        check_lists(items, found, scores, rows)
    check_lists(*ranking({"vectors": vectors[:1], "left_out": rows[:1]}), scores[:1], rows[:1])


def check_lists(
    items: torch.Tensor, found: torch.Tensor, scores: torch.Tensor, left_out: torch.Tensor
) -> None:
    """Hold lists and their scores to the best ones, but for the order of ties within rounding."""
    rounding = 1e-5 * scores.abs().max()
    for listed, given, row, left in zip(items, found, scores, left_out, strict=True):
        allowed = row.clone()
        allowed[left[left >= 0]] = -torch.inf
        best = allowed.topk(K).values
        assert listed.unique().numel() == K
        # Not the difference, which is not a number where no item is left.
        for each in (given, allowed[listed]):
            assert torch.allclose(each, best, rtol=0, atol=rounding)


def chosen_forms() -> list[str]:
    """All forms, or few that use all operators of ONNX that any does."""
    return list(FORMS) if os.environ.get("BLOSSOMREC_ONNX") == "all" else list(FEW_FORMS)


def check_tables(folder: Path, model: Any) -> None:
    """Hold the files of ONNX to the table of items, which lies beside them and once for both."""
    onnx = pytest.importorskip("onnx")
    rows = len(model.item_vectors())
    table = np.fromfile(folder / "item_vectors.bin", np.float32).reshape(rows, -1)
    assert np.array_equal(table, model.item_vectors().detach().numpy())
    # The ranking does not have the last row of BERT4Rec, the mask.
    for name, count in (("encoder", rows), ("ranking", NUM_ITEMS)):
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        kept = {each.name: each for each in graph.initializer}
        assert list(kept["item_vectors"].dims) == [count, table.shape[1]]
        assert kept["item_vectors"].data_location == onnx.TensorProto.EXTERNAL
        others = [each.dims for each in kept.values() if each.name != "item_vectors"]
        assert not any(rows in dims or NUM_ITEMS in dims for dims in others)


@pytest.mark.parametrize("form", chosen_forms())
def test_onnx_equals_the_model(form, tmp_path):
    model = exported_model(**FORMS[form])
    check(tmp_path / "out", model, "onnx")
    check_tables(tmp_path / "out", model)


def test_an_exported_program_equals_the_model_and_holds_nothing_pickled(tmp_path):
    model = exported_model(time_gap="on", content="on", user_table="on")
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
        ({"backbone": "mamba4rec"}, "model.backbone is 'mamba4rec'"),
        ({"attention": "mamba"}, "model.attention is 'mamba'"),
        ({"attention": "hstu"}, "model.attention is 'hstu'"),
        ({"attention": "linrec"}, "model.attention is 'linrec': blossom, full and window can be"),
        ({"repeats": "on"}, "model.repeats is 'on'"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_named(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        exported(tmp_path / "new" / "out", small_model(**options), "torch")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[onnx\]'"):
        exported(tmp_path / "new" / "out", small_model(), "onnx")
    assert not list(tmp_path.iterdir())
