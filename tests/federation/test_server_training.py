"""Uploads that the server trains with: what is read, what counts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedvtc_edge import wire
from fedvtc_edge.config import Config, ServerSettings
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, ServerError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.robustness import CheckError
from fedvtc_edge.federation.server_training import (
    LARGEST_WEIGHT,
    Heads,
    HeadUpload,
    average,
    blank_head,
    decode_trained,
    encode_trained,
    prototypes,
    shared_classes,
)
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.wire.context import Context
from fedvtc_edge.wire.framing import WireError

Tiny = Callable[..., Config]

CONTEXT = Context("0123456789abcdef" * 2, 1, "client-00", "head")
HEADS = Heads(3, 2, ServerSettings())


def part(*counts: int, seed: int = 0) -> ClassStatistics:
    """Statistics of random features [n, 2] with so many samples of each class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return ClassStatistics.of(rng.normal(size=(len(labels), 2)), labels, classes=len(counts))


def upload(count: Any = (2, 0, 5), **changed: Any) -> bytes:
    arrays = blank_head(3, 2) | {"count": np.array(count, np.float32)} | changed
    return wire.encode_weights(arrays, context=CONTEXT)


def test_prototypes_are_the_class_means_of_each_client() -> None:
    means, labels = prototypes([part(2, 0, 1), part(0, 0, 0), part(0, 3, 1, seed=1)])
    assert labels.tolist() == [0, 2, 1, 2]
    np.testing.assert_allclose(means[1], part(2, 0, 1).total[2])
    np.testing.assert_allclose(means[2], part(0, 3, 1, seed=1).total[1] / 3)
    nobody, none = prototypes([part(0, 0)])
    assert nobody.shape == (0, 2)
    assert none.shape == (0,)


def test_classes_of_too_few_are_left_out() -> None:
    parts = [part(2, 1, 0), part(3, 0, 1)]
    kept = shared_classes(parts, 2)
    assert [one.count.tolist() for one in kept] == [[2, 0, 0], [3, 0, 0]]
    np.testing.assert_array_equal(kept[0].total[1:], 0)
    np.testing.assert_array_equal(kept[1].total[0], parts[1].total[0])
    assert [one.count.tolist() for one in shared_classes(parts, 1)] == [[2, 1, 0], [3, 0, 1]]
    with pytest.raises(ServerError, match="no class has 3 contributors, the most are 2"):
        shared_classes(parts, 3)


def test_a_head_is_read_as_it_was_written(tiny: Tiny) -> None:
    config = tiny(method={"name": "fedgh"})
    federation = assemble(config, load_dataset(config.data), Compute.of(config.engine)).federation
    client, exchange = federation.clients[0], Heads(10, 8, config.server)
    context = federation.context(client.id, 1, "head")
    found = exchange.decode(exchange.encode(client, context), context)
    assert found.count.tolist() == client.counts.tolist()
    for name, value in client.model.head.state_dict().items():
        np.testing.assert_array_equal(found.head[name], value.numpy())
    client.load("head", {name: value + 1 for name, value in found.head.items()})
    np.testing.assert_array_equal(client.weights("head")["bias"], found.head["bias"] + 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (upload((2, -1, 5)), "negative count"),
        (upload((2, 0.5, 5)), "no whole number"),
        (upload((2, float("nan"), 5)), "not finite"),
        (upload((2, 1e30, 5)), "beyond"),
        (upload(bias=np.full(3, np.inf, np.float32)), "not finite"),
        (upload(bias=np.full(3, 2 * LARGEST_WEIGHT, np.float32)), "a weight of 2000"),
        (upload(weight=np.zeros((2, 3), np.float32)), "other names, types, shapes"),
        (upload(more=np.zeros(1, np.float32)), "bytes, expected"),
        (upload()[:-1], "bytes, expected"),
        (b"", "0 bytes, expected"),
    ],
)
def test_heads_that_nobody_has_are_refused(data: bytes, message: str) -> None:
    with pytest.raises((WireError, CheckError), match=message):
        HEADS.decode(data, CONTEXT)
    assert HEADS.decode(upload(), CONTEXT).count.tolist() == [2, 0, 5]


def test_an_upload_of_another_is_refused() -> None:
    with pytest.raises(WireError, match="belongs to"):
        HEADS.decode(upload(), Context(CONTEXT.run, 1, "client-01", "head"))


def heads(*samples: int) -> list[HeadUpload]:
    rng = np.random.default_rng(1)
    shapes = {name: value.shape for name, value in blank_head(3, 2).items()}
    return [
        HeadUpload(
            {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
            np.array([count, 0.0, 0.0]),
        )
        for count in samples
    ]


def test_heads_are_averaged_by_samples() -> None:
    """The slow twin: each sample brings its client's head."""
    parts = heads(3, 1, 0)
    each = [one.head for one in parts for _ in range(int(one.count.sum()))]
    for name, value in average(parts).items():
        expected = sum(head[name].astype(np.float64) for head in each) / len(each)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert value.dtype == np.float32


def test_one_client_cannot_outweigh_all_others() -> None:
    parts = heads(2, 3, 10**9, 5)
    doubts = HEADS.doubts(parts)
    assert list(doubts) == [2]
    assert doubts[2].counts is not None
    assert doubts[2].counts.count.sum() == pytest.approx(30)
    bounded = Heads(3, 2, ServerSettings(most_samples=4)).doubts(parts)
    assert {index: one.counts.count.sum() for index, one in bounded.items() if one.counts} == {
        2: pytest.approx(4),
        3: pytest.approx(4),
    }


def test_what_diverged_is_not_published_and_not_believed() -> None:
    with pytest.raises(ServerError, match=r"a weight of nan") as refused:
        encode_trained(blank_head(3, 2) | {"bias": np.full(3, np.nan, np.float32)})
    assert "method.knob" in refused.value.hint
    data = wire.encode_weights(blank_head(3, 2) | {"bias": np.full(3, 1e9, np.float32)})
    with pytest.raises(CheckError, match="a weight of 1e\\+09"):
        decode_trained(data, blank_head(3, 2))
    with pytest.raises(WireError):
        decode_trained(data, blank_head(4, 2))


@pytest.mark.parametrize("name", ["fedgh", "fedtgp"])
def test_outliers_are_not_trimmed_from_what_is_no_sum(tiny: Tiny, name: str) -> None:
    with pytest.raises(ConfigError, match=f"server.trim = 0.1 with method.name = '{name}'"):
        check(tiny(method={"name": name}, server={"trim": 0.1}))
    check(tiny(method={"name": "fedproto"}, server={"trim": 0.1}))
