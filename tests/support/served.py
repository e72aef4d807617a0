"""A federation whose silos dial in, through the real commands: credentials, documents, a job; what became of it."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from orchestrator.core.events import EVENT
from orchestrator.journal import read_journal
from orchestrator.transport.authority import Authority
from silos.tasks.task import At, Batch
from tests.support.clusters import free_ports
from tests.support.commands import LIMIT_S, REPOSITORY, Command
from tests.support.federation import double_counts
from tests.support.slow_task import SlowTask

HEART = REPOSITORY / "examples/heart_disease/silos"
SILOS = ("cleveland", "va")
TOTAL, STEPS = 4, 12


class HangsOnce(SlowTask):
    """The first training of this version at this silo sleeps for ever; a file remembers that it did."""

    def __init__(self, data: Any, note: str, silo: str, version: int, pause_s: float = 0.0) -> None:
        super().__init__(data, pause_s)
        self._note, self._at = Path(note), (silo, version)

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        if (at.silo, at.version) == self._at and not self._note.exists():
            self._note.touch()
            threading.Event().wait()
        yield from super().train_batches(at, batch_size)


class Noted(SlowTask):
    """Each training that begins is a line of a file (`begun`)."""

    def __init__(self, data: Any, note: str, pause_s: float = 0.0) -> None:
        super().__init__(data, pause_s)
        self._note = Path(note)

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        with self._note.open("a") as file:
            file.write(f"{at.silo} {at.version}\n")
        yield from super().train_batches(at, batch_size)


def begun(note: Path) -> list[tuple[str, int]]:
    """Silo and version of the trainings that have begun, in their order."""
    lines = note.read_text().splitlines() if note.exists() else []
    return [(silo, int(version)) for silo, version in map(str.split, lines)]


def job_document(
    silos: Sequence[str] = SILOS,
    total: int = TOTAL,
    steps: int = STEPS,
    pause_s: float = 0.0,
    task: str | Mapping[str, Any] = "tests.support.slow_task:SlowTask",
    options: dict[str, Any] | None = None,
    **rounds: Any,
) -> dict[str, Any]:
    """A job whose trainings last ``steps`` times ``pause_s`` seconds; the pauses change no bit of its result.

    ``task``: a class of the tests', or what the document is to say in its place.
    """
    if isinstance(task, str):
        task = {"name": task, "dataset": "heart", "options": {"pause_s": pause_s, **(options or {})}}
    return {
        "name": "served-heart",
        "task": dict(task),
        "silos": list(silos),
        "rounds": {"total": total, "patience_s": 20, **rounds},
        "local": {"steps": steps, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.03}},
        "stop": {"metric": "accuracy"},
        "report": {"silos": False},  # its trainings would be counted among the run's
    }


def silo_document(silo: str, data: str | Path, **policy: Any) -> dict[str, Any]:
    """The example's, with its data elsewhere; it allows the tests' tasks."""
    document = yaml.safe_load((HEART / silo / "silo.yaml").read_text(encoding="utf-8"))
    document["datasets"]["heart"]["path"] = str(data)
    document["policy"] |= {"allow_code": ["tests.support"], "min_cohort": 1, **policy}
    return dict(document)


class Served:
    """Organisations on this machine, each with a folder of its own, in which commands are given."""

    def __init__(self, folder: Path, silos: Sequence[str] = SILOS) -> None:
        self.folder, self.silos = folder, tuple(silos)
        self.authority = Authority.create(folder / "certs", "test consortium")
        (port,) = free_ports(1)
        self.listen = f"127.0.0.1:{port}"
        self.commands: list[Command] = []
        for silo in silos:
            self.authority.issue_silo(silo)
            self.write_silo(silo)
        self.write_job()

    def write_silo(self, silo: str, **policy: Any) -> None:
        (self.folder / silo).mkdir(exist_ok=True)
        document = silo_document(silo, HEART / silo / f"{silo}.parquet", **policy)
        self.document(silo).write_text(yaml.safe_dump(document), encoding="utf-8")

    def document(self, silo: str) -> Path:
        return self.folder / silo / "silo.yaml"

    def write_job(self, **changes: Any) -> None:
        document = job_document(**{"silos": self.silos, **changes})
        (self.folder / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def give(self, *arguments: str | Path, **environ: str) -> Command:
        command = Command(*arguments, cwd=self.folder, environ=environ)
        self.commands.append(command)
        return command

    def serve(self, *more: str, **environ: str) -> Command:
        where = ("--listen", self.listen, "--credentials", "certs/driver", "--runs-dir", "runs")
        return self.give("serve", "job.yaml", *where, "--no-track", *more, **environ)

    def agent(self, silo: str, *more: str, credentials: str = "", **environ: str) -> Command:
        whom = ("--driver", self.listen, "--credentials", f"certs/{credentials or silo}")
        return self.give("agent", self.document(silo), *whom, *more, **environ)

    def agents(self, *more: str) -> dict[str, Command]:
        return {silo: self.agent(silo, *more) for silo in self.silos}

    def beside(self, name: str, *more: str) -> Command:
        """Another command about the last run."""
        return self.give(name, "last", "--runs-dir", "runs", *more)

    @property
    def run_dir(self) -> Path:
        """That of the only run."""
        (found,) = (each for each in (self.folder / "runs").iterdir() if each.is_dir())
        return found

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.run_dir / "summary.json").read_text(encoding="utf-8")))

    def journal(self) -> list[dict[str, Any]]:
        return journal_of(self.run_dir)

    def of(self, kind: str, silo: str = "") -> list[dict[str, Any]]:
        """The journal's events of a type, and of a silo."""
        return [
            event for event in self.journal() if event["type"] == kind and (not silo or event["silo"] == silo)
        ]

    def audit(self, silo: str, kind: str = "") -> list[dict[str, Any]]:
        return audit_of(self.folder / silo / ".siloray" / silo / "audit.jsonl", kind)

    def trained(self, silo: str, version: int) -> None:
        """Wait until this silo's update of this version has left: with slow trainings, the next one begins."""
        until(lambda: any(line["version"] >= version for line in self.audit(silo, "update")))

    def check(self, digest: str, total: int = TOTAL) -> dict[str, Any]:
        """One run, done, each version made durable once, no update counted twice, the undisturbed bits."""
        summary = self.summary
        assert summary["status"] == "done", summary["reason"]
        check_counts(self.journal(), total)
        assert summary["parameters_digest"] == digest
        return summary

    def close(self) -> None:
        for command in self.commands:
            command.close()


