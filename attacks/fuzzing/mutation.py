"""Mutants of valid bytes: most keep the length, since another length is refused at once."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]

_EDGE = 160
"""About what headers take, and about what numbers take in the targets' small uploads."""

_WHOLE = (0, 1, -1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**48, 2**49, 2**63)
_REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, 1e30, 65504.0, float("inf"), float("nan"))


def mutant(rng: random.Random, starts: Sequence[bytes], donors: Sequence[bytes]) -> bytes:
    """One of ``starts``, changed one to eight times.

    Args:
        rng: Decides everything: the same generator gives the same mutants.
        starts: What is changed; not empty.
        donors: Of whose pieces some changes are made; not empty.
    """
    changed = bytearray(rng.choice(starts))
    for _ in range(min(int(rng.expovariate(0.7)) + 1, 8)):
        rng.choice(_MUTATIONS)(rng, changed, donors)
    return bytes(changed)


def flips(data: bytes) -> list[tuple[int, int]]:
    """Place and value of every single byte that can be changed: 255 per place."""
    return [(at, value) for at, now in enumerate(data) for value in range(256) if value != now]


def _place(rng: random.Random, size: int) -> int:
    """Anywhere, near the beginning, where the structure is, or near the end: the numbers."""
    edge = min(_EDGE, size)
    begin, end = rng.choice(((0, size), (0, edge), (size - edge, size)))
    return rng.randrange(begin, max(end, 1))


def _bit(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, len(data))] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, len(data))] = rng.randrange(256)


def _whole(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    width = rng.choice((1, 2, 4, 8))
    value = (rng.choice(_WHOLE) + rng.choice((-1, 0, 1))) % 2 ** (8 * width)
    _put(rng, data, value.to_bytes(width, rng.choice(("little", "big"))))


def _real(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    value = rng.choice(_REAL)
    form = rng.choice(("<f", "<d") if abs(value) > 65504 else ("<e", "<f", "<d"))
    _put(rng, data, struct.pack(form, value))


def _put(rng: random.Random, data: bytearray, value: bytes) -> None:
    """Overwrite, mostly where numbers begin, and never beyond the end."""
    if len(data) >= len(value):
        at = min(_place(rng, len(data)), len(data) - len(value))
        at -= at % len(value) if rng.random() < 0.75 else 0
        data[at : at + len(value)] = value


def _fill(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    begin, end = _span(rng, data)
    data[begin:end] = bytes([rng.choice((0, 255, rng.randrange(256)))]) * (end - begin)


def _swap(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    (begin, end), other = _span(rng, data), _place(rng, len(data))
    size = min(end - begin, len(data) - other)
    if abs(other - begin) >= size:
        first, second = data[begin : begin + size], data[other : other + size]
        data[begin : begin + size], data[other : other + size] = second, first


def _graft(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    """A span of a donor, at its own place."""
    (begin, end), donor = _span(rng, data), rng.choice(donors)
    end = min(end, len(donor))
    if begin < end:
        data[begin:end] = donor[begin:end]


def _splice(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    """The beginning of this and the end of a donor."""
    at = _place(rng, len(data))
    data[at:] = rng.choice(donors)[at:]


def _delete(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    begin, end = _span(rng, data)
    del data[begin:end]


def _insert(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    at = _place(rng, len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 32))


def _repeat(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    begin, end = _span(rng, data)
    data[end:end] = data[begin:end] * rng.randint(1, 4)


def _cut(rng: random.Random, data: bytearray, donors: Sequence[bytes]) -> None:
    del data[_place(rng, len(data)) :]


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    begin = _place(rng, len(data))
    return begin, min(begin + rng.choice((1, 2, 4, 8, 32, 128)), len(data))


_KEEP_LENGTH: list[Mutation] = [_bit, _byte, _whole, _real, _fill, _swap, _graft]
_MUTATIONS = [*_KEEP_LENGTH, *_KEEP_LENGTH, _splice, _delete, _insert, _repeat, _cut]
