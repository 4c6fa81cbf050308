"""``model.safetensors`` and other weights: written atomically, checked before they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from blossomrec.data.fields import Tables
from blossomrec.errors import ConfigError, RunError
from blossomrec.files import replacing
from blossomrec.models.building import build_model
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.shard import unfilled, without_numbers
from blossomrec.ranks import ALONE, Ranks
from blossomrec.registry import BACKBONES
from blossomrec.run.description import RunInfo, read_run_config
from blossomrec.run.tables import open_tables

# Of weights, read at a time.
PIECE_BYTES = 64 << 20


def save_model(run: str | Path, model: SequenceModel) -> None:
    """Write the weights of ``model`` as ``model.safetensors``, replacing those that were there."""
    write_weights(Path(run) / "model.safetensors", model.state_dict())


def load_model(
    run: str | Path, device: str | torch.device = "cpu", ranks: Ranks = ALONE
) -> SequenceModel:
    """Rebuild the trained model of a run folder, in evaluation mode.

    Args:
        ranks: who share the item table; this one's model has its rows, and no others are read.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit the configuration.
        ConfigError: ranks cannot share the table of this model.
    """
    info, path = read_run_config(run), Path(run) / "model.safetensors"
    _check_shared(info, ranks)
    tables = open_tables(run, info)
    _check_shapes(path, info, tables)
    with unfilled():
        model = build_model(info.config.model, info.num_items, tables, ranks)
    _read_into(model, path)
    return model.to(device).eval()


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as one safetensors file, atomically."""
    with replacing(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; RunError, naming the path, when it is missing or damaged."""
    with _weights_file(path):
        return load_file(path)


def _check_shared(info: RunInfo, ranks: Ranks) -> None:
    """Raise ConfigError where ranks cannot share the table of the run's model."""
    backbone = info.config.model.backbone
    if not ranks.alone and not BACKBONES.get(backbone).takes_features:
        raise ConfigError(
            f"model.backbone {backbone!r} does not say that it takes item_vectors: its runs are "
            f"opened by one process, not by {ranks.size} ranks"
        )


def _check_shapes(path: Path, info: RunInfo, tables: Tables) -> None:
    """RunError unless the weights fit the configuration, before memory is taken for either."""
    found, config = _shapes(path), path.with_name("config.json")
    layers = info.config.model.layers
    if layers > len(found):
        raise RunError(f"{path} does not fit {config}: it cannot hold {layers} layers")
    try:
        with without_numbers():
            model = build_model(info.config.model, info.num_items, tables)
    except (ConfigError, RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{config} describes a model that cannot be: {reason}") from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise RunError(
                f"{path} does not fit {config}: {name} has shape "
                f"{found.get(name, 'none')}, the configuration needs {wanted.get(name, 'none')}"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with _weights_file(path), safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@torch.no_grad()
def _read_into(model: SequenceModel, path: Path) -> None:
    """Give a model the weights of a file, a few rows at a time: of a table that ranks share those
    that it has, and no others are read."""
    parts = model.parts
    with _weights_file(path), safe_open(path, "pt") as file:
        for name, weight in model.state_dict().items():
            if not weight.ndim:
                weight.copy_(file.get_tensor(name))
                continue
            first = parts[name].start if name in parts else 0
            stored = file.get_slice(name)
            rows = max(1, PIECE_BYTES // max(1, weight[:1].nbytes))
            for start in range(0, len(weight), rows):
                piece = weight[start : start + rows]
                piece.copy_(stored[first + start : first + start + len(piece)])


@contextlib.contextmanager
def _weights_file(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run has no trained weights yet")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
