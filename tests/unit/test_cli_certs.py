"""``siloray certs`` as it is typed."""

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.roster import Roster
from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert siloray("certs init ca --with-keys --host driver.example.org --name hearts")[0] == 0
    return tmp_path


def siloray(line: str) -> tuple[int, str]:
    """Exit code, and what was printed on both streams."""
    ended = CliRunner().invoke(app, line.split())
    return ended.exit_code, ended.output


def test_from_nothing_to_credentials(here: Path) -> None:
    code, said = siloray("certs issue cleveland --ca ca --with-keys")
    assert code == 0 and "private keys" in said
    own = Credentials.load(here / "ca" / "cleveland")
    assert own.identity == "spiffe://siloray/silo/cleveland"
    code, said = siloray("certs show ca/cleveland")
    assert code == 0 and "member, as cleveland" in said and "824 days left" in said
    assert "PRIVATE" not in said


def test_the_request_flow(here: Path) -> None:
    code, made = siloray("certs request va --out hospital")
    assert code == 0
    code, said = siloray("certs issue va --ca ca --request hospital/request.pem --out answer")
    assert code == 0 and "private keys" not in said
    key = made.split("signing key ")[1].split(":")[0]
    assert f"signing key {key}" in said, "both sides show the key, to be compared"
    assert siloray("certs show hospital")[0] == 0, "before the answer has come"
    for path in (here / "answer").iterdir():
        shutil.copy(path, here / "hospital")
    code, said = siloray("certs show hospital")
    assert code == 0 and "member, as va" in said
    Credentials.load(here / "hospital")


def test_the_drivers_keys_are_made_where_it_runs(here: Path) -> None:
    """From an empty CA on: no private key is ever at the CA but its own, and none is sent."""
    code, said = siloray("certs init consortium --name hearts")
    assert code == 0 and "certs request --driver" in said
    assert [path.name for path in (here / "consortium").iterdir() if path.suffix == ".key"] == ["ca.key"]
    assert "'siloray certs issue --driver' comes first" in sign("va", "")[1]
    assert sign("driver", "--driver --host driver.example.org")[0] == 0
    assert sign("va", "")[0] == 0
    for name in ("driver", "va"):
        for path in (here / "consortium" / name).iterdir():
            assert path.suffix != ".key"
            shutil.copy(path, here / f"{name}-there")
        Credentials.load(here / f"{name}-there")
    assert len(list((here / "consortium").rglob("*.key"))) == 1
    assert set(Roster.load(here / "consortium" / "roster.yaml").silos) == {"va"}
    code, said = sign("driver", "--driver --out elsewhere")
    assert code == 2 and "'driver' has a key already; --force replaces it" in said


def sign(name: str, how: str) -> tuple[int, str]:
    """A new request on the member's machine, and what the CA says to it."""
    whom = "--driver" if name == "driver" else name
    assert siloray(f"certs request {whom} --out {name}-there --force")[0] == 0
    return siloray(f"certs issue {how or name} --ca consortium --request {name}-there/request.pem")


def test_an_answer_is_shown_without_its_keys(here: Path) -> None:
    siloray("certs request va --out hospital")
    siloray("certs issue va --ca ca --request hospital/request.pem --out for-va")
    code, said = siloray("certs show for-va")
    assert code == 0 and "member, as va" in said and "its private half is not here" in said
    siloray("certs revoke va --ca ca")
    shutil.copy(here / "ca" / "roster.yaml", here / "for-va")
    code, said = siloray("certs show for-va")
    assert code == 1 and "not a member" in said


@pytest.mark.parametrize("whom", ["va", "--driver --force"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_text("broken"), "no PEM private key without a passphrase"),
        (lambda path: path.write_bytes(locked(path)), "no PEM private key without a passphrase"),
        (lambda path: path.chmod(0o640), "chmod 600"),
    ],
    ids=["broken", "passphrase", "readable"],
)
def test_a_key_of_the_ca_that_cannot_serve(here: Path, whom: str, spoil: Any, words: str) -> None:
    """One line, and nothing half made that would be in the way afterwards."""
    before = {path: path.read_bytes() for path in (here / "ca").rglob("*") if path.is_file()}
    spoil(here / "ca" / "ca.key")
    code, said = siloray(f"certs issue {whom} --ca ca --with-keys")
    assert code == 2 and said.count("\n") == 1 and "ca.key: " in said and words in said
    after = {path: path.read_bytes() for path in (here / "ca").rglob("*") if path.is_file()}
    assert after | {here / "ca" / "ca.key": b""} == before | {here / "ca" / "ca.key": b""}


def locked(path: Path) -> bytes:
    """The key with a passphrase."""
    key = load_pem_private_key(path.read_bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_revoked_is_an_exit_code(here: Path) -> None:
    siloray("certs issue va --ca ca --with-keys")
    assert siloray("certs revoke va --ca ca")[0] == 0
    code, said = siloray("certs show ca/va")
    assert code == 1 and "revoked" in said
    code, said = siloray("certs show ca/roster.yaml")
    assert code == 0 and "(revoked)" in said and "driver  spiffe://siloray/driver" in said


def test_expired_is_an_exit_code(here: Path) -> None:
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=100)
    Authority(here / "ca", now=long_ago).issue_silo("va", days=30)
    for path in ("ca/va", "ca/va/tls.pem"):
        code, said = siloray(f"certs show {path}")
        assert code == 1 and "expired 70 days ago" in said


def test_replaced_keys_are_an_exit_code(here: Path) -> None:
    siloray("certs issue va --ca ca --out old --with-keys")
    assert siloray("certs issue va --ca ca --force --with-keys")[0] == 0
    shutil.copy(here / "ca" / "roster.yaml", here / "old")
    code, said = siloray("certs show old")
    assert code == 1 and "were replaced" in said


def test_the_driver_again(here: Path) -> None:
    code, said = siloray("certs issue --driver --ca ca --with-keys")
    assert code == 2 and "--force" in said
    assert siloray("certs issue --driver --ca ca --host b.org --force --with-keys")[0] == 0
    Credentials.load(here / "ca" / "driver")


@pytest.mark.parametrize(
    "line",
    [
        "certs init ca",
        "certs init other --with-keys --host http://x",
        "certs init other --host x",
        "certs issue cleveland --ca nowhere --with-keys",
        "certs issue ../cleveland --ca ca --with-keys",
        "certs issue --ca ca --with-keys",
        "certs issue cleveland --ca ca",
        "certs issue --driver --ca ca --force",
        "certs issue cleveland --driver --ca ca --with-keys",
        "certs issue cleveland --host x --ca ca --with-keys",
        "certs issue driver --ca ca --with-keys",
        "certs issue cleveland --ca ca --request nothing.pem --with-keys",
        "certs issue cleveland --ca ca --request nothing.pem",
        "certs issue cleveland --ca ca --request ca/roster.yaml",
        "certs revoke cleveland --ca ca",
        "certs revoke driver --ca ca",
        "certs request a/b --out x",
        "certs request --out x",
        "certs request driver --out x",
        "certs request va --driver --out x",
        "certs show nowhere",
        "certs show ca/ca.key",
        "certs show .",
        "certs issue cleveland --ca ca --with-keys --days 0",
    ],
)
def test_a_wrong_line_ends_with_2(line: str, here: Path) -> None:
    code, said = siloray(line)
    assert code == 2, said
    if not said.startswith("Usage"):
        assert said.count("\n") == 1 and said.startswith("siloray: ")
