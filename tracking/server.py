"""The few things asked of an MLflow server or database. Any of them may fail at any moment and be asked again."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tracking import views
from tracking.points import RUN, Rows

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment in MLflow's model-training view; without it 3.x asks, or guesses GenAI."""
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    TIMEOUT: "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
"""MLflow's own retries block for minutes, so the follower does its own; and nothing is told to third parties."""
MAX_POINTS, MAX_PAIRS = 900, 100
"""Per request; MLflow takes 1000 metrics, 100 parameters and 100 tags."""
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_STATE"}


def absolute(uri: str) -> str:
    """A database file's URI made independent of the working directory."""
    scheme, found, path = uri.partition(":///")
    if not found or not scheme.startswith("sqlite"):
        return uri
    return f"{scheme}:///{Path(path).absolute()}"


def is_lost(error: Exception) -> bool:
    """The server answers and does not know the run: its database is another one than before."""
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def is_refusal(error: Exception) -> bool:
    """The server answers, and will give the same answer again."""
    return getattr(error, "error_code", "") in REFUSALS


@contextmanager
def patiently() -> Iterator[None]:
    """Longer requests: a server may take its time over a large model."""
    usual = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = "60"  # seconds; mlflow looks at each request
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


class Server:
    """One tracking URI."""

    def __init__(self, uri: str) -> None:
        """Imports mlflow, which takes seconds; touches neither network nor disk."""
        os.environ.update(ENVIRONMENT)
        from mlflow.tracking import MlflowClient

        self.uri = uri
        self.client: MlflowClient = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def experiment(self, name: str) -> str:
        """Id of the experiment; made, restored or given its kind where need be."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return self.client.create_experiment(
                name, artifact_location=_artifacts(self.uri, name), tags=KIND
            )
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        for key, value in KIND.items():
            if key not in found.tags:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def share_view(self, experiment_id: str, run_id: str, metric: str) -> None:
        """Arranges the experiment's page for one run (`tracking.views`)."""
        key = f"{views.TAG}{views.key_of(run_id)}"
        self.client.set_experiment_tag(experiment_id, key, views.view_of(run_id, metric))

    def runs(self, experiment_id: str, run_id: str) -> dict[str, list[str]]:
        """MLflow run ids of a job's run (key ``""``) and of its silos; more than one where a request that seemed
        lost was carried out after all."""
        found: dict[str, list[str]] = {}
        query, page = f"tags.`siloray.run_id` = '{run_id}'", None
        while page != "":
            runs = self.client.search_runs([experiment_id], query, order_by=["start_time"], page_token=page)
            for run in runs:
                found.setdefault(run.data.tags.get("siloray.silo", RUN), []).append(run.info.run_id)
            page = runs.token or ""
        return {key: sorted(ids) for key, ids in found.items()}

    def create_run(self, experiment_id: str, name: str, time_ms: int, tags: dict[str, str]) -> str:
        run = self.client.create_run(experiment_id, start_time=time_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    def delete_runs(self, ids: Sequence[str]) -> None:
        """Moves runs to MLflow's bin."""
        for run in ids:
            self.client.delete_run(run)

    def send(self, run: str, rows: Rows) -> None:
        """Posts the rows; what is there already is not doubled."""
        from mlflow.entities import Metric, Param, RunTag

        for params in _pieces([Param(*pair) for pair in rows.params.items()], MAX_PAIRS):
            self.client.log_batch(run, params=params)
        points = [Metric(each.key, each.value, each.time_ms, each.step) for each in rows.points]
        for metrics in _pieces(points, MAX_POINTS):
            self.client.log_batch(run, metrics=metrics)
        for tags in _pieces([RunTag(*pair) for pair in rows.tags.items()], MAX_PAIRS):
            self.client.log_batch(run, tags=tags)
        if rows.status == "RUNNING":
            self.client.update_run(run, status=rows.status)
        elif rows.status:
            self.client.set_terminated(run, rows.status, rows.time_ms)


def _artifacts(uri: str, experiment: str) -> str | None:
    """Beside the database file, wherever its reader works; a server decides for itself."""
    if not uri.startswith("sqlite"):
        return None
    folder = Path(uri.partition(":///")[2]).parent / "mlartifacts" / quote(experiment, safe="")
    return folder.as_uri()


def _pieces(items: list[Any], length: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), length):
        yield items[start : start + length]
