"""Nothing but what was exported, byte for byte, ever reaches a parser of graphs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.errors import BundleError, KeyFileError, VerificationError
from fedvtc_edge.export import Bundle, verify
from fedvtc_edge.export.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Manifest
from fedvtc_edge.sealing import signing

Rewrite = Callable[..., Path]

FILES = ["classifier.int8.onnx", "classifier.onnx", "statistics.safetensors"]

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


@pytest.fixture(autouse=True)
def _no_graph_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this whole file, a graph that is parsed is a failure of its own kind."""

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("a graph was parsed")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)


@pytest.fixture
def key(signer: Ed25519PrivateKey) -> Ed25519PublicKey:
    return signer.public_key()


def refused(folder: Path, reason: str, key: Ed25519PublicKey | None = None) -> None:
    for look in (verify, Bundle.open):
        with pytest.raises(VerificationError, match=reason) as error:
            look(folder, key)
        assert error.value.exit_code == 1
        assert error.value.hint


# ---------------------------------------------------------------- accepted


def test_what_was_exported_is_accepted(made: Path, key: Ed25519PublicKey) -> None:
    seen = verify(made)
    assert (seen.signer, seen.signed, sorted(seen.manifest.files)) == (None, True, FILES)
    pem = signing.public_pem(key)
    file = made.parent / "key.pub"
    file.write_bytes(pem)
    for form in (key, pem, file, str(file)):
        assert verify(made, form).signer == signing.fingerprint(key)
        assert Bundle.open(made, form).signer == verify(made, key).signer


def test_an_export_verifies_without_a_graph_being_parsed(bundle: Path) -> None:
    seen = verify(bundle)
    assert (seen.signer, seen.signed) == (None, False)
    assert seen.read("classifier.onnx") == (bundle / "classifier.onnx").read_bytes()


def test_without_a_signature_hashes_alone_are_checked(made: Path) -> None:
    (made / SIGNATURE).unlink()
    assert not verify(made).signed


def test_the_folder_may_be_a_link_and_relative(
    made: Path, monkeypatch: pytest.MonkeyPatch, key: Ed25519PublicKey
) -> None:
    (made.parent / "link").symlink_to(made)
    monkeypatch.chdir(made.parent)
    for path in ("link", "made", "./made/", made):
        assert verify(path, key).signer
    monkeypatch.chdir(made)
    assert verify(".", key).signer


# ---------------------------------------------------------------- changed bytes


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_every_flipped_byte_is_refused(made: Path, key: Ed25519PublicKey, name: str) -> None:
    path = made / name
    original = path.read_bytes()
    for place in range(len(original)):
        data = bytearray(original)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(VerificationError, match=r"signature of" if name[0] == "m" else name):
            verify(made, key)
    path.write_bytes(original)
    verify(made, key)


