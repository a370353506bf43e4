"""Identities: one file for signing and sealing, kept secret, never lost, damage refused."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import KeyFileError
from fedvtc_edge.sealing import SUITES, Identity, PublicIdentity, signing
from fedvtc_edge.sealing import identity as suites_module

Made = Callable[[str, str], Identity]

BLOCKS = {"hybrid": 3, "x25519": 2}


@pytest.fixture(params=["hybrid", "x25519"])
def identity(request: pytest.FixtureRequest, made_of: Made) -> Identity:
    return made_of("me", request.param)


def blocks(path: Path) -> list[bytes]:
    return re.findall(rb"-----BEGIN.*?-----END [A-Z ]+-----\n", path.read_bytes(), re.S)


def refused(load: Callable[[Path], Any], path: Path, match: str) -> None:
    with pytest.raises(KeyFileError, match=match) as caught:
        load(path)
    assert caught.value.hint
    assert caught.value.__cause__ is None


# ---------------------------------------------------------------- in memory


@pytest.mark.parametrize("suite", SUITES)
def test_new_ones_differ(suite: str) -> None:
    one, other = Identity.generate(suite), Identity.generate(suite)
    assert one.public.suite == suite
    assert one.public != other.public
    assert one.fingerprint != other.fingerprint


def test_hybrid_is_the_default() -> None:
    assert Identity.generate().public.suite == "hybrid"


def test_a_suite_that_is_none() -> None:
    with pytest.raises(KeyFileError, match="suite 'rsa' is unknown"):
        Identity.generate("rsa")


def test_an_openssl_without_lattices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        @staticmethod
        def from_seed_bytes(seed: bytes) -> None:
            raise UnsupportedAlgorithm("ML-KEM-768 is not supported")

    monkeypatch.setattr(suites_module, "MLKEM768PrivateKey", Missing)
    for make in (Identity.generate, lambda: Identity.derive(bytes(32), "a")):
        with pytest.raises(KeyFileError, match="cannot make keys of suite hybrid") as caught:
            make()
        assert "x25519" in caught.value.hint


@pytest.mark.parametrize("suite", SUITES)
def test_a_derived_identity_follows_from_secret_and_name(suite: str) -> None:
    """Byte for byte: a run that was interrupted must find its keys again."""
    secret = bytes(range(32))
    one = Identity.derive(secret, "client-00", suite)
    assert one.public == Identity.derive(secret, "client-00", suite).public
    others = [
        Identity.derive(secret, "client-01", suite),
        Identity.derive(bytes(32), "client-00", suite),
        Identity.generate(suite),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4
    seed = HKDF(hashes.SHA256(), 128, None, b"fedvtc-edge identity of\0client-00").derive(secret)
    curve = X25519PrivateKey.from_private_bytes(seed[32:64]).public_key().public_bytes_raw()
    assert one.public.sealing[:32] == curve
    signed = Ed25519PrivateKey.from_private_bytes(seed[:32]).public_key().public_bytes_raw()
    assert one.public.verifying == signed


def test_there_and_back_in_bytes(identity: Identity) -> None:
    data = identity.public.to_bytes()
    assert len(data) == 1 + 32 + len(identity.public.sealing)
    assert PublicIdentity.from_bytes(data) == identity.public
    for damaged in (b"", data[:-1], data + b"\0", b"\0" + data[1:], b"\3" + data[1:], data[1:]):
        with pytest.raises(KeyFileError, match="no public identity"):
            PublicIdentity.from_bytes(damaged)


def test_the_fingerprint_is_over_everything(identity: Identity) -> None:
    data = identity.public.to_bytes()
    prints = {identity.fingerprint}
    for place in (1, 40, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        try:
            prints.add(PublicIdentity.from_bytes(bytes(changed)).fingerprint)
        except KeyFileError:  # no key has these bytes
            continue
    assert len(prints) > 1
    assert all(re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", print_) for print_ in prints)


def test_golden_fingerprints(made_of: Made) -> None:
    """Written down by people: a change makes every identity look like a stranger's."""
    assert {suite: made_of("me", suite).fingerprint for suite in SUITES} == {
        "hybrid": "SHA256:BcJa124KiHJFmBRWLRAcNRul35xNnz589k+0Wpc3dfg",
        "x25519": "SHA256:8ZDU2pQLPETFPV6zPYRqklkIIDJAR1081fsswzVg5g8",
    }


