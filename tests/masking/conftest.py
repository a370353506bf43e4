"""A masked sum played by hand, so that a test may change any message on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvtc_edge.masking import MaskedSum, MaskingClient, MaskingPlan, MaskingServer, MaskingStep
from fedvtc_edge.sealing.signing import generate
from fedvtc_edge.wire.context import Context

RUN = "0123456789abcdef" * 2
Change = Callable[[MaskingStep, str, bytes], bytes]


def unchanged(step: MaskingStep, name: str, message: bytes) -> bytes:
    return message


@dataclass
class Party:
    """K clients with identities, one vector each, and the plan they agree on."""

    clients: int
    size: int = 7
    bound: int = 2**49
    seed: int = 0
    plan: MaskingPlan = field(init=False)
    identities: dict[str, Ed25519PrivateKey] = field(init=False)
    inputs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        names = [f"client-{index:02d}" for index in range(self.clients)]
        self.identities = {name: generate() for name in names}
        self.plan = MaskingPlan(self.context, self.trusted, self.size, self.bound)
        rng = np.random.default_rng(self.seed)
        span = (-self.bound, self.bound + 1)
        self.inputs = {name: rng.integers(*span, self.size) for name in names}

    @property
    def context(self) -> Context:
        return Context(RUN, 4, "anybody", "anchor")

    @property
    def trusted(self) -> dict[str, Any]:
        return {name: key.public_key() for name, key in self.identities.items()}

    def client(self, name: str, plan: MaskingPlan | None = None) -> MaskingClient:
        return MaskingClient(plan or self.plan, name, self.identities[name])

    def plain(self, names: Any) -> Any:
        return np.sum([self.inputs[name] for name in names], axis=0)


class Game:
    """One round; ``up`` changes what clients send, ``down`` what the server sends."""

    def __init__(
        self,
        party: Party,
        *,
        drop: Mapping[str, int] | None = None,
        up: Change = unchanged,
        down: Change = unchanged,
    ) -> None:
        self.party, self.drop, self.up, self.down = party, dict(drop or {}), up, down
        self.server = MaskingServer(party.plan)
        self.clients = {name: party.client(name) for name in party.identities}
        self.letters = dict.fromkeys(self.clients, b"")
        self.sent: dict[tuple[MaskingStep, str], bytes] = {}

    def answers(self, step: MaskingStep) -> None:
        for name, letter in self.letters.items():
            if self.drop.get(name, 9) <= step:
                continue
            letter = self.down(step, name, letter)
            made = self.clients[name].answer(step, letter, self.party.inputs[name])
            self.sent[step, name] = made
            self.server.receive(self.up(step, name, made), sender=name)

    def until(self, last: MaskingStep) -> Game:
        """Play all steps before ``last``: its letters are written, and not yet answered."""
        for step in MaskingStep:
            if step is last:
                return self
            self.answers(step)
            self.letters = self.server.advance()
        return self

    def play(self) -> MaskedSum:
        self.until(MaskingStep.UNMASK).answers(MaskingStep.UNMASK)
        return self.server.finish()


@pytest.fixture(scope="session")
def three() -> Party:
    return Party(3)


@pytest.fixture(scope="session")
def ten() -> Party:
    return Party(10)


@pytest.fixture(scope="session")
def party() -> type[Party]:
    return Party


@pytest.fixture(scope="session")
def game() -> type[Game]:
    return Game
