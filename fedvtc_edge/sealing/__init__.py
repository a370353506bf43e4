"""Uploads that only the right party can read, from whom they claim to be, counted once.

Layout and guarantees: ``docs/envelope-format.md``.
"""

from __future__ import annotations

from .envelope import MAX_ENVELOPE_BYTES, overhead, seal, unseal
from .identity import SUITES, Identity, PublicIdentity
from .inbox import Inbox, Receipt, ReplayGuard
from .trust import Entry, TrustList

__all__ = [
    "MAX_ENVELOPE_BYTES",
    "SUITES",
    "Entry",
    "Identity",
    "Inbox",
    "PublicIdentity",
    "Receipt",
    "ReplayGuard",
    "TrustList",
    "overhead",
    "seal",
    "unseal",
]
