"""A run that plays events back: what the command line gets from Ray, without Ray. Also a hand-made journal.

Started with ``python scripted.py COMMAND...`` it is the ``siloray`` command with this in Ray's place.
"""

import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.disk import OsFileSystem
from orchestrator.journal import Journal, read_journal

JOB = {
    "name": "heart-disease",
    "silos": ["cleveland", "va"],
    "rounds": {"total": 3},
    "stop": {"metric": "accuracy"},
}


def opened(**given: Any) -> dict[str, Any]:
    line = {
        "type": "run_opened",
        "run_id": "heart-1",
        "name": "heart-disease",
        "job": JOB,
        "job_digest": "d" * 64,
    }
    return {**line, "epoch": 1, "versions": {"python": "3.11"}, "time": 100.0, **given}


def joined(silo: str, train: int, test: int, **given: Any) -> dict[str, Any]:
    line = {"type": "silo_joined", "silo": silo, "incarnation": "i", "fingerprint": f"f-{silo}", "node": "n1"}
    counts = {"num_examples": {"train": train, "test": test}, "num_parameters": 14, "num_shared": 14}
    return {**line, **counts, "device": "cpu", "versions": {}, "time": 101.0, **given}


def figures(version: int, accuracy: float, **silos: float) -> dict[str, Any]:
    own = {name: {"loss": 1 - value, "accuracy": value} for name, value in silos.items()}
    missing = [name for name in JOB["silos"] if name not in silos]
    return {
        "version": version,
        "overall": {"loss": 1 - accuracy, "accuracy": accuracy},
        "silos": own,
        "missing": missing,
    }


def contributor(silo: str, version: int, weight: float, **given: Any) -> dict[str, Any]:
    line = {"silo": silo, "base_version": version - 1, "staleness": 0, "weight": weight, "num_examples": 10}
    return {**line, "num_steps": 5, "norm": 0.5, **given}


def closed(
    version: int, evaluated: dict[str, Any], *contributors: dict[str, Any], **given: Any
) -> dict[str, Any]:
    line = {
        "type": "round_closed",
        "version": version,
        "contributors": list(contributors),
        "evaluated": evaluated,
    }
    costs = {"seconds": {"wait": 0.4, "round": 0.5}, "bytes_up": 100 * version, "bytes_down": 200 * version}
    return {
        **line,
        **costs,
        "update_norm": 0.1,
        "checkpoint": "",
        "lineage": "l",
        "time": 110.0 + version,
        **given,
    }


def ended(status: str = "done", **given: Any) -> dict[str, Any]:
    line = {
        "type": "run_closed",
        "status": status,
        "reason": "all rounds",
        "version": 3,
        "parameters_digest": "p" * 64,
    }
    best = {"best_version": 2, "best_metric": "accuracy", "best_value": 0.8}
    return {**line, **best, "time": 120.0, **given}


def both(version: int) -> list[dict[str, Any]]:
    return [contributor("cleveland", version, 0.7), contributor("va", version, 0.3)]


def whole_run() -> list[dict[str, Any]]:
    """Three rounds; a refusal and a loss in the second, after which the driver died and was started again."""
    return [
        opened(),
        joined("cleveland", 199, 104),
        joined("va", 85, 45),
        {
            "type": "model_ready",
            "version": 0,
            "num_shared": 14,
            "schema_digest": "s",
            "model": {},
            "checkpoint": "v000000",
        },
        closed(1, figures(0, 0.5, cleveland=0.5, va=0.4), *both(1)),
        {
            "type": "update_refused",
            "silo": "va",
            "version": 1,
            "code": "nonfinite",
            "reason": "NaN in params",
            "time": 111.5,
        },
        {"type": "silo_down", "silo": "va", "version": 1, "why": "process ended", "time": 111.6},
        opened(epoch=2, resumed_from=1, time=112.0),
        joined("cleveland", 199, 104),
        joined("va", 85, 45),
        closed(2, figures(1, 0.7, cleveland=0.75), contributor("cleveland", 2, 1.0)),
        closed(3, figures(2, 0.8, cleveland=0.8, va=0.7), *both(3), best=True),
        {"type": "version_evaluated", "evaluated": figures(3, 0.75, cleveland=0.78, va=0.72), "time": 119.0},
        ended(),
    ]


