"""Readers with faults behind checks that chance does not pass, and a program that fuzzes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from fedvtc_edge.attacks.fuzzing.guided import fuzz
from fedvtc_edge.attacks.fuzzing.probing import Target
from fedvtc_edge.wire import WireError


def targets(folder: Path) -> list[Target]:
    return [
        Target("maze", read=maze, refusals=(WireError,), genuine=(bytes(8),)),
        Target("abort", read=abort, refusals=(WireError,), genuine=(bytes(8),)),
    ]


def maze(data: bytes) -> None:
    """One chance in 2^24, or six times one in 2^4."""
    # One line each: coverage must see every wall.
    if len(data) != 8 or data[0] >> 4 != 0x9:
        raise WireError("first wall", hint="go on")
    if data[1] >> 4 != 0xE:
        raise WireError("second wall", hint="go on")
    if data[3] >> 4 != 0x3:
        raise WireError("third wall", hint="go on")
    if data[4] >> 4 != 0x7:
        raise WireError("fourth wall", hint="go on")
    if data[6] >> 4 != 0xB:
        raise WireError("fifth wall", hint="go on")
    if data[7] >> 4 == 0x5:
        raise IndexError("found")
    raise WireError("sixth wall", hint="go on")


def abort(data: bytes) -> None:
    if data.startswith(b"\x01"):
        os.abort()
    raise WireError("no", hint="go on")


def load() -> Callable[[Path], list[Target]]:
    import planted_readers  # once more, instrumented

    return planted_readers.targets


if __name__ == "__main__":
    fuzz(sys.argv[1:], load, instrument=["planted_readers"])
