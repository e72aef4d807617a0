"""Run directories on this machine: finding one, and what the command line notes in it."""

import difflib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.bucket import checked, is_uri, shown
from orchestrator.cli.run_handle import Run
from orchestrator.cli.words import some
from orchestrator.core.errors import BadInput
from orchestrator.journal import JOURNAL
from orchestrator.lease import has_driver as has_driver

RUNS_DIR = Path("runs")
COMMAND = "command.json"
JOB = "job.json"

PACKAGES = "/working_dir_files/"
"""Ray unpacks the folder of a submitted job in here, and deletes it when the job has ended."""

TRACKING_PASSWORD = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD give it where the driver runs"

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
        if self.in_store:
            return checked(self.text)
        check_lasting("--runs-dir", self.text)
        return self._path().absolute()

    def look(self) -> Path:
        """The folder on this machine; of a store, what there is to look at. Raises BadInput."""
        if not self.in_store:
            return self._path()
        from orchestrator.pulled import look

        return look(self.text)

    def _path(self) -> Path:
        if Path(self.text).is_file():
            raise BadInput(f"{self.text} is a file, not a folder of runs")
        if self.text.startswith("~"):
            raise BadInput(
                f"{self.text}: '~' is for the shell, which has not replaced it; give the whole path"
            )
        return Path(self.text)

    def run_dir(self, run: Run) -> Path:
        """The directory of a run, by the name of this folder if it lies here."""
        here = Path(self.text) / run.run_id
        return run.run_dir if self.in_store or here.absolute() != run.run_dir else here


HERE = Folder(str(RUNS_DIR))


def check_whole(option: str, text: str) -> None:
    """`BadInput` for a path that means something in this folder only."""
    path = text.partition(":///")[2] if text.startswith("sqlite") else text
    if not is_uri(path) and not Path(path).is_absolute():
        raise BadInput(
            f"{option} {text}: on the driver's node this is no place that stays; give a path from the root (/...), "
            "or a URI"
        )


def check_lasting(option: str, text: str) -> None:
    """`BadInput` for a path in the folder of a submitted job."""
    if PACKAGES in os.getcwd():
        check_whole(option, text)


def ids(runs_dir: Path) -> list[str]:
    """Run ids, the one that was active last at the end."""
    found = [each for each in runs_dir.iterdir() if _is_run(each)] if runs_dir.is_dir() else []
    return [each.name for each in sorted(found, key=lambda each: (_active(each), each.name))]


def _without_folder(text: str, runs_dir: Path) -> str:
    """The id of a run that is named by its directory, as a shell completes it."""
    place = Path(text)
    return place.name if place.name != text and place.parent.resolve() == runs_dir.resolve() else text


def match(text: str, known: Sequence[str], runs_dir: object, address: str | None = None) -> str:
    """The one of the ``known`` run ids that ``text`` names: all of it, its start, or ``last``. The last of them is the
    newest."""
    more = f" --address {address}" if address else ""
    if not known:
        raise BadInput(
            f"{runs_dir}: no runs here; 'siloray run JOB{more}' makes one, '--runs-dir' looks elsewhere"
        )
    if text == "last":
        return known[-1]
    matches = [text] if text in known else [each for each in known if each.startswith(text) and text]
    if len(matches) > 1:
        raise BadInput(f"'{text}' is the start of {len(matches)} runs: {some(sorted(matches))}")
    if not matches:
        close = difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"'siloray list{more}' names them"
        raise BadInput(f"no run '{text}' in {runs_dir}; {hint}")
    return matches[0]


@dataclass(frozen=True)
class Located:
    """A run that was found."""

    run_dir: Path
    """With an address on the driver's node, else on this machine."""
    folder: Folder | None
    """In which to go on with it; None: where the driver's node would look by itself."""


def locate(text: str, address: str | None, runs_dir: Folder | None) -> Located:
    """The run that ``text`` names: on this machine, also by its directory, or with an address on the driver's node.
    There a run is also known by its driver, wherever its directory lies. Raises BadInput."""
    if address is not None:
        return _locate_there(text, address, runs_dir)
    named = runs_dir or HERE
    here = named.look()
    run_dir = here / match(_without_folder(text, here), ids(here), named)
    return Located(run_dir, named if named.in_store else Folder(str(run_dir.parent)))


def _locate_there(text: str, address: str, runs_dir: Folder | None) -> Located:
    from orchestrator.transport import ray as transport

    transport.connect(address, 0)
    driven = transport.drivers()
    folders = {run_id: each.run_dir for run_id, each in driven.items()}
    folder, known = transport.on_driver_node(runs_in, absolute(runs_dir), folders)
    run_id = match(text, list(known), folder, address)
    run_dir = Path(known[run_id])
    if run_dir.parent == Path(folder):
        return Located(run_dir, runs_dir)
    return Located(run_dir, Folder(transport.runs_dir_of(driven[run_id])))


def named(run_id: str, address: str | None, runs_dir: Folder | None) -> str:
    """The run as the next command has to be told of it."""
    from orchestrator.transport import started_runs

    usual = runs_dir is None or (address is None and runs_dir == HERE)
    return started_runs.named(run_id, address, None if usual or runs_dir is None else runs_dir.text)


def absolute(runs_dir: Folder | None) -> str | None:
    """As another machine understands it."""
    return None if runs_dir is None else str(runs_dir.there)


def runs_in(given: str | None, driven: Mapping[str, str] | None = None) -> tuple[str, dict[str, str]]:
    """The folder of runs on the driver's node, where this is called. The directories of the runs in it, and of those
    that are ``driven`` elsewhere, by run id; the one that was active last at the end."""
    from orchestrator.transport.started_runs import runs_folder

    folder = runs_folder(given)
    found = {run_id: str(folder / run_id) for run_id in ids(folder)}
    elsewhere = {run_id: run_dir for run_id, run_dir in (driven or {}).items() if run_id not in found}
    ordered = sorted((found | elsewhere).items(), key=lambda each: _active(Path(each[1])))
    return str(folder), dict(ordered)


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
    """In seconds since 1970: now for a run that is only about to have a directory."""
    times = [path.stat().st_mtime for name in (JOURNAL, COMMAND) if (path := folder / name).is_file()]
    return max(times, default=time.time())


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
