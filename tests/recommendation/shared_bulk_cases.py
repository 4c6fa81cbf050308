"""Jobs of recommending that two ranks do together, and one process."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blossomrec.cli import main
from blossomrec.errors import ConfigError, RunError
from blossomrec.evaluation import scoring
from blossomrec.ranks import ALONE, Ranks, open_ranks
from blossomrec.recommendation import job, user_histories
from blossomrec.recommendation.parts import PartWriter
from blossomrec.recommender import BlossomRec
from blossomrec.rules import RERANKERS, Rules

BOOSTED: dict[str, Any] = {"boost": [("price < 20", 0.05)]}
RERANKED: dict[str, Any] = {"reranker": "backwards", "rerank_depth": 20}
USERS = [1001, 1004, 1007, 1070, 1100, 1103]
FALLBACK = {"fallback": "recent-popularity"}
# By the run and the log, the options, and the rules.
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("plain", "log", {}, {}),
    "all-items": ("plain", "log", {"k": 80, "filter_viewed": False}, {}),
    "some-items": ("plain", "log", {"items": list(range(50_003, 50_500, 14)), "max_len": 3}, {}),
    "in-files": ("plain", "log", {"shards": 3}, {}),
    "tied": ("tied", "log", {"k": 60}, {}),
    "ruled": ("plain", "other", {}, BOOSTED | {"max_per": {"brand": 2}} | FALLBACK),
    "deep": ("plain", "log", {"k": 20}, {"max_per": {"brand": 4}, "filter": "price > 9"}),
    "unlike": ("plain", "other", {}, {"diversity": 0.4, "max_per": {"brand": 3}} | FALLBACK),
    "reranked": ("plain", "other", {}, RERANKED | {"diversity": 0.3} | FALLBACK),
    "reranked-only": ("plain", "log", {}, RERANKED),
    "sees-much": ("sees-much", "log", {"kind": "buy", "at": 1_700_500_000}, {}),
    "own-items": ("sees-much", "log", {"filter_viewed": False}, BOOSTED),
    "some-own": (
        *("sees-much", "log", {"items": list(range(50_003, 50_500, 14))}),
        {"exclude_seen_days": 0.01},
    ),
    "masked": ("masked", "log", {}, {}),
    "some-users": ("masked", "log", {"users": [1001, 1007, 1070], "k": 5}, {}),
}
# By the kernels of a GPU, which are interpreted.
KERNELS = {
    "kernels": ("plain", "other", {"users": USERS, "k": 50}, {}),
    "kernels-ruled": ("plain", "log", {"users": USERS}, BOOSTED | {"filter": "price > 5"}),
}
if importlib.util.find_spec("triton"):
    CASES |= KERNELS


def backwards(candidates: Any) -> Any:
    """Gives what it gets from the last to the first."""
    assert candidates.items and candidates.at > 0
    return [*zip(candidates.items, candidates.scores, strict=True)][::-1]


def small(patch: pytest.MonkeyPatch) -> None:
    """Several tiles of items, blocks of a tile and a half of few histories, and parts of few."""
    patch.setattr(scoring, "TILE_ITEMS", 64)
    patch.setattr(scoring, "TILE_ROWS", 2)
    patch.setattr(scoring, "SCORE_ELEMENTS", 700)
    patch.setattr(job, "ROWS_OF_PART", 63)
    patch.setattr(user_histories, "USERS_AT_ONCE", 5)
    patch.setattr(user_histories, "EVENTS_AT_ONCE", 60)
    patch.setattr(RERANKERS, "_registered", {})
    RERANKERS.register("backwards")(backwards)


def path_of(folder: Path, name: str) -> Path:
    return folder / (name if "shards" in CASES[name][2] else f"{name}.parquet")


def write(name: str, runs: Path, out: Path, ranks: Ranks = ALONE) -> Any:
    run, log, options, rules = CASES[name]
    shared = BlossomRec.from_pretrained(runs / run, runs / log, device="cpu", ranks=ranks)
    given = {"k": 9, "progress": False, "rules": Rules(**rules) if rules else None} | options
    with pytest.MonkeyPatch.context() as patch:
        if name in KERNELS:
            usable = SimpleNamespace(usable=lambda x: True)
            patch.setattr("blossomrec.evaluation.product_top_k.fused", usable)
        return shared.recommend_all(path_of(out, name), **given)


def kill(ranks: Ranks) -> None:
    """Kill the second rank once there are parts."""
    written, calls = PartWriter.write, list[Any]()

    def deadly(self, part, advance):
        calls.append(part)
        if len(calls) == 3 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        written(self, part, advance)

    PartWriter.write = deadly


def refused(runs: Path, ranks: Ranks) -> None:
    """What a recommender of which ranks have parts cannot do."""
    shared = BlossomRec.from_pretrained(runs / "plain", runs / "log", device="cpu", ranks=ranks)
    for ask in (
        lambda: shared.recommend([1001]),
        lambda: shared.recommend_history([50_003]),
        lambda: shared.similar_items([50_003]),
        lambda: shared.explain(50_003, user=1001),
        lambda: shared.evaluate(),
        lambda: shared.export(runs / "exported", "torch"),
        lambda: shared.save_pretrained(runs / "saved"),
        lambda: pickle.dumps(shared),
    ):
        with pytest.raises(RunError, match="2 ranks share the items of this recommender"):
            ask()
    with pytest.raises(ConfigError, match="engine is 'ray': 2 ranks share the items of the model"):
        shared.recommend_all(runs / "refused.parquet", engine="ray", progress=False)
    with pytest.raises(ConfigError, match="k is 81"):
        shared.recommend_all(runs / "refused.parquet", k=81, progress=False)
    with pytest.raises(RunError, match="is of another job"):
        shared.recommend_all(runs / "two" / "plain.parquet", k=8, progress=False)


def by_command(runs: Path, out: Path) -> None:
    """The same as the case "plain", as the command line has it; then what that refuses."""
    recommend = ["recommend", str(runs / "plain")]
    assert main([*recommend, "--all", "--k", "9", "--out", str(out)]) == 0
    assert main([*recommend, "--user", "1001"]) == 2


def each_rank(folder: Path, killed: bool = False) -> None:
    """What one of the two does; the second is killed where that is wanted."""
    with open_ranks("cpu") as opened, pytest.MonkeyPatch.context() as patched:
        small(patched)
        if killed:
            kill(opened)
            write("in-files", folder, folder / "killed", opened)
        for case in CASES:
            write(case, folder, folder / "two", opened)
        by_command(folder, folder / "two" / "command.parquet")
        refused(folder, opened)
        # What is whole is not done again.
        patched.setattr(PartWriter, "write", None)
        assert write("plain", folder, folder / "two", opened).users == 60
