"""Tensors of which ranks have parts, written and read by ``torch.distributed.checkpoint``.

As files of safetensors, one of each rank: nothing in them is pickled, and any number of ranks reads
what another number wrote.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from blossomrec.ranks import ALONE, Ranks

TABLE = "item_embeddings.weight"
# What is in parts of all that is stored: the table, its average, and what an optimizer keeps of
# each of its rows.
_OF_ROWS = ("exp_avg", "exp_avg_sq", "square_sum", "seen")
IN_PARTS = {f"model.{TABLE}", f"average.{TABLE}"}
IN_PARTS |= {f"optimizer.{TABLE}:{name}" for name in _OF_ROWS}


def save_shards(folder: Path, tensors: dict[str, Tensor], ranks: Ranks, num_rows: int) -> None:
    """Write tensors in host memory, each rank what it has of those in parts, from a thread beside
    the training.

    Args:
        num_rows: of the item table.
    """
    mesh = DeviceMesh.from_group(ranks.aside, "cpu")
    given = {
        name: _whole(each, num_rows, mesh) if name in IN_PARTS else each
        for name, each in tensors.items()
    }
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _plain_errors(), ranks.together():
        save(given, storage_writer=writer, process_group=ranks.aside)


def load_shards(
    folder: Path, ranks: Ranks | None = None, num_rows: int | None = None
) -> dict[str, Tensor]:
    """Tensors of a folder of safetensors; of those in parts the rows of this rank.

    Args:
        ranks: who read together; None for one process that reads all.
        num_rows: of the item table.
    """
    reader, given = HuggingFaceStorageReader(str(folder)), dict[str, Any]()
    mesh = None if ranks is None else DeviceMesh.from_group(ranks.aside, "cpu")
    for name, each in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(each, TensorStorageMetadata)
        size, dtype = list(each.size), each.properties.dtype
        if ranks is not None and num_rows is not None and name in IN_PARTS:
            local = torch.empty(len(ranks.rows(num_rows)), *size[1:], dtype=dtype)
            given[name] = _whole(local, num_rows, mesh)
        else:
            given[name] = torch.empty(size, dtype=dtype)
    with warnings.catch_warnings(), _plain_errors(), (ranks or ALONE).together():
        # That one process reads alone is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is")
        group = None if ranks is None else ranks.aside
        load(given, storage_reader=reader, process_group=group, no_dist=ranks is None)
    return {
        name: each.to_local() if isinstance(each, DTensor) else each for name, each in given.items()
    }


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise OSError with what went wrong at one of the ranks."""
    try:
        yield
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise OSError(f"rank {rank}: {reason}") from error


def _whole(local: Tensor, num_rows: int, mesh: DeviceMesh | None) -> DTensor:
    shape = torch.Size((num_rows, *local.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
