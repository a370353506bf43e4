"""Hostile bytes meet typed errors, and the layout is what docs/masking.md says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvtc_edge.masking import MaskingError, MaskingStep
from fedvtc_edge.masking.keys import commitment_of, masking_key, self_mask
from fedvtc_edge.masking.messages import HEADER_BYTES, Kind, frame, pack_members, unpack_members

RELAXED = settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture(scope="module")
def waiting(three: Any, game: Any) -> dict[MaskingStep, Any]:
    """A game before each step, its messages at hand."""
    return {step: game(three).until(step) for step in MaskingStep}


def genuine(played: Any, step: MaskingStep, name: str) -> bytes:
    client, letter = played.clients[name], played.letters[name]
    return {
        MaskingStep.ADVERTISE: client.advertise,
        MaskingStep.SHARE: lambda: client.share(letter),
        MaskingStep.MASK: lambda: client.mask(letter, played.party.inputs[name]),
        MaskingStep.CONFIRM: lambda: client.confirm(letter),
        MaskingStep.UNMASK: lambda: client.unmask(letter),
    }[step]()


@RELAXED
@given(data=st.binary(max_size=400), step=st.sampled_from(MaskingStep), headed=st.booleans())
def test_any_bytes_to_the_server(
    waiting: dict[MaskingStep, Any], data: bytes, step: MaskingStep, headed: bool
) -> None:
    played = waiting[step]
    message = frame(played.party.plan, Kind(step), "client-00", data) if headed else data
    heard = played.server.heard
    with pytest.raises(MaskingError):
        played.server.receive(message, sender="client-00")
    assert played.server.heard == heard
    assert played.server.step is step


@RELAXED
@given(
    data=st.binary(max_size=400), step=st.sampled_from(list(MaskingStep)[1:]), headed=st.booleans()
)
def test_any_bytes_to_a_client(three: Any, data: bytes, step: MaskingStep, headed: bool) -> None:
    kinds = [Kind.ROSTER, Kind.MAILBOX, Kind.ARRIVED, Kind.CONFIRMED]
    message = frame(three.plan, kinds[step - 1], "server", data) if headed else data
    client = three.client("client-00")
    client._state.step = step
    answer = {
        MaskingStep.SHARE: client.share,
        MaskingStep.MASK: lambda m: client.mask(m, three.inputs["client-00"]),
        MaskingStep.CONFIRM: client.confirm,
        MaskingStep.UNMASK: client.unmask,
    }[step]
    with pytest.raises(MaskingError):
        answer(message)
    assert client.step is None


@pytest.mark.parametrize("step", list(MaskingStep))
def test_one_byte_more_or_less(three: Any, game: Any, step: MaskingStep) -> None:
    played = game(three).until(step)
    message = genuine(played, step, "client-01")
    for changed in (message + b"\0", message[:-1], message[:HEADER_BYTES], message[:50], b""):
        with pytest.raises(MaskingError):
            played.server.receive(changed, sender="client-01")
    for at in (0, 4, 5, 6, 22, 30, 90, 105, 106, HEADER_BYTES - 1):
        changed = message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]
        with pytest.raises(MaskingError):
            played.server.receive(changed, sender="client-01")
    for strange in (bytearray(message), memoryview(message), None, "text"):
        with pytest.raises(MaskingError):
            played.server.receive(strange, sender="client-01")
    played.server.receive(message, sender="client-01")


@pytest.mark.parametrize("step", list(MaskingStep)[1:])
def test_one_byte_more_or_less_from_the_server(three: Any, game: Any, step: MaskingStep) -> None:
    for change in (lambda m: m + b"\0", lambda m: m[:-1], lambda m: m[:HEADER_BYTES]):
        played = game(three).until(step)
        played.letters["client-01"] = change(played.letters["client-01"])
        with pytest.raises(MaskingError):
            genuine(played, step, "client-01")


@settings(deadline=None)
@given(st.sets(st.integers(0, 9)))
def test_lists_there_and_back(ten: Any, members: set[int]) -> None:
    packed = pack_members(ten.plan, members)
    assert len(packed) == 2
    assert unpack_members(ten.plan, packed + b"x", Kind.ARRIVED) == (tuple(sorted(members)), b"x")


def test_bits_of_nobody(ten: Any) -> None:
    with pytest.raises(MaskingError, match="a client that is none"):
        unpack_members(ten.plan, b"\xff\x04", Kind.ARRIVED)


def test_lengths_are_the_documents(ten: Any, game: Any) -> None:
    """K = 10 clients, 7 numbers of 8 bytes, one of them dropped before its vector."""
    played = game(ten, drop={"client-03": 2})
    sizes = {}
    played.down = lambda s, n, m: (sizes.setdefault(("down", s), len(m)) and m) or m
    played.up = lambda s, n, m: sizes.setdefault(("up", s), len(m)) and m
    played.play()
    head = HEADER_BYTES
    assert head == 138
    assert sizes["up", 0] == head + 160
    assert sizes["down", 1] == head + 2 + 10 * 160
    assert sizes["up", 1] == head + 9 * 50
    assert sizes["down", 2] == head + 2 + 9 * 50
    assert sizes["up", 2] == head + 7 * 8
    assert sizes["down", 3] == head + 2
    assert sizes["up", 3] == head + 8 * 16
    assert sizes["down", 4] == head + 2 + 8 * 16
    assert sizes["up", 4] == head + 10 * 17


def test_golden_bytes() -> None:
    """Pinned: another implementation must come to the same."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedvtc_edge.masking import MaskingPlan
    from fedvtc_edge.wire.context import Context

    keys = {n: Ed25519PrivateKey.from_private_bytes(n.encode() * 32) for n in "abc"}
    trusted = {name: key.public_key() for name, key in keys.items()}
    plan = MaskingPlan(Context("00" * 16, 1, "x", "anchor"), trusted, 3, 1000)
    assert plan.dtype.itemsize == 4
    assert frame(plan, Kind.ARRIVED, "server", pack_members(plan, [0, 2])).hex() == (
        "46564d53" + "01" + "12" + "00" * 16 + "00000001" + "736572766572" + "00" * 58
        + "616e63686f72" + "00" * 10 + plan.digest.hex() + "05"
    )  # fmt: skip
    secret = bytes(range(16))
    found = (
        plan.digest.hex()[:16],
        commitment_of(plan, 1, secret).hex()[:16],
        masking_key(plan, 1, secret).public_key().public_bytes_raw().hex()[:16],
        self_mask(plan, 1, secret).tolist(),
    )
    assert found == GOLDEN


GOLDEN = (
    "1b310bb603a19485",
    "cd87b7ff16665271",
    "06de4ee1284d9cbc",
    [3061146418, 794433916, 4060173788],
)
