"""Readers of untrusted bytes, and checks of what they accept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedvtc_edge import wire
from fedvtc_edge.errors import EnvelopeError
from fedvtc_edge.masking import MaskingClient, MaskingError, MaskingPlan, MaskingServer
from fedvtc_edge.sealing import Identity, Inbox, TrustList, seal, unseal
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.wire.context import Context

from .probing import Target

CONTEXT = Context("00112233445566778899aabbccddeeff", 3, "client-a", "features")
CLASSES, WIDTH, RELEASE = 3, 4, 12

_ELSEWHERE = (
    replace(CONTEXT, run="0" * 32),
    replace(CONTEXT, round=2),
    replace(CONTEXT, sender="client-b"),
    replace(CONTEXT, kind="anchor"),
)


def made_of(name: str, suite: str) -> Identity:
    """An identity whose keys are hashes of its name: to repeat attacks, never for use."""
    raw = [hashlib.sha256(f"{name} {part}".encode()).digest() for part in range(4)]
    curve = X25519PrivateKey.from_private_bytes(raw[1])
    signing = Ed25519PrivateKey.from_private_bytes(raw[0])
    if suite == "x25519":
        return Identity(signing, (curve,))
    return Identity(signing, (curve, MLKEM768PrivateKey.from_seed_bytes(raw[2] + raw[3])))


def targets(folder: Path) -> list[Target]:
    """Targets, each with its own valid bytes.

    Args:
        folder: Empty; the inboxes write there.
    """
    return [
        _envelopes("hybrid", folder / "hybrid"),
        _envelopes("x25519", folder / "x25519"),
        _statistics(pooled=False),
        _statistics(pooled=True),
        _means(),
        _release(),
        _weights(),
        _publication(),
        _advert(),
    ]


def _envelopes(suite: str, folder: Path) -> Target:
    """The server's inbox, as it waits for client-a's features in round 3."""
    server, a, b, stranger = (made_of(name, suite) for name in ("server", "a", "b", "stranger"))
    other_suite = made_of("server", "x25519" if suite == "hybrid" else "hybrid")
    trusted = TrustList()
    trusted.add("client-a", a.public)
    trusted.add("client-b", b.public)
    inbox = Inbox(folder, run=CONTEXT.run, recipient=server, trusted=trusted)
    for round_ in range(CONTEXT.round):
        inbox.close(round_)
    journal = (folder / "journal").read_bytes()
    payload = wire.encode(_sums(pooled=False), context=CONTEXT)

    def sealed(to: Identity, sender: Identity, context: Context) -> bytes:
        return seal(payload, recipient=to.public, sender=sender, context=context)

    def left() -> str | None:
        files = sorted(path.name for path in folder.iterdir())
        intact = (folder / "journal").read_bytes() == journal
        return None if files == ["journal"] and intact else f"the inbox holds {files}"

    genuine = sealed(server, a, CONTEXT)
    # Through unseal, which stores nothing: had the inbox counted it, it would refuse the rest.
    unseal(genuine, recipient=server, trusted=trusted, context=CONTEXT)
    return Target(
        f"envelope-{suite}",
        read=lambda data: inbox.receive(CONTEXT, data),
        refusals=(EnvelopeError,),
        genuine=(genuine,),
        neighbours=(
            *(sealed(server, b if c.sender == "client-b" else a, c) for c in _ELSEWHERE),
            sealed(server, stranger, CONTEXT),
            sealed(stranger, a, CONTEXT),
            sealed(other_suite, a, CONTEXT),
            payload,
        ),
        signed=True,
        aftermath=left,
    )


def _statistics(*, pooled: bool) -> Target:
    precisions: tuple[wire.Precision, ...] = ("float32", "float16")
    sums, other = _sums(pooled=pooled), _sums(pooled=not pooled)

    def wrong(data: bytes, value: object) -> str | None:
        assert isinstance(value, ClassStatistics)
        if not any(data[:128] == seed[:128] for seed in genuine):
            return "another header"
        if data[7 + 2] == 1 and wire.encode(value, context=CONTEXT) != data:
            return "two ways to write the same sums"
        return impossible(value)

    genuine = tuple(wire.encode(sums, context=CONTEXT, precision=p) for p in precisions)
    neighbours = [wire.encode(sums, context=c) for c in (None, *_ELSEWHERE)]
    neighbours += [wire.encode(other, context=CONTEXT, precision=p) for p in precisions]
    return Target(
        "pooled" if pooled else "diagonal",
        read=lambda data: wire.decode(
            data, classes=CLASSES, width=WIDTH, pooled=pooled, context=CONTEXT
        ),
        refusals=(wire.WireError,),
        genuine=genuine,
        neighbours=tuple(neighbours),
        wrong=wrong,
    )


def _means() -> Target:
    """Counts and sums without second moments."""
    sums = _sums(pooled=False)

    def wrong(data: bytes, value: object) -> str | None:
        assert isinstance(value, ClassStatistics)
        if wire.encode_means(value, context=CONTEXT) != data:
            return "two ways to write the same sums"
        for n, total in zip(value.count, value.total, strict=True):
            if not (0 <= n <= 2**48 and n == int(n)):
                return f"a count of {n}"
            if not (np.abs(total) <= 1e30).all() or (n == 0 and total.any()):
                return f"{n:g} samples add up to {total}"
        return "a second moment" if value.square.any() else None

    return Target(
        "means",
        read=lambda data: wire.decode_means(data, classes=CLASSES, width=WIDTH, context=CONTEXT),
        refusals=(wire.WireError,),
        genuine=(wire.encode_means(sums, context=CONTEXT),),
        neighbours=(
            *(wire.encode_means(sums, context=c) for c in (None, *_ELSEWHERE)),
            wire.encode(sums, context=CONTEXT),
        ),
        wrong=wrong,
    )


def impossible(sums: ClassStatistics) -> str | None:
    """A fault of sums that no data have, looked for class by class in the slow and obvious way.

    The bounds are those that docs/wire-format.md promises.
    """
    for n, total in zip(sums.count, sums.total, strict=True):
        if not (0 <= n <= 2**48 and n == int(n)):
            return f"a count of {n}"
        if not (np.abs(total) <= 1e30).all() or (n == 0 and total.any()):
            return f"{n:g} samples add up to {total}"
    if not (np.abs(sums.square) <= 1e30).all():
        return "a second moment out of range"
    if not sums.pooled:
        for n, total, square in zip(sums.count, sums.total, sums.square, strict=True):
            least = total * total / max(n, 1)
            if (square * 1.0011 + 1e-29 < least).any() or (n == 0 and square.any()):
                return f"second moments {square} of {n:g} samples with total {total}"
        return None
    within = sums.square.copy()
    for n, total in zip(sums.count, sums.total, strict=True):
        within -= np.outer(total, total) / max(n, 1)
    size = np.sqrt(np.maximum(np.diag(sums.square), 1e-30))
    least = float(np.linalg.eigvalsh(within / np.outer(size, size)).min())
    return f"an eigenvalue of {least}" if least < -2e-6 * len(size) else None


def _release() -> Target:
    release = np.arange(RELEASE, dtype=np.int64) * 1000 - 5000

    def wrong(data: bytes, value: object) -> str | None:
        assert isinstance(value, np.ndarray)
        if (np.abs(value) > 2**49).any():
            return "a number that no sum has"
        return _another(wire.encode_release(value, context=CONTEXT), data)

    return _payload(
        "release",
        lambda context: wire.encode_release(release, context=context),
        lambda data: wire.decode_release(data, size=RELEASE, context=CONTEXT),
        wrong,
    )


def _weights() -> Target:
    like = {"up.weight": np.ones((4, 3), np.float32), "up.bias": np.zeros(3, np.float32)}

    def wrong(data: bytes, value: object) -> str | None:
        assert isinstance(value, dict)
        if not all(np.isfinite(array).all() for array in value.values()):
            return "a weight that is no number"
        return _another(wire.encode_weights(value, context=CONTEXT), data)

    return _payload(
        "weights",
        lambda context: wire.encode_weights(like, context=context),
        lambda data: wire.decode_weights(data, like=like, context=CONTEXT),
        wrong,
    )


def _payload(
    name: str,
    encode: Callable[[Context | None], bytes],
    read: Callable[[bytes], object],
    wrong: Callable[[bytes, object], str | None],
) -> Target:
    neighbours = tuple(encode(context) for context in (None, *_ELSEWHERE))
    return Target(name, read, (wire.WireError,), (encode(CONTEXT),), neighbours, wrong=wrong)


def _another(again: bytes, data: bytes) -> str | None:
    return None if again == data else "two ways to write the same numbers"


def _publication() -> Target:
    """A client's reader of the server's publication."""

    def wrong(data: bytes, value: object) -> str | None:
        assert isinstance(value, GlobalStatistics)
        arrays = [value.count, value.mean, value.std]
        arrays += [] if value.covariance is None else [value.covariance]
        if not all(np.isfinite(array).all() for array in arrays):
            return "a value is not finite"
        return "a negative one" if (value.count < 0).any() or (value.std < 0).any() else None

    rows = np.arange(CLASSES * WIDTH, dtype=np.float64).reshape(CLASSES, WIDTH)
    publications = [
        GlobalStatistics(np.array([5.0, 3.0, 0.0]), rows, rows + 1, covariance)
        for covariance in (None, np.eye(WIDTH))
    ]
    genuine = tuple(map(wire.publish, publications))
    return Target("publication", wire.published, (wire.WireError,), genuine, wrong=wrong)


def _advert() -> Target:
    """The first message of a masked sum: keys that the client's identity signs."""
    names = ("client-a", "client-b", "client-c")
    keys = {name: made_of(name, "x25519").signing_key for name in names}
    plans = [
        MaskingPlan(context, {name: key.public_key() for name, key in keys.items()}, size=4)
        for context in (CONTEXT, replace(CONTEXT, round=2))
    ]
    own, other, late = (
        MaskingClient(plan, name, identity=keys[name]).advertise()
        for plan, name in zip(
            (plans[0], plans[0], plans[1]), ("client-a", "client-b", "client-a"), strict=True
        )
    )
    return Target(
        "advert",
        read=lambda data: MaskingServer(plans[0]).receive(data, sender="client-a"),
        refusals=(MaskingError,),
        genuine=(own,),
        neighbours=(other, late),
        signed=True,
    )


def _sums(*, pooled: bool) -> ClassStatistics:
    """Sums of made-up features; the third class has no sample."""
    features = np.random.default_rng(0).normal(size=(12, WIDTH))
    return ClassStatistics.of(features, np.arange(12) % 2, classes=CLASSES, pooled=pooled)
