"""Admission: who makes room for whom."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from fedvtc_edge.flower.access import admission
from fedvtc_edge.flower.access.admission import Admission, Guest, neighbourhood
from fedvtc_edge.flower.access.limits import Limits

LIMITS = Limits(strangers=4, per_address=3, per_node=2, members=3, patience_s=0.05)


async def come(door: Admission, address: str, cut: list[Guest]) -> Guest:
    """A stranger comes as soon as it may."""
    await door.room()
    await door.room(address)
    guest = door.enter(address)
    guest.cut = lambda: cut.append(guest)
    return guest


def test_a_crowd_makes_room_for_itself_and_for_others() -> None:
    async def story() -> None:
        door, cut = Admission(LIMITS), list[Guest]()
        alone = await come(door, "192.0.2.9", cut)
        crowd = [await come(door, "192.0.2.1", cut) for _ in range(20)]
        other = await come(door, "192.0.2.2", cut)
        assert alone not in cut  # it came first, but is not of the crowd
        assert other not in cut
        assert cut == crowd[: len(cut)]  # who came first goes first
        assert len(door) <= LIMITS.strangers

    asyncio.run(story())


def test_a_foreign_crowd_is_turned_away_and_one_with_members_waits() -> None:
    async def story() -> None:
        patient = Admission(replace(LIMITS, patience_s=60.0))
        cut: list[Guest] = []
        for _ in range(LIMITS.per_address):
            assert not patient.turns_away("192.0.2.1")
            last = await come(patient, "192.0.2.1", cut)
        assert patient.turns_away("192.0.2.1")
        assert not patient.turns_away("192.0.2.2")
        assert patient.promote(last, b"a")
        await come(patient, "192.0.2.1", cut)
        assert not patient.turns_away("192.0.2.1")  # a house with a member

        here = Admission(replace(LIMITS, patience_s=60.0))
        for _ in range(LIMITS.per_address):
            await come(here, "127.0.0.1", cut)
        assert not here.turns_away("127.0.0.1")
        assert cut == []

        hasty = Admission(replace(LIMITS, patience_s=0.0))
        for _ in range(LIMITS.per_address):
            await come(hasty, "192.0.2.1", cut)
        assert not hasty.turns_away("192.0.2.1")  # the oldest makes room

    asyncio.run(story())


def test_addresses_of_members_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_HOMES", 3)

    async def story() -> None:
        door = Admission(LIMITS)
        for number in range(5):
            guest = await come(door, f"192.0.2.{number}", [])
            assert door.promote(guest, b"a")
        assert list(door._homes) == ["192.0.2.2", "192.0.2.3", "192.0.2.4"]

    asyncio.run(story())


def test_everybody_has_a_moment() -> None:
    async def story() -> None:
        door, cut = Admission(LIMITS), list[Guest]()
        begin = time.monotonic()
        for _ in range(9):
            await come(door, "192.0.2.1", cut)
        assert time.monotonic() - begin >= 2 * LIMITS.patience_s * 0.99

    asyncio.run(story())


def test_who_is_refused_at_once_does_not_come_again_at_once() -> None:
    async def story() -> None:
        door, cut = Admission(LIMITS), list[Guest]()
        begin = time.monotonic()
        for _ in range(9):
            door.leave(await come(door, "192.0.2.1", cut))
        assert time.monotonic() - begin >= 2 * LIMITS.patience_s * 0.99
        assert cut == []
        await asyncio.sleep(2 * LIMITS.patience_s)
        assert len(door) == 0

    asyncio.run(story())


def test_members_are_no_strangers() -> None:
    async def story() -> None:
        door, cut = Admission(LIMITS), list[Guest]()
        members = [await come(door, "192.0.2.1", cut) for _ in range(3)]
        assert door.promote(members[0], b"a")
        assert door.promote(members[1], b"a")
        assert door.promote(members[2], b"b")
        for _ in range(9):
            await come(door, "192.0.2.1", cut)
        assert not set(members) & set(cut)
        third = await come(door, "192.0.2.1", cut)
        cut.clear()
        assert door.promote(third, b"a")  # in place of its first one
        assert cut == [members[0]]
        assert not door.promote(await come(door, "192.0.2.1", cut), b"c")
        door.leave(members[2])
        assert door.promote(await come(door, "192.0.2.1", cut), b"c")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(host: str, where: str) -> None:
    assert neighbourhood(host) == where
