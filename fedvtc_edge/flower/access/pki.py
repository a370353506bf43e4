"""Certificates for the server's TLS (RFC 5280) and the keys by which Flower knows its nodes.

All keys are EC on P-384, all signatures ECDSA with SHA-384 (RFC 5480, RFC 5758): TLS
everywhere has them, and for nodes Flower takes nothing but a NIST curve.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.sealing import signing

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_DAYS = 3650
_SKEW = timedelta(minutes=5)  # clocks of devices are late; a certificate of now would be of later
_LONGEST_NAME = 64  # of a common name, RFC 5280
_LONGEST_HOST = 253
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(
    # The last label is no number, or a mistyped address would be a name.
    rf"(\*\.)?({_LABEL}\.)*(?!\d+\Z){_LABEL}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Credentials:
    """A certificate and the private key of whom it names."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"<Credentials {self.certificate.subject.rfc4514_string()}>"

    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, passphrase: str | None = None) -> bytes:
        """The private key as PKCS #8 in PEM, encrypted where there is a passphrase."""
        return signing.private_pem(self.key, passphrase)


class NodeKey(NamedTuple):
    """A node's key as OpenSSH writes it: the private file, and the line that goes to the server."""

    private: bytes
    public: bytes


def new_authority(name: str, days: int, *, now: datetime | None = None) -> Credentials:
    """A certificate authority of one's own, which signs servers and no other authority.

    Args:
        name: Its common name, 1 to 64 characters.
        days: Valid for so long, 1 to :data:`MAX_DAYS`.
        now: The time of making; None for the clock's.

    Raises:
        DeploymentError: A name or a number of days out of range.
    """
    if not 0 < len(name) <= _LONGEST_NAME:
        raise DeploymentError(
            f"an authority's name of {len(name)} characters, expected 1 to {_LONGEST_NAME}",
            hint="choose another name",
        )
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _named(name)
    certificate = (
        _begun(subject, subject, key, _validity(days, now))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA384())
    )
    return Credentials(certificate, key)


def server_certificate(
    authority: Credentials, hosts: Sequence[str], days: int, *, now: datetime | None = None
) -> Credentials:
    """A server's certificate and its new private key.

    Args:
        authority: Signs it; the certificate ends no later than the authority's.
        hosts: Names and addresses by which clients reach the server, at least one.
        days: Valid for so long, 1 to :data:`MAX_DAYS`.
        now: The time of making; None for the clock's.

    Raises:
        DeploymentError: No host, or one that nobody can name; days out of range.
    """
    if not hosts:
        raise DeploymentError("no host to certify", hint="name at least one: --host NAME")
    names = [general_name(host) for host in dict.fromkeys(hosts)]
    begin, end = _validity(days, now)
    key = ec.generate_private_key(ec.SECP384R1())
    issuer = authority.certificate
    validity = begin, min(end, issuer.not_valid_after_utc)
    certificate = (
        _begun(_named("fedvtc-edge server"), issuer.subject, authority.key, validity, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA384())
    )
    return Credentials(certificate, key)


def node_key() -> NodeKey:
    """A new key by which Flower's server knows a node; the private half has no passphrase."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),  # Flower asks nobody for one
    )
    return NodeKey(private, openssh_line(key.public_key()) + b"\n")


def openssh_line(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as ``ecdsa-sha2-nistp384 AAAA…``, without comment or line feed."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def address(host: str) -> Address | None:
    """``host`` as an IP address, or None when it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def general_name(host: str) -> x509.GeneralName:
    """``host`` as a certificate names it: an address, or else a DNS name.

    Raises:
        DeploymentError: Neither, or an address that no client can reach a server by.
    """
    found = address(host)
    if found is None and len(host) <= _LONGEST_HOST and _HOST.fullmatch(host):
        return x509.DNSName(host)
    if found is None:
        raise DeploymentError(
            f"{host!r:.80} is neither a host name nor an address",
            hint="such as server.example.org, 192.0.2.7 or 2001:db8::7; without https:// and port",
        )
    if found.is_unspecified or getattr(found, "scope_id", None):
        raise DeploymentError(
            f"{host} is no address that a client can reach",
            hint="name the addresses of the machine one by one, or its host name",
        )
    return x509.IPAddress(found)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _validity(days: int, now: datetime | None) -> tuple[datetime, datetime]:
    if not 1 <= days <= MAX_DAYS:
        raise DeploymentError(
            f"a certificate for {days} days, expected 1 to {MAX_DAYS}", hint="set --days"
        )
    begin = now or datetime.now(UTC)
    return begin - _SKEW, begin + timedelta(days=days)


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    validity: tuple[datetime, datetime],
    key: ec.EllipticCurvePrivateKey | None = None,
) -> x509.CertificateBuilder:
    """Builder of a certificate; ``key`` is None for one that signs itself."""
    public = (key or signer).public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            # By name alone, a peer that holds two authorities of one name may try the wrong one.
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    kinds = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{kind: kind in allowed for kind in kinds})
