"""Rounds over a post that loses and repeats, with clients that sleep, cheat or come late."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge import wire
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    HELLO,
    REPORT,
    Status,
    TaskReply,
    TaskRequest,
)
from fedvtc_edge.distributed.server.executor import MOST_VOID
from fedvtc_edge.errors import RunError, ServerError, TrustError
from fedvtc_edge.masking import MaskingStep
from fedvtc_edge.sealing import Identity, TrustList, seal
from fedvtc_edge.transport.masked_sum import mask_step

Make = Callable[..., Any]

ME, SECOND, THIRD = "client-00", "client-01", "client-02"
FEATURES = {"share": "features"}


def took_part(there: Any, number: int) -> list[str]:
    clients = there.rounds()[number - 1]["clients"]
    return [client["id"] for client in clients if client["took_part"]]


def uploads(there: Any, number: int, kind: str) -> list[str]:
    """Whose uploads the server added up in a round."""
    folder = there.run_path / "server" / f"round-{number:04d}"
    return sorted(path.name.split(".")[0] for path in folder.glob(f"*.{kind}.upload"))


def inbox_is_empty(there: Any) -> bool:
    return not list((there.run_path / "checkpoint" / "inbox").glob("*.envelope"))


# ---------------------------------------------------------------- a bad post


@pytest.mark.parametrize("masking", [False, True], ids=["plain", "masked"])
def test_a_post_that_repeats_everything_changes_nothing(
    village: Make, small: Make, masking: bool
) -> None:
    config = small(method={"rounds": 1, **FEATURES}, transport={"masking": masking})
    calm, there = village(config, at="calm"), None
    calm.serve()
    there = village(config, at="twice")
    there.fate = lambda name, request: "twice"
    there.serve()
    assert there.published() == calm.published()
    assert there.untimed() == calm.untimed()
    assert there.ledger() != []
    assert len(there.ledger()) == len(calm.ledger())
    assert there.refusals() == []
    assert inbox_is_empty(there)


@pytest.mark.parametrize("share", ["features", "features+decoder"])
def test_whoever_replies_first_the_bits_are_the_same(
    village: Make, small: Make, share: str
) -> None:
    """Uploads are read from the inbox in the order of names, not as they came."""
    config = small(method={"rounds": 1, "share": share})
    calm = village(config, at="calm")
    calm.serve()
    there = village(config, at="backwards")
    receive, order = there.receive, []

    def backwards(wait_s: float) -> Any:
        for arrived in reversed(list(receive(wait_s))):
            order.append((arrived.request.context.kind, arrived.node))
            yield arrived

    there.receive = backwards
    there.serve()
    assert [node for kind, node in order if kind == "features"] == [2, 1, 0]
    assert there.published() == calm.published()
    assert there.untimed() == calm.untimed()


@pytest.mark.parametrize("fate", ["lost", "deaf"])
@pytest.mark.parametrize("masking", [False, True], ids=["plain", "masked"])
def test_the_opening_asks_again_and_takes_the_same_bytes(
    village: Make, small: Make, masking: bool, fate: str
) -> None:
    config = small(method={"rounds": 1}, transport={"masking": masking})
    calm = village(config, at="calm")
    calm.serve()
    there = village(config, at="bad")
    met: set[tuple[str, str]] = set()

    def first_time(name: str, request: TaskRequest) -> str:
        kind = request.context.kind
        if request.context.round or (name, kind) in met or kind == HELLO:
            return ""
        met.add((name, kind))
        return fate

    there.fate = first_time
    there.serve()
    assert there.published() == calm.published()
    assert there.untimed() == calm.untimed()
    assert len(met) == 3 * (5 if masking else 1)
    assert any("again" in line for line in there.story.lines)
    sealed: dict[tuple[str, str], set[bytes]] = {}
    for name, request, reply in there.replies:
        if request.context.kind != HELLO:
            sealed.setdefault((name, request.digest), set()).add(reply.envelope)
    assert all(len(envelopes) == 1 for envelopes in sealed.values())
    assert all(len(there.ledger(name)) == 1 for name in there.names)


def test_a_hello_that_is_lost_is_said_again(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 1, "name": "local"}))
    lost: list[str] = []

    def fate(name: str, request: TaskRequest) -> str:
        if request.context.kind == HELLO and len(lost) < 2:
            lost.append(name)
            return "lost" if len(lost) == 1 else "deaf"
        return ""

    there.fate = fate
    there.serve()
    assert took_part(there, 1) == there.names


def test_a_client_at_work_is_asked_again_within_the_phase(village: Make, small: Make) -> None:
    there, reply, busy = village(small(method={"rounds": 1})), None, []
    reply = there.reply

    def at_work(name: str, request: TaskRequest) -> TaskReply:
        if name == SECOND and request.context.kind == REPORT and there.clock.now < 1006.0:
            busy.append(there.clock.now)
            return TaskReply(name, problem="still at work", status=Status.BUSY)
        given: TaskReply = reply(name, request)
        return given

    there.reply = at_work
    there.serve()
    assert took_part(there, 1) == there.names
    assert 1 < len(busy) < 5


def test_who_lacks_for_ever_what_it_was_sent_is_not_sent_it_for_ever(
    village: Make, small: Make
) -> None:
    there = village(small(method={"rounds": 1}, server={"quorum": 0.6}))
    reply, asked = there.reply, []

    def lacking(name: str, request: TaskRequest) -> TaskReply:
        if name == SECOND and request.context.kind == REPORT:
            asked.append(dict(request.published))
            return TaskReply(name, problem="the client lacks anchor", status=Status.MISSING_INPUT)
        given: TaskReply = reply(name, request)
        return given

    there.reply = lacking
    there.serve()
    assert took_part(there, 1) == [ME, THIRD]
    assert len(asked) == 2
    assert "anchor" in asked[1]


# ---------------------------------------------------------------- who is late


def test_a_client_that_sleeps_through_a_round_comes_back_with_what_it_had(
    village: Make, small: Make
) -> None:
    there = village(small(method={"rounds": 3, **FEATURES}, server={"quorum": 0.6}))

    def asleep(name: str, request: TaskRequest) -> str:
        return "lost" if name == SECOND and request.context.round == 2 else ""

    there.fate, kept = asleep, {}
    reply = there.reply

    def answering(name: str, request: TaskRequest) -> TaskReply:
        if name == SECOND:
            state = there.home(name).state()
            kept[request.context.round, request.context.kind] = (state.round, state.samples)
        given: TaskReply = reply(name, request)
        return given

    there.reply = answering
    there.serve()
    assert [took_part(there, number) for number in (1, 2, 3)] == [
        there.names,
        [ME, THIRD],
        there.names,
    ]
    assert [uploads(there, number, "features") for number in (1, 2, 3)] == [
        there.names,
        [ME, THIRD],
        there.names,
    ]
    assert kept[3, "features"][0] == 1  # its state of round 1 was there
    assert kept[3, "features"][1] > 0
    rounds = there.rounds()
    before, missed, after = (record["clients"][1] for record in rounds)
    assert (missed["upload_bytes"], missed["seconds"]) == (0, 0.0)
    # In another round it is what it was; everybody downloads what is published.
    assert missed["accuracy"] == before["accuracy"]
    assert missed["download_bytes"] == before["download_bytes"] == after["download_bytes"]
    assert (
        before["upload_bytes"] == after["upload_bytes"] == rounds[1]["clients"][0]["upload_bytes"]
    )
    assert [len(there.ledger(name)) for name in there.names] == [3, 2, 3]
    assert len(there.ledger()) == 8
    assert inbox_is_empty(there)
    # Nothing is counted twice: what is published is the sum of those that were heard.
    counts = {name: _samples(there, name) for name in there.names}
    world = wire.published(there.published())
    assert world.count.sum() == sum(counts.values())


def _samples(there: Any, name: str) -> int:
    clients = json.loads((there.run_path / "summary.json").read_text())["clients"]
    return next(int(client["samples"]) for client in clients if client["id"] == name)


def test_a_round_closes_at_its_deadline_and_not_before(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 1, "name": "local"}, server={"quorum": 0.6}))
    there.fate = lambda name, request: (
        "lost" if (name, request.context.kind) == (ME, REPORT) else ""
    )
    there.serve()
    assert took_part(there, 1) == [SECOND, THIRD]
    assert 10.0 <= there.clock.now - 1000.0 < 50.0  # with the farewell's half minute


def test_nobody_is_waited_for_who_is_not_connected(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 3, **FEATURES}, server={"quorum": 0.6}))

    def leaves(name: str, request: TaskRequest) -> str:
        if request.context.round == 2:
            there.nowhere.add(SECOND)
        return ""

    there.fate = leaves
    begun = there.clock.now
    there.serve()
    assert took_part(there, 3) == [ME, THIRD]
    assert there.clock.now - begun < 25.0  # once the deadline: it was asked, and left


def test_a_client_that_connects_in_the_opening_takes_part(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 1}, server={"quorum": 0.6}))
    there.nowhere.add(THIRD)

    def comes(name: str, request: TaskRequest) -> str:
        if request.context.kind == "anchor":
            there.nowhere.discard(THIRD)
        return ""

    there.fate = comes
    there.serve()
    assert took_part(there, 1) == there.names
    assert uploads(there, 0, "anchor") == there.names


# ---------------------------------------------------------------- too few


def test_an_opening_with_too_few_stops_and_goes_on(village: Make, small: Make) -> None:
    config = small(method={"rounds": 1})
    calm = village(config, at="calm")
    calm.serve()
    there = village(config, at="bad")
    there.fate = lambda name, request: (
        "lost" if (name, request.context.kind) == (ME, "anchor") else ""
    )
    with pytest.raises(ServerError, match="opening, anchor: 2 of 3 clients answered") as stopped:
        there.serve()
    assert "silent: client-00" in str(stopped.value)
    assert "resume" in stopped.value.hint
    there.fate = lambda name, request: ""
    there.serve()
    assert there.published() == calm.published()
    assert there.untimed() == calm.untimed()
    assert [len(there.ledger(name)) for name in there.names] == [1, 1, 1]


def test_a_round_with_too_few_is_void_and_what_it_received_counts_in_no_other(
    village: Make, small: Make
) -> None:
    there = village(small(method={"rounds": 3, **FEATURES}))
    there.fate = lambda name, request: (
        "lost" if (name, request.context.round, request.context.kind) == (ME, 2, "features") else ""
    )
    there.serve()
    void = [bool(record["void"]) for record in there.rounds()]
    assert void == [False, True, False]
    assert "2 of 3 clients answered" in there.rounds()[1]["void"]
    assert took_part(there, 2) == []
    assert took_part(there, 3) == there.names
    assert there.refusals() == []
    assert wire.published(there.published()).count.sum() == sum(
        _samples(there, name) for name in there.names
    )


def test_a_round_that_fails_after_it_was_heard_leaves_nothing_behind(
    village: Make, small: Make
) -> None:
    """One upload is no statistics: two were taken up already, and must count in no other round."""
    there = village(small(method={"rounds": 2, **FEATURES}))
    reply = there.reply

    def cheating(name: str, request: TaskRequest) -> TaskReply:
        given: TaskReply = reply(name, request)
        if (name, request.context.round, request.context.kind) != (THIRD, 1, "features"):
            return given
        sealed = seal(
            b"no statistics",
            recipient=there.sealing_to[name],
            sender=there.keys[name],
            context=request.context,
        )
        return TaskReply(name, sealed)

    there.reply = cheating
    there.serve()
    assert [bool(record["void"]) for record in there.rounds()] == [True, False]
    assert took_part(there, 2) == there.names
    (refusal,) = there.refusals()
    assert (refusal["client"], refusal["error"]) == (THIRD, "WireError")
    assert wire.published(there.published()).count.sum() == sum(
        _samples(there, name) for name in there.names
    )


def test_too_many_void_rounds_stop_the_run_and_it_goes_on(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 5, "name": "local"}))
    there.fate = lambda name, request: "lost" if request.context.round > 1 else ""
    with pytest.raises(ServerError, match="round 4, training: 0 of 3 clients answered"):
        there.serve()
    assert [bool(r["void"]) for r in there.rounds()] == [False] + [True] * (MOST_VOID - 1)
    there.fate = lambda name, request: ""
    there.serve()
    assert [bool(r["void"]) for r in there.rounds()] == [False, True, True, False, False]
    assert took_part(there, 4) == took_part(there, 5) == there.names


@pytest.mark.parametrize("step", list(MaskingStep), ids=lambda step: step.name.lower())
def test_a_masked_sum_bears_a_third_and_no_more(
    village: Make, small: Make, step: MaskingStep
) -> None:
    there = village(
        small(
            method={"rounds": 2, **FEATURES},
            transport={"masking": True},
            server={"quorum": 0.3},
        )
    )
    lost = {1: [THIRD], 2: [SECOND, THIRD]}

    def fate(name: str, request: TaskRequest) -> str:
        masked = mask_step(request.context.kind)
        falls = masked is not None and masked[1] >= step and name in lost[request.context.round]
        return "lost" if falls else ""

    there.fate = fate
    there.serve()
    first, second = there.rounds()
    assert not first["void"]
    counted = there.names if step > MaskingStep.MASK else [ME, SECOND]
    world = wire.published(there.published())
    assert world.count.sum() == sum(_samples(there, name) for name in counted)
    assert "1 of" in second["void"]
    for name in there.names:
        spent = there.home(name).path / "sum.part.spent"
        lines = spent.read_text().split() if spent.exists() else []
        assert len(lines) == len(set(lines))


SIX = {"clients": {"count": 6}, "transport": {"masking": True, "masking_group": 3}}


@pytest.mark.parametrize("step", [MaskingStep.SHARE, MaskingStep.UNMASK], ids=["share", "unmask"])
def test_a_group_that_falls_apart_takes_no_other_with_it(
    village: Make, small: Make, monkeypatch: pytest.MonkeyPatch, step: MaskingStep
) -> None:
    """Two groups of three; the second loses one, then two, then the first loses two as well."""
    monkeypatch.setattr("fedvtc_edge.federation.preflight.LEAST_GROUP", 3)
    there = village(small(method={"rounds": 3, **FEATURES}, server={"quorum": 0.3}, **SIX))
    names = there.names
    lost = {1: names[5:], 2: names[4:], 3: [*names[4:], *names[:2]]}

    def fate(name: str, request: TaskRequest) -> str:
        masked = mask_step(request.context.kind)
        falls = masked is not None and masked[1] >= step and name in lost[request.context.round]
        return "lost" if falls else ""

    there.fate = fate
    there.serve()
    first, second, third = there.rounds()
    assert not first["void"]
    assert not second["void"]
    assert third["void"]
    world = wire.published(there.published())
    assert world.count.sum() == sum(_samples(there, name) for name in names[:3])
    kinds = {path.name.split(".")[0] for path in there.run_path.glob("server/*/*-maska.upload")}
    assert kinds == set(names)


# ---------------------------------------------------------------- who may


def test_a_client_that_refuses_tells_why_and_the_others_go_on(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 1}, server={"quorum": 0.6}))
    participant = there.participant

    def moved(name: str, **changes: Any) -> Any:
        made = participant(name, **changes)
        if name == SECOND and made.home.joined is not None:
            (made.home.path / "terms.json").write_text("{}")
        return made

    there.participant = moved
    there.serve()
    assert took_part(there, 1) == [ME, THIRD]
    refusals = {entry["client"]: entry for entry in there.refusals()}
    assert set(refusals) == {SECOND}
    assert any(f"{SECOND} takes no part" in line for line in there.story.lines)


def test_a_report_that_is_none_costs_its_client_its_numbers_alone(
    village: Make, small: Make
) -> None:
    there = village(small(method={"rounds": 1, "name": "local"}))
    reply = there.reply

    def lying(name: str, request: TaskRequest) -> TaskReply:
        given: TaskReply = reply(name, request)
        if (name, request.context.kind) != (ME, REPORT):
            return given
        sealed = seal(
            b'{"seconds": NaN}',
            recipient=there.sealing_to[name],
            sender=there.keys[name],
            context=request.context,
        )
        return TaskReply(name, sealed)

    there.reply = lying
    there.serve()
    mine, other, _ = there.rounds()[0]["clients"]
    assert (mine["accuracy"], mine["seconds"]) == (None, 0.0)
    assert other["accuracy"] is not None
    assert [entry["client"] for entry in there.refusals()] == [ME]


def test_envelopes_of_another_round_kind_or_client_do_not_count(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 2, **FEATURES}, server={"quorum": 0.6}))
    reply, old = there.reply, {}

    def replaying(name: str, request: TaskRequest) -> TaskReply:
        given: TaskReply = reply(name, request)
        number, kind = request.context.round, request.context.kind
        if kind == "features":
            old[name, number] = given.envelope
        if (name, number, kind) == (THIRD, 2, "features"):
            return TaskReply(name, old[THIRD, 1])  # its own, of the round before
        return given

    there.reply = replaying
    there.serve()
    assert took_part(there, 2) == [ME, SECOND]
    assert uploads(there, 2, "features") == [ME, SECOND]


def test_clients_seal_to_the_key_before_and_to_the_new_one_in_one_run(
    village: Make, small: Make
) -> None:
    config = small(method={"rounds": 1, **FEATURES}, transport={"masking": True})
    calm = village(config, at="calm")
    calm.serve()
    there = village(config, at="rotated")
    new = Identity.generate("x25519")
    there.ring = [new, *there.ring]
    there.sealing_to[SECOND] = new.public
    there.serve()
    assert there.published() == calm.published()
    assert there.untimed() == calm.untimed()
    late = village(config, at="late")
    late.sealing_to[SECOND] = new.public  # of a key that the server has not got
    with pytest.raises(AssertionError, match=f"waiting for {SECOND} to connect"):
        late.serve()  # as long as it takes
    assert any("does not take part" in line for line in late.story.lines)


def test_a_trust_list_of_another_length_is_refused(village: Make, small: Make) -> None:
    there, short = village(small()), TrustList()
    for name in there.names[:2]:
        short.add(name, there.keys[name].public)
    there.believed = short
    with pytest.raises(TrustError, match=r"2 clients, clients\.count is 3"):
        there.serve()


def test_an_envelope_that_is_gone_is_not_passed_over(village: Make, small: Make) -> None:
    there = village(small(method={"rounds": 1, **FEATURES}))
    there.reaper.hunting, there.reaper.every = "server", 10**9
    passing = there.reaper.pass_by

    def closed(moment: str) -> None:
        there.reaper.every = 1 if moment.startswith("after checkpoint/open.json") else 10**9
        passing(moment)

    there.reaper.pass_by = closed
    with pytest.raises(BaseException, match=r"open\.json"):
        there.serve()
    for path in (there.run_path / "checkpoint" / "inbox").glob("*.envelope"):
        path.unlink()
    with pytest.raises(RunError, match="is not the envelope that was acknowledged"):
        there.serve()


def test_who_was_heard_before_the_server_died_counts_though_it_is_gone(
    village: Make, small: Make
) -> None:
    config = small(method={"rounds": 1, **FEATURES}, server={"quorum": 0.6})
    there = village(config)
    there.reaper.hunting = "server"
    passing = there.reaper.pass_by

    def in_the_middle(moment: str) -> None:
        there.reaper.every = 1 if moment.startswith("receive report") else 10**9
        passing(moment)

    there.reaper.pass_by = in_the_middle
    with pytest.raises(BaseException, match="receive report"):
        there.serve()
    there.reaper.hunting = "nobody"
    there.nowhere.add(THIRD)
    there.serve()
    assert uploads(there, 1, "features") == there.names
    assert wire.published(there.published()).count.sum() == 120
    assert took_part(there, 1) == [ME, SECOND]


@pytest.mark.parametrize("masking", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("moment", range(4, 84, 16))
def test_a_client_may_be_revoked_at_any_moment_of_a_round(
    village: Make, small: Make, masking: bool, moment: int
) -> None:
    """What something followed from counts, whatever else it had sent does not."""
    config = small(
        method={"rounds": 3, **FEATURES},
        transport={"masking": masking},
        server={"quorum": 0.6},
    )
    there = village(config)
    there.reaper.hunting, there.reaper.every = "server", moment
    with pytest.raises(there.reaper.death):
        there.serve()
    there.reaper.hunting = "nobody"
    path = there.run_path / "metrics.jsonl"
    closed = len(there.rounds()) if path.exists() else 0
    there.believed = TrustList(there.trusted.entries)
    there.believed.revoke(THIRD)
    there.replies.clear()
    there.serve()
    assert any("client-02 was revoked" in line for line in there.story.lines)
    assert len(there.rounds()) == 3
    assert not any(record["void"] for record in there.rounds())
    for number in range(closed + 2, 4):
        assert took_part(there, number) == [ME, SECOND]
        assert THIRD not in uploads(there, number, "features-maskc" if masking else "features")
    # It hears so, and is asked nothing any more.
    asked = {request.context.kind for name, request, _ in there.replies if name == THIRD}
    assert asked == {HELLO, DISMISSAL}
