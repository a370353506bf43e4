"""Public keys on Curve25519 that nobody may have: of small order, or in a second spelling.

OpenSSL, and so ``cryptography``, takes any 32 bytes for an Ed25519 key. Under a key of small
order (a point that is zero after at most 8 additions) whoever likes can make signatures,
without a private key: under the neutral point one and the same is valid for every message.
And a key that is spelt in two ways is two keys to whoever compares bytes.

Source: RFC 8032, section 5.1.3; RFC 7748, section 5; Chalkias, Garillot and Nikolaenko,
"Taming the many EdDSAs", 2020.
"""

from __future__ import annotations

BYTES = 32

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SIGN = 1 << 255
# y of the two points of order 8, but for their signs; those of order 1, 2 and 4 have 1, -1, 0.
_Y8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER = {1, _P - 1, 0, _Y8, _P - _Y8}


def is_signing_key(raw: bytes) -> bool:
    """True if Ed25519 bytes are the one spelling of a point that is not of small order.

    Args:
        raw: Untrusted; a key is 32 bytes.
    """
    if len(raw) != BYTES:
        return False
    number = int.from_bytes(raw, "little")
    y = number & (_SIGN - 1)
    if y >= _P or y in _SMALL_ORDER:
        return False
    # On the curve, x² = (y² - 1) / (d y² + 1); there is an x where that is a square.
    square = (y * y - 1) * (_D * y * y + 1) % _P
    return pow(square, (_P - 1) // 2, _P) == 1


def is_agreement_key(raw: bytes) -> bool:
    """True if X25519 bytes are the one spelling of a coordinate.

    Whether it is of small order, the agreement itself tells: its result is zero, which
    OpenSSL refuses.

    Args:
        raw: Untrusted; a key is 32 bytes.
    """
    return len(raw) == BYTES and int.from_bytes(raw, "little") < _P
