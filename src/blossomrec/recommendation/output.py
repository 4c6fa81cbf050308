"""Where the recommendations of a job go: one file or a folder of them, each there whole or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from blossomrec.errors import RunError
from blossomrec.files import read_json, replacing, write_json
from blossomrec.recommendation.job import Job

# The key of the metadata of a Parquet file under which it says what it holds.
STAMP = "blossomrec"
# Readers of a folder of Parquet files leave out names that begin with these characters.
MANIFEST, PARTS = "_manifest.json", ".parts"
ROWS_OF_GROUP = 1 << 18


@dataclass(frozen=True)
class Output:
    """The paths of a job.

    Attributes:
        job: what is written.
        out: a Parquet file, or a folder.
        files: what is there at the end.
        work: folder of the parts that are done, until the end.
        manifest: what the job is, as long as it is not whole; of a folder it stays.
    """

    job: Job
    out: Path
    files: list[Path]
    work: Path
    manifest: Path

    @classmethod
    def of(cls, job: Job, out: Path, *, folder: bool) -> Output:
        """A file, or a folder of as many files as the job has."""
        if not folder:
            work = out.with_name(f".{out.name}.parts")
            return cls(job, out, [out], work, work / MANIFEST)
        files = [out / f"part-{number:05}.parquet" for number in range(len(job.files) - 1)]
        return cls(job, out, files, out / PARTS, out / MANIFEST)

    @property
    def is_folder(self) -> bool:
        return self.manifest.parent == self.out

    def refuse_other(self) -> None:
        """Raise RunError where something else is there than what this job has written of it."""
        if self.out.is_dir() != self.is_folder and self.out.exists():
            kind = "a folder" if self.out.is_dir() else "a file"
            raise RunError(
                f"{self.out} is {kind}: shards and rows_per_file need a folder, their absence a "
                "file; choose another --out"
            )
        if self.manifest.exists():
            self._compare(_told(self.manifest), self.manifest)
        elif self.is_folder and self.out.exists():
            others = [one.name for one in self.out.iterdir() if not one.name.startswith(".")]
            if others:
                raise RunError(
                    f"{self.out} holds other files, such as {min(others)}: choose another --out"
                )
        if not self.is_folder and self.out.exists():
            stamp = _stamp(self.out)
            if stamp is None:
                raise RunError(
                    f"{self.out} is there and holds no recommendations of blossomrec: choose "
                    "another --out"
                )
            self._compare(stamp.get("job"), self.out)

    def _compare(self, told: Any, where: Path) -> None:
        differing = self.job.differences(told if isinstance(told, dict) else {})
        if differing:
            raise RunError(
                f"{where} is of another job ({differing}): choose another --out, or remove it"
            )

    def describe(self) -> None:
        """Say in the manifest what the job is."""
        ranges = [list(each) for each in zip(self.job.files, self.job.files[1:], strict=False)]
        files = [
            {"file": path.name, "users": users}
            for path, users in zip(self.files, ranges, strict=True)
        ]
        write_json(self.manifest, {"job": self.job.told, "files": files})

    def part(self, users: tuple[int, int]) -> Path:
        """Where a part lies."""
        return self.work / f"users-{users[0]}-{users[1]}.parquet"

    def is_whole(self, path: Path, users: tuple[int, int]) -> bool:
        """Whether a file is there and holds what this job says for these users."""
        return path.exists() and _stamp(path) == self._stamped(users)

    def parts_there(self) -> set[tuple[int, int]]:
        """The parts that are whole, of all files.

        The folder is listed, since a network disk may long remember that a file was not there.
        """
        there = {path.name for path in self.work.iterdir()}
        return {
            part
            for file in range(len(self.files))
            for part in self.job.parts(file)
            if self.part(part).name in there and self.is_whole(self.part(part), part)
        }

    def write_part(self, frame: pl.DataFrame, users: tuple[int, int]) -> None:
        """Write the recommendations of a part.

        Several processes may do so at once: one that only seems to be dead may go on.
        """
        with replacing(self.part(users), shared=True) as temporary:
            frame.write_parquet(temporary, metadata=self._metadata(users))

    def join(self, path: Path, parts: Sequence[tuple[int, int]]) -> None:
        """Make a file of its parts, without holding them."""
        users = parts[0][0], parts[-1][1]
        with replacing(path) as temporary:
            whole = pl.scan_parquet([self.part(each) for each in parts], glob=False)
            whole.sink_parquet(
                temporary, row_group_size=ROWS_OF_GROUP, metadata=self._metadata(users)
            )
        for each in parts:
            self.part(each).unlink()

    def _stamped(self, users: tuple[int, int]) -> dict[str, Any]:
        return {"job": self.job.told, "users": list(users)}

    def _metadata(self, users: tuple[int, int]) -> dict[str, str]:
        return {STAMP: json.dumps(self._stamped(users), sort_keys=True)}


def _stamp(path: Path) -> dict[str, Any] | None:
    """What a Parquet file says of itself; None where it is none, damaged, or says nothing."""
    try:
        found = json.loads(pl.read_parquet_metadata(path)[STAMP])
    except (pl.exceptions.PolarsError, KeyError, ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None


def _told(path: Path) -> Any:
    try:
        return read_json(path)["job"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}): remove it with the files beside it"
        ) from error
