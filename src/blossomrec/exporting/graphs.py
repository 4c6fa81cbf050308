"""A trained model as graphs for other engines: ONNX, or an ExportedProgram of PyTorch."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from blossomrec.attention import BlossomAttention
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, MissingExtraError
from blossomrec.exporting.description import (
    ITEMS,
    USERS,
    Port,
    described,
    encoder_ports,
    ranking_ports,
    write_ids,
)
from blossomrec.exporting.encoder import DenseEncoder
from blossomrec.exporting.ranking import DenseRanking
from blossomrec.models.bert4rec import BERT4Rec
from blossomrec.models.full import FullAttention
from blossomrec.models.peers.window import WindowAttention
from blossomrec.models.sasrec import SASRec
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.transformer import TransformerModel

# Classes as they are here: a subclass may compute something else.
BACKBONES = (SASRec, BERT4Rec)
ATTENTIONS = (BlossomAttention, FullAttention, WindowAttention)
# Sizes that graphs are traced with; they hold for all others.
SIZES = {"batch": 3, "length": 8, "count": 2}
OPSET = 18
# Tables lie beside ONNX files, which must be smaller than 2 GiB, and once for both.
TABLES = {"item_vectors": "item_vectors.bin", "user_vectors": "user_vectors.bin"}


@dataclass(frozen=True)
class Graph:
    """A module that takes tensors one after another, and what these are."""

    name: str
    module: nn.Module
    inputs: Sequence[Port]
    outputs: Sequence[Port]

    def traced(self) -> ExportedProgram:
        """The module as operations on tensors of any batch and length."""
        names = {each for port in self.inputs for each in port.shape if isinstance(each, str)}
        sizes = {name: Dim(name, min=1) for name in sorted(names)}
        example = tuple(port.example(SIZES) for port in self.inputs)
        shapes = tuple(
            {axis: sizes[each] for axis, each in enumerate(port.shape) if isinstance(each, str)}
            for port in self.inputs
        )
        # A size of 1 would otherwise count as another graph.
        tracing: Any = _config
        with torch.no_grad(), tracing.patch(backed_size_oblivious=True):
            return torch.export.export(
                self.module.eval(), example, dynamic_shapes=(shapes,), strict=False
            )


def refuse_unsupported(model: SequenceModel, to: str) -> None:
    """Look before anything is written whether a model can be exported as graphs.

    Args:
        to: "onnx" or "torch".

    Raises:
        ConfigError: it cannot; the message names the option.
        MissingExtraError: what writes ONNX is not installed.
    """
    config, vectors = model.config, "--to vectors takes it"
    if type(model) not in BACKBONES:
        raise ConfigError(
            f"model.backbone is {config.backbone!r}: sasrec and bert4rec can be exported as "
            f"graphs; {vectors}"
        )
    if type(cast(TransformerModel, model).stack()[0].attention) not in ATTENTIONS:
        raise ConfigError(
            f"model.attention is {config.attention!r}: blossom, full and window can be exported "
            f"as graphs; {vectors}"
        )
    if model.own_history is not None:
        raise ConfigError(
            "model.repeats is 'on': the user's own items are mixed in by more than one product of "
            "vectors, which cannot be exported"
        )
    if to == "onnx":
        _onnx_ir()


def write_graphs(
    folder: Path, to: str, model: SequenceModel, k: int, items: Vocabulary, users: Vocabulary | None
) -> dict[str, Any]:
    """Write encoder and ranking with the ids of their rows.

    Args:
        to: "onnx" or "torch".
        model: in evaluation mode, not refused by :func:`refuse_unsupported`.
        k: how many items are ranked.
        users: of the table of users that the model sees; None where it sees none.

    Returns:
        What ``export.json`` is to say of them.
    """
    write = _write_onnx if to == "onnx" else _write_torch
    if model.item_embeddings.weight.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    encoder = DenseEncoder(cast(TransformerModel, model))
    catalogue = encoder.item_vectors[: model.num_items]
    graphs = (
        Graph("encoder", encoder, *encoder_ports(model)),
        Graph("ranking", DenseRanking(catalogue, k), *ranking_ports(model, k)),
    )
    files = [write(folder, graph) for graph in graphs]
    write_ids(folder / ITEMS, items)
    if users is not None:
        write_ids(folder / USERS, users)
    return {
        "to": to,
        "k": k,
        # The mask of BERT4Rec takes the place of one event.
        "max_len": model.max_len - (not model.causal),
        "fields": model.fields.to_dict(),
        **{
            graph.name: described(file, graph.inputs, graph.outputs)
            for graph, file in zip(graphs, files, strict=True)
        },
    }


def _write_torch(folder: Path, graph: Graph) -> str:
    name = f"{graph.name}.pt2"
    with _quiet():
        program = graph.traced()
        # They would be pickled; all else in the file is JSON and plain numbers.
        program.example_inputs = None
        torch.export.save(program, folder / name)
    return name


def _onnx_ir() -> Any:
    """The module that holds and saves graphs of ONNX, or what to install."""
    try:
        import_module("onnxscript")
        return import_module("onnx_ir")
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnxscript", "onnx") from error


def _write_onnx(folder: Path, graph: Graph) -> str:
    name, onnx_ir = f"{graph.name}.onnx", _onnx_ir()
    with _quiet():
        program = torch.onnx.export(
            graph.traced(),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
        )
    assert program is not None
    program.rename_axes(_sizes_of(program.model.graph.inputs, graph.inputs))
    for table, file in TABLES.items():
        kept = program.model.graph.initializers.get(table)
        if kept is not None:
            kept.const_value = _beside(onnx_ir, folder / file, getattr(graph.module, table))
    onnx_ir.save(program.model, folder / name)
    return name


def _sizes_of(values: Sequence[Any], ports: Sequence[Port]) -> dict[Any, str]:
    """What sizes are called, by what the tracing called them."""
    return {
        found: wanted
        for value, port in zip(values, ports, strict=True)
        for found, wanted in zip(value.shape, port.shape, strict=True)
        if isinstance(wanted, str)
    }


def _beside(onnx_ir: Any, path: Path, table: Tensor) -> Any:
    """A table whose numbers lie in a file, written where it is not there, from its first byte on.

    The ranking has the first rows of what the encoder has.
    """
    if not path.exists():
        table.numpy().tofile(path)
    return onnx_ir.ExternalTensor(
        path.name,
        0,
        table.nbytes,
        onnx_ir.DataType.FLOAT,
        shape=onnx_ir.Shape(table.shape),
        name=path.stem,
        base_dir=path.parent,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters tell their own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
