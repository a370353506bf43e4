"""From settings to a finished run: the one place where all parts meet."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedvtc_edge.config import Config
from fedvtc_edge.data import Dataset, load_data
from fedvtc_edge.data.arrays import pack
from fedvtc_edge.data.sources import BUILTIN
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.choosing import CHOOSE, choose
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.federation import measure_untold, no_ledger
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import Method, method_of
from fedvtc_edge.federation.parallel import ParallelExecutor, WorkerPool, releases_of
from fedvtc_edge.federation.participation import ParticipationSimulator
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.roster import Roster
from fedvtc_edge.federation.rounds import run_rounds
from fedvtc_edge.federation.server import Refusals, discard_upload, ignore_refusal, telling
from fedvtc_edge.federation.summary import (
    Outcome,
    finish,
    kept_at_upload,
    stats_of,
    summarise,
)
from fedvtc_edge.flower.simulation import simulate
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import pinned
from fedvtc_edge.models.registry import Body, Function
from fedvtc_edge.plugins import ARCHITECTURES, EXTRACTORS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.spending import Spending, Spent
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.checkpoint import naming_damage
from fedvtc_edge.runs.directory import (
    Checkpoint,
    RunDirectory,
    as_json,
    new_number,
    public_name,
)
from fedvtc_edge.storage.lock import alone
from fedvtc_edge.training.compute import Compute, as_images, deterministic

Callback = Callable[[dict[str, Any]], None]

CHOICE = "extractor_choice.json"
"""Where a run directory keeps how well each extractor did that could have been chosen."""

DATA = "data.npz"
"""Where a run directory keeps images that were given in memory."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Args:
        summary: The content of ``summary.json``.
        directory: The run directory, or None where nothing was written.
    """

    summary: dict[str, Any]
    directory: Path | None


def run(
    config: Config,
    *,
    data: Dataset | Mapping[str, Any] | None = None,
    architectures: Mapping[str, Body] | None = None,
    extractor: Callable[[Tensor], Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    out: Path | None = None,
    progress: Progress | None = None,
    spending: Spending | None = None,
) -> RunResult:
    """Train one federation.

    Args:
        data: Images and labels in place of what ``config.data.name`` names: a data set, or
            arrays by the keys of an ``.npz`` file (``x_train``, ``y_train``, ``x_test``,
            ``y_test``, ``class_names``). A run directory keeps them as ``data.npz``.
        architectures: Bodies by name, for this call; see :func:`fedvtc_edge.models.register`.
        extractor: A frozen extractor for this call, of images [N, channels, H, W] in [0, 1] to
            features [N, d]. It goes by ``method.extractor``, or by ``own`` where that is
            ``random``; see :func:`fedvtc_edge.models.register_extractor`.
        callbacks: Each called after each round with the round's line of ``metrics.jsonl``.
        out: New or empty folder for the run directory; None writes nothing.
        progress: Told of each round; None is silent.
        spending: Remembers what is released under a privacy mode, of which data, and warns
            of a second release; None remembers nothing.

    Raises:
        ConfigError: A method, architecture, device or size that does not exist or fit; or
            Python objects for the processes of engine flower.
        DataError: A data set that cannot be used.
        RunError: ``out`` cannot be written or is not empty.
    """
    with ExitStack() as held:
        _refuse_objects(config, bool(architectures or extractor), bool(callbacks))
        held.enter_context(ARCHITECTURES.lent(architectures or {}))
        if extractor is not None:
            name = config.method.extractor if config.method.extractor != "random" else "own"
            config = config.replace(method={"extractor": name})
            held.enter_context(EXTRACTORS.lent({name: partial(_as_module, extractor)}))
        check(config)
        files, settings = {}, config.data
        if data is not None:
            files[DATA] = pack(data)
            scratch = held.enter_context(tempfile.TemporaryDirectory(prefix="fedvtc-"))
            settings = settings.model_copy(update={"name": str(Path(scratch, DATA))})
            Path(settings.name).write_bytes(files[DATA])
            lasting = settings.name if out is None else str(Path(out).absolute() / DATA)
            config = config.replace(data={"name": lasting})
        directory = None if out is None else RunDirectory.vacant(Path(out), config, files)
        shown = progress or SilentProgress()
        choosing = config.method.extractor == CHOOSE
        if not choosing:  # what cannot be had is not worth the reading of data
            config = pinned(config)
        dataset = load_data(config.model_copy(update={"data": settings}))
        if choosing:
            config, accuracies = choose(config, dataset, shown.say)
            files[CHOICE] = as_json(accuracies)
            config = pinned(config)
        if directory is not None:
            directory = RunDirectory.vacant(directory.path, config, files)
        mechanism = mechanism_of(config)
        if spending is not None and mechanism is not None and settings.name.lower() not in BUILTIN:
            name = "of a simulation" if directory is None else directory.name
            spent = Spent.of(mechanism, name, secrets.token_hex(16))
            if before := spending.enter(spent, dataset.x_train, again=True):
                shown.say(f"warning: {before}")
        if config.engine.name == "flower":
            return _simulate(config, directory, shown)
        choice = parse_json(files[CHOICE]) if CHOICE in files else None
        return _run(config, dataset, directory, None, shown, callbacks=callbacks, choice=choice)


def _refuse_objects(config: Config, networks: bool, callbacks: bool) -> None:
    """Refuse what other processes cannot have.

    Args:
        networks: Whether architectures or an extractor are given in memory.
        callbacks: Whether callbacks are.
    """
    load = 'load a file: fedvtc_edge.plugins.load("own.py")'
    if config.engine.name == "flower" and (networks or callbacks):
        raise ConfigError(
            "architectures, an extractor or callbacks in memory with engine.name = 'flower', "
            "whose processes cannot have them",
            hint=f"{load}; or use the local engine",
        )
    if config.engine.workers > 1 and networks:
        raise ConfigError(
            f"architectures or an extractor in memory with engine.workers = "
            f"{config.engine.workers}, whose processes cannot have them",
            hint=f"{load}; or set engine.workers = 1",
        )


def _as_module(extractor: Callable[[Tensor], Tensor], shape: ImageShape) -> nn.Module:
    """A function as a module; a module as it is."""
    if isinstance(extractor, nn.Module):
        return extractor
    return Function(extractor)


def resume(directory: Path, *, progress: Progress | None = None) -> RunResult:
    """Go on with a run that was cut off, from its last finished round.

    Raises:
        RunError: No run there, a finished one, one of another version, a damaged one, or one
            that another process is at work on.
    """
    with RunDirectory.resumed(Path(directory)) as run_directory:
        state = run_directory.latest()
        config = run_directory.config
        if config.engine.name == "flower":
            run_directory.begin()
            return RunResult(simulate(run_directory, progress or SilentProgress()), directory)
        data = load_data(config)
        made = directory / CHOICE
        with naming_damage(made, "restore it from a copy, or start a new run"):
            choice = parse_json(made.read_bytes()) if made.is_file() else None
        shown = progress or SilentProgress()
        return _run(config, data, run_directory, state, shown, choice=choice)


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

    Returns:
        The content of ``summary.json``, with the method's ``decoder_seconds`` and
        ``decoder_bytes`` where it has decoders.
    """
    costs: dict[str, float] = {}

    def note(method: Method) -> None:
        costs.update(method.decoder_cost())

    check(config)
    if config.method.extractor == CHOOSE:
        config, _ = choose(config, data, SilentProgress().say)
    config = pinned(config)
    how: dict[str, Any] = {"with_baselines": False, "done": note}
    return {**_run(config, data, None, None, SilentProgress(), **how).summary, **costs}


