"""A frozen client goes on as if nothing had been; frozen bytes are read whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvtc_edge.masking import MaskingClient, MaskingError, MaskingPlan, MaskingStep, keys
from fedvtc_edge.masking.client import MaskingState
from fedvtc_edge.masking.messages import HEADER_BYTES
from fedvtc_edge.sealing.signing import generate
from fedvtc_edge.wire.context import Context

A, B, C = "client-00", "client-01", "client-02"
RELAXED = settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


class Thawing:
    """A client that is frozen and thawed before each step."""

    def __init__(self, party: Any, name: str, data: bytes) -> None:
        self.party, self.name, self.data = party, name, data

    def answer(self, step: MaskingStep, message: bytes, vector: Any) -> bytes:
        party = self.party
        plan = MaskingPlan(party.context, party.trusted, party.size, party.bound)
        client = MaskingClient.thaw(plan, self.name, party.identities[self.name], self.data)
        assert client.step is step
        answer = client.answer(step, message, vector)
        self.data = client.freeze() if step < MaskingStep.UNMASK else b""
        return answer


@pytest.fixture(scope="module")
def frozen(three: Any, game: Any) -> dict[MaskingStep, bytes]:
    """Client A before each step."""
    return {step: game(three).until(step).clients[A].freeze() for step in MaskingStep}


def thawed(party: Any, data: bytes, name: str = A) -> MaskingClient:
    return MaskingClient.thaw(party.plan, name, party.identities[name], data)


def refused(party: Any, data: bytes, match: str | None = None) -> None:
    with pytest.raises(MaskingError, match=match) as caught:
        thawed(party, data)
    assert caught.value.hint


def stamped(data: bytes) -> bytes:
    """With the right checksum for what stands before it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


# ---------------------------------------------------------------- the same client


