"""Who is online, and where: the answer to ``siloray silos``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.job import Job
from orchestrator.transport.ray_channel import RayChannel, labelled_silos
from orchestrator.transport.ray_connection import connect
from orchestrator.transport.ray_home import ANSWER_S


@dataclass(frozen=True)
class SiloLine:
    """One silo, as far as its policy lets it be described."""

    name: str
    state: str
    """``online``, ``starting`` or ``away``."""
    node: str
    device: str
    datasets: dict[str, dict[str, int]]


def silos(job: Job | None, address: str | None, silos_dir: Path | None) -> list[SiloLine]:
    """The silos of a folder on this machine, or those of a cluster."""
    if address is None:
        return _silos_here(job, silos_dir)
    connect(address, 0)
    found = labelled_silos()
    names = sorted(set(job.silos) if job else found)
    channel = RayChannel("", tuple(name for name in names if name in found), None)
    described = channel.describe(ANSWER_S)
    return [_line(name, described.get(name), "starting" if name in found else "away") for name in names]


def _silos_here(job: Job | None, silos_dir: Path | None) -> list[SiloLine]:
    from silos.configured_site import ConfiguredSite
    from silos.directory import find_silos

    if silos_dir is None:
        raise BadInput("say which silos: a job file, --silos-dir, or --address of a cluster")
    wanted = set(job.silos) if job else None
    found = {name: path for name, path in find_silos(silos_dir).items() if wanted is None or name in wanted}
    here = [_line(name, ConfiguredSite(path).describe(), "online") for name, path in found.items()]
    return here + [_line(name, None, "away") for name in sorted((wanted or set()) - found.keys())]


def _line(name: str, about: dict[str, Any] | None, otherwise: str) -> SiloLine:
    if about is None:
        return SiloLine(name, otherwise, "", "", {})
    return SiloLine(name, "online", about["node"], about["device"], about["datasets"])