def _run(
    config: Config,
    data: Dataset,
    directory: RunDirectory | None,
    state: Checkpoint | None,
    progress: Progress,
    *,
    with_baselines: bool = True,
    callbacks: Sequence[Callback] = (),
    choice: dict[str, float] | None = None,
    done: Callable[[Method], None] | None = None,
) -> RunResult:
    with deterministic(), ExitStack() as held:
        compute, folder = Compute.of(config.engine), directory.path if directory else None
        workers = min(config.engine.workers, config.clients.per_round)
        pool = None
        if workers > 1 and method_of(config).trains:
            pool = held.enter_context(WorkerPool(workers))
        releases = releases_of(folder, pool)
        recorder = directory.record_upload if directory else discard_upload
        noted = Refusals(directory.path).note if directory else ignore_refusal
        record = directory.record if directory else no_ledger
        method = assemble(
            config,
            data,
            compute,
            recorder,
            releases=releases,
            refuse=telling(noted, progress.say),
            record=record,
            measuring=kept_at_upload(directory.path) if directory else measure_untold,
            folder=folder,
            run=directory.name if directory else public_name(config, new_number()),
            weights=directory.weights if directory else None,
        )
        roster = method.federation.clients
        assert isinstance(roster, Roster)
        test = TestSet(as_images(data.x_test, compute.device), torch.from_numpy(data.y_test.copy()))

        def keep(state: Checkpoint) -> None:
            if directory is not None:
                directory.save(state)
            for callback in callbacks:
                assert state.record is not None  # this engine keeps nothing before the first round
                callback(state.record.document())

        profiles = {
            name: member.assignment.profile
            for name, member in roster.members.items()
            if member.assignment.profile
        }
        attendance = ParticipationSimulator(method, profiles)
        baselines = with_baselines and config.method.baseline
        if pool is None:
            executor = LocalExecutor(method, test, baselines=baselines, attendance=attendance)
        else:
            executor = ParallelExecutor(
                pool, method, test, baselines=baselines, attendance=attendance
            )
        if state is not None:
            executor.restore(state)
        if directory is not None:  # not before all parts fit, or a typing error would leave a run
            if not directory.begun:
                held.enter_context(alone(directory.path))
            directory.begin()
        if pool is not None:
            pool.set_up(
                config,
                data,
                method.federation.run,
                weights=roster.weights.folder,
                releases=folder,
                baselines=baselines and not method.is_own_control,
            )
        try:
            run_rounds(method, executor, keep=keep, progress=progress)
        finally:
            progress.close()
        if done is not None:
            done(method)
        figures = stats_of(roster, config, trains=method.trains)
        summary = summarise(method, figures, Outcome.of(executor), data, roster.fleet)
        if choice is not None:
            summary.extractor_choice = choice
        # All rounds are done and kept: nothing will be noised or opened again.
        releases.forget_secrets()
        method.federation.transport.end()
        if directory is not None:
            finish(directory, method, data, summary)
    return RunResult(summary.document(), directory.path if directory else None)
