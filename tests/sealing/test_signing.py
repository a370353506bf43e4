"""Keys and signatures: the standard's, in files that keep the secret and are never lost."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import FedVTCWarning, KeyFileError
from fedvtc_edge.sealing import Identity, signing

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHERS: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 1024),
    "X25519": x25519.X25519PrivateKey.generate(),
    "P-256": ec.generate_private_key(ec.SECP256R1()),
}

# RFC 8032, 7.1: secret, public, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c"
        "f9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098"
        "4dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def private_pem(key: Any) -> bytes:
    data: bytes = key.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    )
    return data


# ---------------------------------------------------------------- signatures


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_signatures_are_the_standards(
    secret: str, public: str, message: str, signature: str
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert key.public_key().public_bytes_raw().hex() == public
    assert signing.sign(key, bytes.fromhex(message)).hex() == signature
    assert signing.is_signed(key.public_key(), bytes.fromhex(signature), bytes.fromhex(message))


@hypothesis_settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=200), bit=st.integers(0, 511), tail=st.binary(min_size=1))
def test_only_the_very_signature_of_the_very_bytes_fits(data: bytes, bit: int, tail: bytes) -> None:
    signature = signing.sign(KEY, data)
    public = KEY.public_key()
    assert len(signature) == signing.SIGNATURE_BYTES
    assert signing.sign(KEY, data) == signature
    assert signing.is_signed(public, signature, data)
    off = bytearray(signature)
    off[bit // 8] ^= 1 << bit % 8
    assert not signing.is_signed(public, bytes(off), data)
    assert not signing.is_signed(public, signature, data + tail)
    assert not signing.is_signed(public, signature + tail, data)
    assert not signing.is_signed(public, signature[:-1], data)
    assert not signing.is_signed(signing.generate().public_key(), signature, data)


def test_golden_fingerprint() -> None:
    """Read aloud and written down: changing it makes every key look like a stranger's."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS[0][0])).public_key()
    assert signing.fingerprint(key) == "SHA256:If4x36FUomFia/hUBG/SJxt77UtqvkWqWId+9H+XIbk"
    assert signing.fingerprint(KEY.public_key()) != signing.fingerprint(key)


