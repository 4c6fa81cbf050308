"""A re-ranker of one's own: what an item earns counts beside how likely it is.

    python examples/own_reranker.py [FOLDER]

Registered by a decorator, it is known in this program; ``serve`` and ``recommend`` take it from a
package with an entry point, as ``own_backbone`` has one: group ``blossomrec.rerankers``.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from blossomrec import BlossomRec, EventLog, Rules
from blossomrec.data.simulate import SimulationConfig, simulate
from blossomrec.rules import RERANKERS, Candidates


@RERANKERS.register("margin")
class Margin:
    """Orders candidates by their margin times the exponential of their score, the odds.

    An object is made once for all requests, so that a table or a model can be read here.
    """

    def __init__(self) -> None:
        self.margins: dict[Any, float] = {item: 0.1 + item % 7 for item in range(20_000)}

    def __call__(self, candidates: Candidates) -> list[tuple[Any, float]]:
        # What was bought just now is not offered again, however much it earns.
        last = candidates.history[-1:]
        pairs = zip(candidates.items, candidates.scores.tolist(), strict=True)
        earned = [
            (item, score + math.log(self.margins.get(item, 1.0)))
            for item, score in pairs
            if item not in last
        ]
        return sorted(earned, key=lambda pair: -pair[1])


def main(folder: Path, users: int = 1_000, **options: Any) -> None:
    events = simulate(SimulationConfig(users=users, items=users, events_per_user=40))
    log = EventLog.prepare(events, folder / "log")
    recommender = BlossomRec(**{"max_len": 100, "epochs": 5} | options)
    recommender.fit(log, folder / "run", progress=False)
    someone = log.user_vocabulary.ids([0])
    rules = Rules(reranker="margin", rerank_depth=50)
    print("as the model has it:", recommender.recommend(someone, 5)["item_id"].to_list())
    print("with margins:", recommender.recommend(someone, 5, rules=rules)["item_id"].to_list())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
