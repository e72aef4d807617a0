"""The real command, killed and interrupted: the same command goes on with the same run, to the same bits.

Every command here is a process of its own with a Ray of its own, as a person would start it.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.events import EVENT
from orchestrator.core.faults import FAULT_POINTS
from orchestrator.journal import read_journal
from tests.integration.conftest import write_silos
from tests.support.commands import LIMIT_S, Command, gone, session
from tests.support.federation import double_counts

pytestmark = pytest.mark.slow

SOME_POINTS = [
    pytest.param(point, marks=() if number % 8 == 0 else pytest.mark.long)
    for number, point in enumerate(FAULT_POINTS)
]
"""Each is a whole command twice; `tests/property/test_kills.py` goes through all of them in one process."""

TOTAL = 6
STEPS = 12
SLOW_S = 0.06
"""Pause per step where a test interferes: a round of 0.7 s."""

ENDED_S = 10.0
"""How long the last processes of a command that has ended may need."""

ORPHANED_S = 15.0
"""The same for driver and silos of a command that was killed."""

HELPERS_S = 100.0
"""Two helpers of a killed Ray look for its head for a minute before they end."""


class Place:
    """A folder with two hospitals' federation, in which commands are given. Pauses change no bit of the result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_silos(folder / "silos")
        self.write_job()
        self.commands: list[Command] = []

    def write_job(self, total: int = TOTAL, pause_s: float = 0.0) -> None:
        document = {
            "name": "slow-heart",
            "task": {
                "name": "tests.support.slow_task:SlowTask",
                "dataset": "heart",
                "options": {"pause_s": pause_s},
            },
            "silos": ["cleveland", "va"],
            "rounds": {"total": total, "patience_s": 20},
            "local": {"steps": STEPS, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.03}},
            "stop": {"metric": "accuracy"},
        }
        (self.folder / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def give(self, *arguments: str, **environ: str) -> Command:
        command = Command(*arguments, cwd=self.folder, environ=environ)
        self.commands.append(command)
        return command

    def run(self, *more: str, **environ: str) -> Command:
        return self.give("run", "job.yaml", "--runs-dir", "runs", "--no-track", *more, **environ)

    def beside(self, name: str, *more: str) -> Command:
        """Another command about the last run."""
        return self.give(name, "last", "--runs-dir", "runs", *more)

    def folders(self) -> set[str]:
        """Names of all runs."""
        runs = self.folder / "runs"
        return {each.name for each in runs.iterdir() if each.is_dir()} if runs.is_dir() else set()

    @property
    def run_dir(self) -> Path:
        """That of the only run."""
        (found,) = (each for each in (self.folder / "runs").iterdir() if each.is_dir())
        return found

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text(encoding="utf-8"))
        return summary

    def check(self, digest: str, total: int = TOTAL) -> None:
        """One run, done, each version made durable once, no update counted twice, the undisturbed bits."""
        summary = self.summary
        assert summary["status"] == "done" and summary["parameters_digest"] == digest
        lines, _ = read_journal(self.run_dir / "journal.jsonl")
        closed = [line["version"] for line in lines if line["type"] == "round_closed"]
        assert closed == list(range(1, total + 1))
        assert double_counts([EVENT.validate_python(line) for line in lines]) == []

    def close(self) -> None:
        for command in self.commands:
            command.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the job that nobody disturbs."""
    made = Place(tmp_path_factory.mktemp("undisturbed"))
    try:
        command = made.run()
        assert command.end() == 0, command.told
        gone(command.pid, ENDED_S)
    finally:
        made.close()
    return str(made.summary["parameters_digest"])


@dataclass(frozen=True)
class Killed:
    """A command after SIGKILL, and what was running then."""

    pid: int
    num_processes: int
    at: float


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    """Its helpers end while other tests run."""
    made = Place(tmp_path_factory.mktemp("killed"))
    made.write_job(pause_s=SLOW_S)
    try:
        command = made.run()
        command.until("round 2/")
        found = Killed(command.pid, len(session(command.pid)), time.monotonic())
        os.kill(command.pid, signal.SIGKILL)
        yield found
    finally:
        made.close()


def is_helper(name: str) -> bool:
    """Ray's agents, which neither train nor hold data."""
    return name.startswith(("ray::DashboardA", "ray::RuntimeEnv"))


