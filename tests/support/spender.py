"""A silo with a budget in a process of its own, to be killed while it spends.

python -m tests.support.spender FOLDER killed point:1 ...   for each: a process that is killed there, and a fresh one
                                                            that goes on until the budget is spent; a JSON line each
python -m tests.support.spender FOLDER at-once 4            so many processes, each with a job of its own, at once
python -m tests.support.spender FOLDER moments 8            so many processes, one after the other, each killed once it
                                                            has said a random number of trainings
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.core.faults import arm
from orchestrator.core.messages import Joined, Refused, Update
from orchestrator.privacy.accountant import Query, epsilon, epsilon_rdp
from silos.config import SiloConfig
from silos.guard import PolicyGuard
from silos.ledger import Ledger
from silos.silo import Silo
from silos.site import Order, Trained
from silos.spending import Spend
from tests.support.guarded import join, train
from tests.support.quadratic import PlainSite, QuadraticTrainer, job_of, problems

EPSILON = 3.0
QUERY = Query(1.0, 8.0, 1)
"""Of one training; 33 of them fit."""


class Drawing(QuadraticTrainer):
    """Puts on record, beside the silo's own, that noise was drawn: before anything of it can leave."""

    drawn: Path

    def spends(self, order: Order) -> Spend | None:
        return Spend(QUERY)

    def most(self, version: int) -> Spend | None:
        return Spend(QUERY)

    def train(self, order: Order) -> Trained:
        with self.drawn.open("a") as record:
            record.write(f"{os.getpid()} {order.version}\n")
        return super().train(order)


class SpendingSite(PlainSite):
    """Of one folder; several processes may have it."""

    def trainer(self, job: object) -> Drawing:
        made: Drawing = super().trainer(job)
        made.drawn = self.folder / "drawn"
        return made


def silo_in(folder: Path) -> Silo:
    budget = {"epsilon": EPSILON, "delta": 1e-5}
    config = SiloConfig.model_validate({"name": "s0", "datasets": {"none": {"path": "x", "budget": budget}}})
    site = SpendingSite("s0", problems()["s0"], folder, make=Drawing)
    site.guard = PolicyGuard(config, folder / "own")
    return Silo(site)


def spend(folder: Path, seed: int, trained: Callable[[], object]) -> None:
    """Trains until that is refused. The job has one round, which the budget allows; the driver asks for more."""
    job, silo, run = job_of(["s0", "s1"], total=1, seed=seed), silo_in(folder), {"run_id": f"run{seed}"}
    reply = silo.handle(join(job, **run))
    assert isinstance(reply, Joined), reply
    for version in range(1000):
        reply = silo.handle(replace(train(version), **run))
        if isinstance(reply, Refused):
            assert reply.code == "policy" and "is spent" in reply.reason, reply
            return
        assert isinstance(reply, Update), reply
        trained()
    raise AssertionError("the budget never ended")


def in_child(
    folder: Path,
    fault: str | None,
    seed: int = 0,
    trained: Callable[[], object] = lambda: None,
    wait: int = -1,
) -> int:
    """Number of a fresh process, forked from this one, which has opened nothing. It begins once the pipe ``wait`` is
    closed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if wait >= 0:
                os.read(wait, 1)
            arm(fault)
            spend(folder, seed, trained)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_once(folder: Path, number: int) -> list[int]:
    """How they ended; all begin together."""
    gate, opener = os.pipe()
    children = []
    for seed in range(number):
        children.append(in_child(folder, None, seed, wait=gate))
    os.write(opener, b"." * number)
    return [ended(child) for child in children]


def killed_once_heard(folder: Path, wanted: int) -> int:
    """How a process ended that was killed as soon as it had said so many trainings."""
    ear, mouth = os.pipe()
    child = in_child(folder, None, trained=lambda: os.write(mouth, b"."))
    os.close(mouth)
    heard = b""
    while len(heard) < wanted and (more := os.read(ear, wanted - len(heard))):
        heard += more
    os.kill(child, signal.SIGKILL)
    os.close(ear)
    return ended(child)


def found(folder: Path) -> dict[str, object]:
    """What is on record."""
    drawn = (folder / "drawn").read_text().splitlines() if (folder / "drawn").exists() else []
    return {"entered": len(Ledger(folder / "own").entries()), "drawn": len(drawn)}


def killed_at(folder: Path, fault: str) -> dict[str, object]:
    folder.mkdir(parents=True)
    killed = ended(in_child(folder, f"{fault}:kill"))
    then = found(folder)
    return {
        "fault": fault,
        "killed": killed,
        "then": then,
        "again": ended(in_child(folder, None)),
        **found(folder),
    }


if __name__ == "__main__":
    where, command, *given = sys.argv[1:]
    epsilon_rdp([QUERY], 1e-5)  # what every child would load
    epsilon([QUERY], 1e-5)
    match command:
        case "killed":
            for each in given:
                print(json.dumps(killed_at(Path(where) / each.replace(":", "-"), each)), flush=True)
        case "at-once":
            print(json.dumps({"ends": at_once(Path(where), int(given[0])), **found(Path(where))}))
        case "moments":
            rng = random.Random(7)
            for _ in range(int(given[0])):
                end = killed_once_heard(Path(where), rng.randrange(1, 6))
                print(json.dumps({"end": end, **found(Path(where))}), flush=True)
