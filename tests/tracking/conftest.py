"""A tracker that notes what it is told, and may fail."""

import threading

import pytest

from blossomrec.tracking import TRACKERS, Tracker


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch, one_thread):
    """No variable of the machine leads to a server."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def noted(monkeypatch):
    """The class of a tracker ``noted``: its ``calls``, and what ``fails`` how many times."""
    monkeypatch.setattr(TRACKERS, "_registered", dict(TRACKERS._registered))

    @TRACKERS.register("noted")
    class Noted(Tracker):
        calls, fails, threads = [], {}, set()
        identities = iter(range(1, 100))
        forgotten = False

        def _note(self, name, *what):
            self.threads.add(threading.current_thread())
            if self.fails.get(name, 0):
                self.fails[name] -= 1
                raise ConnectionError(f"no answer to {name}")
            self.calls.append((name, *what))

        def start(self, identity, step):
            self._note("start", identity, step)
            known = None if self.forgotten else identity
            return known or str(next(self.identities))

        def log_parameters(self, parameters):
            self._note("parameters", parameters)

        def log_metrics(self, metrics, step):
            self._note("metrics", step, metrics)

        def log_artifact(self, path):
            self._note("artifact", path.name)

        def finalize(self, status):
            self._note("finalize", status)

        @classmethod
        def taken(cls, name):
            """What was told by one method since the last look."""
            found = [call[1:] for call in cls.calls if call[0] == name]
            cls.calls[:] = [call for call in cls.calls if call[0] != name]
            return found

    return Noted
