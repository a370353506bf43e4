"""Last accuracies of every client, and their means, kept up to date as rounds measure some."""

from __future__ import annotations

from typing import cast

from fedvtc_edge.runs.means import RunningMeans
from fedvtc_edge.runs.records import ACCURACIES, Accuracies, Means

NOTHING = cast(Accuracies, dict.fromkeys(ACCURACIES))
"""Accuracies of a client that was never measured."""


class Figures:
    """Accuracies by client, of the round that measured them last."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, Accuracies]] = {}
        self._means = RunningMeans()

    def of(self, client: str) -> Accuracies:
        """Last accuracies of a client; all None before the first."""
        return self._last[client][1] if client in self._last else NOTHING

    def round_of(self, client: str) -> int | None:
        """Round that measured a client last."""
        return self._last[client][0] if client in self._last else None

    def enter(self, number: int, client: str, measured: Accuracies) -> None:
        """Replace a client's accuracies by those of round ``number``."""
        if client in self._last:
            self._means.count(self._last[client][1], -1)
        self._last[client] = number, measured
        self._means.count(measured)

    def means(self) -> Means:
        """Means over all clients that have figures."""
        known = (found["accuracy"] for _, found in self._last.values())
        return self._means.value(min((one for one in known if one is not None), default=None))
