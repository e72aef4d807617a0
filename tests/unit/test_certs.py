"""The roster, credentials folders and the small CA, on real files."""

import base64
import datetime as dt
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from orchestrator.core.errors import BadInput
from orchestrator.keys import pem
from orchestrator.roster import encoded
from orchestrator.transport.authority import Authority
from orchestrator.transport.certs import Credentials, LiveRoster, Roster, verify
from orchestrator.transport.request import Request, make_request

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "hearts", hosts=["driver.example.org", "10.0.0.1"])


@pytest.fixture
def folder(authority: Authority) -> Path:
    return authority.issue_silo("cleveland")


def certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "tls.pem").read_bytes())


def store(authority: Authority) -> PolicyBuilder:
    return PolicyBuilder().store(Store([authority.certificate]))


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        authority = Authority.create(tmp_path / "ca", "hearts")
        folder = authority.issue_silo("cleveland")
        make_request("va", tmp_path / "va")
    finally:
        os.umask(before)
    for path in [
        authority.folder / "ca.key",
        *authority.folder.glob("*/*.key"),
        *(tmp_path / "va").glob("*.key"),
    ]:
        assert path.stat().st_mode & 0o777 == 0o600, path
    for each in (authority.folder, folder, tmp_path / "va"):
        assert each.stat().st_mode & 0o777 == 0o700
    assert len(list(tmp_path.rglob("*.key"))) == 7


def test_the_silos_certificate_is_a_clients(authority: Authority, folder: Path) -> None:
    checked = store(authority).build_client_verifier().verify(certificate(folder), [])
    assert [each.value for each in checked.subjects or []] == ["spiffe://siloray/silo/cleveland"]
    with pytest.raises(VerificationError):
        store(authority).build_server_verifier(x509.DNSName("localhost")).verify(certificate(folder), [])


@pytest.mark.parametrize("host", ["driver.example.org", "10.0.0.1"])
def test_the_drivers_certificate_serves_its_hosts(authority: Authority, host: str) -> None:
    import ipaddress

    name = x509.IPAddress(ipaddress.ip_address(host)) if host[0] == "1" else x509.DNSName(host)
    driver = certificate(authority.folder / "driver")
    assert store(authority).build_server_verifier(name).verify(driver, [])
    assert store(authority).build_client_verifier().verify(driver, [])
    with pytest.raises(VerificationError):
        store(authority).build_server_verifier(x509.DNSName("other.org")).verify(driver, [])


def test_the_identity_is_the_first_name(authority: Authority) -> None:
    own = Credentials.load(authority.folder / "driver")
    names = certificate(own.folder).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert own.identity == "spiffe://siloray/driver" == next(iter(names)).value


def test_a_foreign_ca_does_not_pass(authority: Authority, tmp_path: Path) -> None:
    theirs = Authority.create(tmp_path / "theirs", "hearts").issue_silo("cleveland")
    with pytest.raises(VerificationError):
        store(authority).build_client_verifier().verify(certificate(theirs), [])


def test_days_and_the_end_of_the_ca(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "hearts", days=30, now=NOW)
    short = certificate(authority.issue_silo("a", days=7))
    long = certificate(authority.issue_silo("b", days=900))
    assert (short.not_valid_after_utc - NOW).days in (6, 7)
    assert long.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_credentials_sign_for_their_member_alone(authority: Authority, folder: Path) -> None:
    own, driver = Credentials.load(folder), Credentials.load(authority.folder / "driver")
    roster = driver.roster.current()
    member = roster.silo_of(own.identity)
    assert member is not None and member.name == "cleveland"
    assert verify(member, b"header", own.sign(b"header"))
    assert not verify(member, b"other", own.sign(b"header"))
    assert not verify(member, b"header", driver.sign(b"header"))
    assert not verify(member, b"header", b"short")
    assert verify(roster.driver, b"header", driver.sign(b"header"))
    assert roster.silo_of("spiffe://siloray/silo/nobody") is None
    assert roster.silo_of(driver.identity) is None, "the driver is no silo"


def test_every_copy_of_the_roster_learns_of_a_new_silo(authority: Authority, folder: Path) -> None:
    before = Credentials.load(folder)
    authority.issue_silo("va")
    assert set(before.roster.current().silos) == {"cleveland", "va"}
    assert set(Roster.load(authority.folder / "driver" / "roster.yaml").silos) == {"cleveland", "va"}


