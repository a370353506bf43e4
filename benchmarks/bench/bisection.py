"""The smallest memory limit under which something still works."""

from __future__ import annotations

from collections.abc import Callable

DOUBLINGS = 3


def smallest_working(
    works: Callable[[float], bool], *, fails: float, start: float, resolution: float
) -> tuple[float, float] | None:
    """Bisect between a limit that fails and one that works.

    What a process takes when nobody stops it is no answer: under a limit its allocator
    gives memory back and gets by with less, while ``RLIMIT_DATA`` also counts what is
    reserved and never used, so that the smallest limit may lie above the peak.

    Args:
        works: Whether a limit is enough; taken to stay so for every larger one.
        fails: A limit that is not enough; it is not tried.
        start: Where to look first for one that is enough.
        resolution: How near the two must come.

    Returns:
        The largest limit found to fail and the smallest found to work, ``resolution``
        apart at most; None if not even ``start`` · 2^``DOUBLINGS`` works.
    """
    enough = max(start, fails + resolution)
    for _ in range(DOUBLINGS):
        if works(enough):
            break
        fails, enough = enough, 2 * enough
    else:
        if not works(enough):
            return None
    while enough - fails > resolution:
        middle = (fails + enough) / 2
        if works(middle):
            enough = middle
        else:
            fails = middle
    return fails, enough
