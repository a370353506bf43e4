"""Checks of a server's and a node's key files, made before Flower reads them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.sealing import signing

from .certificates import certificates, check_authority, names_of, refusal
from .pki import address, general_name, openssh_line

_NODE_HINT = "make one: ssh-keygen -t ecdsa -b 384 -N '' -f FILE"


def check_server(
    certificate: Path, private_key: Path, authority: Path, hosts: Sequence[str]
) -> list[str]:
    """Check that clients which trust the authority will accept the server's certificate.

    A TLS handshake in memory for each host: what OpenSSL says to it is what it will say to
    the clients.

    Args:
        certificate: The server's, in PEM; certificates of intermediate authorities follow it.
        private_key: Of the certificate, in PEM, without a passphrase.
        authority: Its certificate, the one that clients have.
        hosts: Where the server is to listen, and by which names clients will reach it.

    Returns:
        What is no fault but good to know, one sentence each.

    Raises:
        DeploymentError: A file that is missing, damaged or open to others; a key of another
            certificate; a certificate that is expired, not yet valid, of another authority
            or for other hosts.
        KeyFileError: No key file can be read.
    """
    check_authority(authority)
    chain = certificates(certificate)
    key = _server_key(private_key)
    if signing.public_pem(key.public_key()) != signing.public_pem(chain[0].public_key()):
        raise DeploymentError(
            f"{private_key} is not the key of the certificate in {certificate}",
            hint="give the key that was made with the certificate",
        )
    try:
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(certificate, private_key, password=lambda: "")
    except ssl.SSLError as error:
        raise DeploymentError(
            f"{certificate} and {private_key} cannot serve TLS: {error.reason}",
            hint="make them anew: an EC key on P-256 or P-384, or RSA of 2048 bits or more",
        ) from None
    trusting = ssl.create_default_context(cafile=authority)  # this authority and no other
    notes = []
    for host in dict.fromkeys(hosts):
        called, listening = host, address(host)
        if listening is not None and listening.is_unspecified:
            # Clients have other names for it; the certificate has to know one at least.
            names = names_of(chain[0])
            called = names[0].replace("*", "any") if names else host
            known = " or ".join(names)
            notes.append(f"{host} is every address of this machine: clients must call it {known}")
        else:
            general_name(host)  # refuses what is none
        try:
            _handshake(serving, trusting, called)
        except ssl.SSLCertVerificationError as error:
            raise refusal(error, certificate) from None
    return notes


def check_node_key(private: Path, public: Path | None = None) -> None:
    """Check that Flower accepts the file as a node's key.

    Args:
        private: OpenSSH's format, EC on P-256, P-384 or P-521, without a passphrase.
        public: Its public half as OpenSSH writes it; None checks the private half alone.

    Raises:
        DeploymentError: Another format or kind, a passphrase, halves of two keys, or a
            private file that others can read.
        KeyFileError: A file cannot be read.
    """
    data = signing.read(private)
    _check_private(private)
    try:
        key = serialization.load_ssh_private_key(data, None)
    except TypeError:
        raise DeploymentError(
            f"{private} is locked with a passphrase, which Flower cannot be told",
            hint=f"unlock it: ssh-keygen -p -N '' -f {private}",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise DeploymentError(
            f"{private} is not a private key in OpenSSH's format", hint=_NODE_HINT
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(
            f"{private} holds a key of another kind, expected ECDSA", hint=_NODE_HINT
        )
    if public is not None and node_line(public) != openssh_line(key.public_key()):
        raise DeploymentError(
            f"{public} is not the public half of {private}",
            hint=f"write it anew: ssh-keygen -y -f {private} > {public}",
        )


def node_line(public: Path) -> bytes:
    """A node's public key as one OpenSSH line without its comment: equal for equal keys.

    Raises:
        DeploymentError: Not such a key, or on no NIST curve.
        KeyFileError: The file cannot be read.
    """
    try:
        key = serialization.load_ssh_public_key(signing.read(public))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(
            f"{public} is not a node's public key, expected: ecdsa-sha2-nistp384 AAAA…",
            hint="give the .pub file that ssh-keygen or fedvtc-edge keys trial wrote",
        )
    return openssh_line(key)


def _handshake(serving: ssl.SSLContext, trusting: ssl.SSLContext, host: str) -> None:
    """Both ends of a handshake in memory; raises the client's SSLCertVerificationError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    open_ends = [trusting.wrap_bio(to_client, to_server, server_hostname=host), server]
    while open_ends:
        for end in tuple(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass  # it is the other's turn


def _server_key(path: Path) -> PrivateKeyTypes:
    data = signing.read(path)
    _check_private(path)
    try:
        return serialization.load_pem_private_key(data, None)
    except TypeError:
        raise DeploymentError(
            f"{path} is locked with a passphrase, which Flower cannot be told",
            hint=f"unlock it: openssl pkey -in {path} -out NEW",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise DeploymentError(
            f"{path} is not a private key in PEM",
            hint="expected a file that begins with -----BEGIN PRIVATE KEY-----",
        ) from None


def _check_private(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise DeploymentError(
            f"the private key {path} is open to others (mode {mode:04o}, expected 0600)",
            hint=f"chmod 600 {path}",
        )
