"""A whole masked sum in one process, with clients that drop out where one wants them to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedvtc_edge.wire.context import Context

from .client import MaskingClient
from .keys import agree
from .plan import LARGEST_BOUND, MaskingError, MaskingPlan, MaskingStep
from .server import MaskedSum, MaskingServer, Transcript


class _CachedAgreement:
    """X25519 once per pair, where it is one process that has both ends: half the work.

    It lives as long as one simulated sum. A device has nothing to remember: it holds
    one end of each pair.
    """

    def __init__(self) -> None:
        self._known: dict[frozenset[bytes], bytes] = {}

    def __call__(self, own: X25519PrivateKey, theirs: bytes) -> bytes:
        pair = frozenset((own.public_key().public_bytes_raw(), theirs))
        if pair not in self._known:
            self._known[pair] = agree(own, theirs)
        return self._known[pair]


def run_masked_sum(
    inputs: Mapping[str, NDArray[np.int64]],
    identities: Mapping[str, Ed25519PrivateKey],
    trusted: Mapping[str, Ed25519PublicKey],
    context: Context,
    drop: Mapping[str, int] | None = None,
    *,
    bound: int = LARGEST_BOUND,
    transcript: Transcript | None = None,
    carry: Callable[[MaskingStep, str, bytes], bytes] | None = None,
    deliver: Callable[[str, bytes], None] | None = None,
) -> MaskedSum:
    """Add the clients' vectors by the whole protocol, every message of it made and read.

    Args:
        inputs: Vector [size] of each client; int64, from ``encode_fixed`` or a release.
        identities: Private identity key of each client.
        trusted: Public identity key of each client.
        context: Run, round and kind; its sender is of no account.
        drop: Clients that drop out, with the step (0 to 4, see :class:`MaskingStep`) in which
            they are silent for the first time.
        bound: Largest magnitude of one number; public.
        transcript: Told of every message that the server receives.
        carry: Brings a client's message of a step to the server; what it returns arrives.
        deliver: Told of every message that a client receives.

    Returns:
        The exact sum of those that got as far as step 2, and who they are.

    Raises:
        MaskingError: Unequal lists of clients, a vector that does not fit, or too few
            clients left in a step: there is no sum then.
    """
    drop = dict(drop or {})
    if not inputs.keys() == identities.keys() == trusted.keys() or not drop.keys() <= inputs.keys():
        raise MaskingError(
            "inputs, identities and trusted keys are of different clients",
            hint="a client that takes no part is dropped at step 0",
        )
    size = int(np.size(next(iter(inputs.values())))) if inputs else 0
    plan = MaskingPlan(context, trusted, size, bound)
    server = MaskingServer(plan, transcript=transcript)
    agreeing = _CachedAgreement()
    clients = {
        name: MaskingClient(plan, name, identities[name], agreeing=agreeing)
        for name in plan.clients
    }

    outgoing = dict.fromkeys(plan.clients, b"")
    for step in MaskingStep:
        for name, text in outgoing.items():
            if drop.get(name, len(MaskingStep)) > step:
                message = clients[name].answer(step, text, inputs[name])
                server.receive(carry(step, name, message) if carry else message, sender=name)
                if deliver and text:
                    deliver(name, text)
        if step < MaskingStep.UNMASK:
            outgoing = server.advance()
    return server.finish()
