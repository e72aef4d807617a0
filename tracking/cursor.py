"""How far MLflow has been told about a run: ``tracking.json`` in the run directory."""

import json
import os
import shlex
import textwrap
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

CURSOR = "tracking.json"


@dataclass(slots=True)
class Cursor:
    """Everything in it can be found again: without the file the follower searches MLflow by tag and posts the
    journal once more, which adds nothing that is there."""

    uri: str
    run_id: str = ""
    """The run's own name."""
    experiment_id: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    """MLflow run id of the job (key ``""``) and of each silo."""
    seq: int = -1
    """Last event that is in MLflow."""
    time: float = 0.0
    """Its time: a journal whose line ``seq`` has another is not the one that was posted."""
    superseded: list[int] = field(default_factory=list)
    """Events that do not count, because their rounds were made again with another outcome."""
    void: bool = False
    """The runs in MLflow show such events and are yet to be replaced."""
    models: dict[str, str] = field(default_factory=dict)
    """By version: id of the logged model, or why there is none."""
    finished: int = -1
    """Event that closed the run whose report, plots and models are in MLflow."""
    problem: str = ""
    """Why the last attempt to post failed; empty while all is well."""

    def forget(self) -> None:
        """MLflow has lost the run: all of it must be posted again."""
        self.experiment_id, self.runs, self.models = "", {}, {}
        self.seq, self.time, self.finished, self.void = -1, 0.0, -1, False


def load(run_dir: Path, uri: str) -> Cursor:
    """The cursor for this server; a new one where there is none, or none that can be read."""
    cursor = last(run_dir)
    return cursor if cursor is not None and cursor.uri == uri else Cursor(uri)


def last(run_dir: Path) -> Cursor | None:
    """The cursor of the server that the run was last carried to; None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return Cursor(**json.loads((run_dir / CURSOR).read_text(encoding="utf-8")))
    return None


def trouble(run_dir: Path) -> str | None:
    """Why MLflow does not have all of the run, and what brings it there, in one line; None while all is well."""
    cursor = last(run_dir)
    if cursor is None or not cursor.problem:
        return None
    again = f"python -m tracking {shlex.quote(str(run_dir))} --uri {shlex.quote(cursor.uri)}"
    why = textwrap.shorten(cursor.problem, 150, placeholder=" …")
    return f"not all of it is in MLflow ({why}); it follows once that is mended, at the latest with: {again}"


def save(run_dir: Path, cursor: Cursor) -> None:
    """Replaces the file in one step; a kill leaves the old one or the new one."""
    new = run_dir / f".{CURSOR}.{os.getpid()}"
    new.write_text(json.dumps(asdict(cursor), indent=1) + "\n", encoding="utf-8")
    new.replace(run_dir / CURSOR)
