"""Participation per round, and each device's activity by the virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fedvtc_edge.runs.records import Amount, ClockRecord, Count, Line, Record, RoundRecord

from .canvas import CALIBRATED, CONTROL, FULL, OWN, Chart, draw
from .wording import duration, short

#: More rows than this share their labels: one per kind of device.
MAX_NAMES = 32
_COLUMNS = 2000  #: Moments that the drawing tells apart; a shorter one is still drawn.

_KINDS = {
    "computes": OWN,
    "downloads": CONTROL,
    "uploads": CALIBRATED,
    "waits for the others": "#D5DBE1",
    "works in vain: late or dropped": "#A23B72",
    "unreachable": "#2B2F36",
}
_ORDER = ("waits for the others", "unreachable", "works in vain: late or dropped", "computes",
          "downloads", "uploads")  # fmt: skip


class Device(Record):
    """One kind of device over a whole run."""

    name: str
    clients: Count
    busy: Amount
    done: Count
    late: Count
    dropped: Count
    unreachable: Count


def devices(turns: Sequence[ClockRecord], kinds: dict[str, str]) -> list[Device]:
    """Outcomes per kind of device; ``busy`` is a client's mean of the whole run.

    Args:
        turns: Of the run, in order.
    """
    found = []
    for name in sorted(set(kinds.values())):
        own = {client for client, kind in kinds.items() if kind == name}
        lines = [line for turn in turns for id_, line in turn.clients.items() if id_ in own]
        outcomes = [line.outcome for line in lines]
        found.append(
            Device(
                name=name,
                clients=len(own),
                busy=sum(line.busy for line in lines) / len(own),
                done=outcomes.count("done"),
                late=outcomes.count("late"),
                dropped=outcomes.count("dropped"),
                unreachable=outcomes.count("unreachable"),
            )
        )
    return found


def timeline(turns: Sequence[ClockRecord], kinds: dict[str, str]) -> Chart | None:
    """Every client's time as a row of colours, kinds of devices beside each other.

    Args:
        turns: Of the run, in order; without any there is nothing to draw.
    """
    if not turns or not turns[-1].end:
        return None
    rows = sorted(kinds, key=lambda client: (kinds[client], client))
    last, picture = turns[-1].end, _picture(turns, rows)
    colors = ListedColormap(["#00000000", *(_KINDS[kind] for kind in _ORDER)])

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.imshow(
            picture, cmap=colors, vmin=0, vmax=len(_ORDER), aspect="auto",
            interpolation="nearest", extent=(0, last, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        if len(rows) <= MAX_NAMES:
            names = [f"{short(row, 12)} ({short(kinds[row], 14)})" for row in rows]
            axes.set_yticks(range(len(rows)), names)
        else:
            places, names, begin = [], [], 0
            for kind, group in groupby(rows, key=lambda row: kinds[row]):
                count = len(list(group))
                places.append(begin + count / 2 - 0.5)
                names.append(f"{short(kind, 16)} × {count}")
                begin += count
                axes.axhline(begin - 0.5, color="#9AA5B1", linewidth=0.5)
            axes.set_yticks(places, names)
        for turn in turns[1:]:
            axes.axvline(turn.begin, color="#9AA5B1", linewidth=0.4)
        axes.set_xlabel("simulated seconds")
        handles = [Patch(color=color, label=kind) for kind, color in _KINDS.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=6)

    told = "; ".join(
        f"{one.name}: {one.clients} clients, busy {duration(one.busy)} each, {one.done} turns "
        f"done, {one.late} late, {one.dropped} dropped, {one.unreachable} unreachable"
        for one in devices(turns, kinds)
    )
    height = 90 + min(max(16 * len(rows), 60), 640)
    return draw(
        "timeline",
        plot,
        label=f"Timeline of {len(rows)} clients over {duration(last)} of simulated time. {told}.",
        caption="Thin lines: a round begins. Times are modelled from the devices' profiles. What "
        f"lasts less than {duration(last / _COLUMNS)} is drawn that wide.",
        width=FULL,
        height=height,
    )


def _picture(turns: Sequence[ClockRecord], rows: Sequence[str]) -> NDArray[np.uint8]:
    """Kind of activity [rows, columns], by its place in ``_ORDER`` from 1; 0 is nothing.

    Where two fall on one moment the later in the order is seen, so that a short upload
    is not hidden by a long wait.
    """
    picture = np.zeros((len(rows), _COLUMNS), np.uint8)
    places, scale = {client: row for row, client in enumerate(rows)}, _COLUMNS / turns[-1].end
    for turn in turns:
        for client, line in turn.clients.items():
            if client not in places:
                continue
            for kind, begin, end in _spans(line, turn.begin, turn.end):
                first = min(int(begin * scale), _COLUMNS - 1)
                stretch = picture[places[client], first : max(round(end * scale), first + 1)]
                if end > begin:
                    np.maximum(stretch, _ORDER.index(kind) + 1, out=stretch)
    return picture


def _spans(line: Line, begin: float, end: float) -> list[tuple[str, float, float]]:
    """Kinds of a client's activity in a turn, each with its begin and end in seconds."""
    if line.outcome == "unreachable":
        return [("unreachable", begin, end)]
    down, work = begin + line.download, begin + line.download + line.compute
    if line.outcome != "done":
        return [("works in vain: late or dropped", begin, work + line.upload)]
    return [
        ("downloads", begin, down),
        ("computes", down, work),
        ("uploads", work, work + line.upload),
        ("waits for the others", work + line.upload, end),
    ]


Cell = Literal["took", "missed", "void"]

_LISTED = 8


class ParticipationTable(Record):
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


def attendance(rounds: Sequence[RoundRecord], clients: Sequence[str]) -> list[ParticipationTable]:
    """Every client's rounds, in the clients' order; empty where nobody could stay away.

    Args:
        rounds: Of the run, in order; those without this information are left out.
        clients: Ids of all.
    """
    told = [
        (record, {client.id: client.took_part for client in record.clients})
        for record in rounds
        if any(client.took_part is not None for client in record.clients)
    ]
    found = []
    for name in clients if told else ():
        cells: list[Cell] = [
            "void" if record.void else ("took" if here.get(name) else "missed")
            for record, here in told
        ]
        numbered = list(zip((record.round for record, _ in told), cells, strict=True))
        found.append(
            ParticipationTable(
                id=name,
                cells=cells,
                took=cells.count("took"),
                missed=[number for number, cell in numbered if cell == "missed"],
            )
        )
    return found
