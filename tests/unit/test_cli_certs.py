"""``siloray certs`` as it is typed."""

import datetime as dt
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert siloray("certs init ca --host driver.example.org --name hearts")[0] == 0
    return tmp_path


def siloray(line: str) -> tuple[int, str]:
    """Exit code, and what was printed on both streams."""
    ended = CliRunner().invoke(app, line.split())
    return ended.exit_code, ended.output


def test_from_nothing_to_credentials(here: Path) -> None:
    code, said = siloray("certs issue cleveland --ca ca")
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


def test_revoked_is_an_exit_code(here: Path) -> None:
    siloray("certs issue va --ca ca")
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
    siloray("certs issue va --ca ca --out old")
    assert siloray("certs issue va --ca ca --force")[0] == 0
    shutil.copy(here / "ca" / "roster.yaml", here / "old")
    code, said = siloray("certs show old")
    assert code == 1 and "were replaced" in said


def test_the_driver_again(here: Path) -> None:
    code, said = siloray("certs issue --driver --ca ca")
    assert code == 2 and "--force" in said
    assert siloray("certs issue --driver --ca ca --host b.org --force")[0] == 0
    Credentials.load(here / "ca" / "driver")


@pytest.mark.parametrize(
    "line",
    [
        "certs init ca",
        "certs init other --host http://x",
        "certs issue cleveland --ca nowhere",
        "certs issue ../cleveland --ca ca",
        "certs issue --ca ca",
        "certs issue cleveland --driver --ca ca",
        "certs issue cleveland --host x --ca ca",
        "certs issue cleveland --ca ca --request nothing.pem",
        "certs issue cleveland --ca ca --request ca/roster.yaml",
        "certs revoke cleveland --ca ca",
        "certs revoke driver --ca ca",
        "certs request a/b --out x",
        "certs show nowhere",
        "certs show ca/ca.key",
        "certs show .",
        "certs issue cleveland --ca ca --days 0",
    ],
)
def test_a_wrong_line_ends_with_2(line: str, here: Path) -> None:
    code, said = siloray(line)
    assert code == 2, said
    if not said.startswith("Usage"):
        assert said.count("\n") == 1 and said.startswith("siloray: ")
