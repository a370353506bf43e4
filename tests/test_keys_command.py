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

Call = Callable[..., Any]

PRINT = r"SHA256:[A-Za-z0-9+/]{43}"


@pytest.fixture(autouse=True)
def _no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.PASSPHRASE, raising=False)


def test_a_new_key_and_its_fingerprint(call: Call, tmp_path: Path) -> None:
    made = call("keys", "new", "device")
    assert (made.code, made.err) == (0, "")
    lines = made.out.splitlines()
    assert lines[0] == "private key: device  (signs; keep it to yourself)"
    assert lines[1] == "public key: device.pub  (verifies; goes to the devices)"
    assert re.fullmatch(f"fingerprint: {PRINT}", lines[2])
    assert len(lines) == 3
    assert sorted(os.listdir(tmp_path)) == ["device", "device.pub"]
    key = signing.load_private(Path("device"))
    assert lines[2] == f"fingerprint: {signing.fingerprint(key.public_key())}"
    assert "PRIVATE" not in made.out
    shown = call("keys", "show", "device.pub")
    assert (shown.code, shown.out, shown.err) == (0, lines[2] + "\n", "")


def test_as_json(call: Call, strict_json: Callable[[str], Any]) -> None:
    made = call("keys", "new", "a b", "--json")
    document = strict_json(made.out)
    assert (made.code, made.err) == (0, "")
    print_ = document.pop("fingerprint")
    assert re.fullmatch(PRINT, print_)
    assert document == {"schema": 1, "private": "a b", "public": "a b.pub"}
    shown = call("keys", "show", "a b.pub", "--json")
    assert strict_json(shown.out) == {"schema": 1, "public": "a b.pub", "fingerprint": print_}


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
