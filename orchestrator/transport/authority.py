"""A consortium's own small CA: for those who have none. It signs requests; the keys are made where they are used,
unless somebody wants them made here."""

import datetime as dt
import fcntl
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from orchestrator.core.errors import BadInput
from orchestrator.keys import (
    PRIVATE,
    PUBLIC,
    SIGNING_KEY,
    make_folder,
    pem,
    private_key,
    read_private,
    write,
)
from orchestrator.roster import (
    DRIVER,
    DRIVER_NAME,
    ROSTER,
    Entry,
    Roster,
    RosterFile,
    check_name,
    encoded,
    silo_identity,
)
from orchestrator.transport.certificates import (
    DRIVER_USES,
    SILO_USES,
    ca_certificate,
    host_names,
    signed,
)
from orchestrator.transport.certs import CA_CERT, TLS_CERT, TLS_KEY, read_certificate
from orchestrator.transport.key_files import check_absent, read, write_keys
from orchestrator.transport.request import Request

CA_KEY = "ca.key"
CA_DAYS, DAYS = 3650, 825
HOSTS = ("localhost", "127.0.0.1")


class Authority:
    """The folder of the CA: its key and certificate, the roster, and the credentials that it made."""

    def __init__(self, folder: Path, now: dt.datetime | None = None) -> None:
        if not (folder / CA_KEY).is_file():
            raise BadInput(f"{folder}: no {CA_KEY} here; 'siloray certs init {folder}' makes a CA")
        self.folder = folder
        self.certificate = read_certificate(folder / CA_CERT)
        self._now = now or dt.datetime.now(dt.UTC)
        if self.certificate.not_valid_after_utc <= self._now:
            raise BadInput(f"{folder / CA_CERT}: expired on {self.certificate.not_valid_after_utc:%F}")

    @classmethod
    def found(
        cls, folder: Path, name: str, days: int = CA_DAYS, force: bool = False, now: dt.datetime | None = None
    ) -> "Authority":
        """A new CA, and no member yet."""
        check_absent(folder, (CA_KEY, CA_CERT, ROSTER), force)
        key, now = ec.generate_private_key(ec.SECP256R1()), now or dt.datetime.now(dt.UTC)
        make_folder(folder)
        (folder / ROSTER).unlink(missing_ok=True)
        write(folder / CA_KEY, pem(key), PRIVATE)
        write(folder / CA_CERT, ca_certificate(key, name, days, now).public_bytes(Encoding.PEM), PUBLIC)
        return cls(folder, now)

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str,
        days: int = CA_DAYS,
        hosts: Sequence[str] = HOSTS,
        force: bool = False,
        now: dt.datetime | None = None,
    ) -> "Authority":
        """A new CA, and the driver's credentials, keys included."""
        host_names(hosts)
        made = cls.found(folder, name, days, force, now)
        made.issue_driver(hosts, force=force)
        return made

    def issue_driver(
        self, hosts: Sequence[str] = HOSTS, days: int = DAYS, force: bool = False, out: Path | None = None
    ) -> Path:
        """New keys and a certificate for the driver; the old ones count no longer."""
        return self._issue(DRIVER_NAME, out, hosts, days, force)

    def issue_silo(self, name: str, out: Path | None = None, days: int = DAYS, force: bool = False) -> Path:
        """A silo's whole credentials folder, keys included."""
        check_name(name)
        return self._issue(name, out, (), days, force)

    def answer(
        self,
        name: str,
        path: Path,
        out: Path | None = None,
        days: int = DAYS,
        force: bool = False,
        hosts: Sequence[str] = HOSTS,
    ) -> Path:
        """Sign the request of a silo, or of the ``driver``: a folder with what it puts beside its keys, all public.

        ``hosts``: by what names or addresses silos reach the driver.
        """
        if name != DRIVER_NAME:
            check_name(name)
        request, folder = Request.load(path), out or self.folder / name
        if request.name != name:
            raise BadInput(f"{path}: a request of '{request.name}', not of '{name}'")
        public = request.csr.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise BadInput(f"{path}: the TLS key must be an elliptic-curve one (P-256)")
        with self._locked():
            check_absent(folder, (TLS_CERT,), force)
            roster = self._with(name, request.signing_key, force)
            certificate = self._certificate(name, public, hosts, days)
            make_folder(folder)
            self._hand_over(folder, certificate, roster)
        return folder

    def revoke(self, name: str) -> None:
        """The silo's key counts no longer, and the silo is no member."""
        with self._locked():
            file = self._roster()
            if name not in file.silos:
                known = ", ".join(file.silos) or "none"
                raise BadInput(f"{self.folder / ROSTER}: no silo '{name}' here; there are: {known}")
            silos = dict(file.silos)
            revoked = (*file.revoked, silos.pop(name).signing_key)
            self._save(file.model_copy(update={"silos": silos, "revoked": revoked}))

    def _issue(self, name: str, out: Path | None, hosts: Sequence[str], days: int, force: bool) -> Path:
        folder = out or self.folder / name
        with self._locked():
            check_absent(folder, (TLS_KEY, SIGNING_KEY, TLS_CERT), force)
            tls, signing = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
            roster = self._with(name, signing.public_key(), force)
            certificate = self._certificate(name, tls.public_key(), hosts, days)
            write_keys(folder, tls, signing)
            self._hand_over(folder, certificate, roster)
        return folder

    def _certificate(
        self, name: str, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], days: int
    ) -> x509.Certificate:
        if name == DRIVER_NAME:
            names = [x509.UniformResourceIdentifier(DRIVER), *host_names(hosts)]
            return self._sign(name, key, names, DRIVER_USES, days)
        return self._sign(name, key, [x509.UniformResourceIdentifier(silo_identity(name))], SILO_USES, days)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        names: Iterable[x509.GeneralName],
        uses: Iterable[x509.ObjectIdentifier],
        days: int,
    ) -> x509.Certificate:
        return signed(self.certificate, self._key(), name, key, names, uses, self._now, days)

    def _key(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / CA_KEY
        key = private_key(path, read_private(path))
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BadInput(f"{path}: expected an elliptic-curve key")
        return key

    def _with(self, name: str, key: Ed25519PublicKey, force: bool) -> RosterFile:
        """The roster with this member, the driver or a silo; the driver is the first."""
        path, signing_key = self.folder / ROSTER, encoded(key)
        if name == DRIVER_NAME and not path.exists():
            return RosterFile(driver=Entry(identity=DRIVER, signing_key=signing_key))
        file = self._roster()
        members = {DRIVER_NAME: file.driver, **file.silos}
        if name in members and not force:
            raise BadInput(f"{path}: '{name}' has a key already; --force replaces it")
        others = {each.signing_key for other, each in members.items() if other != name}
        if signing_key in {*file.revoked, *others}:
            raise BadInput(f"the signing key of '{name}' is revoked or another member's; make new keys")
        if name == DRIVER_NAME:
            return file.model_copy(update={"driver": Entry(identity=DRIVER, signing_key=signing_key)})
        entry = Entry(identity=silo_identity(name), signing_key=signing_key)
        return file.model_copy(update={"silos": {**file.silos, name: entry}})

    def _hand_over(self, folder: Path, certificate: x509.Certificate, roster: RosterFile) -> None:
        write(folder / TLS_CERT, certificate.public_bytes(Encoding.PEM), PUBLIC)
        write(folder / CA_CERT, read(self.folder / CA_CERT), PUBLIC)
        write(folder / ROSTER, written(roster).encode(), PUBLIC)
        self._save(roster)

    def _roster(self) -> RosterFile:
        if not (self.folder / ROSTER).exists():
            raise BadInput(f"{self.folder}: no {ROSTER} yet; 'siloray certs issue --driver' comes first")
        return Roster.load(self.folder / ROSTER).file

    def _save(self, roster: RosterFile) -> None:
        """Write the roster, and its copies in the folders below."""
        copies = [path for path in self.folder.glob(f"*/{ROSTER}") if not path.is_symlink()]
        for path in (self.folder / ROSTER, *copies):
            write(path, written(roster).encode(), PUBLIC)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two commands at once must not lose each other's entry in the roster."""
        with (self.folder / CA_KEY).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def written(roster: RosterFile) -> str:
    """The roster as text; names are quoted, since YAML reads some (``1e5``, ``no``) as something else."""
    lines = ["# Who takes part. Public, no secrets; the driver and every silo have a copy."]
    lines += [f"driver: {_entry(roster.driver)}", "silos:" if roster.silos else "silos: {}"]
    lines += [f"  {json.dumps(name)}: {_entry(entry)}" for name, entry in roster.silos.items()]
    lines += ["revoked:" if roster.revoked else "revoked: []"]
    return "\n".join([*lines, *[f"  - {json.dumps(key)}" for key in roster.revoked]]) + "\n"


def _entry(entry: Entry) -> str:
    return f"{{identity: {json.dumps(entry.identity)}, signing_key: {json.dumps(entry.signing_key)}}}"
