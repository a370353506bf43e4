"""Whatever is odd ends without a sum: every party refuses by name and says no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.masking import MaskingClient, MaskingError, MaskingPlan, MaskingServer, MaskingStep
from fedvtc_edge.masking.keys import PRIME, SHARE_BYTES
from fedvtc_edge.masking.messages import HEADER_BYTES, Kind, frame, pack_members
from fedvtc_edge.sealing.signing import generate
from fedvtc_edge.wire.context import Context, ContextError

A, B, C = "client-00", "client-01", "client-02"


def refused(what: Callable[[], object], match: str | None = None) -> None:
    with pytest.raises(MaskingError, match=match) as caught:
        what()
    assert caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


def silent(client: MaskingClient) -> None:
    """It has ended: no message makes it say anything."""
    vector = np.zeros(client.plan.size, np.int64)
    for ask in (
        client.advertise,
        lambda: client.share(b""),
        lambda: client.mask(b"", vector),
        lambda: client.confirm(b""),
        lambda: client.unmask(b""),
    ):
        refused(ask, "nothing more")
    assert client.step is None
    assert client._state is None


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def server_says(party: Any, kind: Kind, members: list[int], rest: bytes = b"") -> bytes:
    return frame(party.plan, kind, "server", pack_members(party.plan, members) + rest)


# ---------------------------------------------------------------- who takes part


def test_another_identity(three: Any) -> None:
    refused(lambda: MaskingClient(three.plan, A, three.identities[B]), "not the one trusted")
    refused(lambda: MaskingClient(three.plan, "nobody", three.identities[B]), "not among")


def test_impossible_plans(three: Any) -> None:
    trusted = three.trusted
    for size in (0, -1, 2**24 + 1, True, 2.0):
        refused(lambda size=size: MaskingPlan(three.context, trusted, size), "size")
    for bound in (0, 2**49 + 1, True):
        refused(lambda bound=bound: MaskingPlan(three.context, trusted, 5, bound), "bound")
    refused(lambda: MaskingPlan(three.context, {A: trusted[A], B: trusted[B]}, 5), "2 clients")
    refused(lambda: MaskingPlan(three.context, {**trusted, "z": trusted[A]}, 5), "one identity key")
    refused(lambda: MaskingPlan(three.context, {**trusted, "server": generate().public_key()}, 5))
    with pytest.raises(ContextError):
        MaskingPlan(three.context, {**trusted, "no id": generate().public_key()}, 5)


def test_unknown_and_repeated_senders(three: Any, game: Any) -> None:
    played = game(three)
    played.answers(MaskingStep.ADVERTISE)
    first = played.sent[MaskingStep.ADVERTISE, A]
    refused(lambda: played.server.receive(first, sender=A), "twice")
    refused(lambda: played.server.receive(first, sender="nobody"), "not among")
    assert played.server.heard == (A, B, C)


def test_who_dropped_out_stays_out(three: Any, game: Any) -> None:
    played = game(three, drop={C: 0}).until(MaskingStep.SHARE)
    late = three.client(C).advertise()
    refused(lambda: played.server.receive(late, sender=C), "dropped out before SHARE")


def test_one_client_cannot_speak_for_another(three: Any) -> None:
    server = MaskingServer(three.plan)
    refused(lambda: server.receive(three.client(A).advertise(), sender=B), "sender than client-01")
    assert server.heard == ()


# ---------------------------------------------------------------- signatures and replay


@pytest.mark.parametrize("at", [HEADER_BYTES, HEADER_BYTES + 40, HEADER_BYTES + 70, -1])
def test_a_changed_advert(three: Any, at: int) -> None:
    advert = flipped(three.client(A).advertise(), at)
    refused(lambda: MaskingServer(three.plan).receive(advert, sender=A), "not signed")


def test_clients_check_signatures_themselves(three: Any, game: Any) -> None:
    """A server that puts its own keys in between is found by every client."""
    for at in (HEADER_BYTES + 1, HEADER_BYTES + 1 + 32, HEADER_BYTES + 1 + 64, -1):
        played = game(three).until(MaskingStep.SHARE)
        for name in (A, B):  # the third one's keys are the last, the first one's the first
            roster = played.letters[name]
            changed = flipped(roster, at if at < 0 else at + 160 * (name == A))
            client = played.clients[name]
            refused(lambda c=client, r=changed: c.share(r), "not signed|another advert")
            silent(client)


def test_ones_own_advert_must_come_back(three: Any, game: Any) -> None:
    """Shown an older one, validly signed, of the same sum: it is not what was sent."""
    played = game(three).until(MaskingStep.SHARE)
    older = three.client(A).advertise()[HEADER_BYTES:]
    roster = played.letters[A]
    start = HEADER_BYTES + 1
    client = played.clients[A]
    refused(lambda: client.share(roster[:start] + older + roster[start + 160 :]), "another advert")
    silent(client)


def test_unequal_rosters_end_in_nothing(three: Any, game: Any) -> None:
    """B is shown an older advert of A, C is not: B's and C's keys differ."""
    older = three.client(A).advertise()[HEADER_BYTES:]
    start = HEADER_BYTES + 1

    def down(step: MaskingStep, name: str, message: bytes) -> bytes:
        if (step, name) == (MaskingStep.SHARE, B):
            return message[:start] + older + message[start + 160 :]
        return message

    refused(game(three, down=down).play, "cannot be opened")


@pytest.mark.parametrize("other", ["run", "round", "kind", "size", "bound", "clients"])
@pytest.mark.parametrize("step", list(MaskingStep))
def test_nothing_of_another_sum_is_taken(
    party: Any, three: Any, game: Any, other: str, step: MaskingStep
) -> None:
    context, trusted, size, bound = three.context, three.trusted, three.plan.size, three.plan.bound
    if other == "run":
        context = Context("f" * 32, 4, "x", "anchor")
    elif other == "round":
        context = Context(three.context.run, 5, "x", "anchor")
    elif other == "kind":
        context = Context(three.context.run, 4, "x", "features")
    elif other == "size":
        size += 1
    elif other == "bound":
        bound -= 1
    else:
        trusted = {**trusted, "client-03": generate().public_key()}
    elsewhere = party(3, size=size)
    elsewhere.identities = dict(three.identities)
    elsewhere.plan = MaskingPlan(context, trusted, size, bound)
    there = game(elsewhere)
    there.until(step).answers(step)
    here = game(three).until(step)
    refused(lambda: here.server.receive(there.sent[step, A], sender=A), "another (run|plan)")
    assert here.server.heard == ()


def test_old_vectors_of_the_same_sum_do_not_pass(three: Any, game: Any) -> None:
    """Same context, another attempt: new keys, so that the masks do not cancel."""
    old = game(three)
    old.play()
    replayed = old.sent[MaskingStep.MASK, A]
    new = game(three, up=lambda s, n, m: replayed if (s, n) == (MaskingStep.MASK, A) else m)
    refused(new.play, "beyond what the bound allows")


def test_old_messages_of_the_same_sum_are_not_opened(three: Any, game: Any) -> None:
    old = game(three)
    old.play()
    for step in (MaskingStep.SHARE, MaskingStep.CONFIRM):
        replayed = old.sent[step, A]

        def up(
            s: MaskingStep, n: str, m: bytes, step: MaskingStep = step, replayed: bytes = replayed
        ) -> bytes:
            return replayed if (s, n) == (step, A) else m

        refused(game(three, up=up).play, "cannot be opened|did not see the same")


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("step", list(MaskingStep)[1:])
@pytest.mark.parametrize("members", [[0], [1, 2], []])
def test_lists_below_the_threshold_or_without_oneself(
    three: Any, game: Any, step: MaskingStep, members: list[int]
) -> None:
    played = game(three).until(step)
    kinds = [Kind.ROSTER, Kind.MAILBOX, Kind.ARRIVED, Kind.CONFIRMED]
    sizes = [160, 50, 0, 16]
    counted = len([m for m in members if m or step is MaskingStep.SHARE])
    lie = server_says(three, kinds[step - 1], members, bytes(counted * sizes[step - 1]))
    client = played.clients[A]
    call = {
        MaskingStep.SHARE: client.share,
        MaskingStep.MASK: lambda m: client.mask(m, three.inputs[A]),
        MaskingStep.CONFIRM: client.confirm,
        MaskingStep.UNMASK: client.unmask,
    }[step]
    refused(lambda: call(lie), "list of clients without|expected 2 at least")
    silent(client)


def test_a_list_with_somebody_who_dropped_out(three: Any, game: Any) -> None:
    played = game(three, drop={C: 1}).until(MaskingStep.CONFIRM)
    refused(lambda: played.clients[A].confirm(server_says(three, Kind.ARRIVED, [0, 1, 2])))


def test_a_server_that_shows_two_lists_gets_no_share(ten: Any, game: Any) -> None:
    """It asks half for client 9's seed and half for its key: nobody answers."""

    def down(step: MaskingStep, name: str, message: bytes) -> bytes:
        if step is MaskingStep.CONFIRM and name in ten.plan.clients[:4]:
            return server_says(ten, Kind.ARRIVED, list(range(9)))
        return message

    played = game(ten, down=down)
    with pytest.raises(MaskingError):  # its own bookkeeping already disagrees
        played.play()
    # A server that keeps two books, and relays each group its own confirmations:
    played = game(ten).until(MaskingStep.CONFIRM)
    lists = {name: list(range(10 - (i < 4))) for i, name in enumerate(ten.plan.clients)}
    said = {
        name: played.clients[name].confirm(server_says(ten, Kind.ARRIVED, members))
        for name, members in lists.items()
    }

    def tag(sender: int, recipient: int) -> bytes:
        body = said[ten.plan.clients[sender]][HEADER_BYTES:]
        at = 16 * (recipient - (recipient > sender))
        return body[at : at + 16]

    # Too few of either list; one who is not on the list; enough, but not of one list.
    for asked, group, why in (
        (0, range(4), "expected 7 at least"),
        (4, range(4, 10), "expected 7 at least"),
        (1, range(10), "dropped out"),
        (2, range(9), "client-04 did not see the same"),
        (5, range(9), "client-00 did not see the same"),
    ):
        client = played.clients[ten.plan.clients[asked]]
        rest = b"".join(tag(sender, asked) for sender in group if sender != asked)
        message = server_says(ten, Kind.CONFIRMED, list(group), rest)
        refused(lambda c=client, m=message: c.unmask(m), why)
        silent(client)


