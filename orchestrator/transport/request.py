"""A member's request for a certificate: its keys are made where they are used and never leave that machine."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from orchestrator.core.errors import BadInput
from orchestrator.keys import PUBLIC, SIGNING_KEY, write
from orchestrator.roster import DRIVER_NAME, check_name, decoded, encoded
from orchestrator.transport.certificates import subject_of
from orchestrator.transport.certs import TLS_KEY
from orchestrator.transport.key_files import check_absent, read, write_keys

REQUEST = "request.pem"
_PROOF = b"siloray certificate request\0"


@dataclass(frozen=True)
class Request:
    """What a silo or the driver asks of the CA: two public keys, each of which vouches for the other."""

    name: str
    csr: x509.CertificateSigningRequest
    signing_key: Ed25519PublicKey

    @classmethod
    def load(cls, path: Path) -> "Request":
        """Read a request file; `BadInput` unless both keys vouch for all of it."""
        data = read(path)
        try:
            fields = dict(re.findall(r"^(name|signing-key|signature): (\S+)$", data.decode("ascii"), re.M))
            request = cls(fields["name"], x509.load_pem_x509_csr(data), decoded(fields["signing-key"]))
            signature = base64.b64decode(fields["signature"], validate=True)
        except (KeyError, ValueError):
            raise BadInput(f"{path}: no certificate request of 'siloray certs request'") from None
        if not request._vouched(signature):
            raise BadInput(f"{path}: changed since it was made; ask for the file again")
        return request

    def _vouched(self, signature: bytes) -> bool:
        try:
            self.signing_key.verify(signature, _proof(self.csr))
        except InvalidSignature:
            return False
        subject = subject_of(self.name, encoded(self.signing_key))
        return self.csr.is_signature_valid and self.csr.subject == subject


def make_request(name: str, folder: Path, force: bool = False) -> Path:
    """The keys of a silo, or of the ``driver``, and a request for a certificate; only the request is to be sent."""
    if name != DRIVER_NAME:
        check_name(name)
    check_absent(folder, (TLS_KEY, SIGNING_KEY, REQUEST), force)
    tls, signing = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    key = encoded(signing.public_key())
    csr = x509.CertificateSigningRequestBuilder(subject_of(name, key)).sign(tls, hashes.SHA256())
    signature = base64.b64encode(signing.sign(_proof(csr))).decode()
    text = f"name: {name}\nsigning-key: {key}\nsignature: {signature}\n"
    write_keys(folder, tls, signing)
    write(folder / REQUEST, text.encode() + csr.public_bytes(Encoding.PEM), PUBLIC)
    return folder / REQUEST


def _proof(csr: x509.CertificateSigningRequest) -> bytes:
    return _PROOF + csr.public_bytes(Encoding.DER)
