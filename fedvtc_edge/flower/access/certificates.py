"""Certificates in files, and OpenSSL's reason for refusing one, with what to do about it."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509

from fedvtc_edge.errors import DeploymentError

_HINTS = (  # by what OpenSSL says, ssl.SSLCertVerificationError.verify_message
    ("expired", "set this machine's clock if it is wrong; else make a new certificate"),
    ("not yet valid", "set the clock of this machine or of the one that made the certificate"),
    ("not valid for", "call the server by a name in its certificate, or make one with this name"),
    ("", "client and server need the ca.crt of who made the server's certificate"),
)


def check_authority(path: Path) -> None:
    """Refuse a file without a certificate of an authority.

    Raises:
        DeploymentError: Missing, no certificate, or none that may sign others.
    """
    if not any(map(_signs_others, certificates(path))):
        raise DeploymentError(
            f"{path} holds no certificate of an authority",
            hint="give the authority's, ca.crt, not the server's",
        )


def certificates(path: Path) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one.

    Raises:
        DeploymentError: It cannot be read, or holds none.
    """
    try:
        if not path.is_file():  # a pipe or a device would be waited for
            raise FileNotFoundError(2, "no such file")
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise DeploymentError(
            f"cannot read the certificate {path}: {error.strerror}", hint="check the path"
        ) from None
    except ValueError:
        raise DeploymentError(
            f"{path} is not a certificate in PEM",
            hint="expected a file that begins with -----BEGIN CERTIFICATE-----",
        ) from None


def names_of(certificate: x509.Certificate) -> list[str]:
    """Printable host names and then addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    hosts = [host for host in names.get_values_for_type(x509.DNSName) if host.isprintable()]
    return hosts + [str(found) for found in names.get_values_for_type(x509.IPAddress)]


def refusal(error: ssl.SSLCertVerificationError, source: Path | str) -> DeploymentError:
    """OpenSSL's reason for refusing a server's certificate, with a hint.

    Args:
        error: What the handshake raised.
        source: File or address that the certificate is from.
    """
    said = error.verify_message
    return DeploymentError(
        f"the certificate of {source} is refused: {said}",
        hint=next(hint for part, hint in _HINTS if part in said),
    )


def _signs_others(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
