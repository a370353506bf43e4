"""Who is heard: every upload is witnessed, opened, and counted or refused with a note."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from .context import Context
from .errors import FedVTCError

Witness = Callable[[int, str, str, bytes], None]
"""Told of each upload: round, sender, kind, bytes."""

Refuse = Callable[[Context, FedVTCError, str | None], None]
"""Told of each refusal: whose upload, why, and its key's fingerprint if there is one."""

_Opened = TypeVar("_Opened")


class ServerError(FedVTCError):
    """A round that cannot be closed, or an upload that does not belong to it."""


def unheard(context: Context, error: FedVTCError, fingerprint: str | None) -> None:
    """Notes no refusal."""


def quorum_of(share: float, cohort: int) -> int:
    """How many of a cohort a share of it is, rounded up; 1 at least."""
    return max(1, math.ceil(share * cohort - 1e-9))  # 0.07 · 100 is 7.000000000000001


class Admission:
    """What all kinds of uploads have in common.

    Args:
        witness: Called with every upload before it is opened, for the audit.
        refuse: Called with every refusal.
    """

    def __init__(self, witness: Witness, refuse: Refuse) -> None:
        self.witness = witness
        self._refuse = refuse
        self._last_refusal = ""

    def admit(
        self,
        upload: bytes,
        context: Context,
        fingerprint: str | None,
        heard: dict[str, _Opened],
        opened: Callable[[], _Opened],
    ) -> bool:
        """Witness an upload and count it; False, with a note, where it is refused.

        Args:
            upload: Untrusted bytes.
            context: What they must belong to.
            fingerprint: Of the sender's key, for the note.
            heard: Who was heard already, by sender; gains what was opened.
            opened: Decodes and checks the bytes.
        """
        sender = context.sender
        self.witness(context.round, sender, context.kind, upload)
        try:
            if sender in heard:
                raise ServerError(
                    f"{sender} uploads twice in round {context.round}", hint="one upload counts"
                )
            heard[sender] = opened()
        except FedVTCError as error:
            self.refuse(context, error, fingerprint)
            return False
        return True

    def refuse(self, context: Context, error: FedVTCError, fingerprint: str | None) -> None:
        """Note that an upload does not count, and why."""
        self._last_refusal = f"; refused {context.sender}: {error}"
        self._refuse(context, error, fingerprint)

    def check_quorum(self, heard: int, quorum: int) -> None:
        """Refuse to close a round with too few; name the last refusal.

        Raises:
            ServerError: Fewer than ``quorum`` were heard, or nobody.
        """
        refusal, self._last_refusal = self._last_refusal, ""
        if heard < max(quorum, 1):
            raise ServerError(
                f"{heard} uploads, the quorum is {quorum}{refusal}",
                hint="wait for more clients, or lower the quorum (to 1 at least)",
            )
