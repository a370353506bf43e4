"""Faults of certificates and node keys, each said in words before Flower sees the files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fedvtc_edge.errors import DeploymentError, KeyFileError
from fedvtc_edge.flower.access import pki
from fedvtc_edge.flower.access.certificates import check_authority
from fedvtc_edge.flower.access.checks import check_node_key, check_server, node_line

NOW = datetime.now(UTC)
DAY = timedelta(days=1)

posix = pytest.mark.skipif(os.name != "posix", reason="permissions")


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


class Files:
    """ca.crt, server.crt and server.key of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = pki.new_authority("an authority", 30)
        self.ca = write(folder / "ca.crt", self.authority.certificate_pem())
        self.serve(["localhost", "127.0.0.1"])

    def serve(self, hosts: list[str], now: datetime = NOW, days: int = 10) -> pki.Credentials:
        made = pki.server_certificate(self.authority, hosts, days, now=now)
        self.certificate = write(self.folder / "server.crt", made.certificate_pem())
        self.key = write(self.folder / "server.key", made.key_pem())
        return made

    def check(self, *hosts: str) -> list[str]:
        return check_server(self.certificate, self.key, self.ca, hosts or ("localhost",))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# ---------------------------------------------------------------- the server's certificate


def test_a_server_that_clients_take(files: Files) -> None:
    assert files.check("localhost", "127.0.0.1") == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_has_a_note(files: Files, host: str) -> None:
    files.serve(["a.test", "10.0.0.7", "127.0.0.1", "::1"])
    (note,) = files.check("a.test", host)
    assert note == (
        f"{host} is every address of this machine: "
        "clients must call it a.test or 10.0.0.7 or 127.0.0.1 or ::1"
    )


@pytest.mark.parametrize("name", ["a.test", "10.0.0.7", "::1"])
def test_every_address_needs_one_name_and_no_loopback(files: Files, name: str) -> None:
    files.serve([name])
    (note,) = files.check("0.0.0.0")
    assert note.endswith(f"clients must call it {name}")


