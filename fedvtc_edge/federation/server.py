"""The server: it opens, checks, adds and publishes, and never sees raw data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.config import ServerSettings
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.privacy.release import Integers, check_norm, estimate
from fedvtc_edge.privacy.release_spec import Array, ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.storage.atomic import append_line
from fedvtc_edge.wire import (
    Weights,
    decode,
    decode_release,
    decode_weights,
    encode_weights,
    publish,
)
from fedvtc_edge.wire.context import Context

from .robustness import check_norms, contributors, suppress, trimmed_sum

# ---------------------------------------------------------------- section
# Which uploads the server refused, and why: ``server/refusals.jsonl`` of a run.

MAX_REASON = 300
"""Characters of a reason that are kept: what a stranger sent decides how long it is."""


class Refusals:
    """The log of one run; a resumed run that repeats a round repeats its refusals.

    Args:
        run: The run directory, laid out before the first refusal.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "server" / "refusals.jsonl"

    def note(self, context: Context, error: FedVTCError, fingerprint: str | None = None) -> None:
        """Append one line of JSON, on disk before the round goes on.

        Args:
            context: What the upload was expected to belong to; its sender is the client.
            error: Why it was refused.
            fingerprint: Of the key that signed it, or None where nothing is signed.
        """
        line = {
            "round": context.round,
            "client": context.sender,
            "kind": context.kind,
            "fingerprint": fingerprint,
            "error": type(error).__name__,
            "reason": str(error)[:MAX_REASON],
        }
        append_line(self.path, json.dumps(line).encode())


# ---------------------------------------------------------------- section
# Who is heard: every upload is witnessed, opened, and counted or refused with a note.

UploadRecorder = Callable[[int, str, str, bytes], None]
"""Told of each upload: round, sender, kind, bytes."""

Refuse = Callable[[Context, FedVTCError, str | None], None]
"""Told of each refusal: whose upload, why, and its key's fingerprint if there is one."""

_Opened = TypeVar("_Opened")


class ServerError(FedVTCError):
    """A round that cannot be closed, or an upload that does not belong to it."""


def ignore_refusal(context: Context, error: FedVTCError, fingerprint: str | None) -> None:
    """Notes no refusal."""


def quorum_of(share: float, cohort: int) -> int:
    """How many of a cohort a share of it is, rounded up; 1 at least."""
    return max(1, math.ceil(share * cohort - 1e-9))  # 0.07 · 100 is 7.000000000000001


