"""Running totals of a run: what each client spent, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Account:
    """Seconds, images and bytes per client; only of those that have spent something of their own.

    What everybody downloads is counted once for all.

    Args:
        clients: Ids of all clients.
        more: Further figures of a client that has done nothing yet.

    Attributes:
        changed: Clients whose own totals changed since it was emptied last.
        up: Bytes uploaded, of all clients.
        down: Bytes downloaded, of all clients.
    """

    def __init__(self, clients: Iterable[str], more: Mapping[str, Any] | None = None) -> None:
        self._clients = dict.fromkeys(clients)
        self._more = dict(more or {})
        self._own: dict[str, dict[str, Any]] = {}
        self._everybody = 0
        self.changed: set[str] = set()
        self.up = self.down = 0

    def of(self, client: str) -> dict[str, Any]:
        """A client's own totals, to be changed; downloads of everybody are not among them."""
        self.changed.add(client)
        return self._own.setdefault(client, {**blank(), **self._more})

    def total(self, client: str) -> dict[str, Any]:
        """A copy of a client's totals."""
        own = dict(self._own.get(client) or {**blank(), **self._more})
        own["down"] += self._everybody
        return own

    def uploaded(self, client: str, size: int) -> None:
        """Count bytes that a client sent."""
        self.of(client)["up"] += size
        self.up += size

    def downloaded(self, client: str, size: int) -> None:
        """Count bytes that a client received."""
        self.of(client)["down"] += size
        self.down += size

    def downloaded_by_all(self, size: int) -> None:
        """Count bytes that every client received."""
        self._everybody += size
        self.down += size * len(self._clients)

    def totals(self) -> dict[str, int]:
        """Totals of everybody, for a checkpoint; the clients' own stand apart."""
        return {"everybody": self._everybody, "up": self.up, "down": self.down}

    def restore(self, clients: Mapping[str, Mapping[str, Any]], totals: Mapping[str, int]) -> None:
        """Take up totals of a checkpoint."""
        self._own = {name: dict(spent) for name, spent in clients.items()}
        self._everybody, self.up, self.down = totals["everybody"], totals["up"], totals["down"]
        self.changed = set()


def blank() -> dict[str, Any]:
    """Totals of a client that has done nothing yet."""
    return {"seconds": 0.0, "samples": 0, "up": 0, "down": 0}