def test_a_certificate_without_names_serves_no_address(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvtc_edge.flower.access.checks.names_of", lambda certificate: [])
    with pytest.raises(DeploymentError, match=r"server\.crt is refused: .*'0\.0\.0\.0'"):
        files.check("0.0.0.0")


@pytest.mark.parametrize("host", ["", ".test", "a b", "https://localhost"])
def test_what_is_no_host(files: Files, host: str) -> None:
    with pytest.raises(DeploymentError, match="neither a host name nor an address"):
        files.check(host)


def test_intermediate_authorities(files: Files, tmp_path: Path) -> None:
    """A certificate whose authority is known through another, as ``openssl`` would make it."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here")
    run(tmp_path, "req -x509 -newkey rsa:2048 -nodes -keyout r.key -out root.crt -subj /CN=root")
    write(tmp_path / "ca.ext", b"basicConstraints=critical,CA:TRUE\n")
    write(tmp_path / "leaf.ext", b"subjectAltName=DNS:localhost\n")
    for name, issuer, ext in (("mid", "root.crt", "ca"), ("leaf", "mid.crt", "leaf")):
        key = "r.key" if issuer == "root.crt" else "mid.key"
        run(
            tmp_path,
            f"req -new -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}",
        )
        run(
            tmp_path,
            f"x509 -req -in {name}.csr -CA {issuer} -CAkey {key} -out {name}.crt "
            f"-extfile {ext}.ext -CAcreateserial -days 2",
        )
    leaf, mid = (tmp_path / name for name in ("leaf.crt", "mid.crt"))
    files.ca, files.key = tmp_path / "root.crt", tmp_path / "leaf.key"
    files.key.chmod(0o600)
    files.certificate = leaf
    with pytest.raises(DeploymentError, match="is refused: unable to get local issuer"):
        files.check()
    files.certificate = write(tmp_path / "chain.crt", leaf.read_bytes() + mid.read_bytes())
    assert files.check() == []


def run(folder: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


def other_key(files: Files) -> None:
    write(files.key, pki.new_authority("x", 1).key_pem())


def locked_key(files: Files) -> None:
    made = files.serve(["localhost"])
    write(files.key, made.key_pem("secret"))


def damaged(path: str) -> Callable[[Files], None]:
    return lambda files: path_of(files, path).write_bytes(b"-----BEGIN nothing") and None


def missing(path: str) -> Callable[[Files], None]:
    return lambda files: path_of(files, path).unlink()


def path_of(files: Files, name: str) -> Path:
    return files.folder / name


def old_authority(files: Files) -> None:
    files.authority = pki.new_authority("an authority", 2, now=NOW - 5 * DAY)
    write(files.ca, files.authority.certificate_pem())


FAULTS: dict[str, tuple[Callable[[Files], object], str, str]] = {
    "other key": (other_key, "server.key is not the key of the certificate in .*", "made with"),
    "locked": (locked_key, "locked with a passphrase, which Flower cannot", "openssl pkey -in"),
    "no key": (damaged("server.key"), "server.key is not a private key in PEM", "BEGIN PRIVATE"),
    "no certificate": (damaged("server.crt"), "server.crt is not a certificate", "BEGIN CERT"),
    "no authority": (damaged("ca.crt"), "ca.crt is not a certificate in PEM", "BEGIN CERT"),
    "absent certificate": (missing("server.crt"), "cannot read the certificate", "the path"),
    "absent authority": (missing("ca.crt"), "cannot read the certificate .*ca.crt: no such", "pa"),
    "expired": (
        lambda files: files.serve(["localhost"], NOW - 9 * DAY, 2),
        "server.crt is refused: certificate has expired",
        "clock if it is wrong",
    ),
    "to come": (
        lambda files: files.serve(["localhost"], NOW + 9 * DAY, 2),
        "server.crt is refused: certificate is not yet valid",
        "set the clock",
    ),
    "old authority": (old_authority, "server.crt is refused: .*certificate", ""),
    "other authority": (
        lambda files: write(files.ca, pki.new_authority("an authority", 5).certificate_pem()),
        "server.crt is refused: ",
        "need the ca.crt",
    ),
    "no authority's": (
        lambda files: write(files.ca, files.certificate.read_bytes()),
        "ca.crt holds no certificate of an authority",
        "not the server's",
    ),
    "other host": (
        lambda files: files.serve(["a.test", "10.0.0.1"]),
        "server.crt is refused: Hostname mismatch, certificate is not valid for 'localhost'",
        "by a name in its certificate",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_server(files: Files, fault: str) -> None:
    spoil, message, hint = FAULTS[fault]
    spoil(files)
    with pytest.raises(DeploymentError, match=message) as caught:
        files.check()
    assert hint in caught.value.hint


def test_a_key_that_is_absent(files: Files) -> None:
    files.key.unlink()
    with pytest.raises(KeyFileError, match="cannot read the key"):
        files.check()


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read(files: Files, mode: int) -> None:
    files.key.chmod(mode)
    with pytest.raises(DeploymentError, match=f"open to others .mode {mode:04o}") as caught:
        files.check()
    assert caught.value.hint == f"chmod 600 {files.key}"


def test_a_key_that_openssl_does_not_serve_with(files: Files) -> None:
    """Too short for what OpenSSL calls secure."""
    key = rsa.generate_private_key(65537, 1024)
    made = files.serve(["localhost"])
    certificate = (
        pki._begun(
            made.certificate.subject,
            files.authority.certificate.subject,
            files.authority.key,
            (NOW, NOW + DAY),
            key,  # type: ignore[arg-type]
        )
    ).sign(files.authority.key, made.certificate.signature_hash_algorithm)
    write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write(files.key, key.private_bytes(*pem, serialization.NoEncryption()))
    with pytest.raises(DeploymentError, match="cannot serve TLS: EE_KEY_TOO_SMALL"):
        files.check()


def test_bundles_of_authorities(files: Files, tmp_path: Path) -> None:
    """One that is out of date does no harm beside one that is not."""
    old = pki.new_authority("old", 1, now=NOW - 9 * DAY)
    write(files.ca, old.certificate_pem() + files.authority.certificate_pem())
    check_authority(files.ca)
    assert files.check() == []


# ---------------------------------------------------------------- nodes' keys


def openssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    return key.private_bytes(*form, serialization.NoEncryption())


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_node_key(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    private = write(tmp_path / "node.key", openssh(key))
    public = tmp_path / "node.key.pub"
    public.write_bytes(pki.openssh_line(key.public_key()) + b" who@where\n")
    check_node_key(private)
    check_node_key(private, public)
    assert node_line(public) == pki.openssh_line(key.public_key())


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no OpenSSH here")
def test_as_ssh_keygen_makes_it(tmp_path: Path) -> None:
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", "node.key"]
    subprocess.run(words, cwd=tmp_path, check=True)
    check_node_key(tmp_path / "node.key", tmp_path / "node.key.pub")
    words = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "a secret", "-f", "node.key"]
    subprocess.run(words, cwd=tmp_path, check=True)
    with pytest.raises(DeploymentError, match="locked with a passphrase") as caught:
        check_node_key(tmp_path / "node.key")
    assert caught.value.hint == f"unlock it: ssh-keygen -p -N '' -f {tmp_path / 'node.key'}"


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (openssh(ed25519.Ed25519PrivateKey.generate()), "another kind, expected ECDSA", "-t ecdsa"),
        (pki.new_authority("x", 1).key_pem(), "not a private key in OpenSSH's", "-t ecdsa"),
        (b"", "not a private key in OpenSSH's", "-t ecdsa"),
        (pki.node_key().public, "not a private key in OpenSSH's", "-t ecdsa"),
        (pki.node_key().private[:200], "not a private key in OpenSSH's", "-t ecdsa"),
    ],
    ids=["ed25519", "PEM", "empty", "public", "torn"],
)
def test_what_is_no_node_key(tmp_path: Path, data: bytes, message: str, hint: str) -> None:
    with pytest.raises(DeploymentError, match=message) as caught:
        check_node_key(write(tmp_path / "node.key", data))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [b"", b"x", pki.node_key().private, b"ssh-ed25519 AAAA", b"ecdsa-sha2-nistp384 AAAA"],
    ids=["empty", "garbage", "private", "ed25519", "torn"],
)
def test_what_is_no_public_half(tmp_path: Path, data: bytes) -> None:
    private = write(tmp_path / "node.key", pki.node_key().private)
    with pytest.raises(DeploymentError, match="is not a node's public key"):
        check_node_key(private, write(tmp_path / "node.key.pub", data))


def test_halves_of_two_keys(tmp_path: Path) -> None:
    private = write(tmp_path / "node.key", pki.node_key().private)
    public = write(tmp_path / "other.pub", pki.node_key().public)
    with pytest.raises(DeploymentError, match=r"other.pub is not the public half of .*node.key"):
        check_node_key(private, public)
    with pytest.raises(KeyFileError, match="no such file"):
        check_node_key(private, tmp_path / "absent")
    with pytest.raises(KeyFileError, match="no such file"):
        check_node_key(tmp_path / "absent")


@posix
def test_a_node_key_that_others_can_read(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="mode 0644, expected 0600"):
        check_node_key(write(tmp_path / "node.key", pki.node_key().private, 0o644))
