"""The server is its messages: a journal of them makes the same server, bit by bit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedvtc_edge.masking import MaskedSum, MaskingError, MaskingServer, MaskingStep
from fedvtc_edge.masking.keys import forget_signatures


@dataclass
class Journal:
    """Per step what was received, in the order in which it came, and what was replied."""

    steps: list[tuple[list[tuple[str, bytes]], dict[str, bytes]]] = field(default_factory=list)
    total: MaskedSum | None = None


def recorded(game: Any, party: Any, drop: dict[str, int], **changes: Any) -> Journal:
    """Play a sum; a journal is written by who moves the bytes."""
    played, journal = game(party, drop=drop, **changes), Journal()
    for step in MaskingStep:
        came: list[tuple[str, bytes]] = []
        receive = played.server.receive

        def noting(message: bytes, *, sender: str, r: Any = receive, c: Any = came) -> None:
            c.append((sender, message))
            r(message, sender=sender)

        played.server.receive = noting
        played.answers(step)
        played.server.receive = receive
        if step < MaskingStep.UNMASK:
            played.letters = played.server.advance()
            journal.steps.append((came, played.letters))
        else:
            journal.steps.append((came, {}))
            journal.total = played.server.finish()
    return journal


def same(found: MaskedSum, journal: Journal) -> None:
    assert journal.total is not None
    assert found.total.tobytes() == journal.total.total.tobytes()
    assert (found.survivors, found.suspects) == (journal.total.survivors, journal.total.suspects)


def replay(plan: Any, journal: Journal, draw: random.Random | None = None) -> MaskedSum:
    server = MaskingServer(plan)
    for step, (came, replied) in zip(MaskingStep, journal.steps, strict=True):
        came = draw.sample(came, len(came)) if draw else came
        for sender, message in came:
            if draw and draw.random() < 0.5:  # what is refused leaves no trace
                with pytest.raises(MaskingError):
                    server.receive(message[:-1], sender=sender)
            server.receive(message, sender=sender)
        if step < MaskingStep.UNMASK:
            letters = server.advance()
            assert list(letters.items()) == list(replied.items())
    return server.finish()


def wrong_share(step: MaskingStep, name: str, message: bytes) -> bytes:
    if (step, name) == (MaskingStep.UNMASK, "client-02"):
        return message[:-1] + bytes([message[-1] ^ 1])
    return message


@pytest.mark.parametrize(
    ("drop", "changes"),
    [
        ({}, {}),
        *(({"client-04": step}, {}) for step in MaskingStep),
        ({"client-01": 0, "client-04": 2, "client-08": 4}, {}),
        ({"client-00": 1, "client-09": 3}, {}),
        ({}, {"up": wrong_share}),
        ({"client-04": 2, "client-07": 3}, {"up": wrong_share}),
    ],
)
def test_the_same_messages_make_the_same_server(
    ten: Any, game: Any, drop: dict[str, int], changes: dict[str, Any]
) -> None:
    journal = recorded(game, ten, drop, **changes)
    there = [name for name in ten.plan.clients if drop.get(name, 9) > MaskingStep.MASK]
    assert journal.total is not None
    assert journal.total.total.tolist() == ten.plain(there).tolist()
    assert journal.total.suspects == (("client-02",) if changes else ())
    forget_signatures()
    same(replay(ten.plan, journal), journal)


def test_the_order_within_a_step_and_what_was_refused_are_of_no_account(
    ten: Any, game: Any
) -> None:
    journal = recorded(game, ten, {"client-03": 2, "client-06": 4}, up=wrong_share)
    for seed in range(5):
        same(replay(ten.plan, journal, random.Random(seed)), journal)


@pytest.mark.parametrize("at", list(MaskingStep))
@pytest.mark.parametrize("heard", [0, 2, 5], ids="{} heard".format)
def test_a_server_that_is_replayed_goes_on(
    party: Any, game: Any, at: MaskingStep, heard: int
) -> None:
    """It dies in a step with some of the messages in its journal; the clients see nothing."""
    six = party(6)
    played = game(six, drop={"client-05": at})
    came: list[tuple[str, bytes]] = []
    journal: list[list[tuple[str, bytes]]] = []

    class Noting(MaskingServer):
        def receive(self, message: bytes, *, sender: str) -> None:
            super().receive(message, sender=sender)
            came.append((sender, message))

    played.server = Noting(six.plan)
    for step in MaskingStep:
        came.clear()
        played.answers(step)
        journal.append(list(came))
        if step is at:
            played.server = MaskingServer(six.plan)
            for past in journal[:-1]:
                for sender, message in past:
                    played.server.receive(message, sender=sender)
                played.server.advance()
            for sender, message in journal[-1][:heard]:
                played.server.receive(message, sender=sender)
            assert played.server.step is at
            assert len(played.server.heard) == heard
            for sender, message in journal[-1][heard:]:  # what is sent again
                played.server.receive(message, sender=sender)
        if step < MaskingStep.UNMASK:
            played.letters = played.server.advance()
    there = [name for name in six.plan.clients if name != "client-05" or at > MaskingStep.MASK]
    assert played.server.finish().total.tolist() == six.plain(there).tolist()