@pytest.mark.parametrize(
    "drop", [{}, *({"client-02": step} for step in MaskingStep), {"client-01": 2, "client-04": 3}]
)
def test_it_goes_on_byte_for_byte(
    party: Any, game: Any, drop: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin never lay on a disk. Only the polynomials are drawn within a step."""
    six, draws = party(6), itertools.count()
    drawn = [draw * 0x1234567 % keys.PRIME for draw in range(200)]
    monkeypatch.setattr(keys.secrets, "randbelow", lambda _: drawn[next(draws)])
    begun = {name: six.client(name).freeze() for name in six.identities}
    played = []
    for kind in (lambda name: thawed(six, begun[name], name), lambda n: Thawing(six, n, begun[n])):
        draws = itertools.count()
        one = game(six, drop=drop)
        one.clients = {name: kind(name) for name in begun}
        played.append((one.play(), one.sent))
    (still, sent), (moved, sent_by_moved) = played
    assert sent == sent_by_moved
    there = tuple(name for name in six.plan.clients if drop.get(name, 9) > MaskingStep.MASK)
    assert still.survivors == moved.survivors == there
    assert still.total.tolist() == moved.total.tolist() == six.plain(there).tolist()


def test_freezing_moves_the_state(three: Any, frozen: dict[MaskingStep, bytes]) -> None:
    for step, data in frozen.items():
        client = thawed(three, data)
        assert client.step is step
        assert client.freeze() == data, "one encoding of one state"
        assert client.step is None
        with pytest.raises(MaskingError, match="its part in the sum is over"):
            client.freeze()
        with pytest.raises(MaskingError, match="nothing more is due"):
            client.answer(step, b"", three.inputs[A])


def test_nothing_to_freeze_after_the_end_or_a_doubt(three: Any, game: Any) -> None:
    played = game(three)
    played.play()
    doubting = three.client(A)
    with pytest.raises(MaskingError):
        doubting.share(b"")
    for client in (*played.clients.values(), doubting):
        with pytest.raises(MaskingError, match="nothing to keep"):
            client.freeze()


def test_the_secrets_go_with_their_last_use(three: Any, game: Any) -> None:
    played = game(three).until(MaskingStep.MASK)
    states = {name: client._state for name, client in played.clients.items()}
    secrets = {name: (state.seed, state.root) for name, state in states.items()}
    for name, state in states.items():
        assert all(secret in state.to_bytes(three.plan, name) for secret in secrets[name])
    for step in (MaskingStep.MASK, MaskingStep.CONFIRM):
        played.answers(step)
        played.letters = played.server.advance()
        for name, state in states.items():
            assert state.step == step + 1
            assert not any(secret in state.to_bytes(three.plan, name) for secret in secrets[name])


# ---------------------------------------------------------------- other bytes


@RELAXED
@given(data=st.data(), step=st.sampled_from(MaskingStep))
def test_damage_is_refused(
    three: Any, frozen: dict[MaskingStep, bytes], data: st.DataObject, step: MaskingStep
) -> None:
    good = frozen[step]
    at = data.draw(st.integers(0, len(good)))
    until = data.draw(st.integers(at, min(len(good), at + 4)))
    changed = good[:at] + data.draw(st.binary(max_size=4)) + good[until:]
    if changed != good:
        refused(three, changed)


@RELAXED
@given(data=st.data(), step=st.sampled_from(MaskingStep))
def test_a_false_state_with_a_right_checksum_is_refused_or_a_state(
    three: Any, frozen: dict[MaskingStep, bytes], data: st.DataObject, step: MaskingStep
) -> None:
    """Whatever is read is what would be written: no two encodings, nothing left over."""
    good = frozen[step]
    at = data.draw(st.integers(HEADER_BYTES, len(good) - 32))
    until = data.draw(st.integers(at, min(len(good) - 32, at + 40)))
    changed = stamped(good[:at] + data.draw(st.binary(max_size=40)) + good[until:])
    try:
        state = MaskingState.from_bytes(three.plan, A, changed)
    except MaskingError:
        return
    assert state.to_bytes(three.plan, A) == changed


def test_every_field_has_its_bounds(three: Any, frozen: dict[MaskingStep, bytes]) -> None:
    def with_byte(data: bytes, at: int, value: int) -> bytes:
        return stamped(data[:at] + bytes([value]) + data[at + 1 :])

    share, mask, unmask = (
        frozen[step] for step in (MaskingStep.SHARE, MaskingStep.MASK, MaskingStep.UNMASK)
    )
    refused(three, with_byte(mask, HEADER_BYTES, 5), "step 5, expected 0 to 4")
    refused(three, with_byte(share, HEADER_BYTES, 2), "0 bytes left, expected 32")
    refused(three, with_byte(mask, HEADER_BYTES, 1), "bytes too many")
    members = HEADER_BYTES + 1 + 32 + 16 + 16 + 32
    assert mask[members] == 0b111
    for wrong in (0b110, 0b001, 0b000):  # without oneself, too few
        refused(three, with_byte(mask, members, wrong), "list of clients that cannot be")
    refused(three, with_byte(mask, members, 0b1111), "names a client that is none")
    arrived = len(unmask) - 33
    assert unmask[arrived] == 0b111
    for wrong in (0b110, 0b001):
        refused(three, with_byte(unmask, arrived, wrong), "list of clients that cannot be")
    refused(three, with_byte(unmask, arrived - 17, 0xFF), "no field element")
    refused(three, stamped(unmask[:-32] + b"\0" + bytes(32)), "1 bytes too many")
    for end in (0, 50, HEADER_BYTES, HEADER_BYTES + 31):
        refused(three, mask[:end])
    refused(three, stamped(mask[:HEADER_BYTES] + bytes(32)), "0 bytes left")


def test_who_arrived_is_among_those_whose_shares_came(three: Any, game: Any) -> None:
    played = game(three, drop={C: 1}).until(MaskingStep.UNMASK)
    data = played.clients[A].freeze()
    at = len(data) - 33
    assert data[at] == 0b011
    refused(three, stamped(data[:at] + b"\x07" + data[at + 1 :]), "cannot be")


def test_lengths_are_the_documents(ten: Any, game: Any) -> None:
    sizes = [len(game(ten).until(step).clients[A].freeze()) for step in MaskingStep]
    k, listed, fixed = 10, 2, HEADER_BYTES + 1 + 32 + 32
    assert sizes == [
        fixed + 32,
        fixed + 32,
        fixed + 32 + 32 + listed + 96 * (k - 1) + 34,
        fixed + 32 + listed + 96 * (k - 1) + 34 * k,
        fixed + 32 + 2 * listed + 96 * (k - 1) + 34 * k,
    ]


def test_another_client_identity_or_plan(three: Any, frozen: dict[MaskingStep, bytes]) -> None:
    context, trusted = three.context, three.trusted
    others = [
        MaskingPlan(Context("f" * 32, 4, "x", "anchor"), trusted, three.size, three.bound),
        MaskingPlan(Context(context.run, 5, "x", "anchor"), trusted, three.size, three.bound),
        MaskingPlan(Context(context.run, 4, "x", "features"), trusted, three.size, three.bound),
        MaskingPlan(context, trusted, three.size + 1, three.bound),
        MaskingPlan(context, trusted, three.size, three.bound - 1),
        MaskingPlan(context, {**trusted, "d": generate().public_key()}, three.size, three.bound),
        MaskingPlan(context, {**trusted, C: generate().public_key()}, three.size, three.bound),
    ]
    for data in frozen.values():
        for plan in others:
            with pytest.raises(MaskingError, match=r"another (run|plan)"):
                MaskingClient.thaw(plan, A, three.identities[A], data)
        with pytest.raises(MaskingError, match="or sender than client-01's"):
            MaskingClient.thaw(three.plan, B, three.identities[B], data)
        with pytest.raises(MaskingError, match="not the one trusted"):
            MaskingClient.thaw(three.plan, A, three.identities[B], data)


def test_a_frozen_state_is_no_message(
    three: Any, game: Any, frozen: dict[MaskingStep, bytes]
) -> None:
    """Sent by mistake it is refused by everybody."""
    for step, data in frozen.items():
        played = game(three).until(step)
        with pytest.raises(MaskingError, match="message type 32"):
            played.server.receive(data, sender=A)
        if step:
            with pytest.raises(MaskingError, match="message type 32"):
                played.clients[A].answer(step, data, three.inputs[A])
