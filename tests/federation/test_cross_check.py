"""One client of six cannot move the statistics far, and honest ones are left as they are."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedvtc_edge.config import ServerSettings, load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.federation import exchange as exchanges
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.cross_check import contradicting
from fedvtc_edge.federation.exchange import Exact
from fedvtc_edge.federation.methods import FedVTC
from fedvtc_edge.federation.robustness import OUTWEIGH, outweighing, straying
from fedvtc_edge.federation.server import Server
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics, sum_of
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.training.compute import Compute, as_images, deterministic
from fedvtc_edge.transport.channel import Delivery
from fedvtc_edge.wire import decode, encode, published
from fedvtc_edge.wire.context import Context

RUN, CLASSES, WIDTH = "0" * 32, 6, 12

Parts = list[ClassStatistics]


def at(sender: str, kind: str = "anchor") -> Context:
    return Context(RUN, 0, sender, kind)


def clusters(seed: int, clients: int, *, pooled: bool, alpha: float = 0.3) -> Parts:
    """Clients that draw from the same classes, each with a mixture of its own."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, WIDTH)) * 1.5
    made = []
    for _ in range(clients):
        size = int(rng.integers(1, 120))
        y = rng.choice(CLASSES, size, p=rng.dirichlet(np.full(CLASSES, alpha)))
        z = centres[y] + rng.standard_normal((size, WIDTH))
        z *= WIDTH**0.5 / np.linalg.norm(z, axis=1, keepdims=True)
        made.append(ClassStatistics.of(z, y, classes=CLASSES, pooled=pooled))
    return made


def shifted(part: ClassStatistics) -> ClassStatistics:
    """Class means of class c, uploaded under class c + 1."""
    square = part.square if part.pooled else np.roll(part.square, 1, 0)
    return ClassStatistics(np.roll(part.count, 1), np.roll(part.total, 1, 0), square, part.pooled)


def times(part: ClassStatistics, factor: float) -> ClassStatistics:
    """The same statistics of so many times as many samples: no norm tells them apart."""
    return ClassStatistics(
        part.count * factor, part.total * factor, part.square * factor, part.pooled
    )


# ---------------------------------------------------------------- the default run


@cache
def default_run(seed: int) -> tuple[Parts, torch.Tensor, np.ndarray]:
    """Anchor statistics of the six clients of the default run, and its test set's features."""
    config = load_config({"seed": seed, "method": {"name": "statistics"}})
    data = load_data(config)
    with deterministic():
        method = assemble(config, data, Compute.of(config.engine))
        exchange = method.steps(0)[0].exchange
        assert isinstance(exchange, Exact)
        parts = [
            decode(encode(exchange.measure(client)), classes=10, width=128, pooled=True)
            for client in method.federation.clients
        ]
        assert isinstance(method, FedVTC)
        assert method.anchor is not None
        features = method.anchor.embed(as_images(data.x_test, torch.device("cpu"))).cpu()
    return parts, features, data.y_test


def accuracy(data: bytes, seed: int) -> float:
    """Accuracy of statistics only, in percent."""
    _, features, labels = default_run(seed)
    scores = Discriminant(published(data), device=torch.device("cpu"))(features)
    return float((scores.argmax(1).numpy() == labels).mean() * 100)


def served(parts: Parts, **settings: object) -> tuple[bytes, list[tuple[str, FedVTCError]]]:
    """What a server publishes of these uploads, and what it notes."""
    noted: list[tuple[str, FedVTCError]] = []
    server = Server(refuse=lambda context, error, _: noted.append((context.sender, error)))
    first = parts[0]

    def never(_: object) -> ClassStatistics:
        raise AssertionError("the server measures nothing")

    exchange = Exact(
        "anchor",
        never,
        first.classes,
        first.width,
        bool(first.pooled),
        server=ServerSettings.model_validate(settings),
    )

    names = [f"client-{index:02d}" for index in range(len(parts))]
    uploads = [encode(part, context=at(name)) for name, part in zip(names, parts, strict=True)]
    sent = [
        (at(name), Delivery(upload, len(upload), None))
        for name, upload in zip(names, uploads, strict=True)
    ]
    data, counted = server.aggregate(
        exchange, at("server"), sent, number=len(sent), quorum=len(parts)
    )
    assert counted == set(names)  # who is set aside was heard
    return data, noted


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("liar", range(6))
def test_one_client_of_six_moves_the_control_by_five_points_at_most(seed: int, liar: int) -> None:
    """Against the same federation without it; what it alone knew is lost with it."""
    parts, _, _ = default_run(seed)
    honest = parts[:liar] + parts[liar + 1 :]
    without, _ = served(honest)
    bad = shifted(parts[liar])
    for lie in (bad, times(bad, 1000), times(parts[liar], 1000)):
        data, noted = served([*parts[:liar], lie, *parts[liar + 1 :]])
        assert [name for name, _ in noted] == [f"client-{liar:02d}"] or lie is not bad
        assert accuracy(without, seed) - accuracy(data, seed) <= 5
        if noted and "set aside" in str(noted[0][1]):
            assert data == without  # to the bit


def test_without_the_checks_one_client_moves_it_by_ninety() -> None:
    parts, _, _ = default_run(0)
    lie = times(shifted(sum_of(parts)), 1000)
    data, noted = served([lie, *parts[1:]], cross_check=False, most_samples=2**48)
    assert not noted
    assert accuracy(data, 0) < 5
    guarded, noted = served([lie, *parts[1:]])
    assert [name for name, _ in noted] == ["client-00"]
    assert accuracy(guarded, 0) > 80


@pytest.mark.parametrize("seed", range(4))
def test_honest_statistics_are_what_they_were_to_the_bit(seed: int) -> None:
    parts, _, _ = default_run(seed)
    assert served(parts) == served(parts, cross_check=False, most_samples=2**48)
    assert served(parts)[1] == []


