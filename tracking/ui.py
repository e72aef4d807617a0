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
from tracking.points import RUN
from tracking.server import ENVIRONMENT, absolute
from tracking.views import key_of

LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
"""Without the runner of GenAI evaluation jobs, which takes hundreds of megabytes, nor its libraries' worries."""

TRAINING = "workflowType=machine_learning"
"""MLflow's model-training side: an address without it shows the side last looked at, at first GenAI."""


def command(uri: str, port: int, host: str = "127.0.0.1") -> list[str]:
    """The server as one process. Its own defaults refuse foreign ``Host`` headers and cross-site requests."""
    uri = absolute(uri)
    folder = Path(uri.partition(":///")[2]).parent / "mlartifacts"
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri, "--artifacts-destination", str(folder)),
        *("--host", host, "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
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
    return _address(run_dir, base_url, "runs/{run}?{view}")


def charts_of(run_dir: Path, base_url: str) -> str | None:
    """The page that draws the job's run and its silos' into the same charts; None as `page_of`."""
    return _address(run_dir, base_url, "runs?viewStateShareKey={key}&compareRunsMode=CHART&{view}")


def _address(run_dir: Path, base_url: str, path: str) -> str | None:
    try:
        cursor = json.loads((run_dir / CURSOR).read_text(encoding="utf-8"))
        ids = {"run": cursor["runs"][RUN], "key": quote(key_of(cursor["run_id"])), "view": TRAINING}
        return f"{base_url.rstrip('/')}/#/experiments/{cursor['experiment_id']}/{path.format(**ids)}"
    except (OSError, ValueError, LookupError):
        return None
