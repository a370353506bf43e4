"""The roofline of one thread, and what becomes of a client by chance and by its deadline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.clock import (
    TRAINING_COMPUTE,
    TRAINING_TRAFFIC,
    DeviceJob,
    Speed,
    Visit,
    closing,
    visit,
)
from fedvtc_edge.errors import ConfigError


def profile(**figures: float | None) -> DeviceProfile:
    known: dict[str, Any] = {
        "cores": 1, "memory_total_mb": 512, "network_up_mbps": 8, "network_down_mbps": 80,
    } | figures  # fmt: skip
    return DeviceProfile.model_validate(
        {"name": "d", "title": "d", "arch": "a", "runtime": "onnxruntime"}
        | {
            key: {"value": value, "kind": "assumed", "source": "a test"}
            for key, value in known.items()
            if value is not None
        }
    )


def played(device: DeviceProfile, job: DeviceJob, seed: int = 0) -> Visit:
    return visit(device, job, torch.Generator().manual_seed(seed))


def test_a_client_downloads_works_and_uploads() -> None:
    one = played(profile(), DeviceJob(10_000_000, 5.0, 1_000_000))
    assert one == Visit("done", 1.0, 5.0, 1.0, 7.0)
    assert one.busy == 7.0


@pytest.mark.parametrize(
    ("deadline", "spans"),
    [(0.5, (0.5, 0, 0)), (3.0, (1, 2, 0)), (6.25, (1, 5, 0.25)), (6.999, (1, 5, 0.999))],
)
def test_a_deadline_cuts_it_short(deadline: float, spans: tuple[float, float, float]) -> None:
    one = played(profile(deadline_s=deadline), DeviceJob(10_000_000, 5.0, 1_000_000))
    assert one.outcome == "late"
    assert (one.download, one.compute, one.upload) == pytest.approx(spans)
    assert one.answered == deadline, "until then the server waits for it"


def test_on_the_deadline_is_in_time() -> None:
    assert played(profile(deadline_s=7.0), DeviceJob(10_000_000, 5.0, 1_000_000)).outcome == "done"


def test_without_an_upload_there_is_no_deadline() -> None:
    one = played(profile(deadline_s=0.5), DeviceJob(10_000_000, 5.0, 0))
    assert (one.outcome, one.answered) == ("done", 6.0)


def test_who_cannot_be_reached_costs_no_time() -> None:
    one = played(profile(availability=0, deadline_s=9), DeviceJob(1, 5.0, 1))
    assert one == Visit("unreachable", 0, 0, 0, 0)


def test_a_dropout_is_waited_for_until_its_deadline_if_it_has_one() -> None:
    job = DeviceJob(10_000_000, 5.0, 1_000_000)
    without = played(profile(dropout=1), job)
    assert without.outcome == "dropped"
    assert 0 < without.answered == without.busy < 7
    assert played(profile(dropout=1, deadline_s=100), job).answered == 100


jobs = st.builds(DeviceJob, st.integers(0, 10**8), st.floats(0, 1e4), st.integers(0, 10**8))
shares = st.one_of(st.none(), st.floats(0, 1))


@given(jobs, shares, shares, st.one_of(st.none(), st.floats(0.1, 1e4)), st.integers(0, 2**32))
def test_what_always_holds(
    job: DeviceJob,
    availability: float | None,
    dropout: float | None,
    deadline: float | None,
    seed: int,
) -> None:
    device = profile(availability=availability, dropout=dropout, deadline_s=deadline)
    one = played(device, job, seed)
    assert one == played(device, job, seed)
    whole = job.down * 8 / 80e6 + job.compute + job.up * 8 / 8e6
    assert 0 <= one.busy <= whole + 1e-6
    assert one.answered <= (deadline or 0) + 1e-6 or one.outcome != "late"
    if deadline is not None and job.up:
        assert one.busy <= deadline + 1e-6
    if one.outcome == "done":
        assert one.busy == pytest.approx(whole)
        assert one.answered == pytest.approx(whole)


@pytest.mark.parametrize(("figure", "outcome"), [("availability", "unreachable"), ("dropout", "x")])
def test_shares_are_kept_in_the_long_run(figure: str, outcome: str) -> None:
    stream, device = torch.Generator().manual_seed(1), profile(**{figure: 0.3})
    outcomes = [visit(device, DeviceJob(0, 1.0, 0), stream).outcome for _ in range(2000)]
    hit = outcomes.count("done") if outcome == "unreachable" else outcomes.count("dropped")
    assert abs(hit / 2000 - 0.3) < 0.04


def test_what_happens_to_one_client_moves_nobody_elses_draws() -> None:
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    visit(profile(availability=0), DeviceJob(0, 1.0, 0), first)
    visit(profile(dropout=1), DeviceJob(0, 1.0, 0), second)
    assert torch.equal(first.get_state(), second.get_state())


def test_a_round_closes_when_nobody_is_waited_for() -> None:
    assert closing([]) == 0
    device = profile(deadline_s=4)
    visits = [played(device, DeviceJob(0, compute, 1)) for compute in (1.0, 3.0, 100.0)]
    assert closing(visits[:2]) == pytest.approx(3, abs=1e-5)
    assert closing(visits) == 4


def test_bytes_need_a_network() -> None:
    offline = profile(network_up_mbps=None)
    assert played(offline, DeviceJob(8, 1.0, 0)).outcome == "done"
    with pytest.raises(ConfigError, match="says nothing of network_up_mbps"):
        played(offline, DeviceJob(8, 1.0, 1))


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
