"""Runs without training, and servers over them, inside the test or in processes of their own."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi.testclient import TestClient
from places import Place

from blossomrec.config import ModelConfig, RunConfig, ServingConfig
from blossomrec.data.log import EventLog
from blossomrec.models import build_model
from blossomrec.models.sequence import SequenceModel
from blossomrec.rules import Rules
from blossomrec.run.weights import save_model
from blossomrec.run.writing import write_run_config
from blossomrec.serving.engine.jobs import Request
from blossomrec.serving.engine.service import Service
from blossomrec.serving.http.application import build_app
from blossomrec.serving.stores import store_opener
from blossomrec.serving.version.ranking import Best, Choice
from forked_commands import ForkedCommand
from small_options import MODEL

# Seconds for what must happen, but may take its time on a busy machine.
WAIT = 120
BASE = "http://127.0.0.1:8000"


def write_run(folder: Path, log: EventLog, *, seed: int = 0, **options: Any) -> Path:
    """A run folder with random weights, large enough for the attention to matter."""
    config = RunConfig(model=ModelConfig(**MODEL | options))
    torch.manual_seed(seed)
    model = build_model(config.model, log.num_items, log.tables).eval()
    with torch.no_grad():
        model.item_embeddings.weight.mul_(10)
    # What is said of events and requests begins at zero.
    parts = (model.event_inputs, model.request_inputs, model.user_content, model.own_history)
    for part in parts:
        for parameter in () if part is None else part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    write_run_config(folder, config, log)
    save_model(folder, model)
    return folder


class Server:
    """A service and a client of its application in this process.

    Args:
        store: path or URL of the store, or its place.
        options: of the server, besides ``token`` and the ``rules`` that always hold.
    """

    def __init__(
        self,
        run: Path,
        store: Path | Place | str,
        *,
        token: str | None = None,
        rules: Rules | None = None,
        **options: Any,
    ):
        self.run, self.store_path = run, store
        where = store.where if isinstance(store, Place) else str(store)
        config = dataclasses.replace(ServingConfig(), **options)
        given: dict[str, Any] = {"device": "cpu", "threads": 1, "rules": rules}
        self.service = Service(run, store_opener(where)[0], config, **given)
        self.app = build_app(self.service, token)
        self.client = TestClient(self.app, BASE, raise_server_exceptions=False)

    def __enter__(self) -> Server:
        # One event loop for all requests.
        self.client.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.__exit__(*error)
        self.service.close()

    def post(self, path: str, body: Any, **options: Any) -> Any:
        """The answer to a body that must be taken."""
        answer = self.client.post(path, json=body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def append(self, user: Any, events: list[Any]) -> dict[str, Any]:
        """Append items, or events as mappings."""
        listed = [one if isinstance(one, dict) else {"item": one} for one in events]
        return self.post(f"/v1/users/{user}/events", {"events": listed})

    def recommend(self, **body: Any) -> list[dict[str, Any]]:
        return self.post("/v1/recommend", body)["items"]

    def reload(self) -> Any:
        """Take the model that the run folder holds now."""
        assert self.client.portal is not None
        return self.client.portal.call(self.service.reload)

    def idle(self) -> None:
        """Wait until nothing is left to do in the background."""
        end = time.monotonic() + 60
        while self.service._engine._background:
            assert time.monotonic() < end
            time.sleep(0.001)

    def refused(self, answer: Any, status: int, code: str) -> dict[str, Any]:
        """The error in an answer that must be a refusal."""
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["code"] == code, error
        return error


def close(items: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """The same recommendations, but for rounding."""
    same = [one["item"] for one in items] == [one["item"] for one in others]
    return same and np.allclose(
        [a["score"] for a in items], [b["score"] for b in others], atol=1e-5
    )


def ask(server: Server, user: str, k: int = 5) -> Future[Best]:
    """A request to the thread of the model, without HTTP."""
    request = Request(user, None, Choice(k))
    return server.service._engine.recommend(server.service.version, request)


def count_calls(monkeypatch: Any, model: SequenceModel) -> list[list[int]]:
    """How many users and events each extension of states had."""
    calls, original = [], type(model).extend_batch

    def counted(self, batch, states):
        calls.append(batch.cu_seqlens.diff().tolist())
        return original(self, batch, states)

    monkeypatch.setattr(type(model), "extend_batch", counted)
    return calls


class Process:
    """``blossomrec serve`` in a process of its own.

    Args:
        port: 0 takes any that is free.
        files: that it may have open, where it is not as many as this process.
    """

    def __init__(
        self,
        run: Path,
        store: Path | str,
        *flags: Any,
        port: int = 0,
        files: int | None = None,
        **environment: str,
    ):
        command = ["serve", run, "--store", store, "--port", port]
        command += ["--device", "cpu", "--threads", 1, *flags]
        self.process = ForkedCommand(command, environment, files=files)
        line = self.process.line()
        found = re.search(r"http://\S+:\d+", line)
        if found is None:
            raise AssertionError(line + self.process.wait(30).stderr)
        self.url = found[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Exit code and what went to standard error."""
        ended = self.process.wait(60)
        return ended.code, ended.stderr

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait()
