"""Envelopes: what a client sends, readable by the server alone and vouched for by the client.

HPKE says nothing of who sealed, so the sender signs, inside the ciphertext: an
eavesdropper cannot see the signature, nor take it off and put on another. The signature
names the recipient: who opens an envelope cannot pass it on as meant for someone else.
Byte layout: ``docs/envelope-format.md``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag

from fedvtc_edge.errors import EnvelopeError, TrustError
from fedvtc_edge.wire.context import Context

from . import signing
from .identity import Identity, PublicIdentity
from .trust import TrustList

MAX_ENVELOPE_BYTES = 67_108_864
"""64 MiB, checked before anything is decrypted."""

KEY_ID_BYTES = 8

_MAGIC = b"FVTE"
_VERSION = 1
_HEADER = struct.Struct(f">4sBB{KEY_ID_BYTES}s")
_TAG_BYTES = 16
_INFO_LABEL = b"fedvtc-edge envelope v1: info\0"
_SIGNATURE_LABEL = b"fedvtc-edge envelope v1: signature\0"

# One sentence whatever failed after the header: the reason would help who guesses only.
_CLOSED = "the envelope cannot be opened: damaged, forged, or of another run, round, sender or kind"


def seal(payload: bytes, *, recipient: PublicIdentity, sender: Identity, context: Context) -> bytes:
    """Encrypt ``payload`` to ``recipient``, signed by ``sender`` and bound to ``context``.

    The suite is the recipient's: nobody can ask for a weaker one. Each call gives other
    bytes; to send again, send the same envelope.

    Args:
        payload: At most :data:`MAX_ENVELOPE_BYTES` less :func:`overhead`.
        context: Where it belongs; who opens it must expect just that.

    Raises:
        EnvelopeError: A payload that is too large.
    """
    size = len(payload) + overhead(recipient)
    if size > MAX_ENVELOPE_BYTES:
        raise EnvelopeError(
            f"an envelope of {size} bytes, expected at most {MAX_ENVELOPE_BYTES}",
            hint="upload less: a smaller latent, anchor or decoder",
        )
    header = _header(recipient)
    message = signed_message(header, context, sender.public, recipient, payload)
    signed = signing.sign(sender.signing_key, message) + payload
    info = hpke_info(header, context, sender.public, recipient)
    return header + recipient.scheme.hpke.encrypt(signed, recipient.sealing_key, info)


def unseal(
    envelope: bytes,
    *,
    recipient: Identity | Sequence[Identity],
    trusted: TrustList,
    context: Context,
) -> bytes:
    """The payload of an envelope that ``context.sender`` sealed to ``recipient``.

    Args:
        envelope: Untrusted bytes.
        recipient: Who opens it: one identity, or the current and previous ones while a
            key is replaced. The envelope says which it was sealed to.
        trusted: Knows the identity of ``context.sender``.
        context: What is expected here and now, never what the sender claims.

    Raises:
        EnvelopeError: Anything else than what :func:`seal` made for just this. Beyond
            the clear header the error does not tell what was wrong.
    """
    ring = [recipient] if isinstance(recipient, Identity) else list(recipient)
    identity = _addressed(envelope, ring)
    public, suite = identity.public, identity.public.scheme
    try:
        sender = trusted.lookup(context.sender)
    except TrustError as error:
        raise EnvelopeError(str(error), hint=error.hint) from None
    header, sealed = envelope[: _HEADER.size], memoryview(envelope)[_HEADER.size :]
    try:
        info = hpke_info(header, context, sender, public)
        signed = suite.hpke.decrypt(sealed, identity.sealing_key, info)
    except (InvalidTag, ValueError):
        raise _closed() from None
    signature, payload = signed[: signing.SIGNATURE_BYTES], signed[signing.SIGNATURE_BYTES :]
    message = signed_message(header, context, sender, public, payload)
    if not signing.is_signed(sender.key, signature, message):
        raise _closed()
    return payload


def overhead(recipient: PublicIdentity) -> int:
    """Bytes by which an envelope to ``recipient`` is longer than its payload."""
    encapsulated = recipient.scheme.encapsulated_bytes
    return _HEADER.size + encapsulated + _TAG_BYTES + signing.SIGNATURE_BYTES


def hpke_info(
    header: bytes, context: Context, sender: PublicIdentity, recipient: PublicIdentity
) -> bytes:
    """HPKE's ``info``: whoever expects anything else derives another key.

    Every part has a fixed length: no two readings of the same bytes.
    """
    return b"".join([_INFO_LABEL, header, context.to_bytes(), sender.digest, recipient.digest])


def signed_message(
    header: bytes,
    context: Context,
    sender: PublicIdentity,
    recipient: PublicIdentity,
    payload: bytes,
) -> bytes:
    """Bytes that the sender signs: a label, then each part behind its length (8 bytes, big-endian).

    The label keeps apart what one key signs: a bundle's manifest begins with a brace. Of the
    payload its SHA-256 is signed: Ed25519 alone reads what it signs twice, and by SHA-512,
    which for a megabyte takes longer than all the rest.
    """
    summary = hashlib.sha256(payload).digest()
    parts = (header, context.to_bytes(), sender.digest, recipient.digest, summary)
    return _SIGNATURE_LABEL + b"".join(
        piece for part in parts for piece in (struct.pack(">Q", len(part)), part)
    )


def _header(recipient: PublicIdentity) -> bytes:
    key_id = recipient.digest[:KEY_ID_BYTES]
    return _HEADER.pack(_MAGIC, _VERSION, recipient.scheme.number, key_id)


def _addressed(envelope: bytes, ring: Sequence[Identity]) -> Identity:
    """Identity of the ring that the clear header names; all of it is public."""
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError(
            f"an envelope of {len(envelope)} bytes, expected at most {MAX_ENVELOPE_BYTES}",
            hint="the sender uploads something else than statistics",
        )
    header = envelope[: _HEADER.size]
    if not header.startswith(_MAGIC) or len(header) < _HEADER.size:
        raise EnvelopeError(
            "the bytes are no envelope", hint="the upload is damaged, or was not sealed"
        )
    if header[4] != _VERSION:
        raise EnvelopeError(
            f"an envelope of version {header[4]}, expected {_VERSION}",
            hint="install the same version of fedvtc-edge on both sides",
        )
    for identity in ring:
        # Suite and key at once: a header with our key and another suite is nobody's.
        if header == _header(identity.public):
            if len(envelope) < overhead(identity.public):
                raise _closed()
            return identity
    raise EnvelopeError(
        f"an envelope for key {header[6:].hex()} of suite {header[5]}, which is not ours",
        hint="give the sender the current public identity; a retired key opens nothing",
    )


def _closed() -> EnvelopeError:
    return EnvelopeError(_CLOSED, hint="both sides must agree on identities, run and round")
