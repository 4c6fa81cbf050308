"""Three replicas over one store behind a balancer, killed and swapped, are one server."""

import os
import random
import re
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from fleet import DEPLOY, Balancer, Fleet, Nginx, missing_nginx
from loads import KILLS, K, metrics, until
from places import Place, Redis, missing
from senders import Sender
from serving_runs import close, write_run

from blossomrec.recommender import BlossomRec
from blossomrec.run import run_version
from blossomrec.serving import Client

SENDERS = 2
needs_nginx = pytest.mark.skipif(missing_nginx() is not None, reason=str(missing_nginx()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The store that the replicas share: Redis or Valkey, or a file where there is none."""
    folder = tmp_path_factory.mktemp("store")
    if missing():
        yield Place(folder)
        return
    server = Redis(folder)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def runs(tiny_log, tmp_path_factory):
    """A folder of two runs, the first of which is in use."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("00001", "00002")):
        write_run(folder / name, tiny_log, seed=seed)
    (folder / "current").symlink_to("00001")
    return folder


@pytest.fixture(scope="module")
def fleet(runs, place):
    with closing(Fleet(runs / "current", place.where)) as fleet:
        yield fleet


@pytest.fixture
def offline(runs, tiny_log):
    """What each run recommends without a server, by the name that answers give it."""
    folders = [runs / name for name in ("00001", "00002")]
    made = {
        run_version(folder): BlossomRec.from_pretrained(folder, tiny_log, device="cpu")
        for folder in folders
    }
    known = {}

    def recommended(model, history):
        if (model, history) not in known:
            frame = made[model].recommend_history(list(history), K, filter_viewed=False)
            known[model, history] = frame.rename({"item_id": "item"}).to_dicts()
        return known[model, history]

    return recommended


@contextmanager
def under_load(fleet, balancer, place, offline, item_ids):
    """Clients that append and ask through the balancer and through each replica.

    In the end every event that was acknowledged is stored once and in order, and every answer had
    seen all of them that had been acknowledged before it was asked for.
    """
    senders = [Sender(number, [balancer.url, *fleet.urls], item_ids) for number in range(SENDERS)]
    for sender in senders:
        sender.start()
    try:
        yield senders
    finally:
        for sender in senders:
            sender.over.set()
        for sender in senders:
            sender.join(60)
    assert [sender.error for sender in senders] == [None] * SENDERS
    assert [sender.stale for sender in senders] == [[]] * SENDERS
    with closing(place.open()) as store:
        for sender in senders:
            for user, sent in sender.sent.items():
                found = store.profile(user, len(sent) + 1)
                assert [(event.item, event.key) for event in found.last] == sent
                with store.transaction():
                    store.delete(user)
    answers = [answer for sender in senders for answer in sender.answers]
    for answer in answers:
        assert close(answer.items, offline(answer.model, answer.history)), answer
    for sender in senders:
        # Each door was used in both ways.
        assert all(min(counts) for counts in sender.doors.values()), sender.doors
    events = sum(len(sent) for sender in senders for sent in sender.sent.values())
    print(f"{events} events acknowledged, {len(answers)} answers")


def answered(senders, doors, more=2):
    """Wait for appends to, and answers of, each of some doors."""
    before = [[sender.doors[door][:] for door in doors] for sender in senders]
    until(
        lambda: all(
            sender.doors[door][way] >= counts[way] + more or not sender.is_alive()
            for sender, known in zip(senders, before, strict=True)
            for door, counts in zip(doors, known, strict=True)
            for way in (0, 1)
        )
    )


def test_kills_lose_nothing_and_leave_nothing_stale(fleet, place, offline, item_ids, tmp_path):
    """kill -9 of a replica, then of the balancer and of the store, under load."""
    moments, kind = random.Random(7), Balancer if missing_nginx() else Nginx
    with (
        closing(kind(fleet.urls, tmp_path)) as balancer,
        under_load(fleet, balancer, place, offline, item_ids) as senders,
    ):
        for _ in range(KILLS):
            victim = moments.randrange(3)
            answered(senders, [balancer.url, fleet.urls[victim]], more=1)
            time.sleep(moments.uniform(0, 0.1))
            fleet.kill(victim)
            # The others have its users meanwhile.
            answered(senders, [balancer.url, *(fleet.urls[:victim] + fleet.urls[victim + 1 :])], 1)
            fleet.start(victim)
            answered(senders, [balancer.url, fleet.urls[victim]], more=1)
            balancer.kill()
            balancer.start()
            if isinstance(place, Redis):
                answered(senders, [balancer.url], more=1)
                place.kill()
                place.start()


DOCKER = """#!{python}
import os, re, signal, subprocess, sys
replicas = {replicas!r}
compose, verb, *rest = sys.argv[1:]
assert compose == "compose", sys.argv
if verb == "ps":
    assert rest == ["--services", "--status", "running"], rest
    print("balancer", *replicas, sep="\\n")
elif verb == "kill":
    assert rest[:2] == ["-s", "HUP"], rest
    os.kill(replicas[rest[2]][0], signal.SIGHUP)
else:
    assert (verb, rest[0], rest[2:4]) == ("exec", "-T", ["python", "-c"]), rest
    code = rest[4].replace("Client()", f"Client({{replicas[rest[1]][1]!r}})")
    code = code.replace("/runs/current", {current!r})
    sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)
"""


def swap(fleet, runs, folder):
    """``deploy/swap``, with replicas that are processes of this machine instead of containers."""
    known = {
        f"replica-{number + 1}": (fleet.pid(number), url) for number, url in enumerate(fleet.urls)
    }
    docker = folder / "docker"
    current = str(runs / "current")
    docker.write_text(DOCKER.format(python=sys.executable, replicas=known, current=current))
    docker.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [DEPLOY / "swap"], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )


def test_replicas_take_a_new_run_one_after_the_other(
    fleet, runs, place, offline, item_ids, tmp_path
):
    with (
        closing(Balancer(fleet.urls, tmp_path)) as balancer,
        under_load(fleet, balancer, place, offline, item_ids) as senders,
    ):
        answered(senders, fleet.urls, more=1)
        (runs / "new").symlink_to("00002")
        (runs / "new").rename(runs / "current")
        done = swap(fleet, runs, tmp_path)
        new = run_version(runs / "00002")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"replica-{n} answers with {new}" for n in (1, 2, 3)]
        answered(senders, fleet.urls, more=1)
    models = [answer.model for sender in senders for answer in sender.answers]
    assert set(models) == {run_version(runs / "00001"), new} and models[-1] == new


