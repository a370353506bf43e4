"""The server's arithmetic: secrets from shares, masks from secrets, the sum without masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .errors import MaskingError
from .keys import Advert, Vector, agree, commitment_of, masking_key, pair_mask, self_mask
from .plan import Plan
from .shamir import SECRET_BYTES, combine

Shares = Mapping[int, Mapping[int, int]]
"""Shares by the client that sent them, then by the client whose secret they are of."""


def rebuild(
    plan: Plan, shares: Mapping[int, int], right: Callable[[bytes], bool], suspects: set[int]
) -> bytes | None:
    """The one secret that fits what its owner committed to, or None.

    One wrong share is found where more than t are there: without it the others give
    the right secret. Whoever sent it is added to ``suspects`` (it sent a wrong share,
    or the owner dealt it one) and is left out of the next attempts.

    Args:
        plan: Public.
        shares: Share by sender.
        right: Whether 16 bytes are the secret.
        suspects: Senders of wrong shares; added to.
    """
    threshold = plan.threshold
    # Those under suspicion come last, and are used only where nobody else is left.
    senders = sorted(shares, key=lambda sender: (sender in suspects, sender))
    attempts: list[int | None] = [None]
    if len(senders) > threshold:
        attempts += senders[:threshold]
    for left_out in attempts:
        chosen = [sender for sender in senders if sender != left_out][:threshold]
        value = combine({sender + 1: shares[sender] for sender in chosen})
        if value.bit_length() > 8 * SECRET_BYTES:
            continue
        secret = value.to_bytes(SECRET_BYTES, "big")
        if right(secret):
            if left_out is not None:
                suspects.add(left_out)
            return secret
    return None


def unmasked_sum(
    plan: Plan,
    view: bytes,
    adverts: Mapping[int, Advert],
    vectors: Mapping[int, Vector],
    dropped: list[int],
    shares: Shares,
    suspects: set[int],
) -> NDArray[np.int64]:
    """Σ x_u over those whose vectors arrived, exactly.

    Args:
        plan: Public.
        view: Digest of all adverts.
        adverts: Of everybody who advertised.
        vectors: Masked vectors [size] by client.
        dropped: Clients whose shares were dealt and whose vectors did not arrive.
        shares: What the survivors sent in the last step.
        suspects: Senders of wrong shares; added to.

    Raises:
        MaskingError: A secret that cannot be rebuilt, or a sum that no vectors within
            the bound have.
    """

    def secret_of(owner: int, what: str, right: Callable[[Plan, int, bytes, bytes], bool]) -> bytes:
        shown = adverts[owner].commitment if what == "seed" else adverts[owner].masking
        secret = rebuild(
            plan,
            {sender: found[owner] for sender, found in shares.items()},
            lambda candidate: right(plan, owner, candidate, shown),
            suspects,
        )
        if secret is None:
            raise MaskingError(
                f"the shares of {plan.clients[owner]}'s {what} do not give what it committed to",
                hint="it dealt wrong shares, or several survivors sent wrong ones; begin again",
            )
        return secret

    total = np.zeros(plan.size, plan.dtype)
    for index, vector in vectors.items():
        total += vector
        total -= self_mask(plan, index, secret_of(index, "seed", _is_seed))
    for index in dropped:
        key = masking_key(plan, index, secret_of(index, "key", _is_root))
        for other in vectors:
            pair = (min(index, other), max(index, other))
            mask = pair_mask(plan, view, agree(key, adverts[other].masking), pair)
            # What the survivor added or subtracted is taken back.
            (np.subtract if other < index else np.add)(total, mask, out=total)
    signed = total.view(np.dtype(f"<i{plan.dtype.itemsize}")).astype(np.int64)
    most = len(vectors) * plan.bound
    if ((signed > most) | (signed < -most)).any():  # a mask is left: almost surely huge somewhere
        raise MaskingError(
            "a sum beyond what the bound allows", hint="a client masked wrongly; begin a new sum"
        )
    return signed


def _is_seed(plan: Plan, owner: int, candidate: bytes, commitment: bytes) -> bool:
    return commitment_of(plan, owner, candidate) == commitment


def _is_root(plan: Plan, owner: int, candidate: bytes, public: bytes) -> bool:
    return masking_key(plan, owner, candidate).public_key().public_bytes_raw() == public