def test_unequal_mailboxes_are_found_out(ten: Any, game: Any) -> None:
    """Client 0 is told that client 9 dealt no shares; nobody else is."""

    def down(step: MaskingStep, name: str, message: bytes) -> bytes:
        if (step, name) == (MaskingStep.MASK, A):
            return server_says(ten, Kind.MAILBOX, list(range(9)), message[HEADER_BYTES + 2 : -50])
        return message

    refused(game(ten, down=down, drop={"client-09": 2}).play, "did not see the same")
    refused(game(ten, down=down).play, "one that dropped out")


def test_never_both_shares_of_one_client(three: Any, game: Any) -> None:
    """A client answers once; a second list gets no second answer."""
    played = game(three).until(MaskingStep.UNMASK)
    client = played.clients[A]
    client.unmask(played.letters[A])
    silent(client)
    played = game(three).until(MaskingStep.CONFIRM)
    client = played.clients[A]
    client.confirm(server_says(three, Kind.ARRIVED, [0, 1]))
    refused(lambda: client.confirm(server_says(three, Kind.ARRIVED, [0, 1, 2])), "CONFIRM where")
    silent(client)


@pytest.mark.parametrize("step", [MaskingStep.SHARE, MaskingStep.CONFIRM])
@pytest.mark.parametrize("at", [HEADER_BYTES, -1])
def test_one_changed_bit_among_clients(three: Any, game: Any, step: MaskingStep, at: int) -> None:
    def up(s: MaskingStep, name: str, message: bytes) -> bytes:
        return flipped(message, at) if (s, name) == (step, B) else message

    refused(game(three, up=up).play, "cannot be opened|client-01 did not see the same")


