"""What `siloray doctor --address` looks at on the driver's node: where the runs are kept, and MLflow as the driver
reaches it. `home` runs there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.cli import checks
from orchestrator.cli.checks import Check
from orchestrator.cli.words import one_line
from orchestrator.core.errors import BadInput
from orchestrator.transport.started_runs import place

RUNS, TRACKING = "runs on the driver's node", "MLflow from the driver's node"


def home(runs_dir: str | None, tracking_uri: str | None) -> list[Check]:
    """``runs_dir``: a folder there or a URI; None: what the node says. ``tracking_uri``: None: beside the runs."""
    return list(_home(runs_dir, tracking_uri))


def _home(runs_dir: str | None, tracking_uri: str | None) -> Iterator[Check]:
    try:
        found = place(runs_dir, None, None)
    except (BadInput, OSError) as error:
        yield Check("fail", RUNS, one_line(error), "SILORAY_RUNS there, or --runs-dir, names another place")
        return
    folder = Path(found.folder)
    yield replace(checks.disk(folder), what=RUNS)
    if tracking_uri is None and not folder.parent.is_dir():
        yield Check("pass", TRACKING, f"{folder.parent}/mlflow.db, made with the first run")
    else:
        beside = f"sqlite:///{folder.parent}/mlflow.db"
        yield replace(checks.tracking(tracking_uri or beside), what=TRACKING)
