"""Mutants of valid bytes, as hypothesis draws and shrinks them."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from fedvtc_edge.attacks.fuzzing.probing import Target

Edit = tuple[str, int, bytes]

_NUMBERS = [
    *(struct.pack("<f", x) for x in (-0.0, float("nan"), float("inf"), -1.0, 0.5, 1e31, 3e-39)),
    *(struct.pack("<d", x) for x in (-0.0, float("nan"), -1.0, 1e300)),
    *(struct.pack("<q", x) for x in (-1, 2**49, 2**62)),
    *(struct.pack("<I", x) for x in (0, 1, 2**16, 2**31, 2**32 - 1)),
]


def mutants(target: Target) -> st.SearchStrategy[bytes]:
    """Valid bytes of a target after a few edits; most keep the length, as readers look at it."""
    starts = [*target.genuine * 3, *target.donors]
    pieces = st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(_NUMBERS))
    place = st.integers(0, 2**16)
    edits: st.SearchStrategy[Edit] = st.one_of(
        st.tuples(st.sampled_from(["set", "set aligned", "set aligned"]), place, pieces),
        st.tuples(st.just("flip"), place, st.sampled_from([b"\x80", b"\x80", b"\x01"])),
        st.tuples(st.just("graft"), place, st.sampled_from(target.donors)),
        st.tuples(st.sampled_from(["insert", "append", "cut"]), place, pieces),
    )
    return st.builds(_edited, st.sampled_from(starts), st.lists(edits, min_size=1, max_size=3))


def _edited(data: bytes, edits: list[Edit]) -> bytes:
    for kind, place, piece in edits:
        at = place % (len(data) + 1)
        if kind == "graft":  # the other's bytes from here on
            data = data[:at] + piece[at:]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "append":
            data += piece
        elif kind == "cut":
            data = data[:at]
        elif kind == "flip":
            data = data[:at] + bytes(byte ^ piece[0] for byte in data[at : at + 1]) + data[at + 1 :]
        else:
            at -= at % 4 if kind == "set aligned" else 0
            data = (data[:at] + piece)[: len(data)] + data[at + len(piece) :]
    return data
