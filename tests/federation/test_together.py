"""Cohorts of equal networks in the round loop, as on a GPU: against clients one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.training import cohort
from fedvtc_edge.training.compute import Compute, deterministic

Tiny = Callable[..., Config]

ONE: dict[str, Any] = {"method": {"rounds": 1}, "clients": {"count": 4}}


def one_round(config: Config) -> LocalExecutor:
    with deterministic():
        method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
        executor = LocalExecutor(method)
        for number in (0, 1):
            take_steps(method, executor, number, executor.clients)
    return executor


@pytest.mark.parametrize("name", ["fedvtc", "local"])
def test_a_round_together_is_a_round_in_turn(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = tiny(**(ONE | {"method": {"rounds": 1, "name": name}}))
    alone, stacks = one_round(config), list[int]()
    make = cohort._cohort

    def spy(group: Any) -> Any:
        stacks.append(len(group))
        return make(group)

    monkeypatch.setattr(cohort, "_cohort", spy)
    monkeypatch.setattr(Compute, "stacks", True)
    together = one_round(config)
    phases = 2 if name == "fedvtc" else 1
    assert stacks == [2, 2] * phases  # two architectures, two clients each
    for one, other in zip(alone.roster, together.roster, strict=True):
        assert one.samples_seen == other.samples_seen
        for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
            near = (p - q).abs() < config.training.rate
            assert near.float().mean() > 0.99


def test_private_runs_and_ablations_go_in_turn(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compute, "stacks", True)
    monkeypatch.setattr(cohort, "train", None)
    for changes in ({"method": {"ablate": ["head-only"]}}, {"method": {"share": "features"}}):
        one_round(tiny(**{"method": {"rounds": 1} | changes["method"]}))


def test_no_more_clients_at_once_than_may_be_live(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = one_round(tiny(**ONE)).roster
    monkeypatch.setattr(roster, "_most", 3)
    groups = [[client.id for client in group] for group in roster.live_together(roster.ids)]
    assert groups == [roster.ids[:3], roster.ids[3:]]
    monkeypatch.setattr(roster, "_most_bytes", 1)
    assert [len(group) for group in roster.live_together(roster.ids)] == [1, 1, 1, 1]
    assert list(roster.live_together([])) == []
