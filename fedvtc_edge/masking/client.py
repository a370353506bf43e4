"""The client's side: five messages, each made once, and silence after the first doubt."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from .channel import Channel, open_channel
from .errors import MaskingError
from .keys import (
    Advert,
    Agreement,
    Vector,
    agree,
    commitment_of,
    masking_key,
    pair_mask,
    self_mask,
    signed_advert,
    verified_advert,
)
from .messages import SIZES, Kind, frame, membered, pack_members
from .plan import Plan, Step
from .shamir import SECRET_BYTES, SHARE_BYTES, split


class MaskingClient:
    """One client in one masked sum.

    The methods are called in the order in which they stand here, each once, with what
    the server sent. Whatever is refused ends this client's part: it then answers
    nothing any more, and its keys are dropped (Python cannot wipe them from memory).

    Guarantee: see ``docs/masking.md``. Nothing that depends on the vector leaves but in
    :meth:`mask`; and for each other client at most one kind of share leaves, of its
    seed or of its key.

    Args:
        plan: Public, the same for everybody.
        client: This client's id.
        identity: Its private key, of the trusted public key in the plan.
        agreeing: X25519; a simulation that plays all clients gives one that remembers.

    Raises:
        MaskingError: A client that is not invited, or another's identity.
    """

    def __init__(
        self,
        plan: Plan,
        client: str,
        identity: Ed25519PrivateKey,
        *,
        agreeing: Agreement = agree,
    ) -> None:
        self.plan, self.client = plan, client
        self.index = plan.index_of(client)
        if identity.public_key().public_bytes_raw() != plan.raw_keys[self.index]:
            raise MaskingError(
                f"the identity is not the one trusted as {client}", hint="check the key file"
            )
        self._identity, self._agree = identity, agreeing
        self._next: Step | None = Step.ADVERTISE
        # The two secrets that are shared: of the self-mask, and of the key of pairwise masks.
        self._seed = secrets.token_bytes(SECRET_BYTES)
        self._root = secrets.token_bytes(SECRET_BYTES)
        self._masking = masking_key(plan, self.index, self._root)
        self._encryption = X25519PrivateKey.generate()
        self._adverts: dict[int, Advert] = {}
        self._channels: dict[int, Channel] = {}
        self._shares: dict[int, tuple[int, int]] = {}
        self._arrived: tuple[int, ...] = ()
        self._own = self._view = self._statement = b""

    def advertise(self) -> bytes:
        """Step 0: fresh public keys and a commitment to the self-mask, signed."""
        with self._taking(Step.ADVERTISE):
            advert = Advert(
                self._encryption.public_key().public_bytes_raw(),
                self._masking.public_key().public_bytes_raw(),
                commitment_of(self.plan, self.index, self._seed),
            )
            self._own = signed_advert(self.plan, self.client, advert, self._identity)
            return frame(self.plan, Kind.ADVERT, self.client, self._own)

    def share(self, roster: bytes) -> bytes:
        """Step 1: shares of both secrets, sealed for each of the others.

        Args:
            roster: The server's list of all adverts.

        Raises:
            MaskingError: Too few clients, a signature that is wrong, or one's own
                advert changed.
        """
        with self._taking(Step.SHARE):
            members, adverts = membered(self.plan, roster, Kind.ROSTER, SIZES[Kind.ROSTER])
            self._check_members(members, range(len(self.plan.clients)))
            if adverts[self.index] != self._own:
                raise MaskingError(
                    "the server shows another advert than was sent", hint="do not trust it"
                )
            # Everybody must have been shown the same keys: the digest enters every key.
            self._view = hashlib.sha256(roster).digest()
            others = [m for m in members if m != self.index]
            for m in others:
                self._adverts[m] = verified_advert(self.plan, self.plan.clients[m], adverts[m])
                secret = self._agree(self._encryption, self._adverts[m].encryption)
                self._channels[m] = open_channel(self.plan, self._view, secret, self.index, m)
            points = tuple(m + 1 for m in members)  # 0 is where the secret lies
            dealt = [split(s, points, self.plan.threshold) for s in (self._seed, self._root)]
            shares = dict(zip(members, zip(*dealt, strict=True), strict=True))
            self._shares[self.index] = shares[self.index]
            body = b"".join(self._channels[m].seal_shares(*shares[m]) for m in others)
            return frame(self.plan, Kind.SHARES, self.client, body)

    def mask(self, mailbox: bytes, vector: NDArray[np.int64]) -> bytes:
        """Step 2: the vector under this client's own mask and one mask per other client.

        Args:
            mailbox: What the others sealed for this client.
            vector: Integers [size], each at most ``plan.bound`` in magnitude.

        Raises:
            MaskingError: A vector of another type or shape or beyond the bound, which
                would wrap around; too few clients; shares that cannot be opened.
        """
        with self._taking(Step.MASK):
            numbers = self._checked(vector)
            members, sealed = membered(
                self.plan, mailbox, Kind.MAILBOX, SIZES[Kind.MAILBOX], but=self.index
            )
            self._check_members(members, [self.index, *self._adverts])
            for m, message in sealed.items():
                self._shares[m] = self._channels[m].open_shares(message)
            masked = numbers + self_mask(self.plan, self.index, self._seed)
            for m in sealed:
                pair = (min(m, self.index), max(m, self.index))
                secret = self._agree(self._masking, self._adverts[m].masking)
                mask = pair_mask(self.plan, self._view, secret, pair)
                # The lower one adds what the higher one subtracts.
                (np.add if self.index < m else np.subtract)(masked, mask, out=masked)
            self._view += pack_members(self.plan, members)
            return frame(self.plan, Kind.MASKED, self.client, masked.tobytes())

    def confirm(self, arrived: bytes) -> bytes:
        """Step 3: tell every other client, past the server, whose vectors have arrived.

        Args:
            arrived: The server's list.

        Raises:
            MaskingError: Too few clients, or one that did not take part.
        """
        with self._taking(Step.CONFIRM):
            members, _ = membered(self.plan, arrived, Kind.ARRIVED, 0)
            self._check_members(members, self._shares)
            self._arrived = members
            # All that was seen so far: adverts, whose shares came, whose vectors came.
            self._statement = self._view + pack_members(self.plan, members)
            body = b"".join(
                self._channels[m].confirmation(self._statement) for m in members if m != self.index
            )
            return frame(self.plan, Kind.CONFIRMATION, self.client, body)

    def unmask(self, confirmed: bytes) -> bytes:
        """Step 4: a share of the seed of each who arrived, of the key of each who did not.

        Only for the one list that was confirmed in step 3, and only if t clients saw
        the same: two lists for which t clients stand cannot both exist, so that a
        server cannot collect shares of both secrets of one client.

        Args:
            confirmed: The others' confirmations.

        Raises:
            MaskingError: Fewer than t confirmations, or one of another list.
        """
        with self._taking(Step.UNMASK):
            members, tags = membered(
                self.plan, confirmed, Kind.CONFIRMED, SIZES[Kind.CONFIRMED], but=self.index
            )
            self._check_members(members, self._arrived)
            for m, tag in tags.items():
                if not self._channels[m].confirms(tag, self._statement):
                    raise MaskingError(
                        f"{self.plan.clients[m]} did not see the same clients arrive",
                        hint="the server shows clients different lists, or one of them lies",
                    )
            arrived = set(self._arrived)
            body = b"".join(
                self._shares[m][0 if m in arrived else 1].to_bytes(SHARE_BYTES, "big")
                for m in sorted(self._shares)
            )
            answer = frame(self.plan, Kind.UNMASKING, self.client, body)
        self._end()
        return answer

    @contextmanager
    def _taking(self, step: Step) -> Iterator[None]:
        """A step is begun once; unless it ends well, none follows."""
        expected, self._next = self._next, None
        try:
            if expected is not step:
                at = "nothing more" if expected is None else expected.name
                raise MaskingError(
                    f"{self.client}: {step.name} where {at} is due",
                    hint="every step is taken once, in order; begin a new sum",
                )
            yield
        except BaseException:
            self._end()
            raise
        self._next = Step(step + 1) if step < Step.UNMASK else None

    def _end(self) -> None:
        self._next = None
        self._seed = self._root = b""
        self._shares, self._channels = {}, {}
        # Keys that nobody has seen stand in for those that were used.
        self._masking = self._encryption = X25519PrivateKey.generate()

    def _check_members(self, members: tuple[int, ...], among: Collection[int]) -> None:
        if self.index not in members or not set(members) <= set(among):
            raise MaskingError(
                f"a list of clients without {self.client}, or with one that dropped out",
                hint="the server counts wrongly, or lies",
            )
        if len(members) < self.plan.threshold:
            raise MaskingError(
                f"{len(members)} clients, expected {self.plan.threshold} at least",
                hint="too many dropped out; begin a new sum",
            )

    def _checked(self, vector: NDArray[np.int64]) -> Vector:
        """The vector modulo the plan's modulus; refused where it could wrap around."""
        plan, given = self.plan, np.asarray(vector)
        if given.dtype != np.int64 or given.shape != (plan.size,):
            raise MaskingError(
                f"{given.dtype} {given.shape}, expected int64 ({plan.size},)",
                hint="encode_fixed makes integers of real numbers",
            )
        # Not through abs, which leaves the least of all int64 negative.
        beyond = (given > plan.bound) | (given < -plan.bound)
        if beyond.any():
            raise MaskingError(
                f"{int(beyond.sum())} of {plan.size} numbers are beyond the bound {plan.bound}",
                hint="raise the public bound for everybody; nothing is clipped",
            )
        return given.astype(plan.dtype)  # two's complement: modulo 2^32 or 2^64