def write_journal(run_dir: Path, lines: list[dict[str, Any]]) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(run_dir / "journal.jsonl", OsFileSystem())
    journal.open()
    for line in lines:
        journal.write({"time": 100.0, **line}, durable=True)
    return run_dir


def as_told(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As a driver tells them: what it read has a number and a time, what it says itself has neither."""
    last = max(index for index, line in enumerate(lines) if line["type"] == "run_opened")
    return [{**line, "seq": -1, "time": 0.0} if index >= last else line for index, line in enumerate(lines)]


@dataclass(frozen=True)
class RunOptions:
    job_file: Path
    silos_dir: Path | None
    runs_dir: Path
    address: str | None
    new: bool
    run_id: str | None
    submission: str | None
    tracking_uri: str | None
    track: bool
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    status: str
    exit_code: int
    reason: str = ""


@dataclass
class ScriptedRun:
    """Gives all events at once; with ``endless`` it ends only when asked to."""

    run_id: str
    run_dir: Path
    lines: list[dict[str, Any]]
    end: Outcome = Outcome("done", 0, "all rounds")
    endless: bool = False
    stops: list[bool] = field(default_factory=list)
    closed: bool = False

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        if after >= len(self.lines):
            time.sleep(wait_s)
        return self.lines[after:], len(self.lines)

    def close(self) -> None:
        self.closed = True

    def outcome(self) -> Outcome | None:
        return None if self.endless else self.end

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        self.stops.append(now)
        if os.environ.get("SCRIPT") != "deaf":
            self.endless, self.end = False, Outcome("stopped", 3, "asked to")


@dataclass(frozen=True)
class Silo:
    name: str
    state: str
    node: str
    device: str
    datasets: dict[str, dict[str, int]]


def transport() -> types.ModuleType:
    """A module for ``orchestrator.transport.ray``. ``SCRIPT`` in the environment says how it goes."""
    module = types.ModuleType("orchestrator.transport.ray")
    module.asked = []

    def start(
        job: Any, options: RunOptions, connected: Callable[[], None], begins: Callable[[], None]
    ) -> ScriptedRun:
        module.asked.append(options)
        connected()
        begins()
        script = os.environ.get("SCRIPT", "")
        if script == "cannot":
            raise CannotGoOn("va did not join within 120 s")
        if script == "bug":
            raise KeyError("a mistake of ours")
        run_dir = write_journal(
            (options.runs_dir or Path("home")) / (options.run_id or "heart-1"), whole_run()
        )
        for name, text in options.notes.items():
            (run_dir / name).write_text(text)
        lines = as_told(read_journal(run_dir / "journal.jsonl")[0])
        if script == "failed":
            return ScriptedRun(run_dir.name, run_dir, lines, Outcome("failed", 4, "va did not come back"))
        return ScriptedRun(run_dir.name, run_dir, lines, endless=script in {"endless", "deaf"})

    def attach(run_dir: Path, address: str | None) -> ScriptedRun:
        if os.environ.get("SCRIPT") != "endless":
            raise BadInput(f"{run_dir.name} has no driver; 'siloray resume {run_dir.name}' goes on with it")
        return ScriptedRun(run_dir.name, run_dir, whole_run()[:-1], endless=True)

    def silos(job: Any, address: str | None, silos_dir: Path | None) -> list[Silo]:
        return [
            Silo("cleveland", "online", "10.0.0.2", "cuda", {"heart": {"train": 199, "test": 104}}),
            Silo("va", "away", "", "", {"heart": {}}),
        ]

    module.RunOptions, module.start, module.attach, module.silos = RunOptions, start, attach, silos
    module.shutdown = lambda: None
    return module


def install() -> types.ModuleType:
    """Puts it in Ray's place."""
    import orchestrator.transport

    module = transport()
    sys.modules["orchestrator.transport.ray"] = module
    orchestrator.transport.ray = module
    return module


if __name__ == "__main__":
    install()
    from orchestrator.cli.main import main

    main()
