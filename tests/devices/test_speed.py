"""The roofline of one thread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.speed import TRAINING_COMPUTE, TRAINING_TRAFFIC, Speed
from fedvtc_edge.errors import ConfigError

amounts = st.lists(st.floats(0, 1e12), min_size=1, max_size=20)


@given(amounts, st.floats(0.1, 1e3), st.floats(0.1, 1e3), st.floats(0, 1e3), st.integers())
def test_each_operation_takes_the_longer_of_both(
    flops: list[float], gflops: float, gbps: float, overhead: float, seed: int
) -> None:
    traffic = np.random.default_rng(abs(seed)).uniform(0, 1e9, len(flops))
    slow = 0.0
    for operations, moved in zip(flops, traffic, strict=True):
        slow += max(operations / (gflops * 1e9), moved / (gbps * 1e9)) + overhead * 1e-6
    assert Speed(gflops, gbps, overhead).seconds(flops, traffic) == pytest.approx(slow)


def test_one_thread_has_the_share_of_one_core() -> None:
    pi4 = DeviceProfile.load("rpi4")
    one, four, many = (Speed.of(pi4, threads=threads) for threads in (1, 4, 64))
    assert pi4.fp32_gflops is not None
    assert pi4.efficiency is not None
    assert four.gflops == pytest.approx(pi4.fp32_gflops.value * pi4.efficiency.value)
    assert one.gflops == pytest.approx(four.gflops / 4)
    assert many == four


def test_training_reaches_a_share_and_dispatches() -> None:
    pi4 = DeviceProfile.load("rpi4")
    graphs, training = Speed.of(pi4), Speed.training(pi4)
    assert training.gflops == pytest.approx(graphs.gflops * TRAINING_COMPUTE)
    assert training.gbps == pytest.approx(graphs.gbps * TRAINING_TRAFFIC)
    assert pi4.torch_overhead_us is not None
    assert training.overhead_us == pi4.torch_overhead_us.value
    with pytest.raises(ConfigError, match="says nothing of torch_overhead_us"):
        Speed.training(pi4.model_copy(update={"torch_overhead_us": None}))


def test_what_is_not_known_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="esp32-s3 says nothing of memory_gbps") as caught:
        Speed.of(DeviceProfile.load("esp32-s3"))
    assert "memory_gbps = {" in caught.value.hint
