"""Readers with faults behind checks that chance does not pass; guided mutants do."""

from __future__ import annotations

import os
from pathlib import Path

from fedvtc_edge.attacks.fuzzing.probing import Target
from fedvtc_edge.wire import WireError


def targets(folder: Path) -> list[Target]:
    return [
        Target("maze", read=maze, refusals=(WireError,), genuine=(bytes(24),)),
        Target("abort", read=abort, refusals=(WireError,), genuine=(bytes(24),)),
    ]


def maze(data: bytes) -> None:
    """One chance in 2^32, or four times one in 2^8."""
    # One line each: coverage must see every wall.
    if len(data) != 24 or data[4] != 0x9E:
        raise WireError("first wall", hint="go on")
    if data[9] != 0x37:
        raise WireError("second wall", hint="go on")
    if data[15] != 0x79:
        raise WireError("third wall", hint="go on")
    if data[20] == 0xB9:
        raise IndexError("found")
    raise WireError("fourth wall", hint="go on")


def abort(data: bytes) -> None:
    if data.startswith(b"\x01"):
        os.abort()
    raise WireError("no", hint="go on")
