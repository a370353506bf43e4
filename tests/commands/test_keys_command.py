"""``fedvtc-edge keys``: a key made, shown, and never overwritten."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList, signing

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


# ---------------------------------------------------------------- trial


def test_a_trial(call: Call, tmp_path: Path) -> None:
    made = call("keys", "trial", "a trial", "--clients", "2")
    assert (made.code, made.err) == (0, "")
    prints = {
        name: PublicIdentity.load(tmp_path / "a trial" / name / "identity.key.pub").fingerprint
        for name in ("server", "client-00", "client-01")
    }
    assert made.out.splitlines()[:4] == [
        "party      its folder         identity",
        f"server     a trial/server     {prints['server']}",
        f"client-00  a trial/client-00  {prints['client-00']}",
        f"client-01  a trial/client-01  {prints['client-01']}",
    ]
    assert "clients.count = 2" in made.out
    assert "PRIVATE" not in made.out
    commands = [line.strip() for line in made.out.splitlines() if line.startswith("  ")]
    assert commands == [
        "fedvtc-edge serve CONFIG.toml --keys 'a trial/server' --host 127.0.0.1 --port 8000",
        "fedvtc-edge join localhost:8000 --keys 'a trial/client-00' --no-privacy",
        "fedvtc-edge join localhost:8000 --keys 'a trial/client-01' --no-privacy",
    ]
    assert "each is made where it is used" in made.out.splitlines()[-1]
    known = TrustList.load(tmp_path / "a trial" / "client-01" / "trust.json")
    assert {entry.client: entry.identity.fingerprint for entry in known.entries} == {
        name: print_ for name, print_ in prints.items() if name != "server"
    }


@pytest.mark.parametrize(
    ("hosts", "serve", "join"),
    [
        (["edge.test", "10.0.0.1"], "--host 0.0.0.0 --port 8000", "join edge.test:8000 "),
        (["2001:db8::7"], "--host :: --port 8000", "join [2001:db8::7]:8000 "),
    ],
)
def test_a_trial_as_json(
    call: Call, strict_json: Callable[[str], Any], hosts: list[str], serve: str, join: str
) -> None:
    words = [word for host in hosts for word in ("--host", host)]
    made = call("keys", "trial", "t", "--clients", "1", "--days", "3", *words, "--json")
    document = strict_json(made.out)
    following = document.pop("next")
    server, (client,) = document.pop("server"), document.pop("clients")
    assert document == {
        "schema": 1,
        "folder": "t",
        "authority": "t/authority",
        "days": 3,
        "hosts": [*hosts, "localhost", "127.0.0.1", "::1"],
    }
    assert (server["id"], server["folder"]) == ("server", "t/server")
    assert (client["id"], client["folder"]) == ("client-00", "t/client-00")
    assert all(re.fullmatch(PRINT, party["identity"]) for party in (server, client))
    assert following["serve"].endswith(serve)
    assert join in following["join"][0]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "Missing argument 'DIR'", "keys --help"),
        (["there"], "there exists", "choose another name"),
        (["absent/t"], "cannot write absent/t: No such file", "can be written to"),
        (["t", "--clients", "0"], "0 clients, expected 1 to 1000", "--clients"),
        (["t", "--clients", "x"], "'x' is not a valid integer", "keys --help"),
        (["t", "--days", "0"], "a certificate for 0 days, expected 1 to 3650", "--days"),
        (["t", "--host", "https://x"], "'https://x' is neither a host name", "without https://"),
        (["t", "--host", "0.0.0.0"], "0.0.0.0 is no address that a client can reach", "one by one"),
    ],
)
def test_no_trial(call: Call, tmp_path: Path, words: list[str], message: str, hint: str) -> None:
    (tmp_path / "there").mkdir()
    for flags in ([], ["--json"]):
        call("keys", "trial", *words, *flags).refuses(message, hint)
    assert os.listdir(tmp_path) == ["there"]
    assert os.listdir(tmp_path / "there") == []


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
    assert re.search(r"^  trial ", answer.out, re.M)


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
