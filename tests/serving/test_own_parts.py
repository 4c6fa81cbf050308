"""A server with a backbone and a store of one's own, and the client of the examples."""

from __future__ import annotations

import pytest
from serving_runs import Process, Server, close, write_run

from blossomrec.recommender import BlossomRec
from blossomrec.serving.testing import StoreContract
from blossomrec.serving.version.encoder import StateEncoder


@pytest.fixture
def own_run(own_backbone, tiny_log, tmp_path):
    return write_run(tmp_path / "run", tiny_log, backbone="running-mean")


def test_an_own_backbone_is_served_from_kept_states(own_run, tmp_path, item_ids, monkeypatch):
    expected = BlossomRec.from_pretrained(own_run)
    with Server(own_run, tmp_path / "events.sqlite") as server:
        assert isinstance(server.service.version.encoder, StateEncoder)
        model = server.service.version.model
        monkeypatch.setattr(model, "encode", None)
        for length in range(1, 7):
            server.append("anna", [item_ids[7 * length]])
            history = [item_ids[7 * one] for one in range(1, length + 1)]
            wanted = expected.recommend_history(history, 5, filter_viewed=True).to_dicts()
            found = server.recommend(user_id="anna", k=5)
            renamed = [{"item": one["item_id"], "score": one["score"]} for one in wanted]
            assert close(found, renamed)


class TestMemoryStore(StoreContract):
    """The store of the examples keeps the contract."""

    @pytest.fixture
    def module(self, load_example):
        return load_example("own_store")

    @pytest.fixture
    def open_store(self, module):
        return lambda: module.MemoryStore("memory://test")

    @pytest.fixture
    def stored_bytes(self, module):
        return lambda: repr(module.CONTENTS["memory://test"]).encode()


def test_an_own_store_serves(run, item_ids, load_example):
    load_example("own_store")
    with Server(run, "memory://test") as server:
        server.append("anna", item_ids[:3])
        assert len(server.recommend(user_id="anna", k=5)) == 5


def test_the_client_of_the_examples(run, item_ids, load_example, tmp_path, capsys):
    with Process(run, tmp_path / "events.sqlite") as process:
        load_example("client").main(process.url, item_ids[:3])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("stored: {'user_id': 'anna', 'stored': 3, 'repeated': 0")
    assert shown[2] == "deleted: 3 events"