def test_no_two_keys_are_equal() -> None:
    assert len({signing.generate().private_bytes_raw() for _ in range(20)}) == 20


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("passphrase", [None, "", "a", "correct horse", "pässwörd 犬", "x" * 1023])
def test_a_saved_key_comes_back(tmp_path: Path, passphrase: str | None) -> None:
    public_path = signing.save(KEY, tmp_path / "key", passphrase=passphrase)
    assert public_path == tmp_path / "key.pub"
    loaded = signing.load_private(tmp_path / "key", passphrase=passphrase)
    assert loaded.private_bytes_raw() == KEY.private_bytes_raw()
    assert signing.load_public(public_path) == KEY.public_key()
    text = (tmp_path / "key").read_text()
    assert ("ENCRYPTED" in text) == bool(passphrase)
    assert sorted(os.listdir(tmp_path)) == ["key", "key.pub"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_the_private_key_is_its_owners_alone(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        public_path = signing.save(KEY, tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(public_path.stat().st_mode) == 0o644


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_private_key_that_others_can_read_is_warned_about(tmp_path: Path, mode: int) -> None:
    signing.save(KEY, tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.warns(FedVTCWarning, match=f"open to others .mode {mode:04o}.: chmod 600"):
        signing.load_private(tmp_path / "key")
    Identity.generate().save(tmp_path / "identity")
    (tmp_path / "identity").chmod(mode)
    with pytest.warns(FedVTCWarning, match=f"identity is open to others .mode {mode:04o}"):
        Identity.load(tmp_path / "identity")
    signing.load_public(tmp_path / "key.pub")  # no warning: others may, and are to, read it


@pytest.mark.parametrize("there", ["key", "key.pub"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_no_key_is_ever_replaced(tmp_path: Path, there: str, what: str) -> None:
    path = tmp_path / there
    path.mkdir() if what == "folder" else path.write_text("precious")
    with pytest.raises(KeyFileError, match=f"{there} (exists|is a folder)"):
        signing.save(KEY, tmp_path / "key")
    assert os.listdir(tmp_path) == [there]
    assert what == "folder" or path.read_text() == "precious"


@pytest.mark.parametrize("path", [".", "/", "..", "absent/key", "x" * 300])
def test_where_no_key_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyFileError, match=r"cannot write|is a folder"):
        signing.save(KEY, Path(path))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        signing.save(KEY, tmp_path / "key")
    assert os.listdir(tmp_path) == []


def test_a_passphrase_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="1024 bytes, expected at most 1023"):
        signing.save(KEY, tmp_path / "key", passphrase="ä" * 512)
    assert os.listdir(tmp_path) == []


def test_odd_bytes_of_an_environment_are_a_passphrase(tmp_path: Path) -> None:
    secret = os.fsdecode(b"\xff\xfe")
    signing.save(KEY, tmp_path / "key", passphrase=secret)
    assert signing.load_private(tmp_path / "key", passphrase=secret)
    with pytest.raises(KeyFileError, match="cannot be unlocked"):
        signing.load_private(tmp_path / "key", passphrase=os.fsdecode(b"\xff"))


@pytest.mark.parametrize(
    ("given_", "message", "hint"),
    [
        (None, "locked with a passphrase", signing.PASSPHRASE),
        ("", "locked with a passphrase", signing.PASSPHRASE),
        ("wrong", "cannot be unlocked", signing.PASSPHRASE),
        ("x" * 5000, "cannot be unlocked", signing.PASSPHRASE),
    ],
)
def test_a_locked_key_needs_its_passphrase(
    tmp_path: Path, given_: str | None, message: str, hint: str
) -> None:
    signing.save(KEY, tmp_path / "key", passphrase="right")
    with pytest.raises(KeyFileError, match=message) as error:
        signing.load_private(tmp_path / "key", passphrase=given_)
    assert hint in error.value.hint
    assert "right" not in f"{error.value} {error.value.hint}"


def test_an_open_key_needs_none(tmp_path: Path) -> None:
    """One passphrase in the environment, keys with and without one."""
    signing.save(KEY, tmp_path / "key")
    loaded = signing.load_private(tmp_path / "key", passphrase="not needed")
    assert loaded.private_bytes_raw() == KEY.private_bytes_raw()


# ---------------------------------------------------------------- what is no key


@pytest.mark.parametrize("kind", OTHERS)
def test_keys_of_another_kind_are_refused(tmp_path: Path, kind: str) -> None:
    key = OTHERS[kind]
    (tmp_path / "key").write_bytes(private_pem(key))
    with pytest.raises(KeyFileError, match="another kind, expected Ed25519"):
        signing.load_private(tmp_path / "key")
    with pytest.raises(KeyFileError, match="is not an Ed25519 public key"):
        signing.load_public(signing.public_pem(key.public_key()))


@pytest.mark.parametrize("passphrase", [None, "secret"])
def test_a_private_key_is_refused_where_a_public_one_belongs(
    tmp_path: Path, passphrase: str | None
) -> None:
    path = tmp_path / "key"
    signing.save(KEY, path, passphrase=passphrase)
    for source in (path, str(path), path.read_bytes()):
        with pytest.raises(KeyFileError, match="is a private key, expected the public") as error:
            signing.load_public(source)
        assert ".pub" in error.value.hint


def test_a_public_key_signs_nothing(tmp_path: Path) -> None:
    public_path = signing.save(KEY, tmp_path / "key")
    with pytest.raises(KeyFileError, match="is not an Ed25519 private key"):
        signing.load_private(public_path)


PEM = private_pem(KEY)
PUBLIC = signing.public_pem(KEY.public_key())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\0" * 100,
        b"\xff" * 100,
        PUBLIC[:40],
        PEM[:60],
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        KEY.private_bytes_raw(),
        PUBLIC.replace(b"MCow", b"MCov"),
    ],
)
def test_garbage_is_no_key(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(KeyFileError):
        signing.load_private(path)
    for source in (path, data):
        with pytest.raises(KeyFileError):
            signing.load_public(source)


@hypothesis_settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_keys_raise_no_other_error(data: st.DataObject) -> None:
    changed = bytearray(PUBLIC)
    changed[data.draw(st.integers(0, len(PUBLIC) - 1))] = data.draw(st.integers(0, 255))
    try:
        key = signing.load_public(bytes(changed))
    except KeyFileError:
        return
    assert not signing.is_signed(key, b"\0" * 64, b"")


@pytest.mark.parametrize("size", [65_537, 2**40])
def test_a_huge_file_is_no_key(tmp_path: Path, size: int) -> None:
    path = tmp_path / "key"
    with path.open("wb") as file:
        file.truncate(size)  # a hole
    for load in (signing.load_private, signing.load_public):
        with pytest.raises(KeyFileError, match="too large for a key"):
            load(path)


@pytest.mark.parametrize("name", ["absent", ".", "x" * 300, "absent/key"])
def test_what_is_no_file_is_no_key(tmp_path: Path, name: str) -> None:
    for load in (signing.load_private, signing.load_public):
        with pytest.raises(KeyFileError, match="cannot read the key"):
            load(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    for load in (signing.load_private, signing.load_public):
        with pytest.raises(KeyFileError, match="cannot read the key"):
            load(tmp_path / "key")


# ---------------------------------------------------------------- other tools


@pytest.fixture
def openssl(tmp_path: Path) -> Any:
    """``openssl("pkey", "-in", file)``, in ``tmp_path``."""
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("no openssl on this machine")
    if b"OpenSSL 3" not in subprocess.run([found, "version"], capture_output=True).stdout:
        pytest.skip("an openssl that signs no raw bytes with Ed25519")

    def call(*words: str) -> bytes:
        done = subprocess.run(
            [found, *words], cwd=tmp_path, capture_output=True, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout

    return call


@pytest.mark.parametrize("passphrase", [None, "secret"])
def test_openssl_reads_what_we_write(tmp_path: Path, openssl: Any, passphrase: str | None) -> None:
    signing.save(KEY, tmp_path / "key", passphrase=passphrase)
    unlock = ["-passin", f"pass:{passphrase}"] if passphrase else []
    assert openssl("pkey", "-in", "key", *unlock, "-pubout") == PUBLIC
    (tmp_path / "data").write_bytes(b"manifest")
    (tmp_path / "sig").write_bytes(signing.sign(KEY, b"manifest"))
    said = openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin"),
        *("-in", "data", "-sigfile", "sig"),
    )
    assert b"Verified Successfully" in said


def test_we_read_what_openssl_writes(tmp_path: Path, openssl: Any) -> None:
    openssl("genpkey", "-algorithm", "ed25519", "-out", "key")
    openssl("pkey", "-in", "key", "-pubout", "-out", "key.pub")
    (tmp_path / "data").write_bytes(b"manifest")
    openssl("pkeyutl", "-sign", "-inkey", "key", "-rawin", "-in", "data", "-out", "sig")
    public = signing.load_public(tmp_path / "key.pub")
    assert signing.load_private(tmp_path / "key").public_key() == public
    assert signing.is_signed(public, (tmp_path / "sig").read_bytes(), b"manifest")
