# SPDX-License-Identifier: Apache-2.0
"""The cluster's own certificate authority: one name each for a host, an operator and the controllers.

Names are URIs in the subject's alternative name: `ffswitch://host/NAME`, `ffswitch://admin`, `ffswitch://controller`.
Keys are on P-256, which each TLS library knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ADMIN = "ffswitch://admin"
CONTROLLER = "ffswitch://controller"
HOST_PREFIX = "ffswitch://host/"
# The name that every controller's certificate has, whatever its addresses: clients ask for this one.
SERVER_NAME = "ffcontroller"

# Clocks differ: a certificate begins this long before the controller's now.
BACKDATED = timedelta(minutes=5)
AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
HOST_LIFE = timedelta(days=30)
ADMIN_LIFE = timedelta(days=365)


class SecurityError(Exception):
    """A certificate, key or token that does not do: one line that says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def host_uri(host: str) -> str:
    """The name of a host's certificate."""
    return HOST_PREFIX + host


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, not encrypted: its file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signing_request(key: ec.EllipticCurvePrivateKey, uri: str) -> bytes:
    """A PKCS #10 request for the name `uri`, PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(_alternative(uri), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The first certificate of a PEM text; SecurityError names `what`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SecurityError(f"{what} is no PEM certificate: {error}") from None


def uri_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The URI that a certificate or a request is for; "" when it has none, or several."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    return found[0] if len(found) == 1 else ""


def issue_time(certificate: x509.Certificate) -> datetime:
    """When an authority made the certificate, by the controller's clock."""
    return certificate.not_valid_before_utc + BACKDATED


def check_times(certificate: x509.Certificate, what: str, now: datetime) -> None:
    """SecurityError when `certificate` is not valid at `now`; the line names both clocks."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if first <= now < last:
        return
    clock = f"this machine's clock says {clock_text(now)}"
    if now < first:
        issued = clock_text(issue_time(certificate))
        raise SecurityError(f"{what} was issued at {issued} by the controller's clock, but {clock}: set the clocks")
    raise SecurityError(f"{what} ended at {clock_text(last)}, and {clock}: get a new one, or set the clock")


def clock_text(when: datetime) -> str:
    """A time as errors show it."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Authority:
    """Signs certificates. `certificate` is its own, PEM; further ones may follow that clients are to trust too."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        """Raises SecurityError when the two are not PEM, or do not belong together."""
        self.certificate = certificate
        self._own = read_certificate(certificate, "the authority's certificate")
        try:
            loaded = serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise SecurityError(f"the authority's key is no PEM key: {error}") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != self._own.public_key():
            raise SecurityError("the authority's key is not that of its certificate: copy both from one controller")
        self._key = loaded

    @classmethod
    def create(cls, now: datetime) -> tuple[Authority, KeyPair]:
        """A new authority, and what to keep of it."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ffswitch authority")])
        builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        pair = KeyPair(_pem(builder.sign(key, hashes.SHA256())), key_pem(key))
        return cls(pair.certificate, pair.key), pair

    def public_key(self) -> bytes:
        """The authority's key as a compressed point (33 bytes), for tokens."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )

    def issue_server(self, now: datetime) -> KeyPair:
        """A certificate and key for a controller."""
        key = new_key()
        names = [x509.DNSName(SERVER_NAME), x509.UniformResourceIdentifier(CONTROLLER)]
        return KeyPair(self._issue(key.public_key(), "controller", names, now, SERVER_LIFE, server=True), key_pem(key))

    def issue_admin(self, now: datetime) -> KeyPair:
        """A certificate and key for an operator."""
        key = new_key()
        names = [x509.UniformResourceIdentifier(ADMIN)]
        return KeyPair(self._issue(key.public_key(), "admin", names, now, ADMIN_LIFE), key_pem(key))

    def issue_host(self, request: bytes, host: str, now: datetime, life: timedelta = HOST_LIFE) -> bytes:
        """The certificate, PEM, that `request` asks for; SecurityError when that is not host `host`'s."""
        try:
            csr = x509.load_pem_x509_csr(request)
            signed = csr.is_signature_valid
        except ValueError as error:
            raise SecurityError(f"the certificate request of host {host} is no PKCS #10 PEM: {error}") from None
        public = csr.public_key()
        if not signed or not isinstance(public, ec.EllipticCurvePublicKey):
            raise SecurityError(f"the certificate request of host {host} is not signed by a P-256 key of its own")
        if uri_of(csr) != host_uri(host):
            asked = uri_of(csr) or "no name"
            raise SecurityError(f"the certificate request is for {asked}, not for {host_uri(host)}: ask for your own")
        return self._issue(public, host, [x509.UniformResourceIdentifier(host_uri(host))], now, life)

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        common: str,
        names: Sequence[x509.GeneralName],
        now: datetime,
        life: timedelta,
        *,
        server: bool = False,
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        builder = _builder(subject, self._own.subject, public, now, life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256()))


def signed_by(certificate: x509.Certificate, public_point: bytes) -> bool:
    """Whether the authority with that key, as `Authority.public_key` gives it, signed `certificate`."""
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_point)
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None:
        return False
    try:
        public.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
