"""One server, two clients and a stranger in each suite, always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fedvtc_edge.attacks.fuzzing.targets import made_of
from fedvtc_edge.sealing import Identity, TrustList
from fedvtc_edge.wire.context import Context

RUN = "00112233445566778899aabbccddeeff"


@dataclass(frozen=True)
class Cast:
    """Who takes part; ``trusted`` knows the clients a and b."""

    server: Identity
    a: Identity
    b: Identity
    stranger: Identity
    trusted: TrustList
    context: Context


def cast_of(suite: str) -> Cast:
    server, a, b, stranger = (made_of(name, suite) for name in ("server", "a", "b", "stranger"))
    trusted = TrustList()
    trusted.add("client-a", a.public)
    trusted.add("client-b", b.public)
    return Cast(server, a, b, stranger, trusted, Context(RUN, 3, "client-a", "features"))


@pytest.fixture(scope="session")
def casts() -> dict[str, Cast]:
    """Of each suite."""
    return {suite: cast_of(suite) for suite in ("hybrid", "x25519")}


@pytest.fixture(params=["hybrid", "x25519"])
def cast(request: pytest.FixtureRequest) -> Cast:
    """Each suite in turn; its trust list may be changed."""
    return cast_of(request.param)


@pytest.fixture
def quick_cast() -> Cast:
    """Where the suite does not matter."""
    return cast_of("x25519")


@pytest.fixture(name="made_of", scope="session")
def _made_of() -> Callable[[str, str], Identity]:
    return made_of
