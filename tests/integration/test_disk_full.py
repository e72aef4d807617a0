"""A disk that is really full: a small file system of its own, and other files that leave too little on it.

Every version is kept (tracking wants each), so that the run itself fills what is left in mid-run.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core import events
from orchestrator.core.events import Event
from orchestrator.disk import NO_SPACE, DiskFull
from orchestrator.driver import Driver
from orchestrator.journal import read_journal
from orchestrator.store import Store
from tests.integration.conftest import write_silos
from tests.support.commands import Command
from tests.support.federation import double_counts, journal, run_quadratic
from tests.support.quadratic import job_of, problems

DISK_BYTES = 1 << 20
LEFT_BYTES = 120_000
"""More than the first versions need, and less than all of them."""

TOTAL = 12
PROBLEMS = problems(size=500)
JOB = job_of(
    PROBLEMS,
    total=TOTAL,
    rounds={"patience_s": 0.5},
    strategy={"name": "scaffold", "server": {"name": "adam", "lr": 0.5}},
    tracking={"every": 1},
)


class Disk:
    """A small file system, shared with others who need most of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._others = root / "others"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int) -> None:
        self._others.write_bytes(bytes(self.free_bytes - leave_bytes))

    def fill_up(self) -> None:
        """To the last byte."""
        with self._others.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(512)):
                    pass
            except OSError as error:
                assert error.errno in NO_SPACE

    def clear(self) -> None:
        self._others.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounted where the runs are kept."""
    root = tmp_path / "full" / "runs"
    root.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "siloray-test", str(root)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a disk to fill needs 'mount', which is not here")
    if done.returncode:
        pytest.skip(f"a disk to fill needs the right to mount one: {done.stderr.strip()}")
    yield Disk(root)
    subprocess.run(["umount", "-l", str(root)], check=True)


def undisturbed(tmp_path: Path) -> str:
    return run_quadratic(JOB, PROBLEMS, tmp_path / "quiet").digest


def fill_last_page(store: Store) -> None:
    """So that the journal takes no line more."""
    refused = events.UpdateRefused(silo="s0", version=0, code="late", reason="")
    with pytest.raises(DiskFull):
        while True:
            store.append(refused.model_dump(mode="json"))


def waits(seen: list[Event]) -> list[events.Waiting]:
    return [event for event in seen if isinstance(event, events.Waiting)]


def closed(history: list[Event]) -> list[int]:
    return [event.version for event in history if isinstance(event, events.RoundClosed)]


def test_the_run_waits_for_space_and_goes_on(disk: Disk, tmp_path: Path) -> None:
    """It says once that it waits and why; with space it ends with the undisturbed bits, each version once."""
    disk.fill(LEFT_BYTES)

    def free_later(driver: Driver, channel: Any, event: Event) -> None:
        if isinstance(event, events.Waiting):
            asyncio.get_running_loop().call_later(0.4, disk.clear)

    ended = run_quadratic(JOB, PROBLEMS, tmp_path / "full", during=free_later)
    (waiting,) = waits(ended.events)
    assert 2 < waiting.version < TOTAL, "in mid-run"
    assert waiting.silos == [] and "disk full" in waiting.why and str(disk.root) in waiting.why
    assert ended.outcome.exit_code == 0 and ended.digest == undisturbed(tmp_path)
    history = journal(tmp_path / "full")
    assert closed(history) == closed(ended.events) == list(range(1, TOTAL + 1))
    assert double_counts(history) == []


def test_without_space_it_ends_and_nothing_durable_is_lost(disk: Disk, tmp_path: Path) -> None:
    """Exit code 4 with the reason; every version that was told of is there, and the run goes on from the last."""
    disk.fill(LEFT_BYTES)

    def fill_up(driver: Driver, channel: Any, event: Event) -> None:
        if isinstance(event, events.Waiting):
            disk.fill_up()
            fill_last_page(driver.attempt.store)

    failed = run_quadratic(JOB, PROBLEMS, tmp_path / "full", during=fill_up)
    assert failed.outcome.status == "failed" and failed.outcome.exit_code == 4
    assert "disk full" in failed.outcome.reason and str(disk.root) in failed.outcome.reason
    assert "Errno" not in failed.outcome.reason
    told = closed(failed.events)
    assert told == closed(journal(tmp_path / "full")) and 2 < len(told) < TOTAL
    newest = Store(disk.root / "run").newest()
    assert newest is not None and newest.version == told[-1]

    disk.clear()
    ended = run_quadratic(JOB, PROBLEMS, tmp_path / "full")
    assert ended.of(events.RunOpened)[0].resumed_from == told[-1]
    assert ended.outcome.exit_code == 0 and ended.digest == undisturbed(tmp_path)
    history = journal(tmp_path / "full")
    assert closed(history) == list(range(1, TOTAL + 1))
    assert double_counts(history) == []


@pytest.mark.slow
def test_the_command_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    """The real command waits, ends with 4 and one line; so does a resumption on the same full disk; with space,
    the run goes on to the bits of one that has had it all along."""
    folder = tmp_path / "full"
    write_silos(folder / "silos")
    document = {
        "name": "heart",
        "task": {"name": "tests.support.slow_task:SlowTask", "dataset": "heart", "options": {"pause_s": 0.0}},
        "silos": ["switzerland", "va"],
        "rounds": {"total": TOTAL, "patience_s": 2},
        "local": {"steps": 4, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.03}},
        "stop": {"metric": "accuracy"},
        "tracking": {"every": 1},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    given: list[Command] = []

    def give(*arguments: str) -> Command:
        given.append(Command(*arguments, cwd=folder))
        return given[-1]

    disk.fill(LEFT_BYTES)
    try:
        run = give("run", "job.yaml", "--no-track")
        line = run.until("waiting for space")
        assert "disk full" in line and str(disk.root) in line
        disk.fill_up()
        elsewhere = give("run", "job.yaml", "--no-track", "--runs-dir", str(tmp_path / "quiet"))
        assert run.end() == 4 and elsewhere.end() == 0, run.told + elsewhere.told
        assert len(run.errors) == 2 and "disk full" in run.errors[-1], run.told

        (run_dir,) = (each for each in disk.root.iterdir() if each.is_dir())
        record = read_journal(run_dir / "journal.jsonl")
        again = give("resume", "last")
        assert again.end() == 4, again.told
        assert len(again.errors) == 2 and "disk full" in again.errors[-1], again.told
        assert read_journal(run_dir / "journal.jsonl") == record

        disk.clear()
        last = give("resume", "last")
        assert last.end() == 0, last.told
    finally:
        for command in given:
            command.close()
    (quiet,) = (each for each in (tmp_path / "quiet").iterdir() if each.is_dir())
    here, there = (
        json.loads((each / "summary.json").read_text(encoding="utf-8")) for each in (run_dir, quiet)
    )
    assert here["status"] == there["status"] == "done"
    assert here["parameters_digest"] == there["parameters_digest"]
    assert [each["version"] for each in here["versions"]] == list(range(1, TOTAL + 1))