# ---------------------------------------------------------------- any clients


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 12),
    pooled=st.booleans(),
    alpha=st.sampled_from([0.05, 0.3, 5.0]),
)
def test_honest_clients_contradict_nobody(
    seed: int, number: int, pooled: bool, alpha: float
) -> None:
    assert contradicting(clusters(seed, number, pooled=pooled, alpha=alpha)) == {}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("factor", [1, 2**30])
def test_a_liar_is_found_wherever_it_stands_and_whatever_it_claims(
    pooled: bool, factor: int
) -> None:
    honest = clusters(3, 8, pooled=pooled, alpha=5.0)
    for liar in range(len(honest)):
        parts = list(honest)
        parts[liar] = times(shifted(honest[liar]), factor)
        assert list(contradicting(parts)) == [liar]


def test_two_liars_of_nine_are_found() -> None:
    parts = clusters(5, 9, pooled=True, alpha=5.0)
    parts[2], parts[7] = shifted(parts[2]), times(shifted(shifted(parts[7])), 100)
    assert set(contradicting(parts)) == {2, 7}


def test_of_three_clients_nobody_is_set_aside() -> None:
    """Two that agree may be the liars."""
    parts = clusters(3, 3, pooled=True, alpha=5.0)
    parts[0] = shifted(parts[0])
    assert contradicting(parts) == {}


def test_a_class_that_one_client_alone_has_is_compared_with_nothing() -> None:
    """Nobody else knows it; nor does a single other one make it known."""
    parts = clusters(9, 6, pooled=True, alpha=5.0)
    only = 4
    for index in range(2, 6):
        for array in (parts[index].count, parts[index].total):
            array[only] = 0
    parts[0].total[only] = -parts[0].total[only]
    assert contradicting(parts) == {}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("size", [0, 1])
def test_clients_of_hardly_any_samples_contradict_nobody(pooled: bool, size: int) -> None:
    """Covariances within classes are then nothing but rounding, which may be negative."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        z = rng.standard_normal((5, size, WIDTH)) * 1e3
        parts = [
            ClassStatistics.of(own, np.zeros(size, int), classes=CLASSES, pooled=pooled)
            for own in z
        ]
        assert contradicting(parts) == {}


def test_honest_clients_with_many_classes_and_long_tails_contradict_nobody() -> None:
    """Of many comparisons some are far off by chance; a liar among them is farther."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        centres = 0.5 * rng.standard_normal((200, 32))

        def upload(
            size: int,
            shift: int,
            rng: np.random.Generator = rng,
            centres: NDArray[np.float64] = centres,
        ) -> ClassStatistics:
            labels = rng.integers(0, 200, size)
            features = centres[labels] + rng.standard_t(12, (size, 32))
            return ClassStatistics.of(features, (labels + shift) % 200, classes=200, pooled=True)

        parts = [upload(200, 0) for _ in range(8)]
        assert not contradicting(parts)
        assert list(contradicting([*parts, upload(1600, 1)])) == [8]


def test_own_features_of_different_networks_are_not_compared() -> None:
    parts = clusters(3, 8, pooled=False, alpha=5.0)
    parts[0] = shifted(parts[0])
    own = Exact("features", lambda _: parts[0], CLASSES, WIDTH, False)
    assert own.doubts(parts) == {}
    assert set(Exact("anchor", own.measure, CLASSES, WIDTH, False).doubts(parts)) == {0}


def test_beyond_the_memory_that_may_be_used_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanges, "LARGEST_COMPARED", 1000)
    parts = clusters(3, 8, pooled=True, alpha=5.0)
    parts[0] = shifted(parts[0])
    assert served(parts)[1] == []


# ---------------------------------------------------------------- weight


def test_a_bound_is_one_for_every_client_and_scales_it_as_a_whole() -> None:
    parts = clusters(1, 5, pooled=True)
    most = int(sorted(part.count.sum() for part in parts)[2])
    data, noted = served(parts, most_samples=most, cross_check=False)
    capped = [times(part, min(1, most / part.count.sum())) for part in parts]
    np.testing.assert_allclose(
        published(data).mean, GlobalStatistics.from_sum(sum_of(capped)).mean, rtol=1e-5
    )
    assert len(noted) == 2
    assert "weigh as" in str(noted[0][1])


def test_without_a_bound_nobody_outweighs_all_others_threefold() -> None:
    parts = clusters(1, 5, pooled=True)
    assert outweighing(parts, None) == {}
    rest = sum(part.count.sum() for part in parts[1:])
    assert outweighing([times(parts[0], 2**40), *parts[1:]], None) == {0: OUTWEIGH * rest}
    assert outweighing([times(parts[0], 2**40), *parts[1:3]], None) == {}  # of three, one may
    nothing = times(parts[1], 0)
    assert outweighing([parts[0], nothing, nothing, nothing], None) == {}


# ---------------------------------------------------------------- decoders


def test_a_decoder_far_from_all_others_is_drawn_to_them() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal(50).astype(np.float32)
    parts = [{"a": start + 0.01 * rng.standard_normal(50).astype(np.float32)} for _ in range(5)]
    assert straying(parts) == {}
    parts[3] = {"a": np.full(50, 3e38, np.float32)}
    found = straying(parts)
    assert list(found) == [3]
    exchange = Average("decoder", lambda _: parts[0], {"a": start})
    drawn = [found.get(index, part) for index, part in enumerate(parts)]
    mean = np.mean([part["a"] for part in drawn], axis=0)
    assert np.linalg.norm(mean - start) < 0.1
    assert set(exchange.doubts(parts)) == {3}
    assert straying(parts[2:5][:3]) == {}  # of three