def test_a_key_of_low_order_is_refused(made_of: Made) -> None:
    """Whatever is sealed to it, everyone can open."""
    verifying = made_of("me", "x25519").public.verifying
    lattice = made_of("me", "hybrid").public.sealing[32:]
    for point in (bytes(32), b"\1" + bytes(31)):
        for suite, rest in (("x25519", b""), ("hybrid", lattice)):
            with pytest.raises(KeyFileError, match="no public identity"):
                PublicIdentity(suite, verifying, point + rest)


def test_a_lattice_key_out_of_range_is_refused(made_of: Made) -> None:
    public = made_of("me", "hybrid").public
    with pytest.raises(KeyFileError, match="no public identity"):
        PublicIdentity("hybrid", public.verifying, public.sealing[:32] + b"\xff" * 1184)


def test_no_secret_is_printed(identity: Identity) -> None:
    assert repr(identity) == f"<Identity {identity.fingerprint}>"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("passphrase", [None, "", "correct horse", "pässwörd 犬"])
def test_a_saved_one_comes_back(identity: Identity, tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "me"
    public_path = identity.save(path, passphrase=passphrase)
    assert public_path == tmp_path / "me.pub"
    assert sorted(os.listdir(tmp_path)) == ["me", "me.pub"]
    loaded = Identity.load(path, passphrase=passphrase)
    assert loaded.public == identity.public == PublicIdentity.load(public_path)
    for mine, again in zip(identity._parts, loaded._parts, strict=True):
        assert mine.private_bytes_raw() == again.private_bytes_raw()
    number = BLOCKS[identity.public.suite]
    assert len(blocks(path)) == len(blocks(public_path)) == number
    assert path.read_bytes().count(b"ENCRYPTED PRIVATE KEY") == (2 * number if passphrase else 0)


@pytest.mark.parametrize("passphrase", [None, "secret"])
def test_it_is_a_signing_key_too(
    identity: Identity, tmp_path: Path, passphrase: str | None
) -> None:
    """``export --sign`` and ``verify --key`` take the same files."""
    public_path = identity.save(tmp_path / "me", passphrase=passphrase)
    key = signing.load_private(tmp_path / "me", passphrase=passphrase)
    assert key.private_bytes_raw() == identity.signing_key.private_bytes_raw()
    assert signing.load_public(public_path) == identity.public.key


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("mask", [0, 0o077])
def test_the_private_file_is_its_owners_alone(
    identity: Identity, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        public_path = identity.save(tmp_path / "me")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "me").stat().st_mode) == 0o600
    assert stat.S_IMODE(public_path.stat().st_mode) == 0o644


