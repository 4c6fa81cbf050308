"""What a job of recommending to many users is, and how it is cut in files and parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec import __version__
from blossomrec.config import to_dict
from blossomrec.data.identity import ArrayDigest, array_digest
from blossomrec.errors import ConfigError, whole_number
from blossomrec.ranks import ALONE, Ranks
from blossomrec.recommendation.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from blossomrec.config import RunConfig
    from blossomrec.data.log import EventLog
    from blossomrec.models.sequence import SequenceModel

# Users and recommendations that are kept as one part, at most: so much work a kill can lose.
USERS_OF_PART = 1 << 13
ROWS_OF_PART = 1 << 19
# Of a small job parts are smaller, so that workers who divide them end at about the same time, but
# not below the users who are encoded together.
PARTS_OF_JOB = 64
FEWEST_OF_PART = 1 << 10
# Of a table that ranks share, read from another rank at a time.
ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Job:
    """All that decides what is written.

    Attributes:
        told: what it is, JSON-ready; jobs that tell the same write the same.
        users: rows of the log, int64 [U], rising.
        files: numbers of the users with which files begin and, last, U.
        users_of_part: how many users are a part, at most.
    """

    told: dict[str, Any]
    users: np.ndarray
    files: list[int]
    users_of_part: int

    def parts(self, file: int) -> list[tuple[int, int]]:
        """The users of each part of a file: the number of the first, and that after the last."""
        start, stop = self.files[file], self.files[file + 1]
        return list(pairwise([*range(start, stop, self.users_of_part), stop]))

    def differences(self, told: Mapping[str, Any]) -> str:
        """In what a job that was told before differs, in words; empty where it is the same."""
        names = [
            name
            for name in dict.fromkeys([*told, *self.told])
            if told.get(name) != self.told.get(name)
        ]
        pairs = ((told.get(name), self.told.get(name)) for name in names)
        return ", ".join(
            name if "digest" in name else f"{name}: {_shown(before)}, now {_shown(now)}"
            for name, (before, now) in zip(names, pairs, strict=True)
        )


def make_job(
    log: EventLog,
    model: SequenceModel,
    config: RunConfig,
    users: np.ndarray,
    request: Request,
    *,
    shards: int | None,
    rows_per_file: int | None,
    ranks: Ranks = ALONE,
) -> Job:
    """The job of recommending to users of a log.

    Args:
        users: rows of the log, int64, rising.
        shards: write so many files; rows_per_file: write files of at most so many rows; one file
            without either.
        ranks: who share the items of the model, and all call this.

    Raises:
        ConfigError: both are given, or one is out of bounds.
    """
    told = {
        "blossomrec": __version__,
        "digest of the model": _model_digest(model, config, ranks),
        "digest of the log": log.digest,
        "digest of the users": array_digest(users),
        "users": len(users),
        "k": request.k,
        "filter_viewed": request.filter_viewed,
        "max_len": request.max_len,
        "moment": request.moment,
        "kind": request.kind,
        "digest of the items": None if request.items is None else array_digest(request.items),
        **({} if request.rules is None else request.rules.told),
        "shards": shards,
        "rows_per_file": rows_per_file,
        "device": model.item_embeddings.weight.device.type,
    }
    files = _files(len(users), request.k, shards, rows_per_file)
    return Job(told, users, files, _users_of_part(len(users), request.k))


def _users_of_part(users: int, k: int) -> int:
    shared = max(FEWEST_OF_PART, -(-users // PARTS_OF_JOB))
    return max(1, min(USERS_OF_PART, ROWS_OF_PART // k, shared))


def _files(users: int, k: int, shards: int | None, rows_per_file: int | None) -> list[int]:
    if shards is not None and rows_per_file is not None:
        raise ConfigError("shards and rows_per_file are both given: give one of them")
    if shards is not None:
        shards = whole_number("shards", shards)
        if shards > users:
            raise ConfigError(f"shards is {shards}: there are only {users} users")
        return [users * shard // shards for shard in range(shards + 1)]
    if rows_per_file is not None:
        each = whole_number("rows_per_file", rows_per_file) // k
        if not each:
            raise ConfigError(f"rows_per_file is {rows_per_file}: it must be at least k, {k}")
        return [*range(0, users, each), users]
    return [0, users]


def _model_digest(model: SequenceModel, config: RunConfig, ranks: Ranks) -> str:
    """SHA-256 over the weights and the configuration of the model."""
    digest = hashlib.sha256(json.dumps(to_dict(config)["model"], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {_digest(model, name, tensor, ranks)}\n".encode())
    return ranks.told(digest.hexdigest())


def _digest(model: SequenceModel, name: str, tensor: Tensor, ranks: Ranks) -> str:
    """Of a tensor of the model's state; of one that ranks share on rank 0 that of the whole."""
    tensor, parts = tensor.detach().cpu(), model.parts
    if ranks.alone or name not in parts:
        return array_digest(tensor.numpy())
    sizes = ranks.gathered(len(tensor))
    whole = ArrayDigest(tensor.numpy().dtype, (sum(sizes), *tensor.shape[1:]))
    for piece in ranks.pieces(tensor, sizes, ROWS_AT_ONCE):
        whole.add(piece.numpy())
    return whole.hexdigest()


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
