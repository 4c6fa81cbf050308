"""From a table of events to recommendations: simulate, prepare, train, measure, recommend.

    python examples/quickstart.py [FOLDER]

It takes about a minute on two cores. Give your own file to ``EventLog.prepare`` in place of the
simulated events: .parquet, .csv or a frame with the columns user_id, item_id and timestamp.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from blossomrec import BlossomRec, EventLog
from blossomrec.data.simulate import SimulationConfig, simulate


def main(folder: Path, users: int = 1_000, **options: Any) -> None:
    events = simulate(SimulationConfig(users=users, items=users, events_per_user=40))
    log = EventLog.prepare(events, folder / "log")
    recommender = BlossomRec(**{"max_len": 100, "epochs": 5} | options)
    recommender.fit(log, folder / "run", progress=False)

    measured = recommender.evaluate()
    print(f"NDCG@10 {measured.metrics['ndcg@10']:.4f}, 95 % {measured.intervals['ndcg@10']}")

    someone = log.user_vocabulary.ids([0]).to_list()
    print(recommender.recommend(someone, k=5))

    # The folder is all that is needed to go on elsewhere.
    again = BlossomRec.from_pretrained(folder / "run")
    print(again.recommend_history(events["item_id"].head(3), k=5))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