@pytest.mark.parametrize("name", FILES)
def test_without_a_key_every_flipped_byte_of_a_file_is_refused(made: Path, name: str) -> None:
    path = made / name
    original = path.read_bytes()
    for place in range(len(original)):
        data = bytearray(original)
        data[place] ^= 0x80
        path.write_bytes(data)
        refused(made, f"^{name}: SHA-256 .* expected")


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
@pytest.mark.parametrize("keyed", [False, True])
def test_truncated_and_extended_files_are_refused(
    made: Path, key: Ed25519PublicKey, name: str, keyed: bool
) -> None:
    path = made / name
    original = path.read_bytes()
    # Without a key a manifest is believed; white space after it is not a change of meaning.
    tails = [b"\0", original] if keyed or name != MANIFEST else [b"{}", original]
    for data in (
        b"",
        original[:-2],
        original[: len(original) // 2],
        *(original + t for t in tails),
    ):
        path.write_bytes(data)
        refused(made, name, key if keyed else None)


@pytest.mark.parametrize("name", FILES)
def test_a_size_that_is_off_by_one_is_named(made: Path, name: str) -> None:
    """The size is compared first: what grew to gigabytes is not hashed."""
    size = (made / name).stat().st_size
    with (made / name).open("ab") as file:
        file.write(b"\0")
    refused(made, f"^{name}: {size + 1} bytes, expected {size}$")


def test_a_file_of_another_size_is_not_hashed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    digest = hashlib.file_digest

    def noted(file: Any, name: str) -> Any:
        hashed.append(os.fstat(file.fileno()).st_size)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    sizes = [(made / name).stat().st_size for name in FILES]
    verify(made)
    assert sorted(hashed) == sorted(sizes)
    hashed.clear()
    with (made / "statistics.safetensors").open("ab") as file:
        file.truncate(2**28)  # a hole, no bytes on the disk
    with pytest.raises(VerificationError, match="268435456 bytes, expected 40"):
        verify(made)
    assert 2**28 not in hashed


@hypothesis_settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_single_change_of_a_signed_bundle_is_refused(
    made: Path, key: Ed25519PublicKey, data: st.DataObject
) -> None:
    path = made / data.draw(st.sampled_from([*FILES, MANIFEST, SIGNATURE]))
    original = path.read_bytes()
    changed = bytearray(original)
    place = data.draw(st.integers(0, len(original) - 1))
    kind = data.draw(st.sampled_from(["flip", "set", "delete", "insert", "truncate"]))
    if kind == "flip":
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "set":
        changed[place] = data.draw(st.integers(0, 255))
    elif kind == "delete":
        del changed[place]
    elif kind == "insert":
        changed.insert(place, data.draw(st.integers(0, 255)))
    else:
        del changed[place:]
    path.write_bytes(changed)
    try:
        if bytes(changed) == original:
            verify(made, key)
        else:
            with pytest.raises(VerificationError):
                verify(made, key)
    finally:
        path.write_bytes(original)


# ---------------------------------------------------------------- strange entries


@pytest.mark.parametrize(
    "name",
    ["extra.onnx", ".hidden", "manifest.json.bak", "classifier.onnx.data"],
)
def test_an_unlisted_file_is_refused(made: Path, key: Ed25519PublicKey, name: str) -> None:
    (made / name).write_bytes(b"")
    for checked in (None, key):
        refused(made, f"^{name}: not listed in the manifest", checked)


@posix
@pytest.mark.parametrize("name", [b"\x1b[2J", b"new\nline", b"\xff\xfe", b"x" * 200])
def test_an_unlisted_file_of_any_name_is_refused(made: Path, name: bytes) -> None:
    Path(os.fsdecode(bytes(made) + b"/" + name)).write_bytes(b"")
    refused(made, "not listed in the manifest")


@pytest.mark.parametrize("name", ["sub", "__pycache__", ".git"])
def test_an_unlisted_folder_is_refused(made: Path, name: str) -> None:
    (made / name).mkdir()
    refused(made, f"{name}: not listed")


@pytest.mark.parametrize("target", ["classifier.onnx", "nowhere", "/etc/passwd", "."])
@posix
def test_an_unlisted_link_is_refused(made: Path, target: str) -> None:
    (made / "link").symlink_to(target)
    refused(made, "^link: a link")


@posix
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_a_link_in_a_files_place_is_refused(
    made: Path, key: Ed25519PublicKey, name: str, keyed: bool
) -> None:
    """Even one that leads to the very same bytes."""
    path = made / name
    path.rename(made.parent / name)
    path.symlink_to(made.parent / name)
    refused(made, f"^{name}: a link", key if keyed else None)
    (made.parent / name).unlink()  # now it leads nowhere
    refused(made, f"^{name}: a link", key if keyed else None)


@posix
@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(made: Path, name: str) -> None:
    (made / name).unlink()
    os.mkfifo(made / name)
    refused(made, f"^{name}: not a regular file")


@posix
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("name", ["classifier.onnx", MANIFEST, SIGNATURE])
def test_a_file_that_is_exchanged_while_it_is_opened_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: bool
) -> None:
    """Between the look at it and the opening; a link is not followed, a pipe not waited for."""
    path, elsewhere = made / name, made.parent / "elsewhere"
    path.rename(elsewhere)
    lstat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda self: lstat(elsewhere if self == path else self))
    path.symlink_to(elsewhere)
    refused(made, f"^{name}: ")
    path.unlink()
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR) if written else None
    refused(made, f"^{name}: not a regular file")
    if writer is not None:
        os.close(writer)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused(made: Path, name: str) -> None:
    (made / name).unlink()
    (made / name).mkdir()
    refused(made, f"^{name}: not a regular file")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(made: Path, name: str) -> None:
    (made / name).unlink()
    refused(made, f"^{name} is missing")


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "sub/classifier.onnx"])
def test_a_listed_path_is_refused_even_when_it_is_there(
    made: Path, rewrite: Rewrite, key: Ed25519PublicKey, name: str
) -> None:
    """Signed by the right key: that a manifest is genuine does not open a way out."""
    (made.parent / "secret.onnx").write_bytes(b"")
    entry = {
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "size": 0,
    }
    rewrite(made, files={name: entry})
    for checked in (None, key):
        refused(made, "is no file of a bundle", checked)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read_is_named(made: Path) -> None:
    (made / "classifier.onnx").chmod(0)
    refused(made, "^classifier.onnx: Permission denied")


