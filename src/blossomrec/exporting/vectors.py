"""Vectors of items and users, whose products are the scores of a model, for other programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, MissingExtraError
from blossomrec.exporting.description import ITEMS
from blossomrec.files import remove
from blossomrec.models.sequence import SequenceModel
from blossomrec.recommendation.user_histories import UserHistories

INDEX = "items.faiss"
ROWS_AT_ONCE = 1 << 16
ROWS_OF_GROUP = 1 << 16


def refuse_other_scores(model: SequenceModel) -> None:
    """Raise ConfigError where the scores of a model are no products of vectors."""
    if model.own_history is not None:
        raise ConfigError(
            "model.repeats is 'on': the user's own items are mixed into the scores, which are then "
            "no products of vectors; train with --model.repeats off"
        )
    if type(model).scores is not SequenceModel.scores:
        raise ConfigError(
            f"model.backbone is {model.config.backbone!r}: its scores are no products of vectors"
        )


@torch.no_grad()
def item_vectors(model: SequenceModel) -> np.ndarray:
    """What is compared with the vectors of users, float32 [I, D]."""
    return model.output_weight().detach().float().cpu().numpy()


def write_vectors(
    folder: Path, model: SequenceModel, items: Vocabulary, index: str | None
) -> dict[str, Any]:
    """Write the vectors of the items, and an index of them.

    Args:
        model: not refused by :func:`refuse_other_scores`.
        index: what faiss is to make of them, such as "Flat" or "IVF256,Flat", for inner products;
            None for no index.

    Returns:
        What ``export.json`` is to say of them.

    Raises:
        ConfigError: faiss does not know the index.
        MissingExtraError: faiss is not installed.
    """
    vectors = item_vectors(model)
    if index is not None:
        _write_index(folder / INDEX, vectors, index)
    parts = range(0, len(vectors), ROWS_AT_ONCE)
    ids = items.read()
    chunks = ((ids[at : at + ROWS_AT_ONCE], vectors[at : at + ROWS_AT_ONCE]) for at in parts)
    write_rows(folder / ITEMS, chunks)
    return {"to": "vectors", "items": ITEMS, "index": None if index is None else INDEX}


@torch.no_grad()
def user_vectors(
    model: SequenceModel, histories: UserHistories, users: np.ndarray
) -> Iterator[tuple[list[int | str], np.ndarray]]:
    """External ids and vectors, float32 [n, D], of users, some of them at a time.

    Users without an event of a known item have none.

    Args:
        users: int64 rows of the log.
    """
    device = model.item_embeddings.weight.device
    for part in histories.parts(users):
        if part.batch is not None:
            vectors = model.queries(part.batch.to(device)).float().cpu().numpy()
            yield histories.user_ids(part.users[part.known]), vectors


def write_rows(path: Path, chunks: Iterable[tuple[Any, np.ndarray]]) -> int:
    """Write ids and vectors as the columns ``id`` and ``vector``, a list of D numbers.

    Each chunk is written before the next one is made.

    Returns:
        How many rows there are.
    """
    parts, count = list[Path](), 0
    for number, (ids, vectors) in enumerate(chunks):
        kind = pl.Array(pl.Float32, vectors.shape[1])
        frame = pl.DataFrame({"id": ids, "vector": pl.Series(vectors, dtype=kind)})
        parts.append(path.with_name(f".{path.name}.{number}"))
        frame.write_parquet(parts[-1])
        count += len(frame)
    if parts:
        whole = pl.scan_parquet(parts, glob=False)
        whole.sink_parquet(path, row_group_size=ROWS_OF_GROUP)
    for each in parts:
        remove(each)
    return count


def _write_index(path: Path, vectors: np.ndarray, kind: str) -> None:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtraError("faiss", "ann") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(f"index is {kind!r}: faiss cannot make it ({reason})") from error
    faiss.write_index(index, str(path))
