"""The round loop with clients in this process: who takes part, what it costs, when it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import RunError
from fedvtc_edge.federation.assembly import assemble, clients
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.rounds import LocalExecutor, run_rounds
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.training.compute import Compute, as_images, deterministic

Tiny = Callable[..., Config]


class Story(SilentProgress):
    """What the engine tells, and what it hands over to be kept, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.kept: list[Checkpoint] = []

    def start(self, total: int, what: str) -> None:
        self.told.append(f"start {total} {what}")

    def advance(self, note: str = "") -> None:
        self.told.append("advance")

    def keep(self, state: Checkpoint) -> None:
        self.told.append(f"keep {state.round}")
        # A copy, as on disk: what is kept must not change with the run.
        tensors = {name: value.clone() for name, value in state.tensors.items()}
        self.kept.append(
            Checkpoint(
                state.round, list(state.records), dict(state.published), state.account, tensors
            )
        )


def executor_of(config: Config) -> LocalExecutor:
    data, compute = load_dataset(config.data), Compute.of(config.engine)
    return LocalExecutor(
        assemble(config, data, compute),
        clients(config, data, compute, decoders=False),
        TestSet(as_images(data.x_test, compute.device), torch.from_numpy(data.y_test.copy())),
    )


def run(config: Config, state: Checkpoint | None = None) -> tuple[LocalExecutor, Story]:
    story = Story()
    with deterministic():
        executor = executor_of(config)
        if state is not None:
            executor.restore(state)
        run_rounds(executor.method, executor, keep=story.keep, progress=story)
    return executor, story


def members(executor: LocalExecutor) -> list[list[str]]:
    return [
        [client.id for client in record.clients if client.took_part] for record in executor.records
    ]


def test_a_round_is_kept_before_it_is_told(tiny: Tiny) -> None:
    _, story = run(tiny(method={"name": "local"}))
    expected = ["start 3 rounds"]
    for number in (1, 2, 3):
        expected += [f"keep {number}", "advance"]
    assert story.told == expected
    assert [len(state.records) for state in story.kept] == [1, 2, 3]


def test_a_fixed_share_takes_part_drawn_anew_each_round(tiny: Tiny) -> None:
    config = tiny(
        method={"name": "local", "rounds": 8}, clients={"count": 5, "cohort": 0.4}, seed=1
    )
    executor, _ = run(config)
    drawn = members(executor)
    assert [len(cohort) for cohort in drawn] == [2] * 8
    assert all(cohort == sorted(cohort) for cohort in drawn)
    assert len({tuple(cohort) for cohort in drawn}) > 3
    assert {name for cohort in drawn for name in cohort} == set(executor.account)
    assert members(run(config)[0]) == drawn
    assert members(run(config.replace(seed=2))[0]) != drawn


@pytest.mark.parametrize(("cohort", "size"), [(0.01, 1), (0.34, 1), (0.67, 2), (1.0, 3)])
def test_at_least_one_takes_part(tiny: Tiny, cohort: float, size: int) -> None:
    config = tiny(method={"name": "local", "rounds": 1}, clients={"cohort": cohort})
    assert len(members(run(config)[0])[0]) == size


def test_who_sits_out_stays_as_it_was(tiny: Tiny) -> None:
    config = tiny(method={"share": "features", "rounds": 2}, clients={"cohort": 0.34})
    executor, story = run(config)
    first, second = story.kept
    (active,) = members(executor)[1]
    changed = {
        name.split("/")[0] + "/" + name.split("/")[1]
        for name, value in second.tensors.items()
        if not torch.equal(value, first.tensors[name])
    }
    assert changed == {f"{active}/classifier", f"{active}/decoder", f"{active}/local"}
    for record in executor.records[1].clients:
        taking_part = record.id == active
        assert bool(record.upload_bytes) == taking_part
        assert bool(record.seconds) == taking_part
        assert record.download_bytes, "what is published reaches everybody"


def test_rounds_add_up_to_the_account(tiny: Tiny) -> None:
    executor, _ = run(tiny(method={"share": "features+decoder"}, clients={"cohort": 0.67}))
    for name, total in executor.account.items():
        own = [c for record in executor.records for c in record.clients if c.id == name]
        assert sum(c.upload_bytes or 0 for c in own) == total["up"]
        assert sum(c.download_bytes or 0 for c in own) == total["down"]
        assert sum(c.seconds or 0.0 for c in own) == pytest.approx(total["seconds"], abs=1e-3)


def test_images_seen_are_counted(tiny: Tiny) -> None:
    config = tiny(method={"name": "local"}, training={"epochs": 2})
    executor, _ = run(config)
    for client in executor.federation.clients:
        assert executor.account[client.id]["samples"] == 3 * 2 * len(client.images)


def test_twins_are_the_local_method(tiny: Tiny) -> None:
    """The local-only control beside FedVTC is what the method ``local`` would have been."""
    _, beside = run(tiny(clients={"cohort": 0.67}))
    _, alone = run(tiny(method={"name": "local"}, clients={"cohort": 0.67}))
    compared = 0
    for name, value in alone.kept[-1].tensors.items():
        if "/classifier/" in name:
            baseline = beside.kept[-1].tensors[name.replace("/classifier/", "/local/")]
            assert torch.equal(baseline, value), name
            compared += 1
    assert compared > 10
    own = [record.accuracy for record in alone.kept[-1].records[-1].clients]
    control = [c.accuracy_local_only for c in beside.kept[-1].records[-1].clients]
    assert own == control


@pytest.mark.parametrize("method", [{}, {"share": "features"}, {"name": "fedproto"}])
def test_a_restored_executor_goes_on_as_if_nothing_had_been(
    tiny: Tiny, untimed: Callable[[Any], Any], method: dict[str, Any]
) -> None:
    config = tiny(method=method)
    _, whole = run(config)
    executor, rest = run(config, whole.kept[0])
    assert rest.told == ["start 3 rounds", "advance", "keep 2", "advance", "keep 3", "advance"]
    done, expected = ([r.document() for r in e.records] for e in (executor, whole.kept[-1]))
    assert untimed(done) == untimed(expected)
    for name, value in whole.kept[-1].tensors.items():
        assert torch.equal(rest.kept[-1].tensors[name], value), name
    assert rest.kept[-1].published == whole.kept[-1].published
    assert untimed(rest.kept[-1].account) == untimed(whole.kept[-1].account)


def test_a_finished_executor_has_nothing_left_to_do(tiny: Tiny) -> None:
    config = tiny(method={"name": "local"})
    _, whole = run(config)
    _, again = run(config, whole.kept[-1])
    assert again.told == ["start 3 rounds", "advance", "advance", "advance"]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"latent": 4}},
        {"clients": {"architectures": ["lenet", "mlp"]}},
        {"method": {"name": "fedvtc"}},
    ],
)
def test_a_checkpoint_of_other_networks(tiny: Tiny, changes: dict[str, Any]) -> None:
    config = tiny(method={"name": "local", "rounds": 1})
    _, story = run(config)
    with pytest.raises(RunError, match="does not fit client-00/") as refused:
        executor_of(config.replace(**changes)).restore(story.kept[0])
    assert "architecture" in refused.value.hint
