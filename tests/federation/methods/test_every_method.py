"""What holds for every registered method, however a run is cut up and whoever asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import Method, method_of
from fedvtc_edge.federation.methods.supervised import matched_steps
from fedvtc_edge.federation.parallel import WorkerPool
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.federation.worker import Worker
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.workflows import run as workflow
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
Contents = Callable[[Path], dict[str, Any]]
Quickly = Callable[[], AbstractContextManager[None]]

NAMES = METHODS.names()
UNMATCHED = {"fedvtc", "local"}
"""Methods with steps of their own."""


class Cut(Exception):  # noqa: N818  (what it stands for is no error)
    """Stands for the end of a process."""


class CutAfterOne(SilentProgress):
    def advance(self, note: str = "") -> None:
        raise Cut


class PoolHere(WorkerPool):
    """A worker in this process: a method of its own, which knows what was published and no more."""

    def __init__(self, number: int) -> None:
        super().__init__(0)

    def tell(self, setup: dict[str, Any]) -> None:
        self._worker = Worker(json.loads(json.dumps(setup)))

    def run(self, jobs: Iterable[dict[str, Any]], taken: Callable[[Any, Any], None]) -> None:
        for job in jobs:
            taken(job, self._worker.do(json.loads(json.dumps(job))))


def named(tiny: Tiny, name: str, **tables: Any) -> Config:
    method = {"name": name, "rounds": 2, **tables.pop("method", {})}
    return tiny(method=method, data={"public": "rest"}, **tables)


def built(config: Config) -> Method:
    return assemble(config, load_dataset(config.data), Compute.of(config.engine))


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """All but what names the run: how many processes there are is among the settings."""
    of_the_run = ("config.toml", "run.json", "ledger.json", "server/")
    return {name: value for name, value in found.items() if not name.startswith(of_the_run)}


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_alike_cut_off_and_by_workers(
    tiny: Tiny, tmp_path: Path, contents: Contents, quickly: Quickly, name: str
) -> None:
    """Also in cohorts: who was away in the first round takes part in the second."""
    config = named(tiny, name, clients={"count": 4, "cohort": 0.75})
    run(config, out=tmp_path / "one")
    page = (tmp_path / "one" / "report.html").read_text()
    assert name in page
    cut = tmp_path / "two"
    with quickly(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(workflow, "WorkerPool", PoolHere)
        with pytest.raises(Cut):
            run(config.replace(engine={"workers": 2}), out=cut, progress=CutAfterOne())
        resume(cut)
    assert compared(contents(cut)) == compared(contents(tmp_path / "one"))


@pytest.mark.parametrize("name", sorted(set(NAMES) - UNMATCHED))
def test_it_takes_the_steps_of_fedvtc(tiny: Tiny, name: str) -> None:
    """In two rounds those of FedVTC's three; a step sees a batch of local images.

    One that moves two networks counts for each.
    """
    config = named(tiny, name, training={"matched_rounds": 3, "batch": 8})
    method = built(config)
    clients = method.federation.clients
    with deterministic():
        executor = LocalExecutor(method)
        for number in range(3):
            take_steps(method, executor, number, executor.clients)
    for client in clients:
        moved = 1 if client.companion is None else 2
        rounds = (matched_steps(method.federation, client, n, networks=moved) for n in (1, 2))
        steps = sum(rounds)
        assert client.samples_seen == (8 * steps if method.trains else 0)


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_for_sums(tiny: Tiny, name: str) -> None:
    config = named(tiny, name, clients={"count": 10}, transport={"masking": True})
    if method_of(config).maskable(config):
        check(config)
    else:
        with pytest.raises(ConfigError, match="masking") as refused:
            check(config)
        assert "masking" in refused.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["anchored", "example", "client"])
def test_a_guarantee_is_given_or_the_mode_refused(tiny: Tiny, name: str, mode: str) -> None:
    config = named(tiny, name, privacy={"mode": mode})
    if mode in METHODS.find(name).variants:  # type: ignore[attr-defined]
        assert method_of(config) is METHODS.find(name).variants[mode]  # type: ignore[attr-defined]
    else:
        with pytest.raises(ConfigError, match="not noised"):
            check(config)


@pytest.mark.parametrize("name", NAMES)
def test_its_number_is_within_bounds_or_refused(tiny: Tiny, name: str) -> None:
    knob = method_of(named(tiny, name)).knob
    if knob is None:
        with pytest.raises(ConfigError, match="nothing to set"):
            check(named(tiny, name, method={"knob": 1.0}))
        return
    assert knob.default in knob.tuned_over
    for value in knob.tuned_over:
        check(named(tiny, name, method={"knob": value}))
    with pytest.raises(ConfigError, match="expected"):
        check(named(tiny, name, method={"knob": knob.least - 1}))
