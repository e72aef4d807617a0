"""Organisations with certificates, on this machine: a driver's door, and agents that dial it from threads."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials
from orchestrator.transport.flight import FlightChannel
from silos.agent import Agent
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from silos.workplace import InThread

LIMIT_S = 20.0


class Consortium:
    """A CA in a folder, with credentials for the driver and for each silo."""

    def __init__(self, folder: Path, silos: Sequence[str]) -> None:
        self.folder, self.silos = folder, tuple(silos)
        self.authority = Authority.create(folder, "test consortium")
        for silo in silos:
            self.authority.issue_silo(silo)

    def of(self, name: str) -> Credentials:
        return Credentials.load(self.folder / name)

    @contextmanager
    def channel(
        self,
        patience_s: float = 60.0,
        port: int = 0,
        kind: type[FlightChannel] = FlightChannel,
        **options: Any,
    ) -> Iterator[FlightChannel]:
        channel = kind(self.silos, self.of("driver"), ("127.0.0.1", port), patience_s, **options)
        try:
            yield channel
        finally:
            channel.close()

    @contextmanager
    def agents(
        self, uri: str, start: Mapping[str, Callable[[], Any]], said: Callable[[str], None] = lambda _: None
    ) -> Iterator[dict[str, Agent]]:
        """One agent per silo; ``start`` makes what it serves."""
        agents = {name: Agent(name, uri, self.of(name), InThread(make), said) for name, make in start.items()}
        for agent in agents.values():
            threading.Thread(target=agent.run, daemon=True).start()
        try:
            yield agents
        finally:
            for agent in agents.values():
                agent.close()  # a poll in hand ends when the driver closes its door


def uri_of(channel: FlightChannel) -> str:
    return f"grpc+tls://127.0.0.1:{channel.port}"


def sites(documents: Mapping[str, Path]) -> dict[str, Callable[[], Silo]]:
    """Makers of silos as their ``silo.yaml`` describes them."""
    return {name: lambda path=path: Silo(ConfiguredSite(path)) for name, path in documents.items()}  # type: ignore[misc]


def until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    """Wait for it; fail when it does not come."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(0.02)
