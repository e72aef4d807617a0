"""Fault points."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.core.faults import FAULT_POINTS, FaultInjected, arm, fault, points
from orchestrator.store import DiskFull, Store
from orchestrator.verifying import verify
from tests.support import quadratic
from tests.support.federation import run_quadratic


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    arm(None)
    yield
    arm(None)


def test_an_unarmed_point_does_nothing_and_costs_nothing() -> None:
    start = time.perf_counter()
    for _ in range(100_000):
        fault("round.opened")
    assert time.perf_counter() - start < 0.2


def test_it_fires_once_at_the_nth_passage_of_its_point() -> None:
    arm("round.closed:2:raise")
    fault("round.closed")
    fault("round.opened")
    with pytest.raises(FaultInjected, match=r"round\.closed"):
        fault("round.closed")
    fault("round.closed")


def test_delay_waits() -> None:
    arm("round.closed:1:delay:0.05")
    start = time.perf_counter()
    fault("round.closed")
    assert time.perf_counter() - start >= 0.05


@pytest.mark.parametrize(
    "text", ["x", "nowhere:1:kill", "round.closed:0:kill", "round.closed:1:explode", "::"]
)
def test_a_bad_description_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected point:nth:action"):
        arm(text)


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from orchestrator.store import Store
store = Store(Path(sys.argv[1]))
store.acquire("test")
found = store.recover()
for version in range(found.version + 1 if found else 0, 3):
    store.commit(version, {"params": np.full(5, version, np.float32)}, {"type": "r", "version": version}, {})
"""

STORE_POINTS = [name for name in FAULT_POINTS if name.split(".")[0] in ("checkpoint", "journal", "commit")]


@pytest.mark.parametrize("point", STORE_POINTS)
def test_a_killed_driver_goes_on_from_every_point_of_the_store(tmp_path: Path, point: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    killed = subprocess.run(command, env={**os.environ, "SILORAY_FAULT": f"{point}:2:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    store = Store(tmp_path)
    assert [event["version"] for _, event in store.events()] == [0, 1, 2]
    assert store.acquire("test") == 3


@pytest.mark.parametrize(
    "point", ["checkpoint.files", "checkpoint.manifest", "checkpoint.renamed", "journal.appended"]
)
def test_one_full_disk_is_overcome_where_a_checkpoint_may_go(tmp_path: Path, point: str) -> None:
    store = Store(tmp_path)
    store.acquire("test")
    store.recover()
    for version in range(4):
        arm(f"{point}:1:enospc" if version in (0, 3) else None)
        try:
            store.commit(version, {"params": np.ones(3, np.float32)}, {"type": "r", "version": version}, {})
        except DiskFull:
            assert version == 0
            store.commit(version, {"params": np.ones(3, np.float32)}, {"type": "r", "version": version}, {})
    assert [event["version"] for _, event in store.events()] == [0, 1, 2, 3]


def test_no_run_goes_on_without_the_line_that_says_who_joined(tmp_path: Path) -> None:
    """Nothing else says whose key it is that signs."""
    job, made = quadratic.job_of(["s0", "s1", "s2"], total=1), quadratic.problems(3)
    arm("journal.appended:2:enospc")
    with pytest.raises(DiskFull):
        run_quadratic(job, made, tmp_path)
    arm(None)
    assert run_quadratic(job, made, tmp_path).outcome.status == "done"
    assert verify(Store(tmp_path / "runs" / "run")).fine


def test_the_registry_is_complete() -> None:
    assert set(FAULT_POINTS) < set(points()) and len(set(points())) == len(points())
    sources = [
        file.read_text() for folder in ("orchestrator", "silos") for file in Path(folder).rglob("*.py")
    ]
    used = {point for source in sources for point in re.findall(r'\bfault\("([^"]*)"\)', source)}
    assert used <= set(points())


def test_a_fault_that_may_fire_once_spares_the_process_that_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SILORAY_FAULT_ONCE", str(tmp_path / "fired"))
    arm("round.opened:1:raise")
    with pytest.raises(FaultInjected):
        fault("round.opened")
    assert (tmp_path / "fired").is_file()
    arm("round.opened:1:raise")
    fault("round.opened")
