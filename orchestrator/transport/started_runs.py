"""Runs that were started before, as their directories tell. For the driver's node: nothing here needs Ray."""

import json
import os
import secrets
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.bucket import Bucket, is_uri
from orchestrator.core.errors import BadInput
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.journal import JOURNAL, JournalDamaged, read_journal
from orchestrator.pulled import look, runs_copy

SUBMISSION = "submission.json"
"""In a run directory: the name of the submission that made the run."""

RUNS = "SILORAY_RUNS"
"""Names, on the driver's node, the folder that holds the runs of the cluster."""

EXIT_CODES = {"done": 0, "stopped": 3, "failed": 4}

Turn = dict[str, Any]
"""An event of the kind ``run_opened`` or ``run_closed``."""


@dataclass(frozen=True)
class Place:
    """Where a run lies on the driver's node."""

    folder: str
    run_id: str | None
    """The run to go on with; None if there is none."""
    num_opened: int
    """How often it has been opened."""
    store: str | None = None
    """The URI of the folder that counts, where ``folder`` holds copies."""
    done: Outcome | None = None
    """How the run ended that the submission made, if that is done: there is nothing to go on with."""


def place(
    given: str | None, job_digest: str | None, run_id: str | None, submission: str | None = None
) -> Place:
    """The folder of runs, and in it the run to go on with: ``run_id``, or the one that the submission made, or
    without a submission the newest of this very job that is not done. Raises BadInput."""
    store = _runs(given) if is_uri(_runs(given)) else None
    if store is not None:
        Bucket(store).check()
    folder = runs_folder(given)
    found = run_id or _known(folder, job_digest, submission)
    history = turns(str(folder / found)) if found else []
    done = _done(history) if submission else None
    if done is not None:
        return Place(str(folder), found, num_opened(history), done=done)
    home = folder if store is None else runs_copy(store)
    _check_folder(home)
    return Place(str(home), found, num_opened(history), store)


def _known(folder: Path, job_digest: str | None, submission: str | None) -> str | None:
    if submission is not None:
        return submitted(folder, submission)
    return unfinished(folder, job_digest) if job_digest is not None else None


def _done(history: list[Turn]) -> Outcome | None:
    ended = outcome_since(history, 0)
    return ended if ended is not None and ended.status == "done" else None


def _check_folder(folder: Path) -> None:
    """`BadInput` unless runs can be made there. The folder itself is made with its first run."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise BadInput(f"{folder}: no folder of runs can be made here, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{folder}: the account that drives runs may not write in {there}")


def runs_folder(given: str | None) -> Path:
    """Folder of the runs on this machine, if it is the driver's node of a cluster; of those in a store, what there is
    to look at. A submitted job's own folder would not do: Ray deletes it."""
    where = _runs(given)
    return look(where) if is_uri(where) else Path(where).expanduser().absolute()


def _runs(given: str | None) -> str:
    return given or os.environ.get(RUNS) or "~/siloray/runs"


def turns(run_dir: str) -> list[Turn]:
    """When the run was opened and closed, as far as its journal is on this machine and can be read."""
    try:
        events, _ = read_journal(Path(run_dir) / JOURNAL)
    except (OSError, JournalDamaged):
        return []
    return [event for event in events if event["type"] in ("run_opened", "run_closed")]


def num_opened(found: list[Turn]) -> int:
    return sum(turn["type"] == "run_opened" for turn in found)


def outcome_since(found: list[Turn], opened_before: int) -> Outcome | None:
    """How the run ended; an end from before its last opening is an older one."""
    if not found or found[-1]["type"] != "run_closed" or num_opened(found) <= opened_before:
        return None
    status = str(found[-1]["status"])
    return Outcome(status, EXIT_CODES[status], str(found[-1]["reason"]))


def new_id(job: Job) -> str:
    """A name for a run: the job's, the time, and something by chance."""
    return f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def unfinished(folder: Path, job_digest: str) -> str | None:
    """The newest run of this very job that is not done."""
    journals = folder.glob(f"*/{JOURNAL}") if folder.is_dir() else ()
    found = [each for each in journals if _goes_on(each.parent, job_digest)]
    return max(found, key=lambda each: each.stat().st_mtime).parent.name if found else None


def _goes_on(run_dir: Path, job_digest: str) -> bool:
    found = turns(str(run_dir))
    opened = [turn for turn in found if turn["type"] == "run_opened"]
    if not opened or opened[-1]["job_digest"] != job_digest:
        return False
    return not (found[-1]["type"] == "run_closed" and found[-1]["status"] == "done")


def submission_note(submission: str) -> str:
    """What the file `SUBMISSION` says."""
    return json.dumps({"name": submission}) + "\n"


def submitted(folder: Path, submission: str) -> str | None:
    """The run that this submission made: another process may have driven it since, and Ray may have forgotten it."""
    notes = folder.glob(f"*/{SUBMISSION}") if folder.is_dir() else ()
    found = [each for each in notes if _text(each) == submission_note(submission)]
    return max(found, key=lambda each: each.stat().st_mtime).parent.name if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def named(run_id: str, address: str | None = None, runs_dir: str | None = None) -> str:
    """The run as a command has to be told of it, typed in any folder of a machine of that cluster."""
    options = {"--address": address, "--runs-dir": runs_dir}
    return shlex.join([run_id, *(text for name, value in options.items() if value for text in (name, value))])


def noted_address(run_dir: Path) -> str | None:
    """The Ray on which the run was last driven."""
    try:
        address = json.loads((run_dir / "ray.json").read_text(encoding="utf-8")).get("address")
    except (OSError, ValueError, AttributeError):
        return None
    return address if isinstance(address, str) else None
