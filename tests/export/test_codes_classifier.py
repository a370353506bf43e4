"""The device's NumPy twins compute what torch computes in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvtc_edge.export import codes
from fedvtc_edge.export.codes import StatisticsClassifier, combined, log_softmax
from fedvtc_edge.federation.methods import base
from fedvtc_edge.statistics import discriminant
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.statistics.gaussian import coefficients

CPU = torch.device("cpu")


def world_of(
    seed: int, sizes: list[int], width: int, *, pooled: bool, scale: float = 1.0
) -> tuple[GlobalStatistics, Any]:
    """Statistics of classes of these sizes, and features to classify, some far away."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    centre = 2 * rng.standard_normal((len(sizes), width))
    z = scale * (centre[y] + rng.standard_normal((len(y), width)))
    total = ClassStatistics.of(z, y, classes=len(sizes), pooled=pooled)
    x = scale * 3 * rng.standard_normal((12, width))
    x[-2:] *= 50
    return GlobalStatistics.from_sum(total, floor=0.05), x.astype(np.float32)


def near(mine: Any, torchs: Any, scale: Any = 0.0) -> None:
    """Equal but for float32's rounding of the scores, up to ``scale``, that are subtracted."""
    assert mine.dtype == np.float32
    assert mine.shape == torchs.shape
    assert (np.abs(mine - torchs) <= 2e-5 * np.abs(torchs) + 1e-6 * scale + 2e-5).all()


sizes = st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(any)


@hypothesis_settings(deadline=None, max_examples=120)
@given(seed=st.integers(0, 2**32), sizes=sizes, width=st.integers(1, 8), pooled=st.booleans())
def test_control_is_the_discriminant(seed: int, sizes: list[int], width: int, pooled: bool) -> None:
    knowledge, x = world_of(seed, sizes, width, pooled=pooled)
    got = StatisticsClassifier(knowledge)(x)
    quadratic, linear, offset = map(np.abs, coefficients(knowledge))
    largest = np.max(np.square(x) @ quadratic + np.abs(x) @ linear + offset, 1, keepdims=True)
    near(got, Discriminant(knowledge, device=CPU)(torch.from_numpy(x)).numpy(), largest)
    assert np.isfinite(got).all()
    assert (got[:, np.array(sizes) == 0] == -1e4).all()


@hypothesis_settings(deadline=None, max_examples=120)
@given(seed=st.integers(0, 2**32), classes=st.integers(2, 7), data=st.data())
def test_combined_is_the_trainers(seed: int, classes: int, data: st.DataObject) -> None:
    absent = np.array(data.draw(st.lists(st.booleans(), min_size=classes, max_size=classes)))
    absent[0] = False
    scale = data.draw(st.sampled_from([0.1, 1.0, 30.0]))
    rng = np.random.default_rng(seed)
    own, known = (
        np.asarray(log_softmax(scale * rng.standard_normal((9, classes))), np.float32)
        for _ in range(2)
    )
    known[:, absent] = -1e4
    got = combined(own, known)
    near(got, base.calibrated(torch.from_numpy(own), torch.from_numpy(known)).numpy())
    assert not absent[got.argmax(1)].any()  # what nobody has is not predicted
    np.testing.assert_allclose(np.exp(got.astype(float)).sum(1), 1, rtol=1e-5)


def test_constants_are_the_trainers() -> None:
    assert codes.OWN_SHARE == base.OWN_SHARE
    assert codes._ABSENT == discriminant.ABSENT


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e30])
def test_log_softmax_neither_overflows_nor_underflows(scale: float) -> None:
    scores = scale * np.array([[0.0, 1.0, -1.0], [-np.inf, 0.0, -2.0]])
    got = log_softmax(scores)
    np.testing.assert_allclose(np.exp(got).sum(1), 1)
    np.testing.assert_allclose(got, torch.log_softmax(torch.from_numpy(scores), 1).numpy())
    assert np.isneginf(got[1, 0])