class UploadValidator:
    """What all kinds of uploads have in common.

    Args:
        recorder: Called with every upload before it is opened, for the audit.
        refuse: Called with every refusal.
    """

    def __init__(self, recorder: UploadRecorder, refuse: Refuse) -> None:
        self.recorder = recorder
        self._refuse = refuse
        self._last_refusal = ""

    def accept(
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
        self.recorder(context.round, sender, context.kind, upload)
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


class Server:
    """Adds one kind of statistics per round, and averages decoders where they are shared.

    An upload that is refused is noted and does not count; the round goes on with the
    others as long as there are enough.

    Args:
        classes: Number C of classes, agreed on beforehand.
        recorder: Called with every upload before it is opened, for the audit.
        settings: What is asked of uploads.
        refuse: Called with every refusal.
    """

    def __init__(
        self,
        classes: int,
        recorder: UploadRecorder,
        *,
        settings: ServerSettings | None = None,
        refuse: Refuse = ignore_refusal,
    ) -> None:
        self.classes = classes
        self.settings = settings or ServerSettings()
        self._admission = UploadValidator(recorder, refuse)
        self.refuse = self._admission.refuse
        self._received: dict[str, ClassStatistics] = {}
        self._releases: dict[str, Integers] = {}
        self._decoders: dict[str, Weights] = {}

    def receive(
        self,
        upload: bytes,
        *,
        context: Context,
        width: int,
        pooled: bool,
        fingerprint: str | None = None,
    ) -> bool:
        """Open and check one client's upload; False where it was refused.

        Args:
            upload: Untrusted bytes.
            context: The run, round, sender and kind that they must be of.
            width: Number p of features that was agreed on.
            pooled: Moments that were agreed on.
            fingerprint: Of the sender's key, for the note of a refusal.
        """

        def opened() -> ClassStatistics:
            statistics = decode(
                upload, classes=self.classes, width=width, pooled=pooled, context=context
            )
            check_norms(statistics)
            return statistics

        return self._admission.accept(upload, context, fingerprint, self._received, opened)

    def close(self, *, quorum: int, floor: float = 0.0) -> bytes:
        """Add what was received, in the order of the senders' names, and publish it.

        Args:
            quorum: Least number of uploads; fewer end the round without publishing.
            floor: Least standard deviation, in units of the features.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded, or no class has as many
                contributors as the settings ask for.
        """
        self._admission.check_quorum(len(self._received), quorum)
        parts = [self._received[sender] for sender in sorted(self._received)]
        self._received = {}
        total = trimmed_sum(parts, self.settings.trim)
        return self._published(total, contributors(parts), floor)

    def publish_sum(
        self,
        total: ClassStatistics,
        number: NDArray[np.int64],
        heard: Sequence[str],
        *,
        quorum: int,
        floor: float = 0.0,
    ) -> bytes:
        """Publish a sum whose parts the server never saw.

        Args:
            total: Of all clients in ``heard``.
            number: Contributors per class, [C], summed under the same masks.
            heard: Whose statistics are in it.
            quorum: Least number of them.
            floor: Least standard deviation, in units of the features.

        Raises:
            ServerError: As :meth:`close`.
        """
        self._admission.check_quorum(len(heard), quorum)
        return self._published(total, number, floor)

    def _published(self, total: ClassStatistics, number: NDArray[np.int64], floor: float) -> bytes:
        minimum = self.settings.minimum_contributors
        if 0 < number.max(initial=0) < minimum:
            raise ServerError(
                f"no class has {minimum} contributors, the most are {number.max()}",
                hint="lower server.minimum_contributors",
            )
        world = GlobalStatistics.from_sum(total, floor=floor)
        return publish(suppress(world, number, minimum, floor=floor))

    def receive_release(
        self,
        upload: bytes,
        *,
        context: Context,
        spec: ReleaseSpec,
        fingerprint: str | None = None,
    ) -> bool:
        """Open and check one client's release, noised or clipped; False where it was refused.

        Raises:
            PrivacyError: The sender's budget is spent.
        """

        def opened() -> Integers:
            release = decode_release(upload, size=spec.size, context=context)
            if isinstance(spec, ClientReleaseSpec):
                check_norm(spec, release)
            return release

        return self._admission.accept(upload, context, fingerprint, self._releases, opened)

    def close_releases(
        self, *, quorum: int, spec: ReleaseSpec, centre: Array, std: float | None = None
    ) -> bytes:
        """Add the releases and publish what the sum says of the data: post-processing.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded, or fewer than the settings'
                contributors: every client contributes noise to every class.
        """
        heard, total = self._sum_of_releases(quorum)
        return publish(_world(spec, total, heard, centre, std))

    def publish_releases(
        self,
        total: Integers,
        heard: Sequence[str],
        spec: ReleaseSpec,
        centre: Array,
        *,
        quorum: int,
        std: float | None = None,
    ) -> bytes:
        """Publish what a masked sum of noised releases says: post-processing.

        Args:
            total: Of the releases of all clients in ``heard``, each with its noise.
            heard: Whose releases are in it.
            spec: What they look like.
            centre: Public centre of the features.
            quorum: Least number of them.
            std: A public constant to publish in place of estimated deviations.

        Raises:
            ServerError: Fewer than ``quorum``, or than the settings' contributors.
        """
        self._check_quorum(len(heard), quorum)
        return publish(_world(spec, total, len(heard), centre, std))

    def add_releases(self, *, quorum: int) -> Integers:
        """The sum of clipped uploads, without noise: nobody but a trusted server may see it.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded.
        """
        return self._sum_of_releases(quorum)[1]

    def publish_release(
        self,
        released: bytes,
        context: Context,
        spec: ClientReleaseSpec,
        centre: Array,
        *,
        std: float | None = None,
    ) -> bytes:
        """What a sum that was noised once says of the data: post-processing.

        Args:
            released: The server's own release, in the ledger by now.
            context: Its context.
            spec: Clip bound and noise.
            centre: Public centre of the features.
            std: A public constant to publish in place of estimated deviations.
        """
        self._admission.recorder(context.round, context.sender, context.kind, released)
        total = decode_release(released, size=spec.size, context=context)
        return publish(_world(spec, total, 1, centre, std))

    def _sum_of_releases(self, quorum: int) -> tuple[int, Integers]:
        self._check_quorum(len(self._releases), quorum)
        received = [self._releases[sender] for sender in sorted(self._releases)]
        self._releases = {}
        return len(received), np.sum(received, axis=0)

    def receive_decoder(
        self, upload: bytes, *, context: Context, like: Weights, fingerprint: str | None = None
    ) -> bool:
        """Open and check one client's decoder; False where it was refused.

        Args:
            upload: Untrusted bytes.
            context: The run, round, sender and kind that they must be of.
            like: Weights of the agreed names and shapes.
            fingerprint: Of the sender's key, for the note of a refusal.
        """
        return self._admission.accept(
            upload,
            context,
            fingerprint,
            self._decoders,
            lambda: decode_weights(upload, like=like, context=context),
        )

    def close_decoders(self, *, quorum: int) -> bytes:
        """Plain average over clients (FedAvg, McMahan et al. 2017), as decoders are uploaded.

        Raises:
            ServerError: Fewer than ``quorum`` clients uploaded, or fewer than the settings'
                contributors.
        """
        self._check_quorum(len(self._decoders), quorum)
        uploads = [self._decoders[sender] for sender in sorted(self._decoders)]
        self._decoders = {}
        return encode_weights(
            {
                name: np.stack([upload[name] for upload in uploads]).mean(0, dtype=np.float64)
                for name in uploads[0]
            }
        )

    def _check_quorum(self, heard: int, quorum: int) -> None:
        """Where every client contributes to everything, each is a contributor."""
        self._admission.check_quorum(heard, max(quorum, self.settings.minimum_contributors))


def _world(
    spec: ReleaseSpec, total: Integers, draws: int, centre: Array, std: float | None
) -> GlobalStatistics:
    """Post-processing of a sum that carries so many draws of noise."""
    world = estimate(spec, total, draws, centre)
    if std is not None:  # a public constant in place of an estimate
        world = replace(world, std=np.full_like(world.std, std))
    return world
