"""Within a run: one thread and deterministic kernels; afterwards all is as it was."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedvtc_edge.training.compute import channels_last, deterministic, reused_memory


@pytest.fixture
def as_before() -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(strict)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_run_changes_nothing_for_what_comes_after_it(as_before: None, mode: int) -> None:
    torch.set_num_threads(2)
    torch.set_deterministic_debug_mode(mode)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with deterministic():
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        torch.manual_seed(2)
    assert torch.get_num_threads() == 2
    assert torch.get_deterministic_debug_mode() == mode
    assert torch.equal(torch.rand(3), expected)


def test_it_is_undone_after_an_error(as_before: None) -> None:
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="on purpose"), deterministic():
        raise RuntimeError("on purpose")
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_number_of_threads_cannot_be_seen_in_the_bits(as_before: None) -> None:
    draw = torch.Generator().manual_seed(0)
    images, kernels = torch.rand(64, 8, 16, 16, generator=draw), torch.rand(8, 8, 3, 3)
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with deterministic():
            found.add(torch.conv2d(images, kernels).sum().numpy().tobytes())
    assert len(found) == 1


def test_memory_is_given_back_after_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    trimmed: list[int] = []
    library = SimpleNamespace(mallopt=asked.__setitem__, malloc_trim=trimmed.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    with reused_memory():
        assert min(asked.values()) > 2**24
        assert not trimmed
    assert asked == {-1: 2**17, -3: 2**17}
    assert trimmed == [0]


def test_without_glibc_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    with reused_memory():
        pass


def test_channels_come_last_and_go_back() -> None:
    """Afterwards strides are torch's usual ones, also of kernels with a single pixel."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5, 2))
    before = {name: (p.clone(), p.stride()) for name, p in network.named_parameters()}
    kept = list(network.parameters())
    with channels_last(network):
        weight = network.get_parameter("0.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    for (name, p), same in zip(network.named_parameters(), kept, strict=True):
        assert p is same
        assert torch.equal(p, before[name][0])
        assert p.stride() == before[name][1]
