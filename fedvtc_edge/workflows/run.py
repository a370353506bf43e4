"""From settings to a finished run: the one place where all parts meet."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset, load_dataset
from fedvtc_edge.errors import RunError
from fedvtc_edge.federation.assembly import assemble, assignments, clients
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.federation import no_ledger
from fedvtc_edge.federation.participation import ParticipationSimulator
from fedvtc_edge.federation.preflight import (
    check_names,
)
from fedvtc_edge.federation.rounds import LocalEngine
from fedvtc_edge.federation.server import Refusals, ignore_refusal
from fedvtc_edge.federation.summary import ClientStats, finish, summarise
from fedvtc_edge.flower.simulation import simulate
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import Checkpoint, RunDirectory
from fedvtc_edge.storage.lock import alone
from fedvtc_edge.training.compute import Compute, as_images, deterministic


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Args:
        summary: The content of ``summary.json``.
        directory: The run directory, or None where nothing was written.
    """

    summary: dict[str, Any]
    directory: Path | None


def run(config: Config, *, out: Path | None = None, progress: Progress | None = None) -> RunResult:
    """Train one federation.

    Args:
        config: The settings, from :func:`fedvtc_edge.load_config`.
        out: New or empty folder for the run directory; None writes nothing.
        progress: Told of each round; None is silent.

    Raises:
        ConfigError: An architecture, device or size that does not exist or fit.
        DataError: A data set that cannot be used.
        RunError: ``out`` cannot be written or is not empty.
    """
    check_names(config)
    directory = None if out is None else RunDirectory.vacant(Path(out), config)
    data = load_dataset(config.data, public_classes=config.privacy.mode != "none")
    if config.engine.name == "flower":
        return _simulate(config, directory, progress or SilentProgress())
    return _run(config, data, directory, None, progress or SilentProgress())


def resume(directory: Path, *, progress: Progress | None = None) -> RunResult:
    """Go on with a run that was cut off, from its last finished round.

    Raises:
        RunError: No run there, a finished one, one of another version, a damaged one, or one
            that another process is at work on.
    """
    RunDirectory.reopen(Path(directory))  # is it one? A lock would make a file there
    with alone(Path(directory)):
        run_directory = RunDirectory.reopen(Path(directory))
        if run_directory.finished:
            raise RunError(
                f"{directory} is finished already", hint=f"see it: fedvtc-edge report {directory}"
            )
        state = run_directory.latest()
        config = run_directory.config
        if config.engine.name == "flower":
            run_directory.begin()
            return RunResult(simulate(run_directory, progress or SilentProgress()), directory)
        data = load_dataset(config.data, public_classes=config.privacy.mode != "none")
        return _run(config, data, run_directory, state, progress or SilentProgress())


def _simulate(config: Config, directory: RunDirectory | None, progress: Progress) -> RunResult:
    """Through Flower's processes, which meet in the run directory; a passing one if need be."""
    with ExitStack() as held:
        kept = directory
        if kept is None:
            scratch = held.enter_context(tempfile.TemporaryDirectory(prefix="fedvtc-"))
            kept = RunDirectory.vacant(Path(scratch), config)
        held.enter_context(alone(kept.path))
        kept.begin()
        return RunResult(simulate(kept, progress), directory.path if directory else None)


def run_without_trace(config: Config, data: Dataset) -> dict[str, Any]:
    """One run of a comparison: no files, and no local-only doubles to slow it down.

    On the local engine, whatever the settings say: nothing but time would differ.
    """
    check_names(config)
    return _run(config, data, None, None, SilentProgress(), with_baselines=False).summary


def _run(
    config: Config,
    data: Dataset,
    directory: RunDirectory | None,
    state: Checkpoint | None,
    progress: Progress,
    *,
    with_baselines: bool = True,
) -> RunResult:
    with deterministic(), ExitStack() as held:
        compute = Compute.of(config.engine)
        releases = ReleaseStore(directory.path if directory else None)
        recorder = directory.record_upload if directory else discard_upload
        refuse = Refusals(directory.path).note if directory else ignore_refusal
        record = directory.record if directory else no_ledger
        method = assemble(
            config,
            data,
            compute,
            recorder,
            releases=releases,
            refuse=refuse,
            record=record,
            folder=directory.path if directory else None,
        )
        baselines = []
        if with_baselines and not method.is_own_control:
            baselines = clients(config, data, compute, decoders=False)
        test = TestSet(as_images(data.x_test, compute.device), torch.from_numpy(data.y_test.copy()))
        fleet = assignments(config, data)
        taking_part = {client.id for client in method.federation.clients}
        profiles = {p.client: p.profile for p in fleet if p.profile and p.client in taking_part}
        engine = LocalEngine(
            method,
            baselines,
            test,
            attendance=ParticipationSimulator(method, profiles),
            keep=directory.save if directory else _forget,
            progress=progress,
        )
        if state is not None:
            engine.restore(state)
        if directory is not None:  # not before all parts fit, or a typing error would leave a run
            if not directory.begun:
                held.enter_context(alone(directory.path))
            directory.begin()
        try:
            engine.run()
        finally:
            progress.close()
        figures = [
            ClientStats.of(client, config, profiles.get(client.id))
            for client in method.federation.clients
        ]
        summary = summarise(method, figures, engine.records, engine.account, data, fleet)
        # All rounds are done and kept: nothing will be noised or opened again.
        releases.forget_secrets()
        method.federation.transport.end()
        if directory is not None:
            finish(directory, method, data, summary)
    return RunResult(summary, directory.path if directory else None)


def discard_upload(round_: int, sender: str, kind: str, data: bytes) -> None:
    """Witness of a run that leaves nothing on disk."""


def _forget(state: Checkpoint) -> None:
    """Keeper of a run that leaves nothing on disk."""