# ---------------------------------------------------------------- manifest and signature


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema 2, expected 1"),
        ({"kind": "fedvtc-edge run"}, "is not one of"),
        ({"latent": 0}, "latent"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    made: Path, rewrite: Rewrite, key: Ed25519PublicKey, change: Any, reason: str, keyed: bool
) -> None:
    refused(rewrite(made, **change), reason, key if keyed else None)


def test_a_forged_manifest_is_not_even_parsed(
    made: Path, monkeypatch: pytest.MonkeyPatch, key: Ed25519PublicKey
) -> None:
    (made / MANIFEST).write_bytes(b"{}")

    def never(data: bytes) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(Manifest, "from_bytes", never)
    refused(made, "signature of manifest.json", key)


@pytest.mark.parametrize("keyed", [False, True])
def test_a_huge_manifest_is_refused_before_it_is_read(
    made: Path, key: Ed25519PublicKey, keyed: bool
) -> None:
    with (made / MANIFEST).open("ab") as file:
        file.truncate(2**40)  # a hole: no memory could hold it
    refused(made, f"more than {MAX_MANIFEST_BYTES} bytes", key if keyed else None)


def test_the_largest_manifest_is_parsed(made: Path, rewrite: Rewrite) -> None:
    path = made / MANIFEST
    path.write_bytes(path.read_bytes().ljust(MAX_MANIFEST_BYTES))
    assert verify(made).manifest.client == "client-00"
    path.write_bytes(path.read_bytes() + b" ")
    refused(made, f"more than {MAX_MANIFEST_BYTES} bytes")


def test_a_missing_manifest_is_named(made: Path, key: Ed25519PublicKey) -> None:
    (made / MANIFEST).unlink()
    refused(made, "is no bundle: manifest.json is missing", key)


def test_a_folder_of_bundles_says_so(made: Path) -> None:
    with pytest.raises(VerificationError, match="is no bundle") as error:
        verify(made.parent)
    assert str(made) in error.value.hint