def test_nothing_that_trains_is_left_of_a_killed_command(killed: Killed) -> None:
    """The driver and the silos end by themselves in seconds."""
    assert killed.num_processes > 6, "command, head, node, driver, two silos"
    gone(killed.pid, ORPHANED_S, but=is_helper)


@pytest.mark.parametrize("seed", [1, *(pytest.param(each, marks=pytest.mark.long) for each in (2, 3))])
def test_a_command_killed_anywhere_is_given_again(place: Place, undisturbed: str, seed: int) -> None:
    """SIGKILL at a random moment, the same command at once: the same run, the same bits, nothing left behind."""
    draw = random.Random(seed)
    place.write_job(pause_s=SLOW_S)
    first = place.run()
    first.until(f"round {draw.randint(1, TOTAL - 3)}/{TOTAL}:")
    time.sleep(draw.uniform(0, STEPS * SLOW_S))
    os.kill(first.pid, signal.SIGKILL)
    again = place.run()
    gone(first.pid, ORPHANED_S, but=is_helper)
    assert again.end() == 0, again.told
    assert "goes on from version" in again.out
    place.check(undisturbed)
    assert place.summary["resumed"] == 1 and place.summary["redone_rounds"] <= 1
    gone(again.pid, ENDED_S)


@pytest.mark.parametrize("point", SOME_POINTS)
def test_killed_at_a_fault_point(place: Place, undisturbed: str, point: str) -> None:
    """A driver or silo that dies at this point of round 2 is started anew by Ray; the command need not be."""
    fired = place.folder / "fired"
    command = place.run(SILORAY_FAULT=f"{point}:{nth(point)}:kill", SILORAY_FAULT_ONCE=str(fired))
    assert command.end() == 0, command.told
    assert fired.is_file(), f"{point} was not passed"
    place.check(undisturbed)
    summary = place.summary
    if point.startswith("silo.") and point != "silo.launched":
        assert len(summary["lost"]) == 1 and summary["resumed"] == 0
    else:
        assert summary["resumed"] == 1 and summary["redone_rounds"] <= 1
    assert len(command.errors) == 1, command.told


def nth(point: str) -> int:
    """Which passage lies in round 2: two silos are launched and answer in each, after four lines of the journal."""
    return {"silo.launched": 3, "update.arrived": 3, "journal.appended": 6}.get(point, 2)


