"""An evaluation: what it holds, the metrics, intervals and slices of it, and its files."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.windows import boundaries
from blossomrec.errors import RunError, UnknownNameError
from blossomrec.evaluation import metrics
from blossomrec.evaluation.metrics import METRICS, KindSlice, LengthSlice, by_history_length
from blossomrec.evaluation.protocol import EvaluationProtocol
from blossomrec.evaluation.segments import Segments, SegmentSlice, by_segment
from blossomrec.evaluation.significance import bootstrap_intervals
from blossomrec.files import digest, read_json, replacing, write_json
from blossomrec.models.baselines import BASELINES

# What events of a kind that is not known are called.
UNKNOWN_KIND = "unknown"
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Ranks of the targets of M cases, and metrics, intervals and slices made from them.

    Cases of a user stand side by side. ``ranks`` counts from 0 and counts ties against the target:
    the number of candidates, other targets of the case left aside, whose score is at least the
    target's.
    """

    protocol: EvaluationProtocol
    users: np.ndarray  # int64 [M], user rows
    lengths: np.ndarray  # int64 [M], events before the target, however many the model saw
    offsets: np.ndarray  # int64 [M+1], where the ranks of each case start
    ranks: np.ndarray  # int64 [number of targets]
    top: np.ndarray | None  # int32 [M, largest k], recommended item rows; None for uni100
    popularity: np.ndarray | None  # float64 [M, number of ks]; None for uni100
    seconds: float  # time of ranking
    kinds: np.ndarray | None = None  # int32 [P], a kind of event of a target; None without kinds
    of_kinds: np.ndarray | None = None  # int64 [P], which target that is
    # Metrics of lists and of the catalogue that were asked for, by name.
    lists: Mapping[str, np.ndarray] = field(default_factory=dict)  # float64 [M, number of ks]
    catalogue: Mapping[str, np.ndarray] = field(default_factory=dict)  # float64 [number of ks]
    segments: tuple[Segments, ...] = ()  # of the users, a column after another

    @cached_property
    def per_user(self) -> dict[str, np.ndarray]:
        """Every metric that is a mean over users, its values float64 [U] by name.

        Of a user with several cases it is the mean over them.
        """
        return _user_means(self._per_case, self.users)

    @cached_property
    def per_user_by_kind(self) -> dict[str, dict[str, np.ndarray]]:
        """The metrics of the targets of one kind, by name of the kind, as ``per_user``.

        Users, and cases, without a target of the kind are left out. Targets of all kinds do not
        compete, and the list of a case has the places that it has without the others.
        """
        if self.kinds is None or self.of_kinds is None:
            return {}
        found = {}
        for kind in np.unique(self.kinds).tolist():
            targets = self.of_kinds[self.kinds == kind]
            case = np.searchsorted(self.offsets, targets, side="right") - 1
            cases, counts = np.unique(case, return_counts=True)
            values = self._accuracy(self.ranks[targets], boundaries(counts))
            found[self.kind_name(kind)] = _user_means(values, self.users[cases])
        return found

    def kind_name(self, kind: int) -> str:
        """Name of a kind of events by its number; none but 0 has that of the unknown ones."""
        kinds = self.protocol.kinds
        if kind:
            return kinds[kind - 1]
        return f"({UNKNOWN_KIND})" if UNKNOWN_KIND in kinds else UNKNOWN_KIND

    @cached_property
    def user_lengths(self) -> np.ndarray:
        """Events before the first case of each user, int64 [U]."""
        return self.lengths[np.unique(self.users, return_index=True)[1]]

    def _accuracy(self, ranks: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
        protocol = self.protocol
        values = metrics.accuracy(ranks, offsets, protocol.ks, protocol.own_metrics)
        return {f"{protocol.prefix}{name}": value for name, value in values.items()}

    @property
    def _per_case(self) -> dict[str, np.ndarray]:
        protocol = self.protocol
        values = self._accuracy(self.ranks, self.offsets)
        usual = {} if self.popularity is None else {"popularity": self.popularity}
        for name, found in (usual | dict(self.lists)).items():
            values |= {f"{name}@{k}": found[:, i] for i, k in enumerate(protocol.ks)}
        return values

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric by name, such as ``ndcg@10`` or ``uni100_ndcg@10``."""
        means = {name: float(values.mean()) for name, values in self.per_user.items()}
        if self.top is None:
            return means
        ks = self.protocol.ks
        means |= metrics.coverage(self.top, self.protocol.num_items, ks)
        for name, values in self.catalogue.items():
            means |= {f"{name}@{k}": float(values[i]) for i, k in enumerate(ks)}
        return means

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % percentile bootstrap intervals over users, by name of metric.

        Coverage and other metrics of the catalogue have none: users drawn again recommend fewer
        distinct items, so the bootstrap of coverage would not be centred on it.
        """
        return bootstrap_intervals(self.per_user, seed=self.protocol.seed)

    @cached_property
    def slices(self) -> tuple[LengthSlice, ...]:
        """Metrics of the users by length of history, empty bins left out."""
        return by_history_length(self.user_lengths, self.per_user, seed=self.protocol.seed)

    @cached_property
    def kind_slices(self) -> tuple[KindSlice, ...]:
        """Metrics of the targets by kind of event, kinds without any left out; () without kinds."""
        if self.kinds is None:
            return ()
        numbers, counts = np.unique(self.kinds, return_counts=True)
        targets = dict(zip(map(self.kind_name, numbers.tolist()), counts.tolist(), strict=True))
        return tuple(
            KindSlice.of(values, seed=self.protocol.seed, kind=kind, targets=targets[kind])
            for kind, values in self.per_user_by_kind.items()
        )

    @cached_property
    def segment_slices(self) -> dict[str, tuple[SegmentSlice, ...]]:
        """Metrics of the users by each value of the columns that were asked for, by column."""
        return {
            one.column: by_segment(one, self.per_user, seed=self.protocol.seed)
            for one in self.segments
        }


def _user_means(values: dict[str, np.ndarray], users: np.ndarray) -> dict[str, np.ndarray]:
    """Means [U] over the cases of each user of values [M]; cases of a user stand side by side."""
    _, starts, counts = np.unique(users, return_index=True, return_counts=True)
    return {name: np.add.reduceat(each, starts) / counts for name, each in values.items()}


FORMAT = 1
# Where an evaluation of a run or a baseline lies inside its folder.
EVALUATION = "evaluations/{on}-{ranking}.json"
OPTIONAL_ARRAYS = ("top", "popularity", "kinds", "of_kinds")
ARRAYS = ("users", "lengths", "offsets", "ranks", *OPTIONAL_ARRAYS)


def evaluation_path(folder: str | Path, on: str = "test", ranking: str = "full") -> Path:
    """Where a run folder, or one of a baseline, keeps an evaluation."""
    return Path(folder) / EVALUATION.format(on=on, ranking=ranking)


def find_evaluation(path: Path, on: str, ranking: str) -> Path:
    """An evaluation by its own file or by the folder that keeps it; RunError where it is not."""
    if path.suffix == ".json":
        return path
    if not path.exists():
        raise RunError(f"no evaluation in {path}: there is no such folder")
    found = evaluation_path(path, on, ranking)
    if not found.is_file():
        raise RunError(f"{path} holds no {found.name}: run  {_evaluating(path, on, ranking)}")
    return found


def _evaluating(path: Path, on: str, ranking: str) -> str:
    """The command that makes an evaluation of a run or, in a folder of its own, of a baseline."""
    options = shlex.join(["--on", on, "--ranking", ranking])
    folder = shlex.quote(str(path))
    if (path / "config.json").is_file():
        return f"blossomrec evaluate {folder} {options}"
    name = path.name if path.name in BASELINES else "BASELINE"
    return f"blossomrec evaluate {name} --log LOG --out {folder} {options}"


def save_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write ``path`` (.json: protocol, metrics, intervals, slices) and the ranks beside it (.npz).

    Both appear whole or not at all; the JSON names the digest of its npz, so that a pair from two
    different evaluations is refused when it is read.
    """
    path = _json_path(path)
    arrays = {name: getattr(evaluation, name) for name in ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    # What is asked for is numbered here, and named in the description.
    arrays |= {f"list-{n}": values for n, values in enumerate(evaluation.lists.values())}
    for n, one in enumerate(evaluation.segments):
        arrays |= {f"segment-{n}-values": one.values, f"segment-{n}-of-users": one.of_users}
    arrays_path = path.with_suffix(".npz")
    with replacing(arrays_path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(path, _description(evaluation, digest(arrays_path)))


def load_evaluation(path: str | Path) -> Evaluation:
    """Read what ``save_evaluation`` wrote. Raises RunError where it is missing or damaged."""
    path = _json_path(path)
    arrays_path = path.with_suffix(".npz")
    try:
        description = read_json(path)
        if description["format"] != FORMAT:
            raise RunError(f"{path} has format {description['format']!r}: {FORMAT} is needed")
        if description["ranks"] != digest(arrays_path):
            raise RunError(f"{arrays_path} does not belong to {path}: evaluate again")
        protocol = description["protocol"] | {"ks": tuple(description["protocol"]["ks"])}
        if protocol.get("sampled") is not None:
            protocol["sampled"] = tuple(protocol["sampled"])
        for name in ("own_metrics", "kinds"):
            protocol[name] = tuple(protocol.get(name, ()))
        del protocol["candidates"]  # words made from the rest
        arrays: dict[str, Any] = dict.fromkeys(OPTIONAL_ARRAYS)
        with np.load(arrays_path, allow_pickle=False) as stored:
            arrays |= {name: stored[name] for name in ARRAYS if name in stored.files}
            arrays |= _asked_for(description, stored)
        for name in protocol["own_metrics"]:
            METRICS.check("own_metrics", name)
        return Evaluation(
            protocol=EvaluationProtocol(**protocol), seconds=description["seconds"], **arrays
        )
    except UnknownNameError as error:
        raise RunError(f"{path}: {error.missing}") from error
    except FileNotFoundError as error:
        raise RunError(f"no evaluation in {error.filename}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} is damaged: {error!r}") from error


def _asked_for(description: dict[str, Any], stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of an evaluation that are there when they were asked for."""
    columns = enumerate(description.get("segments", ()))
    return {
        "lists": {name: stored[f"list-{n}"] for n, name in enumerate(description.get("lists", ()))},
        "catalogue": {
            name: np.array(values) for name, values in description.get("catalogue", {}).items()
        },
        "segments": tuple(
            Segments(
                column["column"],
                tuple(column["names"]),
                stored[f"segment-{n}-values"],
                stored[f"segment-{n}-of-users"],
            )
            for n, column in columns
        ),
    }


def _json_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".json":
        raise RunError(f"{path} is no place for an evaluation: its name must end in .json")
    return path


def _description(evaluation: Evaluation, ranks: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "protocol": dataclasses.asdict(evaluation.protocol)
        | {"candidates": evaluation.protocol.candidates},
        "metrics": evaluation.metrics,
        "intervals": evaluation.intervals,
        "slices": [dataclasses.asdict(part) | {"label": part.label} for part in evaluation.slices],
        "kind_slices": [dataclasses.asdict(part) for part in evaluation.kind_slices],
        "lists": list(evaluation.lists),
        "catalogue": {name: values.tolist() for name, values in evaluation.catalogue.items()},
        "segments": [
            {
                "column": one.column,
                "names": one.names,
                "slices": list(map(dataclasses.asdict, evaluation.segment_slices[one.column])),
            }
            for one in evaluation.segments
        ],
        "seconds": evaluation.seconds,
        "ranks": ranks,
    }
