"""What a driver remembers of the silos' ledgers, over its runs."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from orchestrator.heads import Countersigner, Head, Heads
from orchestrator.keys import Signer, signed_by


def head(length: int, of: str = "h", run: str = "r1") -> Head:
    return Head(head=f"{of}{length}", length=length, run=run)


def test_the_newest_of_each_silo_is_kept(tmp_path: Path) -> None:
    heads = Heads(tmp_path)
    assert heads.newest("a") is None
    assert heads.see("a", head(3)) is None
    assert Heads(tmp_path).newest("a") == head(3)
    assert heads.see("a", head(3)) is None, "nothing was spent since"
    assert heads.see("a", head(5, run="r2")) is None
    assert heads.see("a", head(4)) is None, "an update that was made before"
    assert "of 5 lines is another than in r2" in str(heads.see("a", head(5, "g")))
    assert heads.see("b", head(1)) is None
    assert heads.newest("a") == head(5, run="r2")


def test_what_the_driver_tells_is_signed(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    driver = Countersigner(tmp_path, "r1", Signer(key))
    assert driver.told("a") is None and driver.shown("a", None) is None
    assert driver.shown("a", LedgerHead(2, "h" * 64)) is None
    told = driver.told("a")
    assert told is not None and (told.length, told.hash) == (2, "h" * 64)
    public, signature = base64.b64decode(told.key), base64.b64decode(told.signature)
    assert public == key.public_key().public_bytes_raw()
    assert signed_by(public, told.statement("a"), signature) and not signed_by(
        public, told.statement("b"), signature
    )
    assert Countersigner(tmp_path, "r2").told("a") == LedgerHead(2, "h" * 64), (
        "a driver without a key tells as much"
    )
    assert "another" in str(driver.shown("a", LedgerHead(2, "g" * 64)))
    assert "none of a privacy ledger" in str(driver.shown("a", LedgerHead(0, "g" * 64)))


def test_a_damaged_registry_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    heads = Heads(tmp_path)
    heads.see("a", head(3))
    heads.path.write_text("{")
    with pytest.raises(BadInput, match="put back a copy"):
        heads.see("a", head(1))
