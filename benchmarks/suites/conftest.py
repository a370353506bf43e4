"""What all suites share: clock, one thread, groups with a floor, and the table of ratios.

``pytest benchmarks/ --benchmark-only``, in the root of the repository.

A test module measures one family. Its fixture ``group`` names the group of a test, and
the mark ``floor`` is on the one test of each group that does only what nobody can leave
out: a copy, an addition, a bare torch step. pytest-benchmark measures and prints its own
tables; its numbers in brackets are relative to the fastest member of a group. Below them
stands one more table, of each member relative to the floor. See docs/benchmarks.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from threadpoolctl import threadpool_limits

from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.training.compute import deterministic

SETTINGS: dict[str, Any] = {"timer": time.process_time, "max_time": 0.4}
"""CPU time of all threads: waiting for a busy machine counts for nothing, a second
thread's work for all it is. So long each, in seconds, keeps the whole below three minutes."""


class Member(NamedTuple):
    """One benchmark.

    Args:
        median: Seconds of CPU, of all rounds.
        least: Seconds of CPU, of the fastest round.
        floor: Whether the others of its group are compared to it.
    """

    group: str
    name: str
    median: float
    least: float
    floor: bool


class Ratio(NamedTuple):
    """A member to its floor, median to median and fastest round to fastest round.

    Where the two differ much, the machine was busier during one than during the other.
    """

    median: float
    least: float


_MEMBERS = pytest.StashKey[list[Member]]()


def ratios(members: Iterable[Member]) -> list[tuple[Member, Ratio | None]]:
    """Each member with its ratio to the floor, group by group.

    Args:
        members: In any order; groups keep the order of their first members.

    Returns:
        The ratio is None where a group has no floor, as in ``pytest -k``, or two.
    """
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    return [(member, _ratio(member, group)) for group in groups.values() for member in group]


def _ratio(member: Member, group: list[Member]) -> Ratio | None:
    floors = [other for other in group if other.floor]
    if len(floors) != 1 or not floors[0].least:
        return None
    return Ratio(member.median / floors[0].median, member.least / floors[0].least)


def table(members: Iterable[Member]) -> Iterator[str]:
    """The lines of the last table: its head, a line per group, and one per member."""
    yield f"{'':<38}{'median':>17}{'× floor':>11}{'(fastest)':>12}"
    group = None
    for member, ratio in ratios(members):
        if member.group != group:
            group = member.group
            yield group
        figures = f"{'-':>11}{'-':>12}"
        if ratio is not None:
            figures = f"{ratio.median:>11,.2f}{f'({ratio.least:,.2f})':>12}"
        mark = "  floor" if member.floor else ""
        yield f"  {member.name:<36}{1e6 * member.median:>14,.1f} µs{figures}{mark}"


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, and a place for what is measured."""
    config.addinivalue_line("markers", "floor: the others of its group are compared to it")
    config.stash[_MEMBERS] = []


def pytest_itemcollected(item: pytest.Item) -> None:
    """Our settings, save where the command line has its own."""
    typed = " ".join(map(str, item.config.invocation_params.args))
    ours = {
        name: value
        for name, value in SETTINGS.items()
        if f"--benchmark-{name.replace('_', '-')}" not in typed
    }
    item.add_marker(pytest.mark.benchmark(**ours))


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own tables
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print each member relative to its group's floor."""
    members = config.stash[_MEMBERS]
    if members:
        terminalreporter.section("CPU time, and how many times the floor's")
        for line in table(members):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    """One thread, for torch as in every run, and for NumPy's products."""
    with deterministic(), threadpool_limits(limits=1):
        yield


@pytest.fixture(scope="session")
def client_statistics() -> Callable[..., ClassStatistics]:
    """``client_statistics(seed, pooled=True)``: of random features, as long as a client's are."""

    def measure(seed: int, *, pooled: bool) -> ClassStatistics:
        draw, samples, width, classes = np.random.default_rng(seed), 300, 128, 10
        features = draw.standard_normal((samples, width))
        features *= width**0.5 / np.linalg.norm(features, axis=1, keepdims=True)
        labels = draw.integers(0, classes, samples)
        return ClassStatistics.of(features, labels, classes=classes, pooled=pooled)

    return measure


@pytest.fixture
def benchmark(
    benchmark: BenchmarkFixture, group: str, request: pytest.FixtureRequest
) -> Iterator[BenchmarkFixture]:
    """pytest-benchmark's own fixture, in the test's group."""
    floor = request.node.get_closest_marker("floor") is not None
    benchmark.group = group
    benchmark.extra_info["floor"] = floor  # also in what --benchmark-json writes
    yield benchmark
    if benchmark.stats:  # none under --benchmark-disable, or where the test failed
        name = request.node.originalname.removeprefix("test_").replace("_", " ")
        member = Member(group, name, benchmark.stats["median"], benchmark.stats["min"], floor)
        request.config.stash[_MEMBERS].append(member)
