"""Which uploads the server refused, and why: ``server/refusals.jsonl`` of a run."""

from __future__ import annotations

import json
from pathlib import Path

from .context import Context
from .errors import FedVTCError
from .files import append_line

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
