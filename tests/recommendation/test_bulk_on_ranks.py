"""Two ranks, each with a part of the catalogue, write the bytes that one process writes."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from shared_bulk_cases import CASES, each_rank, path_of, small, write

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError
from blossomrec.evaluation import scoring
from blossomrec.evaluation.shared_items import SharedItems
from blossomrec.models import build_model
from blossomrec.models.transformer import TransformerModel
from blossomrec.ranks import Ranks
from blossomrec.recommendation.ranked_users import UserRanker
from blossomrec.recommendation.shared_scores import SharedScores
from blossomrec.recommender import BlossomRec
from blossomrec.run.weights import load_model
from command_line import content
from forked_commands import forked_ranks
from small_models import small_config
from small_options import SMALL

RUNS = {
    "plain": {},
    "masked": {"backbone": "bert4rec"},
    "sees-much": {
        name: "on"
        for name in (
            *("time_gap", "request_time", "event_kinds", "request_kind", "context", "content"),
            "repeats",
        )
    },
}


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): data for path, data in content(folder).items()}


@pytest.fixture(scope="module")
def runs(one_thread, kind_log, tiny_events, tmp_path_factory) -> Path:
    """Logs and runs."""
    folder = tmp_path_factory.mktemp("shared-bulk")
    ids = tiny_events["item_id"].unique().sort()
    rng = np.random.default_rng(1)
    table = pl.DataFrame(
        {
            "item_id": ids,
            "price": rng.permutation(len(ids)).astype(np.float32),
            "brand": [f"b{n % 7}" for n in range(len(ids))],
            "look": rng.normal(size=(len(ids), 5)).astype(np.float32),
        }
    )
    events = tiny_events.with_columns(
        kind=pl.Series(rng.choice(["click", "buy", None], len(tiny_events))),
        shop=pl.Series(rng.choice(["web", "app"], len(tiny_events))),
    )
    log = EventLog.prepare(events, folder / "log", items=table, kind="kind", context=("shop",))
    strange = (pl.col("user_id") == 1004) | (pl.col("item_id") % 5 == 0)
    item = pl.when(strange).then(pl.col("item_id") + 1_000_000).otherwise(pl.col("item_id"))
    EventLog.prepare(tiny_events.with_columns(item_id=item), folder / "other")
    for name, options in RUNS.items():
        BlossomRec(**SMALL | options).fit(log, folder / name, progress=False)
    tied = BlossomRec(**SMALL).fit(log, progress=False)
    with torch.no_grad():
        # Whole numbers, so that many scores are equal.
        numbers = torch.arange(80)[:, None].div(20, rounding_mode="floor")
        tied.model.item_embeddings.weight.copy_(numbers.expand(80, 16))
    tied.save_pretrained(folder / "tied")
    return folder


@pytest.fixture(scope="module")
def written(runs) -> Path:
    """What one process wrote, in ``one``, and what two ranks did, in ``two``."""
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        for name in CASES:
            write(name, runs, runs / "one")
    ranks = forked_ranks(2, each_rank, runs)
    assert all(one.code == 0 for one in ranks), ranks
    assert "540 items for 60 users" in ranks[0].stdout and "users are in" not in ranks[1].stdout
    assert ranks[0].stdout.count("users are in") == 1
    assert all(one.stderr.count("leave torchrun away") == 1 for one in ranks)
    return runs


pytestmark = pytest.mark.filterwarnings("ignore:.*that the model does not know")


@pytest.mark.parametrize("name", CASES)
def test_their_files_are_those_of_one_process(written, name):
    one, two = (path_of(written / each, name) for each in ("one", "two"))
    if one.is_dir():
        assert files(one) == files(two)
        two = two / "*.parquet"
    else:
        assert one.read_bytes() == two.read_bytes()
    found = pl.read_parquet(two)
    assert len(found) > 10 and found["item_id"].n_unique() > 5


def test_so_is_that_of_the_command(written):
    whole = (written / "one" / "plain.parquet").read_bytes()
    assert (written / "two" / "command.parquet").read_bytes() == whole


def test_a_killed_rank_loses_nothing(written, monkeypatch):
    other, killed = forked_ranks(2, each_rank, written, True)
    assert killed.code == -signal.SIGKILL
    assert other.code == 1 and "rank 0 lost another rank" in other.stderr
    out = written / "killed" / "in-files"
    # What two rounds of two parts gave is there, as a file or as parts, and nothing else is.
    left = [path.name for path in (out / ".parts").glob("users-*.parquet")]
    whole = [path.name for path in out.glob("*.parquet")]
    assert (sorted(left), whole) == (["users-20-27.parquet"], ["part-00000.parquet"])
    small(monkeypatch)
    asked, ranked = list[int](), UserRanker.ranked

    def watched(self, users):
        asked.extend(users.tolist())
        return ranked(self, users)

    monkeypatch.setattr(UserRanker, "ranked", watched)
    write("in-files", written, written / "killed")
    assert asked == list(range(27, 60))
    assert files(out) == files(written / "one" / "in-files")


def test_a_backbone_that_takes_no_vectors_is_refused(runs, monkeypatch):
    monkeypatch.setattr(TransformerModel, "takes_features", False)
    words = "'sasrec' does not say that it takes item_vectors: .* not by 2 ranks"
    with pytest.raises(ConfigError, match=words):
        load_model(runs / "plain", ranks=Ranks(0, 2))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [5, 64, 80, 129, 200, 641])
def test_every_tile_is_of_one_rank(monkeypatch, size, total):
    """Each rank gets what its last tile lacks, and no more."""
    monkeypatch.setattr(scoring, "TILE_ITEMS", 64)
    config, starts, stop = small_config(hidden_size=4, heads=2, kv_heads=1), list[int](), 0
    whole = torch.arange(4 * total).view(total, 4).float()
    for rank in range(size):
        ranks = Fetching(rank, size, whole)
        model = build_model(config, total, ranks=ranks).eval()
        held = model.held_items
        model.item_embeddings.weight.data.copy_(whole[held.start : held.stop])
        scores = SharedScores(model, SharedItems(model, ranks, torch.device("cpu")), ranks, 1)
        assert scores.items.start == stop or not scores.items
        stop = max(stop, scores.items.stop) if scores.items else stop
        starts += scores._starts
        assert ranks.fetched <= 63
        for start in scores._starts:
            tile = whole[start : start + 64]
            assert torch.equal(scores._tile(torch.eye(4), start), tile.T)
    assert (starts, stop) == (list(range(0, total, 64)), total)


class Fetching(Ranks):
    """One of several ranks that has all vectors at hand, and counts those that it asks for."""

    def __init__(self, rank: int, size: int, whole: torch.Tensor):
        super().__init__(rank, size)
        vars(self).update(whole=whole, fetched=0)

    def fetch(self, held, total, wanted):
        vars(self).update(fetched=self.fetched + len(wanted))
        return self.whole[wanted]
