"""Test set of a client's own, packed into one file of its folder."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedvtc_edge.data.dataset import Samples, as_labels, as_pixels, check_pairs
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.errors import DataError

TEST = "test-set"
"""Under which name the server publishes its test set to clients that lack it."""


def pack_test(test: Samples) -> bytes:
    """A test set as it is published."""
    arrays = {"images": test.images, "labels": test.labels}
    return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})


def unpack_test(data: bytes, terms: DataTerms) -> Samples:
    """Read what :func:`pack_test` wrote.

    Raises:
        DataError: Damaged, or not of the agreed shapes and classes.
    """
    where = "the server's test set"
    try:
        arrays = load(data)
        images, labels = arrays["images"], arrays["labels"]
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise DataError(f"{where} is damaged", hint="join again") from None
    images = as_pixels(images, where)
    labels = as_labels(labels, where, len(terms.class_names))
    check_pairs(images, labels, where, "_test")
    if images.shape[1:] != terms.shape:
        raise DataError(
            f"{where}: images of {images.shape[1:]}, agreed are {terms.shape}",
            hint="the server contradicts itself: do not trust it",
        )
    return Samples(images, labels)


TEST_SET = "test.safetensors"
