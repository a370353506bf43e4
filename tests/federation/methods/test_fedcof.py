"""FedCOF: a covariance from means alone, its small upload, and what it must refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge import wire
from fedvtc_edge.config import ServerSettings, load_config
from fedvtc_edge.errors import ConfigError, FedVTCError
from fedvtc_edge.federation.methods.fedcof import Means, covariance_of_means, with_spread
from fedvtc_edge.statistics.class_statistics import ClassStatistics, sum_of
from fedvtc_edge.wire import Context
from fedvtc_edge.workflows.run import run

CLASSES, WIDTH = 3, 4
CONTEXT = Context("0" * 32, 0, "client-00", "anchor")


def parts_of(x: Any, y: Any, owner: Any, clients: int) -> list[ClassStatistics]:
    return [
        ClassStatistics.of(x[owner == k], y[owner == k], classes=CLASSES) for k in range(clients)
    ]


def holders_of(parts: list[ClassStatistics]) -> Any:
    return sum((part.count > 0).astype(np.int64) for part in parts)


@given(st.integers(0, 2**32))
def test_the_covariance_is_the_papers_estimator_pooled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, owner = rng.standard_normal((40, WIDTH)), rng.integers(0, 3, 40), rng.integers(0, 5, 40)
    parts = parts_of(x, y, owner, 5)
    expected, freedom = np.zeros((WIDTH, WIDTH)), 0
    for label in range(CLASSES):
        held = [part for part in parts if part.count[label]]
        whole = x[y == label].mean(0)
        for part in held:
            gap = part.mean[label] - whole
            expected += part.count[label] * np.outer(gap, gap)
        freedom += len(held) - 1
    found = covariance_of_means(sum_of([with_spread(p) for p in parts]), holders_of(parts))
    np.testing.assert_allclose(found.covariance, expected / freedom, atol=1e-9)
    np.testing.assert_allclose(found.mean, sum_of(parts).mean)
    np.testing.assert_allclose(np.square(found.std[0]), np.diag(expected / freedom), atol=1e-9)


def test_the_estimator_has_no_bias() -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((WIDTH, WIDTH))
    x, y = rng.standard_normal((60_000, WIDTH)) @ spread, rng.integers(0, 3, 60_000)
    parts = parts_of(x, y, rng.integers(0, 2000, 60_000), 2000)
    found = covariance_of_means(sum_of([with_spread(p) for p in parts]), holders_of(parts))
    np.testing.assert_allclose(found.covariance, spread.T @ spread, atol=0.3)


def test_one_holder_of_each_class_says_nothing_of_the_spread() -> None:
    x, y = np.random.default_rng(0).standard_normal((9, WIDTH)), np.arange(9) % 3
    parts = parts_of(x, y, y, 3)
    found = covariance_of_means(sum_of([with_spread(p) for p in parts]), holders_of(parts))
    np.testing.assert_array_equal(found.covariance, np.eye(WIDTH))


# ---------------------------------------------------------------- its upload

EXCHANGE = Means("anchor", lambda _: None, CLASSES, WIDTH, True, server=ServerSettings())  # type: ignore[arg-type,return-value]


def honest() -> ClassStatistics:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, WIDTH))
    x *= WIDTH**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    return ClassStatistics.of(x, rng.integers(0, 2, 20), classes=CLASSES)


def test_counts_and_sums_travel_and_no_second_moment() -> None:
    data = wire.encode_means(honest(), context=CONTEXT)
    numbers = 4 * CLASSES * (1 + WIDTH)
    assert len(data) == len(wire.encode(honest())) - 4 * CLASSES * WIDTH - 64
    assert (
        data[-numbers:]
        == np.concatenate([honest().count, honest().total.ravel()]).astype("<f4").tobytes()
    )
    found = EXCHANGE.decode(data, CONTEXT)
    np.testing.assert_array_equal(found.count, honest().count)
    np.testing.assert_allclose(found.total, honest().total, rtol=1e-6)


def changed(**values: Any) -> bytes:
    own = honest()
    arrays = {"count": own.count.copy(), "total": own.total.copy()}
    for name, value in values.items():
        arrays[name].flat[0] = value
    return wire.encode_means(
        ClassStatistics(arrays["count"], arrays["total"], own.square), context=CONTEXT
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(count=-1.0), "negative count"),
        (changed(count=1.5), "no whole number"),
        (changed(count=0.0), "a class with no samples has a sum"),
        (changed(total=np.nan), "total: a value is not finite"),
        (changed(total=1e31), "total: a value is not finite or beyond"),
        (changed(total=1e6), "a class mean of norm"),
        (wire.encode(honest(), context=CONTEXT), "bytes, expected"),
        (changed()[:-1], "bytes, expected"),
    ],
)
def test_uploads_that_no_honest_client_has_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(FedVTCError, match=said):
        EXCHANGE.decode(data, CONTEXT)


def test_every_flipped_bit_is_refused_or_means_other_statistics() -> None:
    data = bytearray(wire.encode_means(honest(), context=CONTEXT))
    for place in range(8 * len(data)):
        other = data.copy()
        other[place // 8] ^= 1 << place % 8
        try:
            found = wire.decode_means(bytes(other), classes=CLASSES, width=WIDTH, context=CONTEXT)
        except wire.WireError:
            continue
        assert wire.encode_means(found, context=CONTEXT) == bytes(other)


# ---------------------------------------------------------------- refusals

SMALL: dict[str, Any] = {
    "data": {"limit": 200, "test_limit": 100},
    "clients": {"count": 4, "architectures": ["mlp"]},
    "method": {"name": "fedcof", "anchor": 16, "rounds": 1},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transport": {"masking": True}}, "its server needs more than a sum"),
        ({"privacy": {"mode": "anchored"}}, "what that method uploads is not noised"),
        ({"privacy": {"mode": "client"}}, "what that method uploads is not noised"),
        ({"server": {"trim": 0.2}}, "server.trim = 0.2 with method.name = 'fedcof'"),
    ],
)
def test_what_hides_the_means_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(load_config({**SMALL, **changes}))


def test_a_client_of_too_many_samples_weighs_less() -> None:
    kept = run(load_config(SMALL)).summary["accuracy_mean"]
    bounded = run(load_config({**SMALL, "server": {"most_samples": 10}})).summary["accuracy_mean"]
    assert bounded > 0.3
    assert kept != bounded


def test_its_upload_is_the_smallest() -> None:
    other = {**SMALL, "method": {**SMALL["method"], "name": "statistics"}}
    mine, theirs = (run(load_config(one)).summary["upload_bytes_total"] for one in (SMALL, other))
    index = 64  # of the array that is left out, in the safetensors header
    assert theirs - mine == 4 * (4 * 16 * 17 // 2 + index)
