"""The round loop with clients in this process: who takes part, what it costs, when it is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import RunError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.figures import NOTHING
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.rounds import run_rounds
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import Checkpoint
from fedvtc_edge.runs.means import averages
from fedvtc_edge.runs.records import ClientRecord, RoundRecord
from fedvtc_edge.training.compute import Compute, as_images, deterministic

Tiny = Callable[..., Config]


@dataclass
class Kept:
    """What a story keeps of a checkpoint, as it would be read back: of all clients."""

    state: Checkpoint
    tensors: dict[str, torch.Tensor]


class Story(SilentProgress):
    """What the engine tells, and what it hands over to be kept, in order."""

    def __init__(self, executor: LocalExecutor) -> None:
        self.told: list[str] = []
        self.kept: list[Kept] = []
        self._weights = executor.roster.weights

    def start(self, total: int, what: str) -> None:
        self.told.append(f"start {total} {what}")

    def advance(self, note: str = "") -> None:
        self.told.append("advance")

    def keep(self, state: Checkpoint) -> None:
        self.told.append(f"keep {state.round}")
        earlier = self.kept[-1] if self.kept else Kept(state, {})
        tensors = dict(earlier.tensors)
        for name, kept in state.clients.items():
            if kept["kept"]["weights"]:
                own = self._weights.read(kept["kept"]["weights"])
                tensors |= {f"{name}/{key}": value for key, value in own.items()}
        # A copy, as on disk: what is kept must not change with the run.
        clients = copy.deepcopy(earlier.state.clients | state.clients)
        whole = replace(state, published=dict(state.published), clients=clients)
        self.kept.append(Kept(whole, tensors))


def executor_of(config: Config) -> LocalExecutor:
    data, compute = load_dataset(config.data), Compute.of(config.engine)
    return LocalExecutor(
        assemble(config, data, compute),
        TestSet(as_images(data.x_test, compute.device), torch.from_numpy(data.y_test.copy())),
        baselines=True,
    )


def restore(executor: LocalExecutor, kept: Kept) -> None:
    """Restore another process's checkpoint, its files of weights among it."""
    for name, state in kept.state.clients.items():
        own = {
            key.removeprefix(f"{name}/"): value
            for key, value in kept.tensors.items()
            if key.startswith(f"{name}/")
        }
        if own:
            assert executor.roster.weights.keep(name, own) == state["kept"]["weights"]
    executor.restore(copy.deepcopy(kept.state))


def run(config: Config, state: Kept | None = None) -> tuple[LocalExecutor, Story]:
    with deterministic():
        executor = executor_of(config)
        story = Story(executor)
        if state is not None:
            restore(executor, state)
            story.kept.append(state)
        run_rounds(executor.method, executor, keep=story.keep, progress=story)
    return executor, story


def records(story: Story) -> list[RoundRecord]:
    return [kept.state.record for kept in story.kept if kept.state.record is not None]


def members(story: Story) -> list[list[str]]:
    return [[one.id for one in record.clients if one.took_part] for record in records(story)]


def test_a_round_is_kept_before_it_is_told(tiny: Tiny) -> None:
    _, story = run(tiny(method={"name": "local"}))
    expected = ["start 3 rounds"]
    for number in (1, 2, 3):
        expected += [f"keep {number}", "advance"]
    assert story.told == expected
    assert [record.round for record in records(story)] == [1, 2, 3]


def test_a_fixed_share_takes_part_drawn_anew_each_round(tiny: Tiny) -> None:
    config = tiny(
        method={"name": "local", "rounds": 8}, clients={"count": 5, "cohort": 0.4}, seed=1
    )
    executor, story = run(config)
    drawn = members(story)
    assert [len(cohort) for cohort in drawn] == [2] * 8
    assert all(cohort == sorted(cohort) for cohort in drawn)
    assert len({tuple(cohort) for cohort in drawn}) > 3
    assert {name for cohort in drawn for name in cohort} == set(executor.clients)
    assert members(run(config)[1]) == drawn
    assert members(run(config.replace(seed=2))[1]) != drawn


@pytest.mark.parametrize(("cohort", "size"), [(0.01, 1), (0.34, 1), (0.67, 2), (1.0, 3)])
def test_at_least_one_takes_part(tiny: Tiny, cohort: float, size: int) -> None:
    config = tiny(method={"name": "local", "rounds": 1}, clients={"cohort": cohort})
    assert len(members(run(config)[1])[0]) == size


def test_who_sits_out_stays_as_it_was(tiny: Tiny) -> None:
    config = tiny(method={"share": "features", "rounds": 2}, clients={"cohort": 0.34})
    executor, story = run(config)
    first, second = story.kept
    (active,) = members(story)[1]
    changed = {
        "/".join(name.split("/")[:2])
        for name, value in second.tensors.items()
        if name not in first.tensors or not torch.equal(value, first.tensors[name])
    }
    assert changed == {f"{active}/classifier", f"{active}/decoder", f"{active}/local"}
    (line,) = records(story)[1].clients
    assert (line.id, line.evaluated_round) == (active, 2)
    assert line.upload_bytes
    assert line.seconds
    published = executor.account.total(active)["down"]
    assert published
    never = set(executor.clients) - {active, *members(story)[0]}
    assert {executor.account.total(name)["down"] for name in never} == {published}


