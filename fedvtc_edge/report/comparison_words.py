"""Findings of a comparison in words: who is ahead, and who cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from fedvtc_edge.runs.comparisons import MethodRecord, TableRecord
from fedvtc_edge.runs.intervals import told_apart

from .wording import NOTHING, beside, percent

INTERVALS = (
    "Two methods are told apart where the 95 % t-interval of their differences, seed by seed on "
    "the same splits, does not hold 0. It speaks for one pair at a time: of many pairs, one in "
    "twenty is told apart by chance."
)
"""How the page decides, for readers."""


def ranked(table: TableRecord) -> list[str]:
    """Names of methods, most accurate first; those without a result last, by name."""

    def place(name: str) -> tuple[float, str]:
        accuracy = table.methods[name].accuracy_mean
        return (1.0 if accuracy is None else -accuracy, name)

    return sorted(table.methods, key=place)


def contenders(table: TableRecord) -> list[str]:
    """Methods with a result, but for those that pool all data, most accurate first."""
    return [
        name
        for name in ranked(table)
        if table.methods[name].accuracy_mean is not None and not table.methods[name].ceiling
    ]


def title(table: TableRecord) -> str:
    """Data set and split of a table."""
    alpha = "" if table.alpha is None else f", α {table.alpha:g}"
    return f"{table.data or 'Comparison'}{alpha}"


def lead(table: TableRecord) -> str:
    """The finding in one or two sentences; none is named first that may be so by chance."""
    names = contenders(table)
    if not names:
        return "No method has a result here."
    top = table.methods[names[0]]
    reached = f"{percent(top.accuracy_mean)}{beside(top.accuracy_calibrated, top.accuracy_control)}"
    if len(names) == 1:
        return f"{names[0]} reaches {reached}."
    if sum(value is not None for value in top.per_seed) < 2:
        return f"One seed says nothing of the spread: {names[0]} reaches {reached} in it."
    alike = [name for name in names[1:] if not told_apart(top.per_seed, _seeds(table, name))]
    if alike:
        return (
            f"{names[0]} has the highest mean, {reached}, but {_and([names[0], *alike])} cannot "
            f"be told apart over {len(table.seeds)} seeds."
        )
    return f"{names[0]} is most accurate at {reached}; over the seeds no other comes as high."


def stands(table: TableRecord, name: str = "fedvtc") -> str:
    """Which methods one is above, below, and cannot be told apart from; empty where unknown."""
    others = [other for other in contenders(table) if other != name]
    own = table.methods.get(name)
    known = own is not None and sum(value is not None for value in own.per_seed) > 1
    if own is None or own.accuracy_mean is None or not known or not others:
        return ""
    groups: dict[str, list[str]] = {"is above": [], "is below": [], "": []}
    for other in others:
        theirs = table.methods[other].accuracy_mean
        assert theirs is not None
        side = "is above" if own.accuracy_mean > theirs else "is below"
        apart = told_apart(own.per_seed, _seeds(table, other))
        groups[side if apart else ""].append(other)
    parts = [f"{side} {_and(found)}" for side, found in groups.items() if side and found]
    if groups[""]:
        parts.append(f"cannot be told apart from {_and(groups[''])}")
    return f"{name} {'; '.join(parts)}."


def spread(record: MethodRecord, key: str) -> str:
    """Mean and standard deviation over seeds of one figure, in percent."""
    value: float | None = getattr(record, key)
    if value is None:
        return NOTHING
    deviation = record.std.get(key)
    return percent(value) + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def bounds(record: MethodRecord) -> str:
    """The 95 % interval of a method's mean, in percent; it may leave 0 to 100."""
    if record.accuracy_low is None or record.accuracy_high is None:
        return NOTHING
    low, high = max(0.0, record.accuracy_low), min(1.0, record.accuracy_high)
    return f"{100 * low:.1f}–{100 * high:.1f}"


def chosen(record: MethodRecord) -> str:
    """Value of a method's main number, and whether it was tuned."""
    if record.knob is None:
        return NOTHING
    return f"{record.knob:g}" + (" (tuned)" if record.tuning else "")


def _seeds(table: TableRecord, name: str) -> Sequence[float | None]:
    return table.methods[name].per_seed


def _and(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