def test_a_roster_broken_for_a_moment_changes_nothing(authority: Authority, folder: Path) -> None:
    live = LiveRoster(folder / "roster.yaml")
    good = (folder / "roster.yaml").read_text()
    told: list[str] = []
    live.tell = told.append
    for half in (2, 3):
        (folder / "roster.yaml").write_text(good[: len(good) // half])
        for _ in range(3):
            assert set(live.current().silos) == {"cleveland"}
    (folder / "roster.yaml").unlink()
    for _ in range(3):
        assert set(live.current().silos) == {"cleveland"}
    assert len(told) == 3 and "no such file" in told[2], "once for each state of the file"
    assert all("roster.yaml: " in each and "the roster of before counts" in each for each in told)
    (folder / "roster.yaml").write_text(good.replace('"cleveland":', '"ohio":'))
    assert set(live.current().silos) == {"ohio"} and len(told) == 3


def test_a_broken_roster_is_told_to_the_console(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = LiveRoster(folder / "roster.yaml")
    (folder / "roster.yaml").write_text("silos: {")
    live.current()
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "roster.yaml" in record.getMessage()


def test_the_drivers_key_can_be_revoked(authority: Authority, folder: Path) -> None:
    """A stolen one: it stays in the roster until there is a new one, and is believed no longer."""
    driver, silo = Credentials.load(authority.folder / "driver"), Credentials.load(folder)
    signature, path = driver.sign(b"header"), folder / "roster.yaml"
    assert verify(silo.roster.current().driver, b"header", signature)
    key = encoded(driver.public_key)
    path.write_text(path.read_text().replace("revoked: []", f'revoked: ["{key}"]'))
    assert not verify(silo.roster.current().driver, b"header", signature)


def test_revoked(authority: Authority, folder: Path) -> None:
    own = Credentials.load(folder)
    member = own.roster.current().silos["cleveland"]
    authority.revoke("cleveland")
    roster = own.roster.current()
    assert roster.silo_of(own.identity) is None and roster.revoked(member)
    assert not roster.revoked(roster.driver)
    with pytest.raises(BadInput, match="revoked"):
        Credentials.load(folder)
    authority.issue_silo("cleveland", force=True)
    new = Credentials.load(folder)
    assert encoded(new.public_key) != encoded(member.signing_key)
    with pytest.raises(BadInput, match="no silo 'va' here; there are: cleveland"):
        authority.revoke("va")


def test_the_drivers_new_keys_replace_the_old(authority: Authority) -> None:
    old = Credentials.load(authority.folder / "driver")
    authority.issue_driver(["new.example.org"], force=True)
    driver = old.roster.current().driver
    assert not verify(driver, b"x", old.sign(b"x"))
    assert verify(driver, b"x", Credentials.load(authority.folder / "driver").sign(b"x"))


def test_nothing_is_overwritten_unasked(authority: Authority, folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()}
    for again in (
        lambda: Authority.create(authority.folder, "hearts"),
        lambda: authority.issue_silo("cleveland"),
        lambda: authority.issue_silo("cleveland", tmp_path / "elsewhere"),
        lambda: authority.issue_driver(),
    ):
        with pytest.raises(BadInput, match="--force"):
            again()
    assert {path: path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["", "a/b", "../x", "driver", "global", "a b", "a" * 101, "ä", "a\n"])
def test_names_that_are_none(authority: Authority, name: str) -> None:
    with pytest.raises(BadInput, match="is no silo name"):
        authority.issue_silo(name)


@pytest.mark.parametrize("name", ["1e5", "null", "no", "007", "-", "a" * 100])
def test_names_that_yaml_would_read_as_something_else(authority: Authority, name: str) -> None:
    assert Credentials.load(authority.issue_silo(name)).roster.current().silos[name].name == name


@pytest.mark.parametrize("host", ["", "a b", "http://x", "*.org", "x" * 300, "-a"])
def test_hosts_that_are_none(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadInput, match="--host"):
        Authority.create(tmp_path / "ca", "x", hosts=[host])
    assert not (tmp_path / "ca").exists()


def test_a_request_keeps_the_keys_at_the_silo(authority: Authority, tmp_path: Path) -> None:
    here = tmp_path / "hospital"
    request = make_request("va", here)
    for key in here.glob("*.key"):
        assert key.read_bytes() not in request.read_bytes()
    answer = authority.answer("va", request)
    assert {path.name for path in answer.iterdir()} == {"tls.pem", "ca.pem", "roster.yaml"}
    for path in answer.iterdir():
        shutil.copy(path, here)
    own = Credentials.load(here)
    member = authority_roster(authority).silos["va"]
    assert verify(member, b"x", own.sign(b"x"))
    assert store(authority).build_client_verifier().verify(certificate(here), [])


def authority_roster(authority: Authority) -> Roster:
    return Roster.load(authority.folder / "roster.yaml")


def other_key(text: str) -> str:
    """The request with the signing key (and signature) of somebody else, over the same CSR."""
    theirs = Ed25519PrivateKey.generate()
    csr = x509.load_pem_x509_csr(text.encode())
    from orchestrator.transport.request import _proof

    lines = text.splitlines(keepends=True)
    lines[1] = f"signing-key: {encoded(theirs.public_key())}\n"
    lines[2] = f"signature: {base64.b64encode(theirs.sign(_proof(csr))).decode()}\n"
    return "".join(lines)


def other_csr(text: str) -> str:
    """The request with the TLS key of somebody else, under the same name."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    subject = x509.load_pem_x509_csr(text.encode()).subject
    csr = x509.CertificateSigningRequestBuilder(subject).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    return text[: text.index("-----BEGIN")] + csr.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("name: va", "name: ohio"), "changed since"),
        (other_key, "changed since"),
        (other_csr, "changed since"),
        (lambda text: text[:200], "no certificate request"),
        (lambda text: text.replace("signature: ", "signature: AA"), "no certificate request|changed since"),
        (lambda text: "", "no certificate request"),
        (lambda text: "\0\xff", "no certificate request"),
    ],
)
def test_tampered_requests(
    authority: Authority, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    request = make_request("va", tmp_path / "va")
    request.write_text(change(request.read_text()))
    with pytest.raises(BadInput, match=said) as error:
        authority.answer("va", request)
    assert "\n" not in str(error.value)
    assert "va" not in authority_roster(authority).silos


def test_a_request_of_another_or_with_a_used_key(authority: Authority, tmp_path: Path) -> None:
    request = make_request("va", tmp_path / "va")
    with pytest.raises(BadInput, match="of 'va', not of 'ohio'"):
        authority.answer("ohio", request)
    authority.answer("va", request)
    authority.answer("va", request, force=True)
    authority.revoke("va")
    with pytest.raises(BadInput, match="revoked"):
        authority.answer("va", request, force=True)


def test_the_signature_is_for_requests_only(tmp_path: Path) -> None:
    """A header that a silo signs must not be a request, nor the other way round."""
    from orchestrator.transport.request import _proof

    made = Request.load(make_request("va", tmp_path / "va"))
    assert _proof(made.csr).startswith(b"siloray certificate request\0")


def broken(what: str, authority: Authority, folder: Path, tmp_path: Path) -> None:
    other = authority.issue_silo("other")
    match what:
        case "missing":
            (folder / "tls.key").unlink()
        case "readable":
            (folder / "signing.key").chmod(0o640)
        case "pair":
            shutil.copy(other / "tls.key", folder)
        case "expired":
            old = Authority(authority.folder, now=NOW - dt.timedelta(days=900))
            old.issue_silo("cleveland", days=825, force=True)
        case "early":
            new = Authority(authority.folder, now=NOW + dt.timedelta(days=2))
            new.issue_silo("cleveland", force=True)
        case "key":
            shutil.copy(other / "signing.key", folder)
        case "stranger":
            text = (folder / "roster.yaml").read_text()
            (folder / "roster.yaml").write_text(text.replace("silo/cleveland", "silo/ohio"))
        case "rsa":
            (folder / "signing.key").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
        case "text":
            (folder / "tls.pem").write_text("nothing")
        case "no roster":
            (folder / "roster.yaml").unlink()
        case "no certificate":
            (folder / "tls.pem").unlink()
        case "ca":
            (folder / "ca.pem").write_text("")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "tls.key: no such file"),
        ("readable", "chmod 600"),
        ("pair", "not the key of tls.pem"),
        ("expired", "expired on"),
        ("early", "not valid before"),
        ("key", "another signing_key"),
        ("stranger", "is not in the roster"),
        ("rsa", "expected an Ed25519 key"),
        ("text", "no PEM certificate"),
        ("ca", "no PEM certificates"),
        ("no roster", "roster.yaml: no such file"),
        ("no certificate", "tls.pem: no such file"),
    ],
)
def test_credentials_that_cannot_serve(
    authority: Authority, folder: Path, tmp_path: Path, what: str, said: str
) -> None:
    Credentials.load(folder)
    broken(what, authority, folder, tmp_path)
    with pytest.raises(BadInput, match=said) as error:
        Credentials.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


KEY, OTHER = base64.b64encode(b"k" * 32).decode(), base64.b64encode(b"o" * 32).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("silos: {}\n", "driver"),
        (f"driver: {{identity: d, signing_key: {KEY}}}\nsilo: {{}}\n", "did you mean 'silos'"),
        ("driver: {identity: d, signing_key: AAAA}\n", "base64 of 32 bytes"),
        (f"driver: {{identity: '', signing_key: {KEY}}}\n", "driver.identity"),
        (
            f"driver: {{identity: d, signing_key: {KEY}}}\nsilos: {{'a/b': {{identity: e, signing_key: {OTHER}}}}}\n",
            "silos",
        ),
        (
            f"driver: {{identity: d, signing_key: {KEY}}}\nsilos: {{a: {{identity: d, signing_key: {OTHER}}}}}\n",
            "that of driver already",
        ),
        (
            f"driver: {{identity: d, signing_key: {KEY}}}\nsilos: {{a: {{identity: e, signing_key: {KEY}}}}}\n",
            "that of driver already",
        ),
        (f"driver: {{identity: d, signing_key: {KEY}}}\nrevoked: [x]\n", "revoked"),
    ],
)
def test_rosters_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "roster.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said) as error:
        Roster.load(path)
    assert "\n" not in str(error.value)


def test_an_expired_ca_signs_nothing(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", "x", days=30, now=NOW - dt.timedelta(days=60))
    with pytest.raises(BadInput, match="expired on"):
        Authority(tmp_path / "ca")
