"""A run whose driver is a Ray actor, as the command line holds it: follow it, stop it, let it go."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from orchestrator.bucket import parent
from orchestrator.core.errors import BadInput, CannotGoOn
from orchestrator.ending import Outcome
from orchestrator.journal import JOURNAL, read_journal
from orchestrator.transport.driver_process import Assignment
from orchestrator.transport.ray_channel import NAMESPACE
from orchestrator.transport.ray_connection import cluster_address, connect, listens
from orchestrator.transport.ray_home import ANSWER_S, driver_name, on_driver_node, running
from orchestrator.transport.started_runs import named, noted_address, outcome_since, turns

ABOUT_S = 10.0
"""A driver that is at work says so soon what it works on."""

LOOK_S = 2.0
"""A wait for the driver looks so often whether Ray is still there; Ray itself would wait for a minute."""


@dataclass
class RayRun:
    """A run whose driver is a Ray actor. Once that is gone, what the journal says of its end counts."""

    run_id: str
    run_dir: Path
    """On the driver's node."""
    actor: Any
    num_opened: int = 0
    """How often the run had been opened before; an end that the journal has from then is an older one."""
    address: str | None = None
    """Of a cluster that outlives the command; None for a Ray of its own."""
    runs_dir: str | None = None
    """Folder of the run, where the driver's node would not look by itself."""
    _outcome: Outcome | None = field(default=None)

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        try:
            events, cursor = self._ask(self.actor.events, after, wait_s)
            return events, cursor
        except CannotGoOn:
            if self._recorded() is None:
                raise
            return [], after

    def outcome(self) -> Outcome | None:
        if self._outcome is None:
            try:
                self._outcome = self._ask(self.actor.outcome)
            except CannotGoOn:
                self._outcome = self._recorded()
                if self._outcome is None:
                    raise
        return self._outcome

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        self._ask(self.actor.stop, now, within_s)

    def close(self) -> None:
        """Let the driver's process go; its run directory has everything."""
        with suppress(RayError):
            self.actor.leave.remote()

    def _recorded(self) -> Outcome | None:
        """How this run ended, if its journal can be read and says so."""
        found = turns(str(self.run_dir))
        if not found and listens(cluster_address()):
            with suppress(CannotGoOn):
                found = on_driver_node(turns, str(self.run_dir))
        return outcome_since(found, self.num_opened)

    def _ask(self, method: Any, *arguments: Any) -> Any:
        """The driver's answer; one that Ray is starting anew is asked again."""
        until = time.monotonic() + ANSWER_S
        reference = method.remote(*arguments)
        while True:
            try:
                return ray.get(reference, timeout=LOOK_S)
            except GetTimeoutError:
                why = "no answer"
            except ActorUnavailableError as error:
                why = type(error).__name__
                reference = method.remote(*arguments)
                time.sleep(0.1)
            except RayError as error:
                raise self._gone(type(error).__name__) from None
            if not listens(cluster_address()):
                raise self._gone("its Ray has ended")
            if time.monotonic() > until:
                raise self._gone(why)

    def _gone(self, why: str) -> CannotGoOn:
        go_on = f"'siloray resume {named(self.run_id, self.address, self.runs_dir)}' goes on with the run"
        return CannotGoOn(f"the driver of {self.run_id} does not answer ({why}); {go_on}")


def attach(run_dir: Path, address: str | None) -> RayRun:
    """The run whose driver is alive; `BadInput` if none is. ``run_dir``: on the driver's node."""
    run_id = run_dir.name
    where = address or noted_address(run_dir)
    if where is None or not listens(where):
        raise _without_driver(run_id, address)
    connect(where, 0)
    try:
        actor = ray.get_actor(driver_name(run_id), namespace=NAMESPACE)
    except ValueError:
        raise _without_driver(run_id, address) from None
    return RayRun(run_id, run_dir, actor, address=address)


def _without_driver(run_id: str, address: str | None) -> BadInput:
    go_on = f"'siloray resume {named(run_id, address)}' goes on with it"
    return BadInput(f"no driver works on {run_id}; {go_on}")


@dataclass(frozen=True)
class DoneRun:
    """A run that was done before it was asked for. Its journal, on the driver's node, is what there is to see."""

    run_id: str
    run_dir: Path
    done: Outcome

    def events(self, after: int, wait_s: float) -> tuple[list[dict[str, Any]], int]:
        """The cursor is a place in the journal."""
        return on_driver_node(read_journal, self.run_dir / JOURNAL, after)

    def outcome(self) -> Outcome:
        return self.done

    def stop(self, now: bool = False, within_s: float | None = None) -> None:
        """It has ended."""

    def close(self) -> None:
        """No process works on it."""


def drivers() -> dict[str, Assignment]:
    """What the cluster's drivers work on, by run id; without those that do not answer."""
    asked: dict[Any, str] = {}
    for run_id in running():
        with suppress(ValueError):  # gone meanwhile
            actor: Any = ray.get_actor(driver_name(run_id), namespace=NAMESPACE)
            asked[actor.about.remote()] = run_id
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ABOUT_S) if asked else ([], [])
    found: dict[str, Assignment] = {}
    for reference in ready:
        with suppress(RayError):
            found[asked[reference]] = ray.get(reference)
    return found


def runs_dir_of(assignment: Assignment) -> str:
    """The folder that the run lies in, as ``--runs-dir`` would name it."""
    return parent(assignment.mirror) if assignment.mirror else str(Path(assignment.run_dir).parent)
