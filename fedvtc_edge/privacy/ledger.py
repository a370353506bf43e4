"""The ledger: every release of a client's data, on disk before it leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedvtc_edge.errors import PrivacyError, RunError
from fedvtc_edge.storage.atomic import write_atomic

SCHEMA = 1

_FIELDS = {"round", "client", "kind", "bytes", "sha256", "mechanism", "epsilon"}


@dataclass(frozen=True)
class ReleaseClaim:
    """What one release costs its client, and how many the budget allows.

    Args:
        mechanism: In words, with its parameters.
        epsilon: Spent by ``releases`` of them together.
        releases: Of each client, of all kinds; of each kind where there are ``rounds``.
        at: ε that an upload of a round and a kind brings its client to, where that grows.
        rounds: How many rounds so many releases are, where there are several.
        by: Who releases: None is each client, else the one who noises what the others send.
        upload: What those others' uploads are, in words; they spend nothing.
    """

    mechanism: str
    epsilon: float
    releases: int
    at: Callable[[int, str], float] | None = None
    rounds: int = 0
    by: str | None = None
    upload: str | None = None

    def is_by(self, sender: str) -> bool:
        """Whether what ``sender`` sends is a release, and not an upload to whoever releases."""
        return self.by in (None, sender)


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
        claim: What releases cost, or None.
    """

    def __init__(self, path: Path, claim: ReleaseClaim | None = None) -> None:
        self.path = path
        self.claim = claim
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
            document = json.loads(self.path.read_text("utf-8"))
            releases = document["releases"]
            if document["schema"] != SCHEMA or any(set(entry) != _FIELDS for entry in releases):
                raise ValueError(document["schema"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise RunError(
                f"{self.path} does not say what was released",
                hint="the run cannot account for its releases any more: start a new one",
            ) from None
        self._lines = {json.dumps(entry): None for entry in releases}

    def record(self, round_: int, client: str, kind: str, data: bytes) -> None:
        """Note that ``client`` is about to release ``data``.

        Raises:
            PrivacyError: Its budget is spent, and these are not the bytes it spent it on.
        """
        claim = self.claim
        spends = claim is not None and claim.is_by(client)
        line = json.dumps(
            {
                "round": round_,
                "client": client,
                "kind": kind,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "mechanism": None if claim is None else claim.mechanism if spends else claim.upload,
                "epsilon": _epsilon(claim, round_, kind) if spends else None,
            }
        )
        if line not in self._lines:
            self._check_budget(client, kind)
            self._write([*self._lines, line])
            self._lines[line] = None

    def _check_budget(self, client: str, kind: str) -> None:
        if self.claim is None or not self.claim.is_by(client):
            return
        entries = [json.loads(line) for line in self._lines]
        spent = sum(
            entry["client"] == client and (not self.claim.rounds or entry["kind"] == kind)
            for entry in entries
        )
        if spent >= self.claim.releases:
            raise PrivacyError(
                f"{client} has released {spent} times, epsilon {self.claim.epsilon:g} is spent",
                hint=f"{_fits(self.claim)} the budget; a retry sends the same bytes",
            )

    def _write(self, lines: list[str]) -> None:
        releases = "".join(f"\n  {line}," for line in lines).removesuffix(",")
        write_atomic(self.path, f'{{"schema": {SCHEMA}, "releases": [{releases}\n]}}\n'.encode())


def _epsilon(claim: ReleaseClaim | None, round_: int, kind: str) -> float | None:
    if claim is None:
        return None
    return claim.at(round_, kind) if claim.at else claim.epsilon


def _fits(claim: ReleaseClaim) -> str:
    if claim.rounds:
        return f"{claim.rounds} rounds fit"
    return f"{claim.releases} release fits"
