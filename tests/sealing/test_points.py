"""Points of small order, with the curve's own arithmetic, and what cryptography takes."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.errors import KeyFileError
from fedvtc_edge.masking.keys import agree
from fedvtc_edge.masking.plan import MaskingError
from fedvtc_edge.sealing import Identity, PublicIdentity, points, signing

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # of -1
ORDER = 2**252 + 27742317777372353535851937790883648493

Point = tuple[int, int]


def add(one: Point, other: Point) -> Point:
    """RFC 8032, section 5.1.4, in affine coordinates."""
    (a, b), (c, d) = one, other
    product = D * a * b * c * d % P
    x = (a * d + b * c) * pow(1 + product, -1, P) % P
    y = (b * d + a * c) * pow(1 - product, -1, P) % P
    return x, y


def times(count: int, point: Point) -> Point:
    total = (0, 1)
    while count:
        if count & 1:
            total = add(total, point)
        point, count = add(point, point), count >> 1
    return total


def decoded(y: int) -> Point | None:
    """A point of this y, or None."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    for root in (x, x * ROOT % P):
        if root * root % P == square:
            return root, y
    return None


def encoded(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def small_order() -> list[int]:
    """The y of all eight: multiples of a point whose order is 8 times a large prime."""
    found = set()
    for y in range(2, 40):
        point = decoded(y)
        if point is not None:
            torsion = times(ORDER, point)
            found |= {times(factor, torsion)[1] for factor in range(8)}
    return sorted(found)


SMALL = small_order()
ALIASES = [y + P for y in range(19)]
FORGED = encoded(1) + bytes(32)
"""A signature of nobody's: the neutral point, and zero."""


def test_there_are_eight_points_of_small_order() -> None:
    assert len(SMALL) == 5  # two each of order 4 and 8, but for their signs, share a y
    for y in SMALL:
        point = decoded(y)
        assert point is not None
        assert times(8, point) == (0, 1)


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", SMALL + ALIASES)
def test_no_key_of_small_order_and_no_second_spelling(y: int, sign: int) -> None:
    raw = encoded(y, sign)
    Ed25519PublicKey.from_public_bytes(raw)  # cryptography takes them all
    assert not points.is_signing_key(raw)
    real = Identity.generate("x25519").public
    with pytest.raises(KeyFileError):
        PublicIdentity("x25519", raw, real.sealing)


def test_what_such_a_key_would_be_good_for() -> None:
    """Why they are refused: a signature that nobody made, good for any bytes."""
    neutral = Ed25519PublicKey.from_public_bytes(encoded(1))
    assert signing.is_signed(neutral, FORGED, b"whatever")
    assert signing.is_signed(neutral, FORGED, b"and anything else")


def test_files_and_keys_of_bundles_are_looked_at_too() -> None:
    neutral = Ed25519PublicKey.from_public_bytes(encoded(1))
    pem = neutral.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for source in (neutral, pem):
        with pytest.raises(KeyFileError, match="anybody can sign"):
            signing.load_public(source)


@given(st.integers(0, P - 1))
def test_of_all_other_numbers_those_on_the_curve(y: int) -> None:
    on_curve = decoded(y) is not None
    assert points.is_signing_key(encoded(y)) == (on_curve and y not in SMALL)


@given(st.binary(min_size=32, max_size=32))
def test_every_real_key_is_one(seed: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    assert points.is_signing_key(key.public_bytes_raw())
    other = X25519PrivateKey.from_private_bytes(seed).public_key()
    assert points.is_agreement_key(other.public_bytes_raw())


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    assert not points.is_signing_key(bytes(size))
    assert not points.is_agreement_key(bytes(size))


@pytest.mark.parametrize("raw", [encoded(P + 9), encoded(9, 1), *(encoded(u) for u in (0, 1))])
def test_no_sealing_key_in_a_second_spelling_or_of_small_order(raw: bytes) -> None:
    real = Identity.generate("x25519").public
    with pytest.raises(KeyFileError):
        PublicIdentity("x25519", real.verifying, raw)


def test_masks_are_agreed_on_with_no_second_spelling() -> None:
    own = X25519PrivateKey.generate()
    assert len(agree(own, encoded(9))) == 32
    for raw in (encoded(9, 1), encoded(P + 9), encoded(0)):
        with pytest.raises(MaskingError):
            agree(own, raw)