def test_who_is_not_measured_keeps_its_last_figures(tiny: Tiny) -> None:
    """Means over all that have figures; the obvious way: from every line so far."""
    config = tiny(method={"name": "local", "rounds": 6}, clients={"count": 5, "cohort": 0.4})
    executor, story = run(config)
    last: dict[str, ClientRecord] = {}
    for record in records(story):
        last |= {line.id: line for line in record.clients}
        assert {line.evaluated_round for line in record.clients} == {record.round}
        means = averages(last.values())
        assert all(getattr(record, key) == value for key, value in means.items())
    assert 2 < len(last) <= 5
    for name in executor.clients:
        expected = last[name].accuracies if name in last else NOTHING
        assert executor.figures.of(name) == expected


def test_rounds_without_figures_change_nothing_but_that(
    tiny: Tiny, untimed: Callable[[Any], Any]
) -> None:
    config = tiny(method={"rounds": 5}, clients={"count": 4, "cohort": 0.5})
    _, whole = run(config)
    executor, story = run(config.replace(engine={"evaluate_every": 2}))
    told = [record.accuracy_mean is not None for record in records(story)]
    assert told == [False, True, False, True, True]
    for one, other in zip(records(story), records(whole), strict=True):
        assert [line.took_part for line in one.clients] == [c.took_part for c in other.clients]
        assert one.accuracy_control == (other.accuracy_control if one.round in (2, 4, 5) else None)
    for name, value in whole.kept[-1].tensors.items():
        assert torch.equal(story.kept[-1].tensors[name], value), name
    # In the last round all are measured that have worked since they were.
    assert {executor.figures.round_of(name) for name in executor.clients} <= {None, 4, 5}
    trained = {name for cohort in members(whole) for name in cohort}
    assert {n for n in executor.clients if executor.figures.round_of(n) is not None} == trained
    restored, rest = run(config.replace(engine={"evaluate_every": 2}), story.kept[2])
    assert untimed(records(rest)[-1].document()) == untimed(records(story)[-1].document())
    assert restored.figures.means() == executor.figures.means()


def test_without_a_baseline_none_is_trained(tiny: Tiny) -> None:
    with deterministic():
        data = load_dataset(tiny().data)
        executor = LocalExecutor(
            assemble(tiny(), data, Compute.of(tiny().engine)),
            TestSet(as_images(data.x_test, torch.device("cpu")), torch.from_numpy(data.y_test)),
        )
        story = Story(executor)
        run_rounds(executor.method, executor, keep=story.keep, progress=story)
    assert not any("/local/" in name for name in story.kept[-1].tensors)
    assert records(story)[-1].accuracy_local_only_mean is None


def test_rounds_add_up_to_the_account(tiny: Tiny) -> None:
    executor, story = run(tiny(method={"share": "features+decoder"}, clients={"cohort": 0.67}))
    spent = [executor.spent(name) for name in executor.clients]
    for key, total in (("upload_bytes", "up"), ("download_bytes", "down")):
        told = sum(getattr(record, key) for record in records(story))
        assert told == sum(one[total] for one in spent) > 0
    for name in executor.clients:
        own = [c for record in records(story) for c in record.clients if c.id == name]
        assert sum(c.upload_bytes or 0 for c in own) == executor.spent(name)["up"]
        assert sum(c.download_bytes or 0 for c in own) <= executor.spent(name)["down"]
        seconds = executor.spent(name)["seconds"]
        assert sum(c.seconds or 0.0 for c in own) == pytest.approx(seconds, abs=1e-3)


def test_images_seen_are_counted(tiny: Tiny) -> None:
    config = tiny(method={"name": "local"}, training={"epochs": 2})
    executor, _ = run(config)
    for client in executor.federation.clients:
        assert executor.spent(client.id)["samples"] == 3 * 2 * len(client.images)


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
    own = [line.accuracy for line in records(alone)[-1].clients]
    control = [line.accuracy_local_only for line in records(beside)[-1].clients]
    assert own == control


@pytest.mark.parametrize("method", [{}, {"share": "features"}, {"name": "fedproto"}])
def test_a_restored_executor_goes_on_as_if_nothing_had_been(
    tiny: Tiny, untimed: Callable[[Any], Any], method: dict[str, Any]
) -> None:
    config = tiny(method=method)
    _, whole = run(config)
    _, rest = run(config, whole.kept[0])
    assert rest.told == ["start 3 rounds", "advance", "keep 2", "advance", "keep 3", "advance"]
    done, expected = ([r.document() for r in records(one)] for one in (rest, whole))
    assert untimed(done) == untimed(expected)
    for name, value in whole.kept[-1].tensors.items():
        assert torch.equal(rest.kept[-1].tensors[name], value), name
    assert rest.kept[-1].state.published == whole.kept[-1].state.published
    assert untimed(rest.kept[-1].state.clients) == untimed(whole.kept[-1].state.clients)
    assert untimed(rest.kept[-1].state.totals) == untimed(whole.kept[-1].state.totals)


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
    other = executor_of(config.replace(**changes))
    restore(other, story.kept[0])
    with pytest.raises(RunError, match="does not fit ") as refused:
        _ = [client.model for client in other.federation.clients]
    assert "architecture" in refused.value.hint