def test_json_stays_json_when_the_driver_dies(place: Place, undisturbed: str) -> None:
    """Ray's own words on the death of a process do not get among ours."""
    fault = {"SILORAY_FAULT": "round.folded:3:kill", "SILORAY_FAULT_ONCE": str(place.folder / "fired")}
    command = place.run("--json", **fault)
    assert command.end() == 0, command.told
    assert [json.loads(line)["type"] for line in command.lines][-1] == "run_closed"
    place.check(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_round_and_the_run_goes_on_later(
    place: Place, undisturbed: str, number: signal.Signals
) -> None:
    """Ctrl-C reaches the whole process group, as in a terminal; SIGTERM the command alone. Exit code 3."""
    place.write_job(pause_s=SLOW_S)
    command = place.run()
    command.until("round 2/")
    command.send_all(number) if number is signal.SIGINT else command.send(number)
    assert command.end(30) == 3, command.told
    assert "go on    siloray resume" in command.out and len(command.errors) == 1, command.told
    gone(command.pid, ENDED_S)
    assert place.summary["status"] == "stopped" and 2 <= len(place.summary["versions"]) < TOTAL
    again = place.beside("resume")
    assert again.end() == 0, again.told
    place.check(undisturbed)


def test_signals_while_the_run_starts(place: Place, undisturbed: str) -> None:
    """Ctrl-C before the first round, again and again: exit code 3, nothing left, and then the same command works."""
    place.write_job(pause_s=SLOW_S)
    for moment in (after(0.0), after(1.5), after(3.0), a_run_has_a_folder, a_silo_has_joined):
        command = place.run()
        moment(place, command)
        command.send_all(signal.SIGINT)
        assert command.end(60) == 3, command.told
        assert "Traceback" not in command.told, command.told
        gone(command.pid, ENDED_S, but=is_helper)
    last = place.run()
    assert last.end() == 0, last.told
    newest = max(each for each in (place.folder / "runs").iterdir() if each.is_dir())
    assert json.loads((newest / "summary.json").read_text())["parameters_digest"] == undisturbed


def after(pause_s: float) -> Callable[[Place, Command], None]:
    """So long after the command has begun to start Ray."""

    def wait(place: Place, command: Command) -> None:
        wait_until(lambda: any("starting Ray" in line for line in command.errors))
        time.sleep(pause_s)

    return wait


def a_run_has_a_folder(place: Place, command: Command) -> None:
    known = place.folders()
    wait_until(lambda: place.folders() > known)


def a_silo_has_joined(place: Place, command: Command) -> None:
    command.until(" joined: ")


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_second_ctrl_c_leaves_at_once(place: Place) -> None:
    """Not waiting for the round, which would last a minute."""
    place.write_job(total=3, pause_s=5.0)
    command = place.run()
    command.until("va joined")
    time.sleep(2)
    command.send_all(signal.SIGINT)
    command.until("again to leave at once")
    command.send_all(signal.SIGINT)
    assert command.end(30) == 3, command.told
    assert len(command.errors) == 2 and "Traceback" not in command.told, command.told
    gone(command.pid, ENDED_S)


def test_other_commands_beside_a_running_one(place: Place) -> None:
    """list, show, silos, watch and stop from other processes; a second driver of the run is refused."""
    place.write_job(total=1000, pause_s=SLOW_S)
    running = place.run()
    running.until("round 1/")
    watching = place.beside("watch")
    told = [
        place.give("list", "--runs-dir", "runs", "--json"),
        place.beside("show", "--json"),
        place.give("silos", "job.yaml", "--json"),
    ]
    for command in told:
        assert command.end() == 0 and not command.errors, command.told
    (listed,), shown, silos = (json.loads(command.out) for command in told)
    assert listed["status"] == "running" and listed["run_id"] == place.run_dir.name == shown["run_id"]
    assert {silo["name"]: silo["datasets"]["heart"]["train"] for silo in silos} == {
        "cleveland": 199,
        "va": 85,
    }
    for second in (place.run(), place.beside("resume")):
        assert second.end(30) == 4, second.told
        assert not second.lines and len(second.errors) == 2, second.told
        assert f"{place.run_dir.name} is running" in second.errors[-1]
    watching.until("round ")
    stop = place.beside("stop")
    assert stop.end(30) == 0 and not stop.errors, stop.told
    assert "stopped; go on with 'siloray resume" in stop.out
    assert running.end(30) == 3 and len(running.errors) == 1, running.told
    assert watching.end(30) == 3 and not watching.errors, watching.told
    assert place.summary["status"] == "stopped"
    for command in place.commands:
        gone(command.pid, ENDED_S)
    for late in ("stop", "watch"):
        refused = place.beside(late)
        assert refused.end(30) == 2 and "goes on with it" in refused.err, refused.told
        assert len(refused.errors) == 1


def test_leaving_a_watch_leaves_the_run_alone(place: Place) -> None:
    """Ctrl-C in a watch ends the watch; a watch also ends when the run's Ray is killed, within seconds."""
    place.write_job(total=1000, pause_s=SLOW_S)
    running = place.run()
    running.until("round 1/")
    leaving, staying = place.beside("watch"), place.beside("watch")
    leaving.until("round ")
    leaving.send_all(signal.SIGINT)
    assert leaving.end(30) == 0 and "goes on" in leaving.err, leaving.told
    staying.until("round ")
    assert running.process.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    assert staying.end(30) == 4, staying.told
    assert len(staying.errors) == 1 and "goes on with the run" in staying.err, staying.told


def test_nothing_at_all_is_left_of_a_killed_command(killed: Killed) -> None:
    """Two helpers of Ray are the last to end by themselves."""
    gone(killed.pid, max(ENDED_S, killed.at + HELPERS_S - time.monotonic()))
