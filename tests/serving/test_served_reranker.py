"""Re-rankers in the server: what they get, and that a failing one is nobody else's fault."""

from __future__ import annotations

import logging
import re
from concurrent.futures import wait

import numpy as np
import pytest
from serving_runs import Server

from blossomrec.config import RunConfig
from blossomrec.errors import ConfigError
from blossomrec.recommender import BlossomRec
from blossomrec.registry import RERANKERS
from blossomrec.rules import Rules
from blossomrec.serving.engine.jobs import Request
from blossomrec.serving.version.ranking import Choice

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def calls(monkeypatch):
    """What a re-ranker was given that turns the order around and fails for some users."""
    monkeypatch.setattr(RERANKERS, "_registered", {})
    given = []

    @RERANKERS.register("own")
    def reranker(candidates):
        given.append(candidates)
        if candidates.user == "ben":
            raise RuntimeError("the secret of ben")
        if candidates.user == "eve":
            return [(1, 2.0)]
        return list(zip(candidates.items, -candidates.scores, strict=True))[::-1]

    return given


@pytest.fixture
def reranked(run, tmp_path, calls):
    rules = Rules(reranker="own", rerank_depth=12)
    with Server(run, tmp_path / "reranked.sqlite", rules=rules) as server:
        yield server


def test_every_answer_is_in_the_new_order(server, reranked, item_ids, calls):
    history = item_ids[:30]
    for one in (server, reranked):
        one.append("ann", history)
    usual = server.recommend(user_id="ann", k=12)
    found = reranked.recommend(user_id="ann", k=4, at=1_700_000_000)
    assert [one["item"] for one in found] == [one["item"] for one in usual][:-5:-1]
    scores = [-one["score"] for one in usual][:-5:-1]
    assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-5)
    (candidates,) = calls
    assert candidates.items == [one["item"] for one in usual] and candidates.k == 4
    assert (candidates.user, candidates.at, candidates.kind) == ("ann", 1_700_000_000, None)
    assert candidates.history == history[-20:]
    reranked.recommend(history=history[:3])
    assert calls[-1].user is None and calls[-1].history == history[:3]


def test_it_gets_what_other_rules_allow(server, reranked, item_ids, calls):
    items = [item for item in item_ids if item % 2]
    reranked.post("/v1/items", {"off": items[:2]})
    body = {"history": item_ids[:1], "exclude": items[2:4]}
    rules = {"filter": f"item_id in ({', '.join(map(str, items[:20]))})"}
    found = reranked.recommend(**body, k=80, **rules)
    assert {one["item"] for one in found} == set(items[4:20]) - set(body["history"])
    assert set(calls[-1].items) == {one["item"] for one in found}


def test_a_fault_of_a_reranker_is_a_500_with_an_id(reranked, item_ids, caplog):
    for user, words in (("ben", "RuntimeError: the secret"), ("eve", "none of the 12 items")):
        reranked.append(user, item_ids[:3])
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            answer = reranked.client.post("/v1/recommend", json={"user_id": user})
        error = reranked.refused(answer, 500, "internal")
        assert "secret" not in answer.text and re.fullmatch("[0-9a-f]{16}", error["id"])
        assert any(error["id"] in one.getMessage() for one in caplog.records)
        assert words in caplog.text


def test_requests_that_came_together_with_a_fault_are_answered(reranked, item_ids):
    for user in ("ann", "ben", "joe"):
        reranked.append(user, item_ids[:3])
    version = reranked.service.version
    choice = Choice(5, rules=version.rules.always)
    users = ("ann", "ben", "joe")
    asked = [Request(user, None, choice) for user in users]
    futures = [reranked.service._engine.recommend(version, each) for each in asked]
    wait(futures)
    errors = [future.exception() for future in futures]
    assert errors[0] is None and errors[2] is None
    assert "failed for user 'ben'" in str(errors[1])
    assert len(futures[2].result()[0]) == 5


def test_the_fallback_is_given_a_new_order(run, tmp_path, calls):
    rules = Rules(reranker="own", fallback="recent-popularity")
    with Server(run, tmp_path / "events.sqlite", rules=rules) as server:
        found = server.recommend(user_id="nobody", k=3)
        assert [one["item"] for one in found] == calls[-1].items[:-4:-1]
        assert (calls[-1].user, calls[-1].history) == ("nobody", [])
        answer = server.client.post("/v1/recommend", json={"user_id": "ben"})
        server.refused(answer, 500, "internal")


def test_the_same_as_the_library(run, tiny_log, reranked, calls):
    recommender = BlossomRec.from_pretrained(run, tiny_log, device="cpu")
    user, history = tiny_log.user_vocabulary.ids([7])[0], tiny_log.history(7)
    ids = tiny_log.item_vocabulary.ids(history.items).to_list()
    reranked.append(user, ids)
    found = reranked.recommend(user_id=user, k=5)
    frame = recommender.recommend([user], 5, rules=Rules(reranker="own", rerank_depth=12))
    assert [one["item"] for one in found] == frame["item_id"].to_list()
    assert np.allclose([one["score"] for one in found], frame["score"], atol=1e-4)
    server, library = calls
    assert (server.items, server.history) == (library.items, library.history)
    assert (server.user, library.user) == (str(user), user)
    assert len(library.history) <= RunConfig().model.max_len


def test_a_reranker_that_is_not_there_is_told_at_the_start(run, tmp_path, monkeypatch):
    monkeypatch.setattr(RERANKERS, "_registered", {})
    with pytest.raises(ConfigError, match="reranker is 'own'"):
        Server(run, tmp_path / "events.sqlite", rules=Rules(reranker="own"))


def test_a_reranker_is_made_anew_with_every_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr(RERANKERS, "_registered", {})
    made = []

    @RERANKERS.register("own")
    class Own:
        def __init__(self):
            made.append(self)

        def __call__(self, candidates):
            return [(candidates.items[0], 1.0)]

    with Server(run, tmp_path / "events.sqlite", rules=Rules(reranker="own")) as server:
        for count in (1, 2):
            assert len(made) == count
            for _ in range(3):
                assert len(server.recommend(history=[50_003])) == 1
            server.reload()
