"""Certificates that OpenSSL takes, and node keys that OpenSSH takes."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import example, given
from hypothesis import strategies as st

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access import pki

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> pki.Credentials:
    return pki.new_authority("a trial", 30)


def handshake(
    folder: Path, authority: pki.Credentials, server: pki.Credentials, host: str
) -> tuple[bytes, str | None]:
    """A real one over a pair of sockets: what the client read, and the TLS version."""
    paths = {name: folder / name for name in ("ca.crt", "server.crt", "server.key")}
    paths["ca.crt"].write_bytes(authority.certificate_pem())
    paths["server.crt"].write_bytes(server.certificate_pem())
    paths["server.key"].write_bytes(server.key_pem())
    ours, theirs = socket.socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(paths["server.crt"], paths["server.key"])

    def serve() -> None:
        try:
            with serving.wrap_socket(theirs, server_side=True) as connection:
                connection.sendall(b"hello")
        except (ssl.SSLError, OSError):
            theirs.close()  # the client's refusal is what counts

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        trusting = ssl.create_default_context(cafile=paths["ca.crt"])
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
        ours.settimeout(30)
        with trusting.wrap_socket(ours, server_hostname=host) as connection:
            return connection.recv(5), connection.version()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "edge.example.org", "a.b.test"])
def test_a_client_takes_the_server(tmp_path: Path, authority: pki.Credentials, host: str) -> None:
    hosts = ["localhost", "127.0.0.1", "::1", "edge.example.org", "*.b.test"]
    server = pki.server_certificate(authority, hosts, 30)
    assert handshake(tmp_path, authority, server, host) == (b"hello", "TLSv1.3")


@pytest.mark.parametrize(
    ("hosts", "days", "ago", "host", "reason"),
    [
        (["localhost"], 30, 0, "example.org", "Hostname mismatch"),
        (["127.0.0.1"], 30, 0, "127.0.0.2", "IP address mismatch"),
        (["localhost"], 30, 0, "127.0.0.1", "IP address mismatch"),
        (["localhost"], 1, 3, "localhost", "has expired"),
        (["localhost"], 1, -3, "localhost", "not yet valid"),
    ],
)
def test_a_client_refuses(
    tmp_path: Path,
    authority: pki.Credentials,
    hosts: Sequence[str],
    days: int,
    ago: int,
    host: str,
    reason: str,
) -> None:
    server = pki.server_certificate(authority, hosts, days, now=NOW - timedelta(days=ago))
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        handshake(tmp_path, authority, server, host)


def test_another_authority_of_the_same_name_is_another(
    tmp_path: Path, authority: pki.Credentials
) -> None:
    server = pki.server_certificate(pki.new_authority("a trial", 30), ["localhost"], 30)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(tmp_path, authority, server, "localhost")


def test_no_server_signs_for_another(tmp_path: Path, authority: pki.Credentials) -> None:
    server = pki.server_certificate(authority, ["localhost"], 30)
    forged = pki.server_certificate(server, ["example.org"], 30)
    chain = tmp_path / "chain"
    chain.mkdir()
    (chain / "chain.crt").write_bytes(forged.certificate_pem() + server.certificate_pem())
    (chain / "key").write_bytes(forged.key_pem())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(chain / "chain.crt", chain / "key")
    (chain / "ca.crt").write_bytes(authority.certificate_pem())
    trusting = ssl.create_default_context(cafile=chain / "ca.crt")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname="example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        serving.wrap_bio(to_server, to_client, server_side=True).do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        client.do_handshake()


# ---------------------------------------------------------------- what is in them


def test_what_a_certificate_says(authority: pki.Credentials) -> None:
    server = pki.server_certificate(authority, ["h.test", "10.0.0.1", "h.test"], 7, now=NOW)
    found = server.certificate
    found.verify_directly_issued_by(authority.certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["h.test"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    whole = NOW.replace(microsecond=0)
    assert found.not_valid_before_utc == whole - timedelta(minutes=5)
    assert found.not_valid_after_utc == whole + timedelta(days=7)
    assert found.signature_hash_algorithm is not None
    assert found.signature_hash_algorithm.name == "sha384"
    assert isinstance(server.key.curve, ec.SECP384R1)
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_a_server_does_not_outlive_its_authority(authority: pki.Credentials) -> None:
    server = pki.server_certificate(authority, ["localhost"], 3000)
    assert server.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_no_two_are_alike_and_no_secret_is_shown() -> None:
    one, two = pki.new_authority("x", 1), pki.new_authority("x", 1)
    assert one.certificate.serial_number != two.certificate.serial_number
    assert repr(one) == "<Credentials CN=x>"
    assert b"ENCRYPTED" in one.key_pem("secret")


@pytest.mark.parametrize(
    "host",
    [
        *("", "a b", "https://x", "x:80", "[::1]", "-a", "a-", "a..b", "300.1.1.1", "1.2.3", "x\n"),
        *("b\u00fccher.example", "a" * 64, ".".join(["a" * 60] * 5), "*", "a.*.b", "10.0.0.1/8"),
        *("0.0.0.0", "::", "fe80::1%eth0"),
    ],
)
def test_what_is_no_host(authority: pki.Credentials, host: str) -> None:
    with pytest.raises(DeploymentError, match=r"neither a host name|no address that a client"):
        pki.server_certificate(authority, ["localhost", host], 30)


@given(st.text(max_size=30))
@example("localhost")
@example("*.a")
@example("1.1.1.1")
def test_a_host_is_named_or_refused(host: str) -> None:
    """Nothing else is raised, and what is named can be encoded."""
    try:
        named = pki.general_name(host)
    except DeploymentError:
        return
    assert str(named.value) in (host, str(pki.address(host)))
    x509.SubjectAlternativeName([named]).public_bytes()


@pytest.mark.parametrize("days", [0, -1, pki.MAX_DAYS + 1])
def test_days_out_of_range(authority: pki.Credentials, days: int) -> None:
    for make in (
        lambda: pki.new_authority("x", days),
        lambda: pki.server_certificate(authority, ["localhost"], days),
    ):
        with pytest.raises(DeploymentError, match=f"for {days} days, expected 1 to 3650"):
            make()


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_names_out_of_range(name: str) -> None:
    with pytest.raises(DeploymentError, match="expected 1 to 64"):
        pki.new_authority(name, 1)


def test_a_server_has_a_host(authority: pki.Credentials) -> None:
    with pytest.raises(DeploymentError, match="no host"):
        pki.server_certificate(authority, [], 1)


# ---------------------------------------------------------------- nodes


def test_a_node_key_is_opensshs() -> None:
    key = pki.node_key()
    private = serialization.load_ssh_private_key(key.private, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    public = serialization.load_ssh_public_key(key.public)
    assert public == private.public_key()
    assert key.public.startswith(b"ecdsa-sha2-nistp384 AAAA")
    assert key.public.endswith(b"\n")


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no OpenSSH here")
def test_openssh_reads_it(tmp_path: Path) -> None:
    key = pki.node_key()
    path = tmp_path / "node.key"
    path.touch(mode=0o600)
    path.write_bytes(key.private)
    done = subprocess.run(
        ["ssh-keygen", "-y", "-f", path], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.split()[:2] == key.public.split()
