"""A certificate authority of the local stack's own: made at first start, kept in the data folder.

Keys are EC P-256 and readable by their owner alone. A certificate is kept while it is good: for these hosts, by
this authority, of this key, and far enough from its end; whatever is wrong with it, the next start issues another.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
CA_DAYS, LEAF_DAYS = 3650, 365
CA_RENEW_DAYS, LEAF_RENEW_DAYS = 400, 30  # a leaf never outlives the authority that signed it
SKEW = timedelta(minutes=5)  # clocks of clients may be a little behind ours
CERT, KEY = "ca.pem", "ca-key.pem"


@dataclass(frozen=True)
class Ca:
    """The authority of one folder. `bundle` is what clients trust: this authority's certificate, and an older one's
    until it ends."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def bundle(self) -> Path:
        return self.folder / CERT

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = LOOPBACK_HOSTS,
        *,
        client: bool = False,
        now: datetime | None = None,
        days: int = LEAF_DAYS,
    ) -> tuple[Path, Path]:
        """Paths of certificate and key for `name` (its common name too); `client`: it may also prove who a client is.

        Kept from the last time while it is good, else issued anew.
        """
        moment = now or datetime.now(UTC)
        cert_path, key_path = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        if not self._good(cert_path, key_path, hosts, client, moment):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(name, hosts, client, key, moment, days)
            _write(key_path, _pem(key), 0o600)
            _write(cert_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return cert_path, key_path

    def _sign(
        self,
        name: str,
        hosts: Sequence[str],
        client: bool,
        key: ec.EllipticCurvePrivateKey,
        now: datetime,
        days: int,
    ) -> x509.Certificate:
        uses = [ExtendedKeyUsageOID.SERVER_AUTH] + ([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _builder(name, key, now, min(now + timedelta(days=days), self.certificate.not_valid_after_utc))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def _good(
        self, cert_path: Path, key_path: Path, hosts: Sequence[str], client: bool, now: datetime
    ) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
            key = _load_key(key_path)
            certificate.verify_directly_issued_by(self.certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (FileNotFoundError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        return (
            list(names) == [_general(host) for host in hosts]
            and (ExtendedKeyUsageOID.CLIENT_AUTH in uses) == client
            and key.public_key() == certificate.public_key()
            and now + timedelta(days=LEAF_RENEW_DAYS) < certificate.not_valid_after_utc
        )


def ensure_ca(folder: Path, now: datetime | None = None) -> Ca:
    """The authority kept in `folder`, made when there is none, it is damaged, or its end is near."""
    moment = now or datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # the database runs as another user and reads its certificate there; keys are 0600
    known = _read_bundle(folder / CERT, moment)
    if known and moment + timedelta(days=CA_RENEW_DAYS) < known[0].not_valid_after_utc:
        try:
            key = _load_key(folder / KEY)
        except (FileNotFoundError, ValueError, TypeError):
            key = None
        if key is not None and key.public_key() == known[0].public_key():
            return Ca(folder, known[0], key)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, moment)
    _write(folder / KEY, _pem(key), 0o600)
    bundle = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, *known))
    _write(folder / CERT, bundle, 0o644)
    return Ca(folder, certificate, key)


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # a name of its own each time: who trusts two authorities finds the right one by name
    name = f"AOS local authority {now:%Y-%m-%d} {os.urandom(4).hex()}"
    builder = _builder(name, key, now, now + timedelta(days=CA_DAYS))
    return (
        builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _read_bundle(path: Path, now: datetime) -> list[x509.Certificate]:
    """The authorities of a bundle that are still valid, the present one first; none if it cannot be read."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return [each for each in found if each.not_valid_after_utc > now]


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} holds no EC key")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by more than `mode` says, not even for a moment."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def context(bundle: Path) -> ssl.SSLContext:
    """How a client checks a server of this authority: chain, time and host name."""
    return ssl.create_default_context(cafile=str(bundle))