@pytest.mark.parametrize("path", ["absent", "a-file", "x" * 5000])
def test_what_is_no_folder_is_a_mistake_of_the_caller(tmp_path: Path, path: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(BundleError, match="not a folder" if path == "a-file" else "no such"):
        verify(tmp_path / path)


def test_a_missing_signature_is_refused_where_a_key_is_given(
    made: Path, key: Ed25519PublicKey
) -> None:
    (made / SIGNATURE).unlink()
    refused(made, f"manifest.sig is missing.*{signing.fingerprint(key)[:12]}", key)


@pytest.mark.parametrize("size", [0, 1, 63, 65, 128, 10_000_000])
@pytest.mark.parametrize("keyed", [False, True])
def test_a_signature_of_another_length_is_refused_even_without_a_key(
    made: Path, key: Ed25519PublicKey, size: int, keyed: bool
) -> None:
    (made / SIGNATURE).write_bytes(b"\0" * size)
    refused(made, "manifest.sig: .* bytes", key if keyed else None)


def test_another_keys_signature_is_refused(made: Path, key: Ed25519PublicKey) -> None:
    stranger = signing.generate()
    refused(made, "is not SHA256:.* signature", stranger.public_key())
    (made / SIGNATURE).write_bytes(stranger.sign((made / MANIFEST).read_bytes()))
    refused(made, "is not SHA256:.* signature", key)
    assert verify(made, stranger.public_key()).signer == signing.fingerprint(stranger.public_key())


@pytest.mark.parametrize("signature", [b"\0" * 64, b"\xff" * 64, bytes(range(64))])
def test_no_signature_fits_by_chance(made: Path, key: Ed25519PublicKey, signature: bytes) -> None:
    (made / SIGNATURE).write_bytes(signature)
    assert verify(made).signer is None  # of the right length, and not checked
    refused(made, "signature of manifest.json", key)


def test_the_same_meaning_in_other_bytes_is_not_what_was_signed(
    made: Path, key: Ed25519PublicKey
) -> None:
    (made / MANIFEST).write_bytes((made / MANIFEST).read_bytes() + b"\n")
    assert verify(made).manifest.client == "client-00"
    refused(made, "signature of manifest.json", key)


@pytest.mark.parametrize("text", [b"", b"garbage", b"-----BEGIN PUBLIC KEY-----\n"])
def test_a_key_that_is_none_is_the_callers_mistake(made: Path, text: bytes) -> None:
    with pytest.raises(KeyFileError):
        verify(made, text)


# ---------------------------------------------------------------- two bundles


@pytest.fixture
def pair(made: Path, rewrite: Rewrite) -> tuple[Path, Path]:
    """Bundles of two clients of one exporter."""
    other = Path(shutil.copytree(made, made.parent / "other"))
    for name in FILES:
        data = (other / name).read_bytes()
        (other / name).write_bytes(data[::-1] + b"other"[: 1 if name == FILES[0] else 0])
    (other / "statistics.safetensors").write_bytes(b"\1" * 40)
    return made, rewrite(other, client="client-01")


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_files_swapped_between_clients_are_refused(
    pair: tuple[Path, Path], key: Ed25519PublicKey, name: str, keyed: bool
) -> None:
    one, other = pair
    assert verify(other, key).manifest.client == "client-01"
    mine, theirs = (one / name).read_bytes(), (other / name).read_bytes()
    (one / name).write_bytes(theirs)
    (other / name).write_bytes(mine)
    for folder in pair:
        refused(folder, f"^{name}: ", key if keyed else None)


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_a_manifest_with_anothers_signature_is_refused(
    pair: tuple[Path, Path], key: Ed25519PublicKey, name: str
) -> None:
    one, other = pair
    shutil.copyfile(other / name, one / name)
    refused(one, "signature of manifest.json", key)


def test_a_manifest_and_signature_of_another_client_do_not_fit_the_files(
    pair: tuple[Path, Path], key: Ed25519PublicKey
) -> None:
    one, other = pair
    for name in (MANIFEST, SIGNATURE):
        shutil.copyfile(other / name, one / name)
    refused(one, "classifier", key)


def test_swapped_files_within_a_bundle_are_refused(made: Path) -> None:
    one, other = made / "classifier.onnx", made / "classifier.int8.onnx"
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])
    refused(made, "^classifier")


# ---------------------------------------------------------------- changed since


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["flip", "grow", "shrink", "remove", "link"])
def test_what_changes_after_verification_is_refused_when_read(
    made: Path, key: Ed25519PublicKey, name: str, way: str
) -> None:
    seen, path = verify(made, key), made / name
    data = path.read_bytes()
    assert seen.read(name) == data
    seen.check(name)
    if way == "flip":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif way == "grow":
        path.write_bytes(data + b"\0")
    elif way == "shrink":
        path.write_bytes(data[:-1])
    else:
        path.rename(made.parent / "moved")
        if way == "link":
            path.symlink_to(made.parent / "moved")
    for look in (seen.read, seen.check):
        with pytest.raises(VerificationError, match=f"^{name}: "):
            look(name)


def test_a_graph_that_changed_after_opening_is_never_parsed(made: Path) -> None:
    opened = Bundle.open(made, variant="fp32")
    (made / "classifier.onnx").write_bytes(b"NO graph at all")
    import numpy as np

    with pytest.raises(VerificationError, match=r"^classifier\.onnx: SHA-256"):
        opened.classify(np.zeros((1, 8, 8, 1), np.uint8))
