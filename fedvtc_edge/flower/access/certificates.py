"""Certificates as clients judge them: read, dated, and why one is refused."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from fedvtc_edge.errors import DeploymentError

_CERTIFICATE_HINT = "expected a file that begins with -----BEGIN CERTIFICATE-----"
# OpenSSL's X509_V_ERR_…, from its x509_vfy.h: Python has no names for them.
_OUT_OF_DATE = {9, 10}  # CERT_NOT_YET_VALID, CERT_HAS_EXPIRED
_OTHER_HOST = {62, 64}  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
# CERT_SIGNATURE_FAILURE; a chain that ends nowhere, or in a certificate that nobody trusts.
_OTHER_AUTHORITY = {7, 18, 19, 20, 21}
_NAMES_SHOWN = 8

Extension = TypeVar("Extension", bound=x509.ExtensionType)


def check_authority(path: Path) -> None:
    """Whether the file holds an authority's certificate that is valid now.

    Raises:
        DeploymentError: Missing, no certificate, none of an authority, or expired.
    """
    authorities = [found for found in certificates(path) if _signs_others(found)]
    if not authorities:
        raise DeploymentError(
            f"{path} holds no certificate of an authority",
            hint="give the authority's, ca.crt, not the server's",
        )
    check_dates(authorities, path)


def check_dates(found: Sequence[x509.Certificate], path: Path) -> None:
    """Whether at least one of the certificates of a file is valid now.

    Raises:
        DeploymentError: None of them is.
    """
    if not any(map(_valid_now, found)):
        raise _out_of_date(found[-1], path)


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
            f"{path} is not a certificate in PEM", hint=_CERTIFICATE_HINT
        ) from None


def trusting_only(authority: Path) -> ssl.SSLContext:
    """What a client verifies a server with: this authority and no other, and the host."""
    return ssl.create_default_context(cafile=authority)


def names_of(certificate: x509.Certificate) -> list[str]:
    """Host names and then addresses that a certificate is for."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return []
    hosts = names.get_values_for_type(x509.DNSName)
    # A stranger's certificate may name what would steer a terminal.
    return [host for host in hosts if host.isprintable()] + [
        str(found) for found in names.get_values_for_type(x509.IPAddress)
    ]


def rejection(
    error: ssl.SSLCertVerificationError,
    certificate: x509.Certificate,
    whose: Path | str,
    authority: Path,
    host: str,
) -> DeploymentError:
    """Why a client does not take a server's certificate.

    Args:
        error: What OpenSSL said.
        certificate: The server's.
        whose: Where the certificate is from.
        authority: What the client trusts.
        host: By what the client called the server.
    """
    code = error.verify_code
    if code in _OUT_OF_DATE and not _valid_now(certificate):  # or one above it in the chain is
        return _out_of_date(certificate, whose)
    if code in _OTHER_AUTHORITY:
        return DeploymentError(
            f"the certificate of {whose} is not signed by the authority in {authority}",
            hint="client and server need the ca.crt of who made the server's certificate",
        )
    if code in _OTHER_HOST:
        names = ", ".join(names_of(certificate)[:_NAMES_SHOWN]) or "no host at all"
        return DeploymentError(
            f"the certificate of {whose} is for {names}, not for {host}",
            hint="call the server by one of these, or make a certificate for the other too",
        )
    return DeploymentError(
        f"the certificate of {whose} is refused: {error.verify_message}",
        hint="compare it with docs/distributed.md, or make one with fedvtc-edge keys trial",
    )


def _signs_others(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    """What the certificate says of this kind, or None; a damaged one says nothing."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _valid_now(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc


def _out_of_date(certificate: x509.Certificate, whose: Path | str) -> DeploymentError:
    now = datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        what = f"is not valid before {_minute(certificate.not_valid_before_utc)}"
    else:
        what = f"expired on {_minute(certificate.not_valid_after_utc)}"
    return DeploymentError(
        f"the certificate of {whose} {what}; this machine's clock says {_minute(now)}",
        hint="set the clock if it is wrong; else the certificate must be made anew",
    )


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
