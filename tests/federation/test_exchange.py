"""Both halves of each exchange, side by side: what a client sends is what the server adds up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import FedVTCError, PrivacyError, ServerError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.exchange import (
    Clipped,
    Exact,
    Exchange,
    Means,
    Noised,
    RoundStep,
    SecureAggregatable,
    blank_statistics,
)
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.statistics.class_statistics import GlobalStatistics, sum_of
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.wire.context import Context

Tiny = Callable[..., Config]
Seen = list[tuple[int, str, str, bytes]]

KINDS: dict[str, tuple[dict[str, Any], int, type[Exchange[Any]]]] = {
    "exact": ({}, 0, Exact),
    "diagonal": ({"method": {"moments": "diagonal"}}, 0, Exact),
    "features": ({"method": {"share": "features"}}, 1, Exact),
    "fedproto": ({"method": {"name": "fedproto"}}, 1, Means),
    "noised": ({"privacy": {"mode": "anchored", "epsilon": 50.0}}, 0, Noised),
    "clipped": ({"privacy": {"mode": "client", "epsilon": 500.0}}, 0, Clipped),
    "decoders": ({"method": {"share": "features+decoder"}}, 1, Average),
}


class Stage:
    """One method, its first exchange of some kind, and all that the server saw."""

    def __init__(self, config: Config, number: int, kind: type[Exchange[Any]]) -> None:
        self.seen: Seen = []
        self.refused: list[tuple[str, str]] = []
        self.number = number
        self.method: Method = assemble(
            config,
            load_dataset(config.data, public_classes=True),
            Compute.of(config.engine),
            lambda *what: self.seen.append(what),
            refuse=lambda context, error, _: self.refused.append(
                (context.sender, type(error).__name__)
            ),
        )
        self.federation: Federation = self.method.federation
        self.counted: set[str] = set()
        exchanges = [step.exchange for step in self.method.steps(number)]
        self.exchange = next(one for one in exchanges if type(one) is kind)

    def context(self, name: str, **changes: Any) -> Context:
        return replace(
            Context(self.federation.run, self.number, name, self.exchange.kind), **changes
        )

    def payloads(self) -> dict[str, bytes]:
        return {
            client.id: self.exchange.encode(client, self.context(client.id))
            for client in self.federation.clients
        }

    def close(self, *uploads: tuple[str, bytes], quorum: int = 3) -> bytes:
        """What is published of uploads, in the order in which they come."""
        sent = [
            (self.context(name), Delivery(upload, len(upload), None)) for name, upload in uploads
        ]
        server, context = self.federation.server, self.context(SERVER)
        published, self.counted = server.aggregate(
            self.exchange, context, sent, number=len(sent), quorum=quorum
        )
        return published


@pytest.fixture
def stage(tiny: Tiny) -> Callable[[str], Stage]:
    def make(name: str) -> Stage:
        tables, number, kind = KINDS[name]
        architectures = {"clients": {"architectures": ["mlp"]}}
        return Stage(tiny(**architectures, **tables), number, kind)

    return make


@pytest.mark.parametrize("name", KINDS)
def test_what_is_sent_is_received_whoever_comes_first(
    stage: Callable[[str], Stage], name: str
) -> None:
    one, other = stage(name), stage(name)
    payloads = one.payloads()
    assert len(payloads) == 3
    first, last = one.close(*payloads.items()), other.close(*reversed(payloads.items()))
    assert one.counted == other.counted == set(payloads)
    for stage_, order in ((one, payloads), (other, reversed(payloads))):
        assert [what[1:] for what in stage_.seen if what[1] != SERVER] == [
            (client, one.exchange.kind, payloads[client]) for client in order
        ]
    if name != "clipped":  # whose noise the server draws
        assert first == last
    assert one.refused == other.refused == []


@pytest.mark.parametrize("name", KINDS)
def test_a_payload_is_the_same_whenever_it_is_asked_for(
    stage: Callable[[str], Stage], name: str
) -> None:
    made = stage(name)
    assert made.payloads() == made.payloads()


@pytest.mark.parametrize("name", KINDS)
def test_damaged_and_repeated_uploads_count_for_nothing(
    stage: Callable[[str], Stage], name: str
) -> None:
    made = stage(name)
    payloads = made.payloads()
    first, second, third = payloads
    published = made.close(
        (first, payloads[first]),
        (first, payloads[first]),
        (second, payloads[second][:-1]),
        (second, b""),
        (second, payloads[first]),  # somebody else's
        (second, payloads[second]),
        (third, payloads[third]),
    )
    assert [client for client, _ in made.refused] == [first, second, second, second]
    if name == "clipped":  # drawn once
        assert published == made.close(*payloads.items())
    else:
        assert published == stage(name).close(*payloads.items())
    with pytest.raises(FedVTCError):
        made.exchange.decode(payloads[second], made.context(second, round=made.number + 1))
    with pytest.raises(ServerError):
        made.close()  # nothing is left of what was added up


@pytest.mark.parametrize("name", KINDS)
def test_too_few_publish_nothing(stage: Callable[[str], Stage], name: str) -> None:
    made = stage(name)
    with pytest.raises(ServerError, match="2 uploads, the quorum is 3"):
        made.close(*list(made.payloads().items())[:2])


@pytest.mark.parametrize("name", ["exact", "diagonal", "features", "fedproto"])
def test_exact_statistics_are_those_of_the_pooled_data(
    stage: Callable[[str], Stage], name: str
) -> None:
    made = stage(name)
    exchange = made.exchange
    assert isinstance(exchange, Exact)
    published = wire.published(made.close(*made.payloads().items()))
    baseline = sum_of([exchange.measure(client) for client in made.federation.clients])
    expected = GlobalStatistics.from_sum(baseline, floor=exchange.floor)
    np.testing.assert_allclose(published.count, expected.count)
    np.testing.assert_allclose(published.mean, expected.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(published.std, expected.std, rtol=1e-3, atol=1e-4)
    assert (published.covariance is None) is (expected.covariance is None)


@pytest.mark.parametrize("name", ["exact", "diagonal", "features", "noised"])
def test_a_sum_of_vectors_publishes_what_the_uploads_do(
    stage: Callable[[str], Stage], name: str
) -> None:
    made = stage(name)
    exchange, federation = made.exchange, made.federation
    assert isinstance(exchange, SecureAggregatable)
    plain = wire.published(made.close(*made.payloads().items()))
    total = np.zeros(exchange.size, np.int64)
    for own in federation.clients:
        vector, noted = exchange.vector(own, made.context(own.id))
        assert vector.dtype == np.int64
        assert vector.shape == total.shape
        assert abs(vector).max() <= exchange.bound
        assert noted
        total += vector
    summed = wire.published(federation.server.publish_sum(exchange, total, 3, quorum=3))
    # Of a grid of 2^-20, and of float32.
    np.testing.assert_allclose(summed.count, plain.count, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(summed.mean, plain.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(summed.std, plain.std, rtol=1e-2, atol=1e-3)
    with pytest.raises(ServerError, match="the quorum is 4"):
        federation.server.publish_sum(exchange, total, 3, quorum=4)


def test_what_the_ledger_says_of_a_noised_vector_is_the_release(
    stage: Callable[[str], Stage],
) -> None:
    made = stage("noised")
    assert isinstance(made.exchange, Noised)
    client = made.federation.clients[0]
    context = made.context(client.id)
    vector, noted = made.exchange.vector(client, context)
    assert noted == made.exchange.encode(client, context)
    size = made.exchange.spec.size
    assert np.array_equal(vector, wire.decode_release(noted, size=size, context=context))


def test_the_server_noises_a_clipped_sum_once_and_enters_it_first(
    stage: Callable[[str], Stage], tmp_path: Any, quick: None
) -> None:
    made = stage("clipped")
    ledger = Ledger(tmp_path / "ledger.json", mechanism_of(made.federation.config))
    ledger.begin()
    made.federation.record = ledger.enter
    payloads, published = made.payloads(), set()
    for _ in range(2):  # as a server that was killed before it published
        published.add(made.close(*payloads.items()))
    assert len(published) == 1
    assert ledger.path.read_text().count('"client": "server"') == 1
    released = [data for _, sender, _, data in made.seen if sender == SERVER]
    assert len(released) == 2
    assert len(set(released)) == 1
    assert made.payloads() == payloads
    with pytest.raises(PrivacyError):
        ledger.record(made.number, SERVER, made.exchange.kind, b"another")


def test_decoders_are_averaged_with_equal_weights(stage: Callable[[str], Stage]) -> None:
    made = stage("decoders")
    assert not made.exchange.for_all
    clients = made.federation.clients
    like = clients[0].weights("decoder")
    published = wire.decode_weights(made.close(*made.payloads().items()), like=like)
    for name in like:
        baseline = np.mean([client.weights("decoder")[name] for client in clients], axis=0)
        np.testing.assert_allclose(published[name], baseline, rtol=1e-5, atol=1e-6)


def test_a_step_may_be_work_or_an_exchange_alone() -> None:
    assert (RoundStep().work, RoundStep().exchange) == (None, None)


@pytest.mark.parametrize("pooled", [False, True])
def test_blank_statistics_add_nothing(stage: Callable[[str], Stage], pooled: bool) -> None:
    made = stage("exact" if pooled else "diagonal")
    assert isinstance(made.exchange, Exact)
    own = made.exchange.measure(made.federation.clients[0])
    total = own + blank_statistics(own.classes, own.width, pooled=pooled)
    for part in ("count", "total", "square"):
        np.testing.assert_array_equal(getattr(total, part), getattr(own, part))
