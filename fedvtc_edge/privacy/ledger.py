"""The ledger: every release of a client's data, on disk before it leaves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import PrivacyError, RunError
from fedvtc_edge.storage.atomic import write_atomic

from .mechanism import Mechanism

SCHEMA = 1

_FIELDS = {"round", "client", "kind", "bytes", "sha256", "mechanism", "epsilon"}


class Ledger:
    """``ledger.json`` of one run.

    An entry is written before the bytes are handed over, so that a crash can leave
    one release too many in it, never one too few. A resumed run repeats a round bit
    for bit: the same bytes again are the same release, other bytes are another.

    Where nothing is claimed, ``mechanism`` and ``epsilon`` are null: what is released
    is exact. Under a claim an entry beyond the budget is refused before it is written,
    and so before a byte leaves.

    Args:
        path: Of the file; nothing is read or written before :meth:`begin` or :meth:`reopen`.
        mechanism: Of the run, which says what releases cost and how many the budget
            allows; None where nothing is claimed.
    """

    def __init__(self, path: Path, mechanism: Mechanism | None = None) -> None:
        self.path = path
        self.mechanism = mechanism
        self._lines: dict[str, None] = {}  # entries as they stand in the file, in order

    def begin(self) -> None:
        """Start the file: nothing was released."""
        self._write([])

    def reopen(self) -> None:
        """Read back what an earlier process released.

        Raises:
            RunError: The file is missing or damaged.
        """
        try:
            document = parse_json(self.path.read_text("utf-8"))
            releases = document["releases"]
            if document["schema"] != SCHEMA or any(set(entry) != _FIELDS for entry in releases):
                raise ValueError(document["schema"])
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(
                f"{self.path} does not say what was released",
                hint="the run cannot account for its releases any more: start a new one",
            ) from None
        self._lines = {json.dumps(entry): None for entry in releases}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Releases in order; fields as they stand in the file."""
        return [json.loads(line) for line in self._lines]

    def record(self, round_: int, client: str, kind: str, data: bytes) -> None:
        """Note that ``client`` is about to release ``data``.

        Raises:
            PrivacyError: Its budget is spent, and these are not the bytes it spent it on.
        """
        mechanism, said, epsilon = self.mechanism, None, None
        if mechanism is not None and mechanism.is_release_of(client):
            said, epsilon = mechanism.claim.mechanism, mechanism.epsilon_at(round_, kind)
        elif mechanism is not None:
            bound = mechanism.spec.clip
            said = f"clipped to an L2 norm of {bound:g}, no noise: for the trusted server"
        line = json.dumps(
            {
                "round": round_,
                "client": client,
                "kind": kind,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "mechanism": said,
                "epsilon": epsilon,
            }
        )
        if line not in self._lines:
            self._check_budget(client, kind)
            self._write([*self._lines, line])
            self._lines[line] = None

    def _check_budget(self, client: str, kind: str) -> None:
        mechanism = self.mechanism
        if mechanism is None or not mechanism.is_release_of(client):
            return
        allowed, by_kind = mechanism.spec.releases, mechanism.every_round
        spent = sum(
            entry["client"] == client and (not by_kind or entry["kind"] == kind)
            for entry in self.entries
        )
        if spent >= allowed:
            fits = f"{allowed} rounds fit" if by_kind else f"{allowed} release fits"
            raise PrivacyError(
                f"{client} has released {spent} times, epsilon {mechanism.claim.epsilon:g} is "
                "spent",
                hint=f"{fits} the budget; a retry sends the same bytes",
            )

    def _write(self, lines: list[str]) -> None:
        releases = "".join(f"\n  {line}," for line in lines).removesuffix(",")
        write_atomic(self.path, f'{{"schema": {SCHEMA}, "releases": [{releases}\n]}}\n'.encode())
