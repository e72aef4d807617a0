"""Run directories on this machine: finding one, and what the command line notes in it."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.words import some
from orchestrator.core.errors import BadInput
from orchestrator.disk import put
from orchestrator.lease import has_driver as has_driver

JOURNAL = "journal.jsonl"
COMMAND = "command.json"

_NOTED = {"job_file", "job_digest", "silos_dir", "address", "tracking_uri", "track"}


def ids(runs_dir: Path) -> list[str]:
    """Run ids, the one that was active last at the end."""
    found = [each for each in runs_dir.iterdir() if _is_run(each)] if runs_dir.is_dir() else []
    return [each.name for each in sorted(found, key=lambda each: (_active(each), each.name))]


def find(runs_dir: Path, text: str) -> Path:
    """The directory of the run that ``text`` names: its id, the start of its id, or ``last``."""
    known = ids(runs_dir)
    if not known:
        raise BadInput(f"{runs_dir}: no runs here; 'siloray run JOB' makes one, '--runs-dir' looks elsewhere")
    if text == "last":
        return runs_dir / known[-1]
    matches = [text] if text in known else [each for each in known if each.startswith(text) and text]
    if len(matches) > 1:
        raise BadInput(f"'{text}' is the start of {len(matches)} runs: {some(sorted(matches))}")
    if not matches:
        close = difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "'siloray list' names them"
        raise BadInput(f"no run '{text}' in {runs_dir}; {hint}")
    return runs_dir / matches[0]


def _is_run(folder: Path) -> bool:
    return (folder / JOURNAL).is_file() or (folder / COMMAND).is_file()


def _active(folder: Path) -> float:
    times = [path.stat().st_mtime for name in (JOURNAL, COMMAND) if (path := folder / name).is_file()]
    return max(times, default=0.0)


def note_command(run_dir: Path, command: Mapping[str, Any]) -> None:
    """Keeps how the run was started, for ``resume``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    put(run_dir / COMMAND, json.dumps(command, indent=1) + "\n")


def read_command(run_dir: Path) -> dict[str, Any]:
    """How the run was started; `BadInput` where that is not known here."""
    try:
        command = json.loads((run_dir / COMMAND).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise BadInput(f"{run_dir}: how it was started is not on record; use 'siloray run JOB'") from None
    if not isinstance(command, dict) or not command.keys() >= _NOTED:
        raise BadInput(f"{run_dir / COMMAND}: not what siloray wrote")
    return command