def check_counts(journal: list[dict[str, Any]], total: int) -> None:
    """Each version closed once, with an update of every silo; none counted twice."""
    closed = [event["version"] for event in journal if event["type"] == "round_closed"]
    assert closed == list(range(1, total + 1))
    assert double_counts([EVENT.validate_python(event) for event in journal]) == []


def journal_of(run_dir: Path) -> list[dict[str, Any]]:
    return list(read_journal(run_dir / "journal.jsonl")[0])


def audit_of(path: Path, kind: str = "") -> list[dict[str, Any]]:
    """What a silo's owner can read about it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if not kind or line["event"] == kind]


def listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    own = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            own.add(os.readlink(each))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def heard(command: Command, words: str, limit_s: float = LIMIT_S, times: int = 1) -> None:
    """Wait until the command has said these words, on either of its outputs, so many times."""
    until(lambda: (command.out + command.err).count(words) >= times, limit_s, lambda: command.told)


def refused(command: Command, words: str) -> None:
    """It ended as bad input does: exit code 2, and one line that says why."""
    assert command.end(30) == 2, command.told
    assert not command.lines and len(command.errors) == 1 and words in command.err, command.told


def until(
    condition: Callable[[], Any], limit_s: float = LIMIT_S, told: Callable[[], Any] = lambda: ""
) -> Any:
    """What the condition gives, once that is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {limit_s:g} s\n{told()}"
        time.sleep(0.02)
    return found
