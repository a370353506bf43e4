"""``fedvtc-edge keys``: a key made, shown, and never overwritten."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvtc_edge import signing
from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList

Call = Callable[..., Any]

PRINT = r"SHA256:[A-Za-z0-9+/]{43}"


@pytest.fixture(autouse=True)
def _no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.PASSPHRASE, raising=False)


@pytest.mark.parametrize("suite", [None, "hybrid", "x25519"])
def test_a_new_key_and_its_fingerprints(call: Call, tmp_path: Path, suite: str | None) -> None:
    made = call("keys", "new", "device", *(["--suite", suite] if suite else []))
    assert (made.code, made.err) == (0, "")
    lines = made.out.splitlines()
    assert lines[0] == "private key: device  (signs and unseals; keep it to yourself)"
    assert lines[1] == "public key: device.pub  (verifies and seals; goes to the others)"
    assert re.fullmatch(f"fingerprint: {PRINT}", lines[2])
    assert re.fullmatch(f"identity: {PRINT}", lines[3])
    assert lines[4:] == [f"suite: {suite or 'hybrid'}"]
    assert sorted(os.listdir(tmp_path)) == ["device", "device.pub"]
    key = signing.load_private(Path("device"))
    assert lines[2] == f"fingerprint: {signing.fingerprint(key.public_key())}"
    identity = Identity.load(Path("device"))
    assert identity.signing_key.private_bytes_raw() == key.private_bytes_raw()
    assert lines[3] == f"identity: {identity.fingerprint}"
    assert "PRIVATE" not in made.out
    shown = call("keys", "show", "device.pub")
    assert (shown.code, shown.out.splitlines(), shown.err) == (0, lines[2:], "")


def test_as_json(call: Call, strict_json: Callable[[str], Any]) -> None:
    made = call("keys", "new", "a b", "--json")
    document = strict_json(made.out)
    assert (made.code, made.err) == (0, "")
    prints = {key: document.pop(key) for key in ("fingerprint", "identity")}
    assert all(re.fullmatch(PRINT, print_) for print_ in prints.values())
    rest = {"schema": 1, "public": "a b.pub", "suite": "hybrid"}
    assert document == {**rest, "private": "a b"}
    shown = call("keys", "show", "a b.pub", "--json")
    assert strict_json(shown.out) == {**rest, **prints}


def test_a_key_that_only_signs_is_shown(
    call: Call, tmp_path: Path, strict_json: Callable[[str], Any]
) -> None:
    """Files made before identities, and openssl's, with whatever text stands about."""
    key = Ed25519PrivateKey.generate()
    public = signing.save(key, tmp_path / "old")
    public.write_bytes(b"made long ago\n" + public.read_bytes())
    print_ = signing.fingerprint(key.public_key())
    assert call("keys", "show", "old.pub").out == f"fingerprint: {print_}\n"
    document = strict_json(call("keys", "show", "old.pub", "--json").out)
    assert document["fingerprint"] == print_
    assert document["identity"] is document["suite"] is None


# ---------------------------------------------------------------- trust


@pytest.fixture
def two(call: Call) -> None:
    for name in ("one", "two"):
        Identity.generate("x25519").save(Path(name))


@pytest.mark.usefixtures("two")
def test_trusted_listed_revoked(call: Call, tmp_path: Path) -> None:
    prints = {name: PublicIdentity.load(Path(f"{name}.pub")).fingerprint for name in ("one", "two")}
    added = call("keys", "trust", "list.json", "client-00", "one.pub")
    assert (added.code, added.err) == (0, "")
    assert added.out.splitlines()[1].split() == ["client-00", "trusted", "x25519", prints["one"]]
    assert call("keys", "trust", "list.json", "client-1", "two.pub").code == 0
    before = (tmp_path / "list.json").read_bytes()
    again = call("keys", "trust", "list.json", "client-00", "one.pub")
    assert (again.code, again.out) == (0, added.out)
    assert (tmp_path / "list.json").read_bytes() == before
    revoked = call("keys", "trust", "list.json", "client-00", "--revoke")
    assert revoked.out.splitlines()[1].split()[:2] == ["client-00", "revoked"]
    listed = call("keys", "trust", "list.json")
    assert (listed.code, listed.err) == (0, "")
    assert [line.split() for line in listed.out.splitlines()] == [
        ["client", "status", "suite", "identity"],
        ["client-00", "revoked", "x25519", prints["one"]],
        ["client-1", "trusted", "x25519", prints["two"]],
    ]
    known = TrustList.load(tmp_path / "list.json")
    assert known.lookup("client-1").fingerprint == prints["two"]
    assert known.is_revoked("client-00")


