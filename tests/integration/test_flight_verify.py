"""Over mutual TLS, with the consortium's keys: receipts come whole, and a run is checked against the roster."""

import asyncio
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.events import UpdateRefused
from orchestrator.driver import Driver
from orchestrator.keys import SIGNING_KEY, Signer, read_signing_key
from orchestrator.roster import ROSTER, Roster, encoded
from orchestrator.store import Store
from orchestrator.verdict import Outside
from orchestrator.verifying import verify
from silos.config import SiloConfig
from silos.identity import Identity
from tests.support import quadratic
from tests.support.consortium import Consortium, until, uri_of

NAMES = ("s0", "s1", "s2")


class Member(quadratic.PlainSite):
    """Signs with its credentials, as ``silo.yaml`` with a ``connection`` says."""

    credentials: Path

    @cached_property
    def identity(self) -> Identity:
        line = {"driver": "driver:1", "credentials": str(self.credentials)}
        document = {"name": self.name, "datasets": {"none": {"path": "x"}}, "connection": line}
        return Identity.of(
            SiloConfig.model_validate(document), self.folder / self.name, self.folder / "silo.yaml"
        )


def run(folder: Path, consortium: Consortium, monkeypatch: Any) -> list[Any]:
    """Packets are fetched piece by piece while they are folded."""
    monkeypatch.setattr("orchestrator.launching.INLINE", 0)
    sites = {
        name: Member(name, problem, folder / "silos")
        for name, problem in quadratic.problems(3, size=100).items()
    }
    for name, site in sites.items():
        site.credentials = consortium.folder / name
    seen: list[Any] = []
    signer = Signer(read_signing_key(consortium.folder / "driver" / SIGNING_KEY))
    job = quadratic.job_of(NAMES, total=3)
    with (
        consortium.channel(10.0) as channel,
        consortium.agents(uri_of(channel), quadratic.silo_makers(sites)),
    ):
        until(lambda: channel.connected() == set(NAMES))
        driver = Driver(job, channel, Store(folder / "run", signer=signer), "run", observe=seen.append)
        outcome = asyncio.run(asyncio.wait_for(driver.run(), 30))
    assert outcome.status == "done", outcome
    return seen


def test_a_run_of_a_consortium_holds_against_its_roster(tmp_path: Path, monkeypatch: Any) -> None:
    consortium = Consortium(tmp_path / "ca", NAMES)
    seen = run(tmp_path, consortium, monkeypatch)
    assert not [event for event in seen if isinstance(event, UpdateRefused)]
    roster = Roster.load(tmp_path / "ca" / ROSTER)
    silos = {name: encoded(member.signing_key) for name, member in roster.silos.items()}
    found = verify(Store(tmp_path / "run"), Outside(encoded(roster.driver.signing_key), silos))
    assert found.fine, found.verdict
    assert found.contributors == dict.fromkeys(NAMES, 3)
    assert set(found.countersigned.values()) == {found.num_lines}
    assert not (tmp_path / "silos" / "keys").exists(), "no key but those of the credentials"
    other = verify(Store(tmp_path / "run"), Outside(silos={**silos, "s1": silos["s2"]}))
    assert "s1 signs with another key than the roster has" in other.verdict
