"""MLflow: an SQLite store in the run folder, or the server that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blossomrec.errors import MissingExtraError
from blossomrec.files import exclusive
from blossomrec.tracking.tracker import Place, Status, Tracker

STATUSES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# MLflow takes no more of them in one call, and no longer values.
PARAMETERS_AT_A_TIME, LONGEST_VALUE = 100, 6_000
# Seconds that a process waits while others write to the store, and between two looks at its lock.
PATIENCE, LOOK = 60, 0.1


class MLflow(Tracker):
    """A run in the experiment ``MLFLOW_EXPERIMENT_NAME``, or ``blossomrec``.

    MLflow takes no ``@`` in names: ``ndcg@10`` is ``ndcg_at_10`` there. A parameter keeps the value
    that the training was begun with.
    """

    def __init__(self, place: Place):
        super().__init__(place)
        # Nothing is sent anywhere unless it is asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        # By default MLflow tries for minutes; what fails is tried again with the next epoch.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            import alembic  # noqa: F401 (MLflow needs both for SQLite and does not require them)
            import sqlalchemy  # noqa: F401
            from mlflow import entities  # pyright: ignore[reportMissingImports]
            from mlflow.tracking import (  # pyright: ignore[reportMissingImports]
                MlflowClient,
            )
        except ImportError as error:
            raise MissingExtraError(error.name or "mlflow-skinny", "mlflow") from error
        self._client_type, self._entities = MlflowClient, entities
        self._client: Any = None
        self._run = ""

    def start(self, identity: str | None, step: int) -> str:
        folder = (self.place.folder / "mlflow").resolve()
        server = os.environ.get("MLFLOW_TRACKING_URI", "")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "blossomrec")
        # Two processes that begin at once would both make the tables.
        with contextlib.nullcontext() if server else _alone(folder):
            own = f"sqlite:///{folder / 'mlflow.db'}?timeout={PATIENCE}"
            self._client = self._client_type(tracking_uri=server or own)
            found = self._client.get_experiment_by_name(name)
            artifacts = None if server else (folder / "artifacts").as_uri()
            experiment = found.experiment_id if found else None
            experiment = experiment or self._client.create_experiment(name, artifacts)
        if identity is None or not self._goes_on(identity):
            tags = {"group": self.place.group} if self.place.group else {}
            run = self._client.create_run(experiment, run_name=self.place.name, tags=tags)
            identity = run.info.run_id
        self._run = str(identity)
        return self._run

    def _goes_on(self, identity: str) -> bool:
        """Reopen a run; False where it is gone."""
        from mlflow.exceptions import (  # pyright: ignore[reportMissingImports]
            MlflowException,
        )

        try:
            run = self._client.get_run(identity)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if run.info.lifecycle_stage != "active":
            return False
        self._client.update_run(identity, status="RUNNING")
        return True

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        known = self._client.get_run(self._run).data.params
        new = [
            self._entities.Param(_allowed(name), str(value)[:LONGEST_VALUE])
            for name, value in parameters.items()
            if _allowed(name) not in known
        ]
        for start in range(0, len(new), PARAMETERS_AT_A_TIME):
            self._client.log_batch(self._run, params=new[start : start + PARAMETERS_AT_A_TIME])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        now = int(1_000 * time.time())
        numbers = [
            self._entities.Metric(_allowed(name), value, now, step or 0)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._run, metrics=numbers)

    def log_artifact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._run, str(path), path.name)
        else:
            self._client.log_artifact(self._run, str(path))

    def finalize(self, status: Status) -> None:
        self._client.set_terminated(self._run, STATUSES[status])


def _allowed(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(folder))
                break
            except BlockingIOError:
                time.sleep(LOOK)
        yield
