"""What stands in our certificates and requests."""

import datetime as dt
import ipaddress
import re
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.core.errors import BadInput

SILO_USES = (ExtendedKeyUsageOID.CLIENT_AUTH,)
DRIVER_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_CLOCKS_DIFFER = dt.timedelta(hours=1)
_HOST = re.compile(r"^(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*$")


def common_name(name: str) -> x509.Name:
    """Names longer than a certificate may hold are cut: identity is the alternative name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def subject_of(name: str, signing_key: str) -> x509.Name:
    """Subject of a request: the TLS key vouches for the signing key that stands in it."""
    key = x509.NameAttribute(NameOID.SERIAL_NUMBER, signing_key)
    return x509.Name([*common_name(name), key])


def host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Alternative names for TLS; `BadInput` for what is no host."""
    return [_host(each) for each in dict.fromkeys(hosts)]


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.match(host):
            raise BadInput(f"--host: '{host}' is neither a host name nor an IP address") from None
        return x509.DNSName(host)


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: given.get(name, False) for name in names.split()})


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    until: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def ca_certificate(
    key: ec.EllipticCurvePrivateKey, name: str, days: int, now: dt.datetime
) -> x509.Certificate:
    """The CA's own certificate, signed by itself."""
    until = now + dt.timedelta(days=days)
    return (
        _builder(common_name(name), common_name(name), key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def signed(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    name: str,
    key: ec.EllipticCurvePublicKey,
    names: Iterable[x509.GeneralName],
    uses: Iterable[x509.ObjectIdentifier],
    now: dt.datetime,
    days: int,
) -> x509.Certificate:
    """A member's certificate; the first of ``names`` is its identity."""
    until = min(now + dt.timedelta(days=days), issuer.not_valid_after_utc)
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    return (
        _builder(common_name(name), issuer.subject, key, now, until)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(by, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