def test_another_clients_mailbox(three: Any, game: Any) -> None:
    played = game(three).until(MaskingStep.MASK)
    refused(lambda: played.clients[A].mask(played.letters[B], three.inputs[A]), "cannot be opened")


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    "vector",
    [
        np.full(7, 2**49 + 1),
        np.full(7, -(2**49) - 1),
        np.full(7, np.iinfo(np.int64).min),
        np.zeros(6, np.int64),
        np.zeros((7, 1), np.int64),
        np.zeros(7),
        np.zeros(7, np.uint64),
        np.zeros(7, np.int32),
        [0] * 6,
    ],
    ids=lambda v: f"{np.asarray(v).dtype} {np.shape(v)}",
)
def test_a_vector_that_does_not_fit_never_leaves(three: Any, game: Any, vector: Any) -> None:
    played = game(three).until(MaskingStep.MASK)
    client = played.clients[A]
    refused(lambda: client.mask(played.letters[A], vector), "beyond the bound|expected int64")
    silent(client)


def test_masks_that_do_not_cancel_are_no_sum(three: Any, game: Any) -> None:
    def up(step: MaskingStep, name: str, message: bytes) -> bytes:
        return message[:-1] + bytes([message[-1] ^ 0x40]) if (step, name) == (2, B) else message

    refused(game(three, up=up).play, "beyond what the bound allows")


