"""MLflow's own pages for people: a server on loopback, and where a run's page is."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from tracking.cursor import CURSOR
from tracking.mapping import RUN
from tracking.server import ENVIRONMENT, absolute

LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Without the runner of GenAI evaluation jobs, which is several processes and hundreds of megabytes."""


def command(uri: str, port: int, host: str = "127.0.0.1") -> list[str]:
    """The server as one process. Its own defaults refuse foreign ``Host`` headers and cross-site requests."""
    uri = absolute(uri)
    folder = Path(uri.partition(":///")[2]).parent / "mlartifacts"
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri, "--artifacts-destination", str(folder)),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def serve(uri: str, port: int, host: str = "127.0.0.1") -> "subprocess.Popen[bytes]":
    """Starts the server for a database's URI; end it with ``terminate``. For an ``http`` URI there is nothing to
    start: raises ValueError."""
    if uri.startswith("http"):
        raise ValueError(f"{uri} is a server already")
    environment = {**os.environ, **ENVIRONMENT, **LEAN}
    return subprocess.Popen(command(uri, port, host), env=environment, start_new_session=True)


def wait_until_up(url: str, timeout_s: float = 90.0) -> bool:
    """Whether the server answers within the time."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def page_of(run_dir: Path, base_url: str) -> str | None:
    """The page of the job's run; None as long as MLflow does not know it."""
    ids = _ids(run_dir)
    return ids and f"{base_url.rstrip('/')}/#/experiments/{ids[0]}/runs/{ids[1]}"


def charts_of(run_dir: Path, base_url: str) -> str | None:
    """The page that draws the job's run and its silos' into the same charts."""
    ids = _ids(run_dir)
    if not ids:
        return None
    query = quote(f"tags.`siloray.run_id` = '{ids[2]}'")
    return f"{base_url.rstrip('/')}/#/experiments/{ids[0]}/runs?searchFilter={query}&compareRunsMode=CHART"


def _ids(run_dir: Path) -> tuple[str, str, str] | None:
    """Experiment and run in MLflow, and the run's own id."""
    try:
        cursor = json.loads((run_dir / CURSOR).read_text(encoding="utf-8"))
        return cursor["experiment_id"], cursor["runs"][RUN], cursor["run_id"]
    except (OSError, ValueError, LookupError):
        return None
