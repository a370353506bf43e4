"""Whoever is killed, wherever: begun anew from the disk, the run ends as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge.distributed.messages import HELLO, REPORT, Status
from fedvtc_edge.masking import MaskingStep
from fedvtc_edge.transport.masked_sum import mask_kind, mask_step

Make = Callable[..., Any]

ME = "client-00"

EVERY = 3
"""Of the moments at which the server could be killed; 1 tries all of them."""

RUNS: dict[str, dict[str, Any]] = {
    "masked": {"method": {"rounds": 1}, "transport": {"masking": True}},
    "noised": {"method": {"rounds": 1}, "privacy": {"mode": "client", "epsilon": 100.0}},
}


def no_vector_is_in_two_sums(there: Any) -> None:
    asked: dict[tuple[str, int, str], set[str]] = {}
    said: dict[tuple[str, int, str], set[bytes]] = {}
    for name, request in there.requests:
        if mask_step(request.context.kind) is not None:
            key = (name, request.context.round, request.context.kind)
            asked.setdefault(key, set()).add(request.digest)
    for name, request, reply in there.replies:
        if mask_step(request.context.kind) is not None and reply.envelope:
            key = (name, request.context.round, request.context.kind)
            said.setdefault(key, set()).add(reply.envelope)
    assert all(len(digests) == 1 for digests in asked.values())
    assert all(len(envelopes) == 1 for envelopes in said.values())
    for name in there.names:
        spent = there.home(name).path / "sum.part.spent"
        if spent.exists():
            lines = spent.read_text().split()
            assert len(lines) == len(set(lines))


@pytest.mark.slow
@pytest.mark.parametrize("tables", RUNS.values(), ids=RUNS)
def test_a_server_killed_at_many_moments(
    village: Make, small: Make, tables: dict[str, Any]
) -> None:
    config = small(**tables)
    calm = village(config, at="calm")
    calm.serve()
    there = village(config, at="killed")
    killed = there.serve_through("server", every=EVERY)
    assert len(killed) > 60 // EVERY
    noised = config.privacy.mode != "none"  # drawn by the operating system
    if not noised:
        assert there.published() == calm.published()
        assert there.untimed() == calm.untimed()
    assert len(there.ledger()) == len(calm.ledger())
    for name in there.names:
        assert len(there.ledger(name)) == len(calm.ledger(name))
    assert there.refusals() == []
    assert not list((there.run_path / "checkpoint" / "inbox").glob("*.envelope"))
    no_vector_is_in_two_sums(there)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["anchored"])
def test_a_client_killed_at_every_moment_of_its_work(village: Make, small: Make, mode: str) -> None:
    config = small(method={"rounds": 1}, clients={"count": 2}, privacy={"mode": mode})
    calm = village(config, at="calm")
    calm.serve()
    there = village(config, at="killed")
    killed = there.serve_through(ME)
    names = {moment.split()[1].split("/")[-1] for moment in killed}
    assert {"state.safetensors", "last.upload", "ledger.json", "home.json"} <= names
    if mode == "none":
        assert there.published() == calm.published()
        assert there.untimed() == calm.untimed()
    else:
        assert "anchor.release" in names
    assert [len(there.ledger(name)) for name in there.names] == [1, 1]
    assert there.refusals() == []
    sealed: dict[str, set[bytes]] = {}
    for name, request, reply in there.replies:
        if name == ME and request.context.kind != HELLO:
            sealed.setdefault(request.context.kind, set()).add(reply.envelope)
    assert {kind: len(found) for kind, found in sealed.items()}["anchor"] == 1
    assert len(sealed[REPORT]) == 1


@pytest.mark.slow
def test_a_client_killed_within_a_masked_sum_drops_out_cleanly(village: Make, small: Make) -> None:
    """At each write of each later step, in a round of its own."""
    rounds = 8
    config = small(
        method={"rounds": rounds, "share": "features"},
        training={"decoder_steps": 1, "finetune_steps": 1, "finetune_from": rounds},
        transport={"masking": True},
        server={"quorum": 0.6},
    )
    there, fell = village(config), {}
    passing, reply = there.reaper.pass_by, there.reply
    moments = {
        number: (step, when, name)
        for number, (step, when, name) in enumerate(
            [
                (MaskingStep.SHARE, "after", ".sum.part.taken"),
                (MaskingStep.SHARE, "before", "last.upload"),
                (MaskingStep.SHARE, "after", "last.upload"),
                (MaskingStep.MASK, "after", "sum.part"),
                (MaskingStep.MASK, "after", "last.upload"),
                (MaskingStep.CONFIRM, "before", "last.upload"),
                (MaskingStep.UNMASK, "before", "last.upload"),
                (MaskingStep.UNMASK, "after", "last.upload"),
            ],
            1,
        )
    }
    now: list[Any] = [None]

    def pass_by(moment: str) -> None:
        request = now[0]
        if request is not None and there.reaper.now == ME:
            step, when, name = moments.get(request.context.round, (None, "", ""))
            right = step is not None and request.context.kind == mask_kind("features", step)
            if right and moment.startswith(f"{when} ") and f"/{name} " in moment:
                there.reaper.hunting = ME
        try:
            passing(moment)
        finally:
            there.reaper.hunting = "nobody"

    def answering(name: str, request: Any) -> Any:
        now[0] = request if name == ME else None
        given = reply(name, request)
        if name == ME and given.status is Status.REFUSED:
            masked = mask_step(request.context.kind)
            fell[request.context.round] = None if masked is None else masked[1]
        return given

    there.reaper.pass_by, there.reply = pass_by, answering
    there.serve()
    assert len(there.reaper.killed) == rounds
    # What was kept before the kill is said again; what was not is a drop-out, and no more.
    lost = {
        number: step
        for number, (step, when, name) in moments.items()
        if (when, name) != ("after", "last.upload")
    }
    assert fell == lost
    records = there.rounds()
    assert not any(record["void"] for record in records)
    for number in lost:
        assert (
            records[number - 1]["clients"][0]["took_part"] is False
            or lost[number] is MaskingStep.UNMASK
        )
    no_vector_is_in_two_sums(there)