@pytest.mark.parametrize("there", ["me", "me.pub"])
def test_nothing_is_replaced(identity: Identity, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    refused(identity.save, tmp_path / "me", f"{there} exists")
    refused(identity.public.save, tmp_path / there, f"{there} exists")
    assert os.listdir(tmp_path) == [there]
    assert (tmp_path / there).read_text() == "precious"


def test_the_public_file_alone(identity: Identity, tmp_path: Path) -> None:
    identity.public.save(tmp_path / "me.pub")
    assert PublicIdentity.load(tmp_path / "me.pub") == identity.public


def test_a_full_disk_leaves_no_half(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(identity.save, tmp_path / "me", "No space left")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("given_", "match"),
    [(None, "locked with a passphrase"), ("", "locked"), ("wrong", "cannot be unlocked")],
)
def test_a_locked_one_needs_its_passphrase(
    identity: Identity, tmp_path: Path, given_: str | None, match: str
) -> None:
    identity.save(tmp_path / "me", passphrase="right")
    refused(lambda path: Identity.load(path, passphrase=given_), tmp_path / "me", match)


def test_an_open_one_needs_none(identity: Identity, tmp_path: Path) -> None:
    identity.save(tmp_path / "me")
    assert Identity.load(tmp_path / "me", passphrase="unneeded").public == identity.public


def test_a_key_that_only_signs_does_not_seal(tmp_path: Path) -> None:
    public_path = signing.save(Ed25519PrivateKey.generate(), tmp_path / "old")
    refused(Identity.load, tmp_path / "old", "signs but does not seal")
    refused(PublicIdentity.load, public_path, "signs but does not seal")


def test_private_and_public_are_not_mixed_up(identity: Identity, tmp_path: Path) -> None:
    public_path = identity.save(tmp_path / "me")
    refused(PublicIdentity.load, tmp_path / "me", "is a private key, expected the public one")
    refused(Identity.load, public_path, "is not an identity")


def test_what_is_no_file(tmp_path: Path) -> None:
    for load in (Identity.load, PublicIdentity.load):
        refused(load, tmp_path / "absent", "cannot read the key")
        refused(load, tmp_path, "cannot read the key")
        (tmp_path / "huge").write_bytes(bytes(65_537))
        refused(load, tmp_path / "huge", "too large for a key")


def rearranged(found: list[bytes]) -> list[list[bytes]]:
    return [
        found[::-1],
        found[1:],
        [found[0], found[0]],
        [found[0], *found],
        [*found, found[-1]],
        [found[0], *found[2:], found[1], found[1]],
        [found[0], found[1].replace(b"BEGIN", b"BEG1N"), *found[2:]],
        [*found[:-1], found[-1].replace(b"-----END", b"----END")],
        [*found[:-1], b"Comment: harmless\n", found[-1]],
        [*found, b"garbage"],
        [*found[:-1], found[-1][:60]],
        [b"\0" + found[0], *found[1:]],
        [b""],
    ]


@pytest.mark.parametrize("case", range(13))
def test_other_blocks_are_no_identity(identity: Identity, tmp_path: Path, case: int) -> None:
    public_path = identity.save(tmp_path / "me")
    for load, path in ((Identity.load, tmp_path / "me"), (PublicIdentity.load, public_path)):
        path.write_bytes(b"".join(rearranged(blocks(path))[case]))
        refused(load, path, "is not an identity|signs but does not seal")


@pytest.mark.parametrize("kind", ["P-256", "X25519"])
def test_blocks_of_other_keys(identity: Identity, tmp_path: Path, kind: str) -> None:
    other: Any = x25519.X25519PrivateKey.generate()
    if kind == "P-256":
        other = ec.generate_private_key(ec.SECP256R1())
    public_path = identity.save(tmp_path / "me")
    for load, path, block in (
        (Identity.load, tmp_path / "me", signing.private_pem(other)),
        (PublicIdentity.load, public_path, signing.public_pem(other.public_key())),
    ):
        found = blocks(path)
        path.write_bytes(b"".join([found[0], found[1], block]))
        refused(load, path, "is not an identity")


def test_without_its_last_block_a_hybrid_is_another(made_of: Made, tmp_path: Path) -> None:
    """Nothing in the file can tell; the fingerprint does, and no trust list knows it."""
    public_path = made_of("me", "hybrid").save(tmp_path / "me")
    public_path.write_bytes(b"".join(blocks(public_path)[:2]))
    less = PublicIdentity.load(public_path)
    assert less == made_of("me", "x25519").public
    assert less.fingerprint != made_of("me", "hybrid").fingerprint


@hypothesis_settings(deadline=None, max_examples=60)
@given(data=st.data(), suite=st.sampled_from(["hybrid", "x25519"]))
def test_damage_raises_nothing_else(
    made_of: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suite: str
) -> None:
    me = made_of("me", suite)
    path = tmp_path_factory.mktemp("damaged") / "me"
    changed = bytearray(me.public.to_pem())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        assert PublicIdentity.load(path).suite == suite
    except KeyFileError:
        return


# ---------------------------------------------------------------- other tools


@pytest.mark.parametrize("passphrase", [None, "secret"])
def test_openssl_reads_the_blocks(made_of: Made, tmp_path: Path, passphrase: str | None) -> None:
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("no openssl on this machine")
    me = made_of("me", "hybrid")
    me.save(tmp_path / "me", passphrase=passphrase)
    unlock = ["-passin", f"pass:{passphrase}"] if passphrase else []
    for number, block in enumerate(blocks(tmp_path / "me")[:2]):  # ML-KEM needs OpenSSL 3.5
        (tmp_path / "block").write_bytes(block)
        words = [found, "pkey", "-in", "block", *unlock, "-pubout"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
        assert done.stdout == blocks(tmp_path / "me.pub")[number]
