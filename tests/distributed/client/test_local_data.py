"""What a client brings along, and the test set that travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.data.dataset import Samples
from fedvtc_edge.data.own import DataTerms, pack_test, terms_of, unpack_test
from fedvtc_edge.distributed.client.local_data import (
    difference,
    from_builtin,
    from_partition,
    from_path,
)
from fedvtc_edge.errors import DataError

TERMS = DataTerms(("cat", "dog", "owl"), 8, 8, 1, 0)


def sample(count: int = 4, size: int = 8, channels: int = 1, most: int = 2) -> Samples:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    return Samples(images, np.arange(count, dtype=np.int64) % (most + 1))


def test_a_test_set_is_read_as_it_was_packed() -> None:
    made = sample()
    read = unpack_test(pack_test(made), TERMS)
    assert np.array_equal(read.images, made.images)
    assert np.array_equal(read.labels, made.labels)
    turned = Samples(made.images.transpose(0, 2, 1, 3), made.labels)  # not contiguous
    assert np.array_equal(unpack_test(pack_test(turned), TERMS).images, turned.images)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 100,
        pack_test(sample())[:-1],
        save({"images": sample().images}),
        save({"labels": sample().labels}),
        save({"images": sample().images, "labels": sample().labels[:3]}),
        save({"images": sample().images.astype(np.float32), "labels": sample().labels}),
        save({"images": sample().images[0], "labels": sample().labels}),
        save({"images": sample().images, "labels": sample().labels.astype(np.float64) + 0.5}),
        save({"images": sample().images, "labels": sample().labels - 1}),
        pack_test(sample(most=3)),
        pack_test(sample(size=12)),
        pack_test(sample(channels=3)),
        pack_test(sample(count=0)),
    ],
    ids=range(14),
)
def test_a_test_set_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(DataError) as refused:
        unpack_test(data, TERMS)
    assert "server's test set" in str(refused.value)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_test_set_is_refused_or_has_other_pixels(place: int, byte: int) -> None:
    data = bytearray(pack_test(sample()))
    data[place % len(data)] = byte
    try:
        read = unpack_test(bytes(data), TERMS)
    except DataError:
        return
    assert read.images.shape == (4, 8, 8, 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"class_names": ("cat", "fox", "owl")}, "class 1 is 'dog' here, 'fox' there"),
        ({"class_names": ("cat", "dog")}, "3 classes here, 2 there"),
        ({"class_names": ("cat", "dog", "owl", "ape")}, "3 classes here, 4 there"),
        ({"channels": 3}, "images of (8, 8, 1) here, (8, 8, 3) there"),
        ({"height": 12, "width": 12}, "images of (8, 8, 1) here, (12, 12, 1) there"),
        ({"image_size": 8}, "data.image_size 0 here, 8 there"),
    ],
)
def test_a_difference_is_named(changed: dict[str, object], said: str) -> None:
    assert difference(TERMS, replace(TERMS, **changed)) == said  # type: ignore[arg-type]


def test_shares_are_dealt_as_in_one_process(small: Callable[..., Config]) -> None:
    config = small()
    data = load_dataset(config.data)
    terms = terms_of(data, config.data.image_size)
    shares = [from_partition(index)(config, terms) for index in range(3)]
    assert sum(len(share.own.labels) for share in shares) == len(data.y_train)
    for share in shares:
        assert share.test is not None
        assert np.array_equal(share.test.images, data.x_test)
    named = replace(terms, class_names=("zero", *terms.class_names[1:]))
    with pytest.raises(DataError, match="class 0 is '0' here, 'zero' there"):
        from_partition(0)(config, named)
    with pytest.raises(DataError, match="client number 4 of 3 has no share"):
        from_partition(3)(config, terms)


def test_public_images_are_those_of_the_terms_or_nobody_joins(
    tmp_path: Path, small: Callable[..., Config]
) -> None:
    config = small(data={"public": "rest"})
    data = load_dataset(config.data)
    terms = terms_of(data, config.data.image_size)
    shared = from_partition(0)(config, terms).shared
    assert shared is not None
    assert data.x_public is not None
    assert np.array_equal(shared, data.x_public)
    assert from_builtin(0)(config, terms).shared is not None
    with pytest.raises(DataError, match="other public images"):
        from_partition(0)(config, replace(terms, public="0" * 64))
    with pytest.raises(DataError, match="does not open here"):
        from_builtin(0)(small(data={"public": str(tmp_path / "secret.npz")}), terms)
    own = sample()
    path = tmp_path / "own.npz"
    np.savez(path, x=own.images, y=own.labels, class_names=np.array(["owl", "cat", "dog"]))
    with pytest.raises(DataError, match="has no way to get"):
        from_path(path)(config, replace(TERMS, public="0" * 64))


def test_own_images_fit_the_terms_or_are_refused_by_name(
    tmp_path: Path, small: Callable[..., Config]
) -> None:
    path = tmp_path / "own.npz"
    own = sample()
    names = np.array(["owl", "cat", "dog"])
    np.savez(path, x=own.images, y=own.labels, class_names=names)
    read = from_path(path)(small(), TERMS)
    assert read.test is None
    assert read.own.labels.tolist() == [2, 0, 1, 2]
    with pytest.raises(DataError, match="'owl' is none of the 3 agreed classes"):
        from_path(path)(small(), replace(TERMS, class_names=("cat", "dog", "fox")))
