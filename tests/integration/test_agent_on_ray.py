"""An agent whose silo works on the organisation's own Ray: the actor is this agent's, and ends with it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clusters import Cluster
from tests.support.commands import session
from tests.support.served import Served, until


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def actors(cluster: Cluster) -> set[int]:
    """Process ids of the silo's actors."""
    assert cluster.head is not None
    return {pid for pid in session(cluster.head.process.pid) if _title(pid).startswith("ray::SiloActor")}


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_a_killed_agents_actor_does_not_go_on(place: Served) -> None:
    """The next agent's works by the document of now, and asks the driver for no patience of its own."""
    place.write_job(pause_s=0.1)
    with Cluster(place.folder) as cluster:
        place.agent("cleveland", "--once")
        first, driver = place.agent("va", "--address", cluster.address), place.serve()
        driver.until("round 1/")
        (old,) = actors(cluster)
        first.send(signal.SIGKILL)
        until(lambda: not actors(cluster))
        place.write_silo("va", allow_jobs=["other-*"])
        place.agent("va", "--address", cluster.address)
        until(lambda: place.audit("va", "refused") and actors(cluster))
        assert old not in actors(cluster)
        assert "does not allow the job 'served-heart'" in place.audit("va", "refused")[-1]["reason"]
