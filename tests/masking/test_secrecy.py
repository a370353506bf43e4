"""What the server sees of one client is noise, whatever the client has.

The masks are random, so these tests are too: every bound is one that a uniform sequence
passes in all but one of a hundred million runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedvtc_edge.masking import MaskingStep, run_masked_sum
from fedvtc_edge.masking.messages import HEADER_BYTES

SIZE = 20_000
RARELY = 1e-8


def uniform(values: Any, ranges: int) -> bool:
    seen = np.bincount(values, minlength=ranges)
    due = len(values) / ranges
    return bool(np.square(seen - due).sum() / due < stats.chi2.isf(RARELY, ranges - 1))


def seen_by_the_server(party: Any, drop: dict[str, int] | None = None) -> dict[str, bytes]:
    bodies = {}

    def transcript(step: MaskingStep, sender: str, message: bytes) -> None:
        if step is MaskingStep.MASK:
            bodies[sender] = message[HEADER_BYTES:]

    run_masked_sum(
        party.inputs,
        party.identities,
        party.trusted,
        party.context,
        drop,
        bound=party.bound,
        transcript=transcript,
    )
    return bodies


@pytest.mark.parametrize("bound", [2**49, 1000], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("value", [0, 1, -1, "bound", "-bound", "ramp", "alternating"])
def test_a_masked_vector_is_uniform(party: Any, bound: int, value: Any) -> None:
    some = party(3, size=SIZE, bound=bound)
    vector = {
        "bound": np.full(SIZE, bound),
        "-bound": np.full(SIZE, -bound),
        "ramp": np.linspace(-bound, bound, SIZE).astype(np.int64),
        "alternating": np.where(np.arange(SIZE) % 2, bound, -bound),
    }.get(value)
    vector = np.full(SIZE, value) if vector is None else vector
    some.inputs = dict.fromkeys(some.inputs, vector.astype(np.int64))
    for body in seen_by_the_server(some).values():
        octets, words = np.frombuffer(body, np.uint8), np.frombuffer(body, some.plan.dtype)
        top = 8 * some.plan.dtype.itemsize - 8
        assert uniform(octets, 256)
        assert uniform((words >> np.array(top, words.dtype)).astype(np.int64), 256), "high bits"
        assert uniform((words & np.array(255, words.dtype)).astype(np.int64), 256), "low bits"
        assert uniform(octets[: SIZE // 2].astype(np.int64) ^ octets[-(SIZE // 2) :], 256)
        # What is left over the input is as uniform: no correlation with it, of any kind.
        rest = words - vector.astype(words.dtype)
        assert uniform((rest >> np.array(top, words.dtype)).astype(np.int64), 256)
        if np.ptp(vector):
            for part in (
                words,
                words >> np.array(top, words.dtype),
                words & np.array(1, words.dtype),
            ):
                correlation = np.corrcoef(part.astype(float), vector.astype(float))[0, 1]
                assert abs(correlation) < 6 / np.sqrt(SIZE)


def test_clients_do_not_look_alike(party: Any) -> None:
    """Equal vectors under unequal masks; and the pairwise ones alone are not enough."""
    some = party(3, size=SIZE)
    some.inputs = dict.fromkeys(some.inputs, np.zeros(SIZE, np.int64))
    words = [np.frombuffer(body, "<u8") for body in seen_by_the_server(some).values()]
    for first in range(3):
        for second in range(first):
            difference = words[first] - words[second]
            assert uniform((difference >> np.uint64(56)).astype(np.int64), 256)
    # Without the self-masks the sum of all would be zero; the server must be told them.
    total = words[0] + words[1] + words[2]
    assert uniform((total >> np.uint64(56)).astype(np.int64), 256)


def test_the_same_sum_twice_has_no_mask_in_common(party: Any) -> None:
    some = party(3, size=SIZE)
    first, second = (seen_by_the_server(some) for _ in range(2))
    for name in first:
        difference = np.frombuffer(first[name], "<u8") - np.frombuffer(second[name], "<u8")
        assert uniform((difference >> np.uint64(56)).astype(np.int64), 256)


def test_one_who_arrives_too_late_stays_masked(party: Any, game: Any) -> None:
    """The server rebuilds its key and takes its pairwise masks off; its own mask is left."""
    some = party(4, size=SIZE)
    some.inputs = dict.fromkeys(some.inputs, np.zeros(SIZE, np.int64))
    played = game(some)
    kept = {}

    def up(step: MaskingStep, name: str, message: bytes) -> bytes:
        kept[step, name] = message
        return message

    played.up = up
    played.until(MaskingStep.MASK)
    pairs = _pairwise(played, "client-03")
    late = played.clients["client-03"]
    body = late.mask(played.letters["client-03"], some.inputs["client-03"])[HEADER_BYTES:]
    left = np.frombuffer(body, "<u8") - pairs
    assert uniform((left >> np.uint64(56)).astype(np.int64), 256)


def _pairwise(played: Any, name: str) -> Any:
    from fedvtc_edge.masking.keys import agree, masking_key, pair_mask

    client, total = played.clients[name], np.zeros(SIZE, np.uint64)
    state = client._state
    key = masking_key(client.plan, client.index, state.root)
    for other, advert in state.adverts.items():
        pair = (min(client.index, other), max(client.index, other))
        mask = pair_mask(client.plan, state.view, agree(key, advert.masking), pair)
        total = total + mask if client.index < other else total - mask
    return total


def test_the_transcript_is_all_that_the_server_gets(three: Any) -> None:
    heard: list[tuple[MaskingStep, str, int]] = []
    run_masked_sum(
        three.inputs,
        three.identities,
        three.trusted,
        three.context,
        {"client-01": 3},
        transcript=lambda step, sender, message: heard.append((step, sender, len(message))),
    )
    assert [(step, sender) for step, sender, _ in heard] == [
        (step, name)
        for step in MaskingStep
        for name in three.plan.clients
        if step < 3 or name != "client-01"
    ]


def test_lengths_tell_nothing(three: Any, party: Any) -> None:
    sizes = []
    for value in (0, 2**49, -1):
        some = party(3)
        some.inputs = dict.fromkeys(some.inputs, np.full(7, value))
        sizes.append({name: len(body) for name, body in seen_by_the_server(some).items()})
    assert sizes[0] == sizes[1] == sizes[2]
