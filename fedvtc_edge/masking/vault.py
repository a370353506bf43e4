"""One masked sum on a client's disk, where each step is taken by a process of its own."""

from __future__ import annotations

import glob
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedvtc_edge.storage.atomic import append_line, write_atomic

from .client import MaskingClient
from .fixed_point import reduced
from .plan import SERVER, MaskingError, MaskingPlan, MaskingStep

_LENGTH = struct.Struct(">I")
_SUM_BYTES = 32
_PRIVATE = 0o600


class Vault:
    """Keeps a client between two steps of a sum, and its vector until it is masked.

    The danger is a fork. Two processes that thaw the same bytes can answer one step for
    two different messages of the server: shares sealed twice under one key and nonce,
    or shares of both secrets of another client. So :meth:`take` moves the file out of
    its place, which only one process can do, and deletes it, past every crash, before
    anything is computed. A process that is killed between :meth:`take` and :meth:`keep`
    leaves nothing: the client is silent from then on, and counts as dropped out.
    Callers hold a lock on the folder nevertheless: :meth:`keep` and :meth:`drop` of
    two processes would overtake each other.

    A second danger is the same vector in two sums: what one sum has and the other has
    not is one client's vector. So beside the file lies, as ``.spent``, one line for each
    run, round and kind in which a vector has left.

    Deleted is not wiped: flash storage and snapshots may keep old blocks.

    Args:
        path: The file, in a folder that exists; mode 0600.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spent = path.with_name(f"{path.name}.spent")

    def take(
        self, plan: MaskingPlan, client: str, identity: Ed25519PrivateKey
    ) -> tuple[MaskingClient, NDArray[np.int64]]:
        """Read the kept client and delete it for good; what follows is kept anew, or lost.

        Args:
            identity: Its private key.

        Returns:
            The client before its next step, and its vector [size]; [0] after MASK.

        Raises:
            MaskingError: Nothing is kept; a file that is damaged or of another sum,
                which is deleted nevertheless; a folder that cannot be written.
        """
        taken = self.path.with_name(f".{self.path.name}.taken")
        with self._on_disk():
            try:
                os.replace(self.path, taken)  # of two processes, one gets it
            except FileNotFoundError:
                self.drop()
                raise MaskingError(
                    f"{self.path} is not there: {client}'s part in the sum is over",
                    hint="it is done, or was killed within a step; wait for the next sum",
                ) from None
            data = taken.read_bytes()
            # Emptied, renamed and flushed with its folder: no power cut brings it back.
            write_atomic(taken, b"", mode=_PRIVATE)
            self.drop()
        return self._read(data, plan, client, identity)

    def keep(self, client: MaskingClient, vector: NDArray[np.int64]) -> None:
        """Write the client before its next step; the object itself says no more.

        Args:
            client: Whose part is not over.
            vector: Its own [size]; [0] after MASK, so that it is gone from the disk.

        Raises:
            MaskingError: Its part is over, or the file cannot be written.
        """
        frozen = client.freeze()
        data = _LENGTH.pack(len(frozen)) + frozen + vector.astype("<i8").tobytes()
        with self._on_disk():
            write_atomic(self.path, data + hashlib.sha256(data).digest(), mode=_PRIVATE)

    def drop(self) -> None:
        """Delete what is kept, and what a killed process left of writing it.

        Raises:
            MaskingError: The folder cannot be written.
        """
        pattern = f".{glob.escape(self.path.name)}.*"
        with self._on_disk():
            for path in (self.path, *self.path.parent.glob(pattern)):
                path.unlink(missing_ok=True)

    def spend(self, plan: MaskingPlan) -> None:
        """Note, past every crash, that a vector leaves in this run, round and kind.

        Raises:
            MaskingError: One has left already, or the note cannot be written.
        """
        self.check_unspent(plan)
        with self._on_disk():
            append_line(self._spent, _name(plan))

    def check_unspent(self, plan: MaskingPlan) -> None:
        """Raise MaskingError where a vector has left in this run, round and kind."""
        with self._on_disk():
            noted = self._spent.read_bytes() if self._spent.exists() else b""
        if _name(plan) in noted:  # anywhere: a line cut short may stand before it
            raise MaskingError(
                f"a vector has left for round {plan.context.round}, {plan.context.kind} already",
                hint="in a second sum it could be told apart; begin the next round",
            )

    def _read(
        self, data: bytes, plan: MaskingPlan, client: str, identity: Ed25519PrivateKey
    ) -> tuple[MaskingClient, NDArray[np.int64]]:
        body, found = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
        if len(body) < _LENGTH.size or hashlib.sha256(body).digest() != found:
            raise self._damaged()
        at = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        thawed = MaskingClient.thaw(plan, client, identity, body[_LENGTH.size : at])
        due = plan.size if thawed.step is not None and thawed.step <= MaskingStep.MASK else 0
        if len(body) - at != 8 * due:
            raise self._damaged()
        return thawed, np.frombuffer(body, "<i8", due, at).astype(np.int64)

    def _damaged(self) -> MaskingError:
        return MaskingError(
            f"{self.path} was damaged", hint="it is deleted: this client's part in the sum is over"
        )

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MaskingError(
                f"cannot keep a masked sum in {self.path}: {error.strerror or error}",
                hint="make its folder writable, or free some space",
            ) from None


def take_step(
    vault: Vault,
    plan: MaskingPlan,
    client: str,
    identity: Ed25519PrivateKey,
    step: MaskingStep,
    message: bytes = b"",
    vector: NDArray[np.int64] | None = None,
) -> bytes:
    """One step of a client whose process has no memory of the one before.

    ADVERTISE begins a sum and forgets whatever was kept. Any step that is refused, out
    of order or damaged ends the client's part. An answer that was lost cannot be made
    again: whoever calls keeps it until it has arrived.

    Guarantee: as :class:`MaskingClient`, across crashes, as long as the file is not
    brought back from a copy; and of each run, round and kind a vector leaves in one sum
    at most. See :class:`Vault`.

    Args:
        vault: Where the client is kept.
        plan: Public, the same in every step.
        identity: Its private key.
        message: What the server sent for it; none for ADVERTISE.
        vector: Integers [size], with ADVERTISE: kept until MASK.

    Returns:
        The message for the server.

    Raises:
        MaskingError: As :class:`MaskingClient`; a vector missing, or with another step
            than ADVERTISE; as :class:`Vault`.
    """
    if (vector is None) is (step is MaskingStep.ADVERTISE):
        raise MaskingError(
            f"{step.name} {'without' if vector is None else 'with'} a vector",
            hint="it goes with ADVERTISE and with no other step",
        )
    if vector is not None:
        reduced(plan, vector)  # refused now rather than when all others count on it
        vault.check_unspent(plan)
        vault.drop()
        party = MaskingClient(plan, client, identity)
    else:
        party, vector = vault.take(plan, client, identity)
    answer = party.answer(step, message, vector)
    if step is MaskingStep.MASK:
        vault.spend(plan)
        vector = vector[:0]
    if step < MaskingStep.UNMASK:
        vault.keep(party, vector)
    return answer


def _name(plan: MaskingPlan) -> bytes:
    """Digest of run, round and kind, whoever takes part and whatever the bound: 64 digits."""
    return hashlib.sha256(plan.contexts[SERVER]).hexdigest().encode()
