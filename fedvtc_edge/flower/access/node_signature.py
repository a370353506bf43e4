"""Signatures of Flower's nodes: whether a request's header is of a registered node.

Flower's node signs the time of each request (ECDSA, SHA-256) and sends key, time and
signature in the header. So who asks is known before a byte of the body is read.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.sealing import signing

# Flower 1.42's names, and its window: a node's clock may be 5 s ahead, a request 305 s old.
KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
_AHEAD_S, _BEHIND_S = 5.0, 305.0
_LONGEST = 1024  # characters of any of the three; a key on P-521 has 360


class NodeKeys:
    """Public keys of the nodes that are let in.

    Args:
        lines: One OpenSSH line for each, an EC key on a NIST curve.
        clock: Seconds since 1970.

    Raises:
        DeploymentError: A line that is no such key.
    """

    def __init__(self, lines: Iterable[bytes], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._keys: dict[bytes, ec.EllipticCurvePublicKey] = {}
        for line in lines:
            key = serialization.load_ssh_public_key(line)
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise DeploymentError(
                    "a node's key of another kind, expected ECDSA",
                    hint="make one: ssh-keygen -t ecdsa -b 384 -N '' -f FILE",
                )
            self._keys[base64.b64encode(signing.public_pem(key))] = key

    def __len__(self) -> int:
        return len(self._keys)

    def knows(self, headers: Mapping[bytes, bytes]) -> bool:
        """True if the header names a registered key, signed or not."""
        return headers.get(KEY, b"") in self._keys

    def signer(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        """The registered key by which a request is signed now, as the header has it.

        Args:
            headers: By lower-case names; untrusted.

        Returns:
            None where it is not signed, not by one of the keys, or at another time.
        """
        name, when, signature = (headers.get(part, b"") for part in (KEY, TIME, SIGNATURE))
        key = self._keys.get(name)
        if key is None or max(len(when), len(signature)) > _LONGEST:
            return None
        try:
            signed = datetime.fromisoformat(when.decode("ascii"))
            if signed.tzinfo is None:  # of which zone would be a guess
                return None
            age = self._clock() - signed.timestamp()
            if not -_AHEAD_S < age < _BEHIND_S:
                return None
            key.verify(base64.b64decode(signature, validate=True), when, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError, OverflowError, binascii.Error):
            return None
        return name
