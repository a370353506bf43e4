"""Channel between two clients past the server: shares of secrets, and who was seen to arrive."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .keys import PAIR, PRIME, SHARE_BYTES, derive
from .plan import MaskingError, MaskingPlan

TAG_BYTES = 16
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES

# Each direction has a key of its own, and each key seals exactly one message of each
# kind: a client takes each step once and has new keys in every sum. So these two
# constants are all the nonces there can be, and no key meets one of them twice.
_SHARES, _CONFIRMATION = (0).to_bytes(12, "big"), (1).to_bytes(12, "big")


@dataclass(frozen=True)
class Channel:
    """One client's end of what it shares with another; see :func:`open_channel`."""

    outward: AESGCM
    inward: AESGCM
    there: bytes
    here: bytes

    def seal_shares(self, seed: int, root: int) -> bytes:
        """The other's shares of one's own two secrets, 50 bytes."""
        plain = seed.to_bytes(SHARE_BYTES, "big") + root.to_bytes(SHARE_BYTES, "big")
        return self.outward.encrypt(_SHARES, plain, self.there)

    def open_shares(self, sealed: bytes) -> tuple[int, int]:
        """One's own shares of the other's two secrets.

        Raises:
            MaskingError: They were sealed by or for another, in another sum, under
                other adverts, or are no shares.
        """
        try:
            plain = self.inward.decrypt(_SHARES, sealed, self.here)
        except InvalidTag:
            raise MaskingError(
                "shares that cannot be opened", hint="changed on the way, or meant for another"
            ) from None
        seed = int.from_bytes(plain[:SHARE_BYTES], "big")
        root = int.from_bytes(plain[SHARE_BYTES:], "big")
        if len(plain) != 2 * SHARE_BYTES or max(seed, root) >= PRIME:
            raise MaskingError("shares that are no field elements", hint="their sender lies")
        return seed, root

    def confirmation(self, statement: bytes) -> bytes:
        """16 bytes that prove to the other, and to nobody else, that one says ``statement``.

        AES-GCM of nothing with the statement as associated data is a MAC (GMAC).
        """
        return self.outward.encrypt(_CONFIRMATION, b"", self.there + statement)

    def confirms(self, tag: bytes, statement: bytes) -> bool:
        """True if the other said ``statement``."""
        try:
            self.inward.decrypt(_CONFIRMATION, tag, self.here + statement)
        except InvalidTag:
            return False
        return True


def open_channel(plan: MaskingPlan, view: bytes, secret: bytes, index: int, other: int) -> Channel:
    """The keys of both directions.

    Args:
        plan: Public.
        view: Digest of all adverts: whoever was shown other keys cannot open anything.
        secret: What the two encryption keys agree on.
    """
    info = plan.digest + view + PAIR.pack(min(index, other), max(index, other))
    keys = derive(secret, b"channel", info, 64)
    upward, downward = AESGCM(keys[:32]), AESGCM(keys[32:])  # from the lower index, and to it
    outward, inward = (upward, downward) if index < other else (downward, upward)
    bound = plan.digest + view
    return Channel(
        outward, inward, bound + PAIR.pack(index, other), bound + PAIR.pack(other, index)
    )
