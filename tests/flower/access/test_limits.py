"""Limits of the port: what fits into a process, and bytes that take turns."""

from __future__ import annotations

import asyncio
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access import limits as module
from fedvtc_edge.flower.access.limits import RESERVED, UPSTREAM, ByteBudget, Limits


@given(st.integers(1, 1000), st.integers(80, 1 << 20))
def test_all_that_may_be_open_fits_into_the_process(nodes: int, allowed: int) -> None:
    limits = Limits().fitting(nodes, allowed)
    assert limits.strangers + limits.members + UPSTREAM + RESERVED <= allowed
    assert 8 <= limits.strangers <= Limits().strangers
    assert 1 <= limits.per_address <= limits.strangers
    assert limits.members >= 8


def test_a_handful_is_too_few() -> None:
    with pytest.raises(DeploymentError, match="64 files") as caught:
        Limits().fitting(3, 64)
    assert "ulimit -n" in caught.value.hint


@pytest.mark.parametrize(("hard", "nodes", "said"), [(256, 10, False), (256, 500, True)])
def test_the_operator_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, hard: int, nodes: int, said: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (hard, hard))
    note = module.note_on_descriptors(nodes)
    assert (note is not None) == said
    if note:
        limit = int(note.rpartition(" ")[2])
        assert Limits().fitting(nodes, limit).members >= 2 * nodes  # what it advises helps


def test_no_limit_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1, resource.RLIM_INFINITY))
    assert module.descriptors() == 1 << 20


@given(
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=20),
)
def test_never_more_bytes_than_there_are(asked: list[tuple[int, bool]]) -> None:
    """Holders and those who give up while they wait; in the end all bytes are back."""

    async def story() -> None:
        budget, held = ByteBudget(10), 0

        async def holder(count: int) -> None:
            nonlocal held
            async with budget.holding(count):
                held += count
                assert held <= 10
                await asyncio.sleep(0)
                held -= count

        tasks = [asyncio.ensure_future(holder(count)) for count, _ in asked]
        await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, asked, strict=True):
            if gives_up and held == 0:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget._left == 10
        assert not budget._line

    asyncio.run(story())
