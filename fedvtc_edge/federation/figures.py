"""Last accuracies of every client, and their means, kept up to date as rounds measure some."""

from __future__ import annotations

from bisect import bisect_left, insort
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
        self._ascending: list[float] = []  # accuracies: the worst of all, without a look at all

    def of(self, client: str) -> Accuracies:
        """Last accuracies of a client; all None before the first."""
        return self._last[client][1] if client in self._last else NOTHING

    def round_of(self, client: str) -> int | None:
        """Round that measured a client last."""
        return self._last[client][0] if client in self._last else None

    def enter(self, number: int, client: str, measured: Accuracies) -> None:
        """Replace a client's accuracies by those of round ``number``."""
        before, after = self.of(client)["accuracy"], measured["accuracy"]
        if client in self._last:
            self._means.count(self._last[client][1], -1)
        if before is not None:
            del self._ascending[bisect_left(self._ascending, before)]
        if after is not None:
            insort(self._ascending, after)
        self._last[client] = number, measured
        self._means.count(measured)

    def means(self) -> Means:
        """Means over all clients that have figures."""
        return self._means.value(self._ascending[0] if self._ascending else None)
