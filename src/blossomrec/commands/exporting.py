"""What the verbs do that take a model out of here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from blossomrec.exporting.options import VectorOptions


def export(
    run: Path,
    out: Path,
    *,
    to: Literal["onnx", "torch", "vectors"],
    k: int | None = None,
    options: Annotated[VectorOptions, Parameter(name="*")] = VectorOptions(),  # noqa: B008
    log: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write a model for other engines: as graphs, or as vectors.

    Args:
        run: run folder, or what save_pretrained wrote
        out: folder to make
        to: ONNX (extra: onnx) or an ExportedProgram of PyTorch, each an encoder of histories and a
            ranking of items; or vectors of items and users in Parquet files
        k: how many items the ranking gives, for onnx and torch; 100 without it
        log: prepared log with the users' histories; a run knows the one it was trained on
        device: where vectors are computed
    """
    from blossomrec.data.units import moment_of
    from blossomrec.recommender import BlossomRec

    options.check()
    recommender = BlossomRec.from_pretrained(run, log, device=device)
    chosen: dict[str, Any] = vars(options) | {"at": moment_of("at", options.at)}
    recommender.export(out, to, k=k, **chosen)
    for path in sorted(out.iterdir()):
        print(f"{path} has {path.stat().st_size:,} bytes")