@needs_nginx
def test_a_user_stays_on_one_replica(fleet, item_ids, tmp_path):
    """Whether the id stands in the header, in the path or in the query alone."""
    users = [f"ü/{number} 20%" for number in range(12)]
    with closing(Nginx(fleet.urls, tmp_path)) as balancer, Client(balancer.url) as client:
        for user in users:
            client.append(user, item_ids[:3])
            with asked(fleet, "/v1/recommend") as by_header:
                client.recommend(user, 3)
            with asked(fleet, "/v1/users/{user_id:text}") as by_path:
                urlopen(f"{balancer.url}/v1/users/{quote(user, safe='')}").close()
            with asked(fleet, "/v1/explain") as by_query:
                of_user = f"user_id={quote(user, safe='')}&item_id={item_ids[0]}"
                urlopen(f"{balancer.url}/v1/explain?{of_user}").close()
            assert len(by_header) == 1 and by_header == by_path == by_query
            client.delete(user)
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{balancer.url}/metrics")


@contextmanager
def asked(fleet, route):
    """Which replicas have answered requests of a route meanwhile."""

    def counts():
        pattern = rf'^blossomrec_requests_total{{.*route="{re.escape(route)}".*}} (\S+)$'
        return [
            sum(map(float, re.findall(pattern, metrics(url), re.MULTILINE))) for url in fleet.urls
        ]

    found, before = list[str](), counts()
    yield found
    found += [url for url, one, two in zip(fleet.urls, before, counts(), strict=True) if one != two]
