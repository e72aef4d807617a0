"""Who a silo is: its key, its peers' keys, and what the driver makes of a key that changes."""

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.errors import BadInput
from orchestrator.core.events import Event, RoundClosed, SiloDeclined, SiloJoined
from orchestrator.driver import Driver
from orchestrator.keys import kept_signing_key, signed_by
from orchestrator.transport.authority import Authority
from orchestrator.transport.local import LocalChannel
from silos.config import SiloConfig
from silos.identity import Identity
from tests.support import quadratic
from tests.support.federation import federate, run_quadratic

DATA = {"none": {"path": "x"}}


def identity(folder: Path, name: str = "a", **sections: Any) -> Identity:
    """As ``silo.yaml`` in this folder says."""
    config = SiloConfig.model_validate({"name": name, "datasets": DATA, **sections})
    return Identity.of(config, folder / ".siloray" / name, folder / "silo.yaml")


def shown(own: Identity) -> str:
    return base64.b64encode(own.public).decode()


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first, again = identity(tmp_path), identity(tmp_path)
    path = tmp_path / ".siloray" / "a" / "identity.key"
    assert first.public == again.public and path.stat().st_mode & 0o777 == 0o600
    assert signed_by(first.public, b"data", again.sign(b"data"))
    assert not signed_by(first.public, b"other data", again.sign(b"data"))
    path.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        identity(tmp_path)


def test_two_processes_that_make_the_key_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is first, between the look and the link."""
    path = tmp_path / "identity.key"
    generate = Ed25519PrivateKey.generate

    def late() -> Ed25519PrivateKey:
        monkeypatch.setattr(Ed25519PrivateKey, "generate", generate)
        kept_signing_key(path)
        return generate()

    monkeypatch.setattr(Ed25519PrivateKey, "generate", late)
    mine = kept_signing_key(path)
    assert mine.private_bytes_raw() == kept_signing_key(path).private_bytes_raw()
    assert [each.name for each in tmp_path.iterdir()] == ["identity.key"]


def test_a_peer_is_known_by_the_first_key_that_it_showed(tmp_path: Path) -> None:
    own, peer, stranger = (
        identity(tmp_path / "1"),
        identity(tmp_path / "2", "b"),
        identity(tmp_path / "3", "b"),
    )
    assert not own.verify("b", b"x", peer.sign(b"x")), "nobody showed a key"
    own.meet("b", peer.public)
    own = identity(tmp_path / "1")
    assert own.verify("b", b"x", peer.sign(b"x")) and not own.verify("b", b"y", peer.sign(b"x"))
    assert own.verify("a", b"x", own.sign(b"x"))
    with pytest.raises(BadInput, match=r"peers.json: b shows another key .* remove its line"):
        own.meet("b", stranger.public)
    assert not own.verify("b", b"x", stranger.sign(b"x"))
    with pytest.raises(BadInput, match="not this silo's own"):
        own.meet("a", stranger.public)


def test_what_is_written_down_counts_before_what_is_seen(tmp_path: Path) -> None:
    peer, stranger = identity(tmp_path / "2", "b"), identity(tmp_path / "3", "b")
    own = identity(tmp_path / "1", peers={"b": shown(peer)})
    own.meet("b", peer.public)
    with pytest.raises(BadInput, match="another key of b"):
        own.meet("b", stranger.public)
    with pytest.raises(BadInput, match="no key of c"):
        own.meet("c", stranger.public)
    with pytest.raises(ValueError, match="32 bytes"):
        identity(tmp_path / "1", peers={"b": "AAAA"})


def test_a_member_of_a_consortium_signs_with_its_credentials(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "test")
    for name in ("a", "b"):
        authority.issue_silo(name)
    there = {"connection": {"driver": "driver:1", "credentials": str(tmp_path / "ca" / "a")}}
    own, member = (
        identity(tmp_path, **there),
        identity(tmp_path, "b", connection={"driver": "driver:1", "credentials": str(tmp_path / "ca" / "b")}),
    )
    assert own.verify("b", b"x", member.sign(b"x")), "by the roster"
    assert not (tmp_path / ".siloray").exists(), "no key of its own is made"
    with pytest.raises(BadInput, match="no key of c"):
        own.meet("c", member.public)
    authority.revoke("b")
    roster = (tmp_path / "ca" / "roster.yaml").read_bytes()
    (tmp_path / "ca" / "a" / "roster.yaml").write_bytes(roster)
    assert not own.verify("b", b"x", member.sign(b"x")), "its key counts no longer"


def test_a_run_that_goes_on_takes_the_key_of_a_silo_whose_machine_is_gone(tmp_path: Path) -> None:
    job, problems = quadratic.job_of(["s0", "s1"], total=4), quadratic.problems(2)

    def stop(driver: Driver, channel: LocalChannel, event: Event) -> None:
        if isinstance(event, RoundClosed) and event.version == 2:
            driver.request_stop()

    first = run_quadratic(job, problems, tmp_path, during=stop)
    keys = {event.silo: event.key for event in first.of(SiloJoined)}
    assert sorted(keys) == ["s0", "s1"] and all(len(base64.b64decode(key)) == 32 for key in keys.values())
    (tmp_path / "silos" / "keys" / "s1" / "identity.key").unlink()
    again = run_quadratic(job, problems, tmp_path)
    assert again.outcome.status == "done" and not again.of(SiloDeclined)
    now = {event.silo: event.key for event in again.of(SiloJoined)}
    assert now["s0"] == keys["s0"] and now["s1"] != keys["s1"]


def test_while_a_driver_works_a_silo_keeps_its_key(tmp_path: Path) -> None:
    made = quadratic.sites(quadratic.problems(2), tmp_path / "silos")

    def another(driver: Driver, channel: LocalChannel, event: Event) -> None:
        if isinstance(event, RoundClosed) and event.version == 1:
            made["s1"].__dict__["identity"] = Identity.alone("s1")
            driver.attempt.lost("s1", 1, "its machine was exchanged")

    job = quadratic.job_of(["s0", "s1"], total=4, rounds={"min_updates": 1})
    ended = federate(job, quadratic.silo_makers(made), tmp_path, during=another)
    (refused,) = ended.of(SiloDeclined)
    assert refused.silo == "s1" and "another key" in refused.reason
