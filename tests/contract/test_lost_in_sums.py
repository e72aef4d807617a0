"""Sums from which a silo is lost by a real end of its process, over the channels that have one: the bits are those of
a plain sum of the same silos in this process."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.events import SiloJoined, SiloLaunched
from orchestrator.job import Job
from orchestrator.transport.flight import FlightChannel
from tests.support.consortium import Consortium, until, uri_of
from tests.support.federation import Ended, Losing, Losses, LossyChannel, Makers, federate
from tests.support.quadratic import job_of, problems, silo_makers, sites
from tests.support.scratch import scratch

NAMES = tuple(f"s{i}" for i in range(4))
PLAIN: dict[str, Any] = {"name": "fixed_point_sum"}
SECURE: dict[str, Any] = {"name": "secure_sum", "mode": "active"}
TWO: dict[str, Any] = {"name": "two_aggregator_sum", "second": "s1"}
ENCRYPTED: dict[str, Any] = {"name": "encrypted_sum"}

Open = Callable[[Makers, Losses], AbstractContextManager[Any]]


class LossyFlight(Losing, FlightChannel):
    """Each silo behind an agent that dials in, and makes it anew."""


@contextmanager
def local(makers: Makers, losses: Losses) -> Iterator[LossyChannel]:
    yield LossyChannel(makers, losses)


@contextmanager
def over_flight(makers: Makers, losses: Losses) -> Iterator[FlightChannel]:
    with scratch() as folder:
        consortium = Consortium(folder / "ca", tuple(makers))
        with (
            consortium.channel(kind=LossyFlight, losses=losses) as channel,
            consortium.agents(uri_of(channel), makers),
        ):
            until(lambda: channel.connected() == set(makers))
            yield channel


@contextmanager
def over_ray(makers: Makers, losses: Losses) -> Iterator[Any]:
    """Each silo an actor, which is killed, and which Ray starts anew."""
    from orchestrator.transport.ray_channel import RayChannel
    from tests.support.made_actors import made_actor

    class LossyRay(Losing, RayChannel):
        pass

    yield LossyRay("lossy", tuple(makers), dict.fromkeys(makers, ""), losses=losses, actor=made_actor(makers))


@pytest.fixture(params=["flight", pytest.param("ray", marks=pytest.mark.slow)])
def channel(request: pytest.FixtureRequest) -> Open:
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return {"flight": over_flight, "ray": over_ray}[request.param]


def job(combine: dict[str, Any], fewest: int) -> Job:
    return job_of(
        NAMES,
        1,
        report={"silos": False},
        rounds={"min_updates": fewest, "patience_s": 60},
        combine={"value_bits": 14, "first_range": 8.0, **combine},
    )


def run(open_: Open, combine: dict[str, Any], fewest: int, losses: Losses, folder: Path) -> Ended:
    makers = silo_makers(sites(problems(len(NAMES)), folder / "silos"))
    with open_(makers, losses) as silos:
        ended = federate(job(combine, fewest), makers, folder, channel=lambda _: silos, limit_s=120.0)
    assert ended.outcome.exit_code == 0, ended.outcome
    assert silos.lost == len(losses), "all were planted"
    return ended


@cache
def plain(*lost: str) -> str:
    """The digest of a plain sum in this process without these silos."""
    with scratch() as folder:
        losses = {(silo, "Fetch", 1): "before" for silo in lost}
        return run(local, PLAIN, len(NAMES) - len(lost), losses, folder).digest


def launched(ended: Ended) -> Counter[str]:
    """How often each silo was asked to train."""
    return Counter(event.silo for event in ended.of(SiloLaunched))


@pytest.mark.parametrize("combine", [PLAIN, SECURE, TWO, ENCRYPTED], ids=lambda each: each["name"])
def test_lost_before_its_vector_is_fetched(channel: Open, tmp_path: Path, combine: dict[str, Any]) -> None:
    """Sealed, but not there: the sum is that of the others."""
    ended = run(channel, combine, 3, {("s3", "Fetch", 1): "before"}, tmp_path)
    assert ended.contributors == [["s0", "s1", "s2"]]
    assert [list(closed.sealed.left_out) for closed in ended.rounds] == [["s3"]]
    assert ended.digest == plain("s3") != plain()


@pytest.mark.parametrize(
    ("combine", "silo", "step"),
    [(SECURE, "s3", "unmask"), (ENCRYPTED, "s3", "agree"), (ENCRYPTED, "s0", "decrypt")],
    ids=lambda each: each["name"] if isinstance(each, dict) else each,
)
def test_lost_after_its_vector_is_fetched(
    channel: Open, tmp_path: Path, combine: dict[str, Any], silo: str, step: str
) -> None:
    """It is in the sum, which the others open."""
    ended = run(channel, combine, 4, {(silo, step, 1): "before"}, tmp_path)
    assert ended.contributors == [list(NAMES)]
    assert ended.digest == plain()
    assert set(launched(ended).values()) == {1}, "no sum was made again"


@pytest.mark.parametrize(
    ("combine", "silo", "kind"),
    [(SECURE, "s3", "Fetch"), (TWO, "s1", "reveal")],
    ids=lambda each: each["name"] if isinstance(each, dict) else each,
)
def test_a_sum_that_cannot_do_without_it_is_made_again(
    channel: Open, tmp_path: Path, combine: dict[str, Any], silo: str, kind: str
) -> None:
    """With its next process; the others have their updates still."""
    ended = run(channel, combine, 4, {(silo, kind, 1): "before"}, tmp_path)
    assert ended.contributors == [list(NAMES)]
    assert ended.digest == plain()
    again = launched(ended)
    assert again.pop(silo) > 1 and set(again.values()) == {1}
    assert len({joined.incarnation for joined in ended.of(SiloJoined) if joined.silo == silo}) > 1
