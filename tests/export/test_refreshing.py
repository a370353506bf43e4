"""Newer statistics in a bundle: the old bundle or the new one, and never without its signature."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvtc_edge import wire
from fedvtc_edge.errors import BundleError, KeyFileError, VerificationError
from fedvtc_edge.export import Bundle, refreshing, verify
from fedvtc_edge.export.codes import Codes
from fedvtc_edge.export.manifest import STATISTICS
from fedvtc_edge.export.refreshing import refresh
from fedvtc_edge.sealing import signing
from fedvtc_edge.statistics.class_statistics import GlobalStatistics

Rewrite = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(quick: None) -> None:
    """No disk is awaited."""


def newer(folder: Path) -> GlobalStatistics:
    """As if later rounds had moved all means: of the bundle's classes, width and moments."""
    knowledge = Bundle.open(folder).codes.knowledge
    assert knowledge is not None
    count = np.full(len(knowledge.mean), 9.0)
    return GlobalStatistics(count, knowledge.mean[::-1].copy(), knowledge.std, knowledge.covariance)


@pytest.fixture
def statistics(bundle_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "newer.safetensors"
    path.write_bytes(wire.publish(newer(bundle_folder)))
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pictures(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)


# ---------------------------------------------------------------- what changes


def test_newer_statistics_are_installed(bundle: Path, statistics: Path) -> None:
    before, old = bytes_of(bundle), Bundle.open(bundle, variant="fp32")
    assert old.codes.knowledge is not None
    renewed = refresh(bundle, statistics)
    after, new = bytes_of(bundle), Bundle.open(bundle, variant="fp32")
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == {STATISTICS, "manifest.json"}
    assert before.keys() == after.keys()
    assert new.manifest == renewed
    assert renewed.revision == 1
    of_both = [one.document() for one in (renewed, old.manifest)]
    changed_keys = {key for key in of_both[0] if of_both[0][key] != of_both[1][key]}
    assert {"revision", "files"} <= changed_keys <= {"revision", "files", "accuracy"}
    assert new.codes.knowledge is not None
    np.testing.assert_array_equal(new.codes.knowledge.mean, old.codes.knowledge.mean[::-1])


def test_the_calibrated_prediction_follows_and_the_clients_own_does_not(
    bundle: Path, statistics: Path
) -> None:
    images = pictures(20)

    def scores() -> list[Any]:
        opened = Bundle.open(bundle, variant="fp32")
        return [opened.classify(images, calibrated=both) for both in (False, True)]

    before = scores()
    refresh(bundle, statistics)
    after = scores()
    np.testing.assert_array_equal(after[0], before[0])
    assert (np.abs(after[1] - before[1]).max(1) > 0.01).all()


def test_what_was_measured_of_older_statistics_is_claimed_no_more(
    bundle: Path, statistics: Path
) -> None:
    before = verify(bundle).manifest.accuracy
    assert {"calibrated", "calibrated_run"} < set(before)
    after = refresh(bundle, statistics).accuracy
    assert set(after) == set(before) - {"calibrated", "calibrated_run"}


def test_revisions_count_up(bundle: Path, statistics: Path) -> None:
    for revision in (1, 2, 3):
        assert refresh(bundle, statistics).revision == revision
    assert verify(bundle).manifest.revision == 3


def test_the_runs_own_statistics_change_nothing_but_the_revision(
    bundle: Path, tiny_run: Path
) -> None:
    (published,) = tiny_run.rglob(STATISTICS)
    before = (bundle / STATISTICS).read_bytes()
    refresh(bundle, published)
    assert (bundle / STATISTICS).read_bytes() == before


def test_bundles_without_an_anchor_paint_from_the_newer_statistics(
    bundle: Path, rewrite: Rewrite, tmp_path: Path
) -> None:
    manifest = verify(bundle).manifest
    codes = Bundle.open(bundle).codes
    plain = Codes(codes.mean, codes.std, codes.known, None)
    (bundle / STATISTICS).write_bytes(plain.to_bytes())
    (bundle / "anchor.onnx").unlink()
    graphs = manifest.document()["graphs"]
    del graphs["anchor"]
    rewrite(bundle, graphs=graphs, anchor=None, share="features")
    before = Bundle.open(bundle, variant="fp32").synthesize([0, 1], 0)
    count = np.ones(len(codes.mean))
    moved = GlobalStatistics(count, codes.mean[::-1].astype(float), codes.std.astype(float))
    (tmp_path / "moved").write_bytes(wire.publish(moved))
    refresh(bundle, tmp_path / "moved")
    after = Bundle.open(bundle, variant="fp32")
    np.testing.assert_array_equal(after.codes.mean, codes.mean[::-1])
    assert (after.synthesize([0, 1], 0) != before).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("form", ["relative", "dot", "slash", "link", "string"])
def test_any_way_to_name_the_folder(
    bundle: Path, statistics: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(bundle if form == "dot" else bundle.parent)
    link = bundle.parent / "link"
    if form == "link":
        link.symlink_to(bundle.name)
    path = {"dot": ".", "slash": f"./{bundle.name}/", "link": link, "string": str(bundle)}
    for revision in (1, 2):
        assert refresh(path.get(form, bundle.name), statistics).revision == revision
        monkeypatch.chdir(bundle if form == "dot" else bundle.parent)
        assert verify(bundle).manifest.revision == revision
    assert form != "link" or link.is_symlink()
    assert not [name for name in os.listdir(bundle.parent) if name.startswith(".")]


# ---------------------------------------------------------------- signatures


def test_a_signed_bundle_is_signed_again(
    signed: Path, statistics: Path, signer: Ed25519PrivateKey
) -> None:
    key = signer.public_key()
    for keys in ({}, {"public_key": key}, {"public_key": signing.public_pem(key)}):
        refresh(signed, statistics, signing_key=signer, **keys)
        assert verify(signed, key).signer == signing.fingerprint(key)
    assert verify(signed).manifest.revision == 3


def test_another_key_may_take_over_if_the_old_one_is_checked(
    signed: Path, statistics: Path, signer: Ed25519PrivateKey
) -> None:
    heir = signing.generate()
    before = bytes_of(signed)
    with pytest.raises(VerificationError, match=r"signature of manifest.json"):
        refresh(signed, statistics, signing_key=heir)
    assert bytes_of(signed) == before
    refresh(signed, statistics, signing_key=heir, public_key=signer.public_key())
    assert verify(signed, heir.public_key()).manifest.revision == 1


@pytest.mark.parametrize("checked", [False, True])
def test_a_signature_is_never_lost(
    signed: Path, statistics: Path, signer: Ed25519PrivateKey, checked: bool
) -> None:
    before = bytes_of(signed)
    keys = {"public_key": signer.public_key()} if checked else {}
    with pytest.raises(BundleError, match="would lose its signature") as error:
        refresh(signed, statistics, **keys)
    assert "--sign" in error.value.hint
    assert bytes_of(signed) == before


def test_a_wrong_key_changes_nothing(
    signed: Path, statistics: Path, signer: Ed25519PrivateKey
) -> None:
    before, stranger = bytes_of(signed), signing.generate().public_key()
    with pytest.raises(VerificationError, match=r"signature of manifest.json"):
        refresh(signed, statistics, signing_key=signer, public_key=stranger)
    with pytest.raises(KeyFileError):
        refresh(signed, statistics, signing_key=signer, public_key=b"no key")
    assert bytes_of(signed) == before


def test_a_stripped_signature_is_noticed_by_whoever_has_the_key(
    signed: Path, statistics: Path, signer: Ed25519PrivateKey, rewrite: Rewrite
) -> None:
    """Else a forger would have his work signed by the next refresh."""
    (signed / "manifest.sig").unlink()
    (signed / "classifier.onnx").write_bytes(b"forged")
    rewrite(signed, sign=False)
    before = bytes_of(signed)
    for keys in ({}, {"signing_key": signer}):
        with pytest.raises(VerificationError, match=r"manifest.sig is missing"):
            refresh(signed, statistics, public_key=signer.public_key(), **keys)
    assert bytes_of(signed) == before


def test_an_unsigned_bundle_can_be_signed(
    bundle: Path, statistics: Path, signer: Ed25519PrivateKey
) -> None:
    with pytest.raises(BundleError, match="not signed: to sign it now would vouch") as caught:
        refresh(bundle, statistics, signing_key=signer)  # a forger may have stripped it
    assert "--trust-unsigned" in caught.value.hint
    assert verify(bundle).manifest.revision == 0
    refresh(bundle, statistics, signing_key=signer, trust_unsigned=True)
    assert verify(bundle, signer.public_key()).signed


def test_a_changed_bundle_is_not_blessed(
    signed: Path, statistics: Path, signer: Ed25519PrivateKey, rewrite: Rewrite
) -> None:
    forged = bytearray((signed / "classifier.onnx").read_bytes())
    forged[100] ^= 1
    (signed / "classifier.onnx").write_bytes(forged)
    with pytest.raises(VerificationError, match=r"classifier.onnx: SHA-256"):
        refresh(signed, statistics, signing_key=signer)
    rewrite(signed, sign=False)  # now the hashes fit, and the signature does not
    with pytest.raises(VerificationError, match=r"signature of manifest.json"):
        refresh(signed, statistics, signing_key=signer)


# ---------------------------------------------------------------- what does not fit


def published(classes: int = 10, width: int = 12, *, pooled: bool) -> bytes:
    mean = np.zeros((classes, width))
    covariance = np.eye(width) if pooled else None
    return wire.publish(GlobalStatistics(np.ones(classes), mean, mean + 1, covariance))


def pooled_here(folder: Path) -> bool:
    knowledge = Bundle.open(folder).codes.knowledge
    assert knowledge is not None
    return knowledge.covariance is not None


@pytest.mark.parametrize(
    ("classes", "width", "flip", "reason"),
    [
        (9, 12, False, "9 classes and 12 features, the bundle has 10 and 12"),
        (11, 12, False, "11 classes"),
        (10, 8, False, "10 classes and 8 features"),
        (12, 10, False, "12 classes and 10 features"),
        (10, 12, True, "other moments"),
        (400, 400, False, "over [0-9]+ bytes"),
    ],
)
def test_statistics_of_another_shape_change_nothing(
    bundle: Path, tmp_path: Path, classes: int, width: int, flip: bool, reason: str
) -> None:
    before = bytes_of(bundle)
    data = published(classes, width, pooled=pooled_here(bundle) != flip)
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(BundleError, match=reason):
        refresh(bundle, tmp_path / "other")
    assert bytes_of(bundle) == before


@pytest.mark.parametrize("data", [b"", b"garbage", b"\0" * 500, b"\xff" * 500, b"{}"])
def test_garbage_changes_nothing(bundle: Path, tmp_path: Path, data: bytes) -> None:
    before = bytes_of(bundle)
    (tmp_path / "garbage").write_bytes(data)
    with pytest.raises(wire.WireError):
        refresh(bundle, tmp_path / "garbage")
    assert bytes_of(bundle) == before


def test_an_upload_and_a_bundles_own_file_are_no_publication(
    bundle: Path, bundle_folder: Path
) -> None:
    with pytest.raises(wire.WireError, match="keys"):
        refresh(bundle, bundle_folder / STATISTICS)


@pytest.mark.parametrize("name", ["absent", ".", "pipe", "x" * 300, "huge"])
def test_what_is_no_file_changes_nothing(bundle: Path, tmp_path: Path, name: str) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    if name == "huge":
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    before = bytes_of(bundle)
    with pytest.raises(BundleError, match=r"no such file|too long|over"):
        refresh(bundle, tmp_path / name)
    assert bytes_of(bundle) == before


def test_a_method_without_statistics_has_none_to_refresh(
    bundle: Path, statistics: Path, rewrite: Rewrite
) -> None:
    graphs = verify(bundle).manifest.document()["graphs"]
    for name in (STATISTICS, "anchor.onnx", "synthesizer.onnx", "synthesizer.int8.onnx"):
        (bundle / name).unlink()
    keep = {"classifier": graphs["classifier"]}
    rewrite(bundle, graphs=keep, anchor=None, noise=None, method="fedavg")
    with pytest.raises(BundleError, match="'fedavg' published no statistics"):
        refresh(bundle, statistics)


@pytest.mark.parametrize("path", ["absent", "."])
def test_what_is_no_bundle(tmp_path: Path, statistics: Path, path: str) -> None:
    with pytest.raises((BundleError, VerificationError), match=r"no such folder|no bundle"):
        refresh(tmp_path / path, statistics)


# ---------------------------------------------------------------- cut off


@pytest.mark.parametrize(
    "step",
    [
        "shutil.copyfile",
        "fedvtc_edge.export.refreshing.write_atomic",
        "fedvtc_edge.export.refreshing.write_manifest",
        "fedvtc_edge.sealing.signing.sign",
        "os.rename",
    ],
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_in_the_middle_leaves_the_old_bundle(
    signed: Path,
    statistics: Path,
    signer: Ed25519PrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    before, beside = bytes_of(signed), sorted(os.listdir(signed.parent))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(type(error)):
            refresh(signed, statistics, signing_key=signer)
    assert bytes_of(signed) == before
    assert sorted(os.listdir(signed.parent)) == beside
    verify(signed, signer.public_key())


def test_a_copy_that_went_wrong_never_gets_the_name(
    bundle: Path, statistics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk lied, or someone wrote into the old bundle meanwhile."""
    before = bytes_of(bundle)
    copy = shutil.copyfile

    def flawed(source: Path, target: Path) -> None:
        copy(source, target)
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)

    monkeypatch.setattr(refreshing.shutil, "copyfile", flawed)
    with pytest.raises(VerificationError, match="SHA-256"):
        refresh(bundle, statistics)
    assert bytes_of(bundle) == before


@pytest.mark.parametrize("second", [False, True])
def test_a_failed_rename_puts_the_old_bundle_back(
    bundle: Path, statistics: Path, monkeypatch: pytest.MonkeyPatch, second: bool
) -> None:
    before, rename, calls = bytes_of(bundle), os.rename, []

    def sometimes(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 1 + second:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    with pytest.raises(OSError, match="Input/output"):
        refresh(bundle, statistics)
    assert bytes_of(bundle) == before
    assert not [name for name in os.listdir(bundle.parent) if name.startswith(".")]


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_killed_refresh_is_recovered_by_the_next(
    bundle: Path, statistics: Path, moment: str
) -> None:
    """SIGKILL cleans nothing up: what lies there then, at each moment of the exchange."""
    old, scratch = (bundle.with_name(f".{bundle.name}.{end}") for end in ("old", "new-abc123"))
    if moment == "before":  # half a copy
        scratch.mkdir()
        (scratch / "classifier.onnx").write_bytes(b"half")
    elif moment == "between":  # the old one moved away, the new one not yet there
        shutil.copytree(bundle, scratch)
        bundle.rename(old)
    else:  # the new one is there, the old one half removed
        old.mkdir()
        (old / "classifier.onnx").write_bytes(b"left")
    assert refresh(bundle, statistics).revision == 1
    assert verify(bundle).manifest.revision == 1
    assert not old.exists()
    assert not scratch.exists()


def test_a_killed_refresh_of_a_neighbour_is_none_of_ours(bundle: Path, statistics: Path) -> None:
    others = [f".{bundle.name}0.old", f".{bundle.name}0.new-1", f"{bundle.name}.old", ".old"]
    for name in others:
        (bundle.parent / name).mkdir()
    refresh(bundle, statistics)
    assert all((bundle.parent / name).is_dir() for name in others)
