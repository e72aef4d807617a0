"""The whole process killed by SIGKILL at every fault point of driver, store and silo; then the same command.

Driver and silos live in one process here (`LocalChannel`), so a kill takes all of them: nothing but the run
directory and the silos' own folders is left. With Ray: ``tests/integration/test_ray_faults.py``.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import events
from orchestrator.core.faults import FAULT_POINTS
from tests.support.federation import double_counts, journal
from tests.support.quadratic_run import JOB, SEALED, run

COMMAND = [sys.executable, "-m", "tests.support.quadratic_run"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("undisturbed")).digest


def check(folder: Path, digest: str, undisturbed: str) -> None:
    """The same bits; each round committed once; no update counted twice; at most one round redone."""
    assert digest == undisturbed
    history = journal(folder)
    assert not double_counts(history)
    closed = [event.version for event in history if isinstance(event, events.RoundClosed)]
    assert closed == list(range(1, JOB.rounds.total + 1))
    opened = [event for event in history if isinstance(event, events.RunOpened)]
    assert [event.epoch for event in opened] == [1, 2]
    last_seen = [
        event.version for event in before(history, opened[1]) if isinstance(event, events.RoundClosed)
    ]
    resumed = -1 if opened[1].resumed_from is None else opened[1].resumed_from
    assert resumed >= max(last_seen, default=-1), "a round that was told of is never redone"


def before(history: list[Any], event: Any) -> list[Any]:
    return history[: history.index(event)]


def test_killed_at_every_point(tmp_path: Path, undisturbed: str) -> None:
    """Forked processes: each is killed for real at one point's nth passage, and another goes on."""
    faults = [f"{point}:{nth}" for point in FAULT_POINTS for nth in (1, 2, 3)]
    done = subprocess.run([*COMMAND, str(tmp_path), *faults], capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["fault"] for each in results] == faults
    ends = Counter(each["killed"] for each in results)
    print(f"{ends[-signal.SIGKILL]} of {len(faults)} kills, {len(FAULT_POINTS)} points")
    assert ends == {-signal.SIGKILL: len(faults)}
    for each in results:
        assert each["again"] == 0, each
        check(tmp_path / each["fault"].replace(":", "-"), each["digest"], undisturbed)


def test_killed_in_a_sealed_sum(tmp_path: Path) -> None:
    """Also after silos have told their shares: the driver that goes on gets the same sum of the same silos."""
    undisturbed = run(tmp_path / "undisturbed", SEALED).digest
    faults = ["sum.keys:1", "sum.peers:1", "sum.seal:1", "sum.seal:3", "sum.unmask:1", "sum.unmask:2"]
    done = subprocess.run([*COMMAND, str(tmp_path), *faults], capture_output=True, text=True, check=True)
    for each in map(json.loads, done.stdout.splitlines()):
        assert (each["killed"], each["again"]) == (-signal.SIGKILL, 0), each
        check(tmp_path / each["fault"].replace(":", "-"), each["digest"], undisturbed)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[] if point == "state.stepped" else pytest.mark.slow)
        for point in FAULT_POINTS
    ],
)
def test_killed_by_the_environment_and_started_anew(tmp_path: Path, undisturbed: str, point: str) -> None:
    """Two whole processes, armed as a user would: ``SILORAY_FAULT=point:1:kill``."""
    killed = subprocess.run(
        [*COMMAND, str(tmp_path)], env={**os.environ, "SILORAY_FAULT": f"{point}:1:kill"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    env = {name: value for name, value in os.environ.items() if name != "SILORAY_FAULT"}
    done = subprocess.run([*COMMAND, str(tmp_path)], env=env, capture_output=True, text=True, check=True)
    check(tmp_path, done.stdout.strip(), undisturbed)