@pytest.mark.usefixtures("two")
def test_trust_as_json(call: Call, strict_json: Callable[[str], Any]) -> None:
    call("keys", "trust", "list.json", "a", "one.pub")
    added = strict_json(call("keys", "trust", "list.json", "b", "two.pub", "--json").out)
    print_ = PublicIdentity.load(Path("two.pub")).fingerprint
    row = {"id": "b", "status": "trusted", "suite": "x25519", "fingerprint": print_}
    assert added == {"schema": 1, "list": "list.json", "total": 2, "clients": [row]}
    listed = strict_json(call("keys", "trust", "list.json", "--json").out)
    assert [client["id"] for client in listed["clients"]] == ["a", "b"]
    revoked = strict_json(call("keys", "trust", "list.json", "b", "--revoke", "--json").out)
    assert revoked["clients"] == [{**row, "status": "revoked"}]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "Missing argument 'LIST'", "keys --help"),
        (["absent"], "cannot read the trust list absent: no such file", "check the path"),
        (["absent", "a", "--revoke"], "cannot read the trust list absent", "check the path"),
        (["list", "a"], "a list, a client and its FILE.pub", "keys trust --help"),
        (["list", "--revoke"], "a list, a client and its FILE.pub", "keys trust --help"),
        (["list", "a", "two.pub", "--revoke"], "and its FILE.pub", "keys trust --help"),
        (["list", "b", "--revoke"], "client 'b' is not in the trust list", "FILE.pub"),
        (["list", "a", "two.pub"], "client a has an identity already", "new id"),
        (["list", "b", "one.pub"], "client b has a key of client a", "counted twice"),
        (["list", "b c", "two.pub"], "'b c' is no client id", "letters, digits"),
        (["list", "gone", "three.pub"], "cannot read the key three.pub", "check the path"),
        (["list", "b", "one"], "one is a private key", ".pub"),
        (["list", "b", "old.pub"], "old.pub signs but does not seal", "keys new FILE"),
        (["list", "b", "garbage"], "garbage is not an identity in PEM", "keys new FILE"),
        (["garbage"], "garbage is not an intact trust list", "restore it"),
        (["."], "cannot read the trust list .", "check the path"),
        (["absent/list", "a", "one.pub"], "cannot write absent/list: No such file", "folder"),
        (["list", "a", "b", "c"], "unexpected extra argument (c)", "keys --help"),
    ],
)
def test_what_is_not_trusted(
    call: Call, tmp_path: Path, words: list[str], message: str, hint: str
) -> None:
    call("keys", "trust", "list", "a", "one.pub")
    signing.save(Ed25519PrivateKey.generate(), tmp_path / "old")
    (tmp_path / "garbage").write_text("no key")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for flags in ([], ["--json"]):
        call("keys", "trust", *words, *flags).refuses(message, hint)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_passphrase_from_the_environment(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.PASSPHRASE, "correct horse")
    made = call("keys", "new", "device")
    assert made.code == 0
    assert "correct horse" not in made.out + made.err
    assert "ENCRYPTED" in (tmp_path / "device").read_text()
    assert signing.load_private(tmp_path / "device", passphrase="correct horse")


def test_help_without_a_word(call: Call) -> None:
    answer = call("keys")
    assert answer.code == 0
    assert re.search(r"^  new ", answer.out, re.M)
    assert re.search(r"^  show ", answer.out, re.M)
    assert re.search(r"^  trust ", answer.out, re.M)


@pytest.mark.parametrize("there", ["device", "device.pub"])
def test_no_key_is_replaced(call: Call, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    call("keys", "new", "device").refuses(f"{there} exists", "choose another name")
    assert os.listdir(tmp_path) == [there]
    assert (tmp_path / there).read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["new"], "Missing argument 'FILE'", "keys --help"),
        (["new", "."], ". is a folder", "name of a new file"),
        (["new", ""], "is a folder", "name of a new file"),
        (["new", "absent/device"], "cannot write absent/device: No such file", "folder that"),
        (["new", "a", "b"], "unexpected extra argument (b)", "keys --help"),
        (["new", "a", "--suite", "rsa"], "'rsa' is not one of 'hybrid', 'x25519'", "keys --help"),
        (["show", "absent.pub"], "cannot read the key absent.pub: no such file", "check the path"),
        (["show", "."], "cannot read the key .: no such file", "check the path"),
        (["show", "garbage"], "garbage is not an Ed25519 public key in PEM", "keys new FILE"),
        (["show", "private"], "private is a private key, expected the public one", ".pub"),
        (["show", "garbage", "--jsn"], "unknown option --jsn", "--json"),
        (["lose"], "No such command 'lose'", "keys --help"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_wrong_is_said_in_two_lines(
    call: Call, tmp_path: Path, words: list[str], message: str, hint: str, as_json: bool
) -> None:
    (tmp_path / "garbage").write_text("no key")
    signing.save(Ed25519PrivateKey.generate(), tmp_path / "private")
    (tmp_path / "private.pub").unlink()
    flags = ["--json"] if as_json and words != ["lose"] else []
    call("keys", *words, *flags).refuses(message, hint)
    assert sorted(os.listdir(tmp_path)) == ["garbage", "private"]


def test_a_passphrase_that_is_too_long(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.PASSPHRASE, "x" * 2000)
    call("keys", "new", "device").refuses("2000 bytes, expected at most 1023", signing.PASSPHRASE)