# ---------------------------------------------------------------- shares


def wrong_shares(*liars: str, owner: int = 0) -> Any:
    def up(step: MaskingStep, name: str, message: bytes) -> bytes:
        if step is not MaskingStep.UNMASK or name not in liars:
            return message
        # Not by one alone, whose weighted sum over several liars may happen to be zero.
        at = HEADER_BYTES + SHARE_BYTES * (owner + 1) - 3
        wrong = bytes(x ^ y for x, y in zip(message[at:], name[-2:].encode() + b"!", strict=False))
        return message[:at] + wrong + message[at + 3 :]

    return up


def test_a_wrong_share_is_found_and_named(ten: Any, game: Any) -> None:
    for liar in ten.plan.clients[:7]:
        result = game(ten, up=wrong_shares(liar)).play()
        assert result.suspects == (liar,)
        assert result.total.tolist() == ten.plain(ten.inputs).tolist()


def test_a_wrong_share_of_a_key(ten: Any, game: Any) -> None:
    liar = ten.plan.clients[2]
    result = game(ten, up=wrong_shares(liar), drop={ten.plan.clients[0]: 2}).play()
    assert result.suspects == (liar,)
    assert result.total.tolist() == ten.plain(result.survivors).tolist()


def test_a_wrong_share_that_is_not_needed_does_no_harm(ten: Any, game: Any) -> None:
    result = game(ten, up=wrong_shares(ten.plan.clients[9])).play()
    assert result.total.tolist() == ten.plain(ten.inputs).tolist()


def test_wrong_shares_beyond_repair_are_no_sum(ten: Any, three: Any, game: Any) -> None:
    several = game(ten, up=wrong_shares(*ten.plan.clients[1:4]))
    refused(several.play, "client-00's seed")
    refused(several.server.finish, "has ended")
    exactly_t = game(three, up=wrong_shares(B), drop={C: 4})
    refused(exactly_t.play, "client-00's seed")
    dropped = game(three, up=wrong_shares(B), drop={A: 2})
    refused(dropped.play, "client-00's key")


def test_a_share_beyond_the_field(three: Any, game: Any) -> None:
    played = game(three).until(MaskingStep.UNMASK)
    answer = played.clients[A].unmask(played.letters[A])
    high = PRIME.to_bytes(SHARE_BYTES, "big")
    changed = answer[:HEADER_BYTES] + high + answer[HEADER_BYTES + SHARE_BYTES :]
    refused(lambda: played.server.receive(changed, sender=A), "no field element")
    played.server.receive(answer, sender=A)


# ---------------------------------------------------------------- order


def test_steps_are_taken_in_order(three: Any) -> None:
    client = three.client(A)
    refused(lambda: client.share(b""), "SHARE where ADVERTISE is due")
    silent(client)
    again = three.client(A)
    again.advertise()
    refused(again.advertise, "ADVERTISE where SHARE is due")
    silent(again)


def test_the_server_keeps_its_order(three: Any, game: Any) -> None:
    server = MaskingServer(three.plan)
    refused(server.finish, "not ready")
    played = game(three).until(MaskingStep.UNMASK)
    refused(played.server.advance, "no step follows")
    played.answers(MaskingStep.UNMASK)
    played.server.finish()
    assert played.server.step is None
    for ask in (played.server.finish, played.server.advance):
        refused(ask, "has ended")
    refused(lambda: played.server.receive(b"", sender=A), "has ended")


def test_too_few_end_the_round_for_good(three: Any) -> None:
    server = MaskingServer(three.plan)
    server.receive(three.client(A).advertise(), sender=A)
    refused(server.advance, "1 clients in step ADVERTISE, expected 2 of 3")
    refused(lambda: server.receive(three.client(B).advertise(), sender=B), "has ended")
    refused(server.advance, "has ended")


def test_too_few_shares_are_no_sum(three: Any, game: Any) -> None:
    played = game(three, drop={B: 4, C: 4})
    refused(played.play, "1 clients in step UNMASK")
    refused(played.server.finish, "has ended")


def test_a_key_of_small_order(three: Any) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from fedvtc_edge.masking.keys import agree

    refused(lambda: agree(X25519PrivateKey.generate(), bytes(32)), "no secret can be agreed on")
