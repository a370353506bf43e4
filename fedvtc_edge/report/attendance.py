"""Who took part in which round, where clients are elsewhere and may be late or away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .reading import RoundRecord
from .records import Count, Record

Cell = Literal["took", "missed", "void"]

_LISTED = 8


class Attendance(Record):
    """One client over the rounds: a cell for each, and what they add up to."""

    id: str
    cells: list[Cell]
    took: Count
    missed: list[Count]

    @property
    def words(self) -> str:
        """The rounds that it missed; void ones are nobody's fault."""
        if not self.missed:
            return "none"
        shown, more = self.missed[:_LISTED], len(self.missed) - _LISTED
        return ", ".join(map(str, shown)) + (f" and {more} more" if more > 0 else "")


def attendance(rounds: Sequence[RoundRecord]) -> list[Attendance]:
    """Every client's rounds, in the clients' order; empty where nobody could stay away.

    Args:
        rounds: Of the run, in order; those that do not say who took part are left out.
    """
    told = [
        (record, {client.id: client.took_part for client in record.clients})
        for record in rounds
        if any(client.took_part is not None for client in record.clients)
    ]
    found = []
    for name in told[0][1] if told else ():
        cells: list[Cell] = [
            "void" if record.void else ("took" if here.get(name) else "missed")
            for record, here in told
        ]
        numbered = list(zip((record.round for record, _ in told), cells, strict=True))
        found.append(
            Attendance(
                id=name,
                cells=cells,
                took=cells.count("took"),
                missed=[number for number, cell in numbered if cell == "missed"],
            )
        )
    return found
