"""The channels that the contract holds for. To add one: a context manager that opens it, and its name below.

A channel is opened for silos that are described by their ``silo.yaml`` files, as in a real run, and says how one of
them vanishes for good (`vanish`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.protocols import Channel
from orchestrator.transport.local import LocalChannel
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from tests.support.scratch import scratch

HEART = Path(__file__).parents[2] / "examples" / "heart_disease" / "silos"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

Documents = Mapping[str, Path]
"""Silo -> its silo.yaml."""
Open = Callable[[str, Documents, float], AbstractContextManager[Channel]]
"""Opens a channel for a run id, these silos, and the job's patience."""

_vanish: dict[int, Callable[[str], object]] = {}
"""By the channel that is open."""


def vanish(channel: Channel, silo: str) -> None:
    """The silo is gone, in the middle of whatever it does, and does not come back."""
    _vanish[id(channel)](silo)


@contextmanager
def _vanishing(channel: Channel, how: Callable[[str], object]) -> Iterator[Channel]:
    _vanish[id(channel)] = how
    try:
        yield channel
    finally:
        del _vanish[id(channel)]


@contextmanager
def local(run_id: str, documents: Documents, patience_s: float) -> Iterator[Channel]:
    channel = LocalChannel(
        {name: lambda path=path: Silo(ConfiguredSite(path)) for name, path in documents.items()}
    )
    try:
        with _vanishing(channel, channel.offline.add):
            yield channel
    finally:
        channel.close()


@contextmanager
def over_ray(run_id: str, documents: Documents, patience_s: float) -> Iterator[Channel]:
    """Each silo an actor of its own, on the Ray that ``ray_here`` has connected this process to."""
    import ray

    from orchestrator.transport.ray_channel import RayChannel

    channel = RayChannel(run_id, tuple(documents), {name: str(path) for name, path in documents.items()})
    try:
        with _vanishing(channel, lambda silo: ray.kill(channel._actors[silo])):
            yield channel
    finally:
        channel.close()


@contextmanager
def over_flight(run_id: str, documents: Documents, patience_s: float) -> Iterator[Channel]:
    """Each silo behind an agent of its own that dials in over mutual TLS."""
    from tests.support.consortium import Consortium, sites, until, uri_of

    with scratch() as folder:
        consortium = Consortium(folder / "ca", tuple(documents))
        with (
            consortium.channel(patience_s) as channel,
            consortium.agents(uri_of(channel), sites(documents)) as agents,
            _vanishing(channel, lambda silo: agents[silo].close()),
        ):
            until(lambda: channel.connected() == set(documents))
            yield channel


@pytest.fixture(params=["local", "flight", pytest.param("ray", marks=pytest.mark.slow)])
def channel(request: pytest.FixtureRequest) -> Open:
    """Every test of this folder runs once for each."""
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return {"local": local, "flight": over_flight, "ray": over_ray}[request.param]


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    """The four hospitals, which allow the tests' tasks."""
    return write_documents(tmp_path / "silos")


def write_documents(folder: Path, **policy: Any) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in HOSPITALS:
        dataset = {"path": str(HEART / name / f"{name}.parquet"), "splits": {"column": "fold"}}
        rules = {"allow_code": ["tests.support"], **policy}
        written[name] = folder / f"{name}.yaml"
        written[name].write_text(
            yaml.safe_dump(
                {"name": name, "datasets": {"heart": dataset}, "policy": rules, "local": {"device": "cpu"}}
            )
        )
    return written
