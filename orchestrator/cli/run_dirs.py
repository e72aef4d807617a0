"""Run directories on this machine: finding one, and what the command line notes in it."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.bucket import checked, is_uri, shown
from orchestrator.cli.run_handle import Run
from orchestrator.cli.words import some
from orchestrator.core.errors import BadInput
from orchestrator.lease import has_driver as has_driver

RUNS_DIR = Path("runs")
JOURNAL = "journal.jsonl"
COMMAND = "command.json"
JOB = "job.json"

_NOTED = {"job_file", "job_digest", "silos_dir", "address", "tracking_uri", "track"}


@dataclass(frozen=True)
class Folder:
    """A folder of runs as a person names it: a path, or the URI of one in a store."""

    text: str

    def __str__(self) -> str:
        """As it may be printed."""
        return shown(self.text) if self.in_store else self.text

    @property
    def in_store(self) -> bool:
        return is_uri(self.text)

    @property
    def there(self) -> Path | str:
        """As another process or machine understands it. Raises BadInput."""
        return checked(self.text) if self.in_store else self._path().absolute()

    def look(self) -> Path:
        """The folder on this machine; of a store, what there is to look at. Raises BadInput."""
        if not self.in_store:
            return self._path()
        from orchestrator.pulled import look

        return look(self.text)

    def _path(self) -> Path:
        if Path(self.text).is_file():
            raise BadInput(f"{self.text} is a file, not a folder of runs")
        return Path(self.text)

    def run_dir(self, run: Run) -> Path:
        """The directory of a run that is driven in this folder."""
        return run.run_dir if self.in_store else Path(self.text) / run.run_id


HERE = Folder(str(RUNS_DIR))


def ids(runs_dir: Path) -> list[str]:
    """Run ids, the one that was active last at the end."""
    found = [each for each in runs_dir.iterdir() if _is_run(each)] if runs_dir.is_dir() else []
    return [each.name for each in sorted(found, key=lambda each: (_active(each), each.name))]


def find(runs_dir: Path, text: str) -> Path:
    """The directory of the run that ``text`` names: its id, the start of its id, or ``last``."""
    return runs_dir / match(text, ids(runs_dir), runs_dir)


def match(text: str, known: Sequence[str], runs_dir: object) -> str:
    """The one of the ``known`` run ids that ``text`` names; the last of them is the newest."""
    if not known:
        raise BadInput(f"{runs_dir}: no runs here; 'siloray run JOB' makes one, '--runs-dir' looks elsewhere")
    if text == "last":
        return known[-1]
    matches = [text] if text in known else [each for each in known if each.startswith(text) and text]
    if len(matches) > 1:
        raise BadInput(f"'{text}' is the start of {len(matches)} runs: {some(sorted(matches))}")
    if not matches:
        close = difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "'siloray list' names them"
        raise BadInput(f"no run '{text}' in {runs_dir}; {hint}")
    return matches[0]


def locate(text: str, address: str | None, runs_dir: Folder | None) -> Path:
    """The directory of the run that ``text`` names: on this machine, or with an address on the driver's node. There
    a run is also known by its driver, wherever its directory lies."""
    if address is None:
        named = runs_dir or HERE
        here = named.look()
        return here / match(text, ids(here), named)
    from orchestrator.transport import ray as transport

    transport.connect(address, 0)
    folder, known = transport.on_driver_node(runs_in, absolute(runs_dir))
    elsewhere = [each for each in transport.running() if each not in known]
    return Path(folder) / match(text, [*elsewhere, *known], Path(folder))


def absolute(runs_dir: Folder | None) -> str | None:
    """As another machine understands it."""
    return None if runs_dir is None else str(runs_dir.there)


def again(run_dir: Path, address: str | None, runs_dir: Folder | None) -> Folder | None:
    """The folder in which to go on with a run that was found at ``run_dir``; None: what the driver's node says."""
    if runs_dir is None and address is not None:
        return None
    return runs_dir if runs_dir is not None and runs_dir.in_store else Folder(str(run_dir.parent))


def runs_in(given: str | None) -> tuple[str, list[str]]:
    """The folder of runs on the driver's node, where this is called, and the run ids in it."""
    from orchestrator.transport.started_runs import runs_folder

    folder = runs_folder(given)
    return str(folder), ids(folder)


def is_served(run_dir: Path) -> bool:
    """Whether its driver is a plain process, which silos dial (``siloray serve`` without Ray)."""
    try:
        command = read_command(run_dir)
    except BadInput:
        return False
    return "listen" in command and command["address"] is None


def _is_run(folder: Path) -> bool:
    return (folder / JOURNAL).is_file() or (folder / COMMAND).is_file()


def _active(folder: Path) -> float:
    times = [path.stat().st_mtime for name in (JOURNAL, COMMAND) if (path := folder / name).is_file()]
    return max(times, default=0.0)


def command_text(command: Mapping[str, Any]) -> str:
    """What the file says that keeps how a run was started."""
    return json.dumps(command, indent=1) + "\n"


def read_command(run_dir: Path) -> dict[str, Any]:
    """How the run was started; `BadInput` where that is not known here."""
    try:
        command = json.loads((run_dir / COMMAND).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise BadInput(f"{run_dir}: how it was started is not on record; use 'siloray run JOB'") from None
    if not isinstance(command, dict) or not command.keys() >= _NOTED:
        raise BadInput(f"{run_dir / COMMAND}: not what siloray wrote")
    return command


@dataclass(frozen=True)
class Record:
    """What a run directory says of its run."""

    command: dict[str, Any]
    job: str | None
    """The job document as JSON, as the driver had it; None before the run was first opened."""
    done: bool


def read_record(run_dir: str) -> Record:
    """All that ``resume`` needs, read where the directory is."""
    from orchestrator.summary import read_summary

    folder = Path(run_dir)
    job = folder / JOB
    text = job.read_text(encoding="utf-8") if job.is_file() else None
    return Record(read_command(folder), text, read_summary(folder)["status"] == "done")
