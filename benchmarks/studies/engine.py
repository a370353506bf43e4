"""Study of the engine's cost beside a bare torch loop that takes the same steps.

``python -m fedvtc_edge.benchmarks.studies engine --json``

Five LeNet clients learn the built-in digits at the default settings, twice:

* **engine**: :func:`run_rounds` with ``method = local`` on an assembled
  federation, in the deterministic mode of every run; its evaluation (four figures
  a client), its records and its checkpoint on disk after each round are in.
* **floor**: the loop that one would write by hand, without a line of the engine's
  training, evaluation or bookkeeping. Per client and round: a new
  ``torch.optim.Adam(lr, fused=True)``, as in the engine; per step: a slice of
  ``randperm``, pixel noise, forward, cross-entropy over the client's own classes,
  backward, step; after the round, one plain forward over the test set in the
  engine's chunks, and its accuracy. Not in the floor: deterministic mode, records,
  files. One thread, as in the engine, which on networks this small is the cheapest.

Both begin with the same weights, data and random streams and end with the same
weights bit for bit (a test holds it), so that they differ in nothing but overhead.
Neither pays for what happens once per run: reading data, building networks.

Figures are medians of the process's CPU time, user and system, so that waiting (for
a busy machine, for a disk) counts for neither. Many short repeats are steadier than
few long ones: a neighbour's burst then spoils only a few of them.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import Config, TrainingSettings, load_config
from fedvtc_edge.data import Dataset, load_data
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.evaluation import TestSet
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.rounds import run_rounds, take_steps
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.seeding import generator
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, as_images, deterministic

from .runner import Document, Study, paired, positive

_CHUNK = 256
"""Images per forward of the floor's evaluation: as many as in the engine's."""


class Floor(NamedTuple):
    """CPU seconds of the floor, all rounds together, and each client's last accuracy."""

    training: float
    evaluation: float
    accuracies: list[float]


def settings(rounds: int) -> Config:
    """Five LeNet clients, each alone, on the CPU; all else is the default."""
    return load_config(
        {
            "clients": {"count": 5, "architectures": ["lenet"]},
            "method": {"name": "local", "rounds": rounds},
            "engine": {"device": "cpu"},
        }
    )


def measure(rounds: int, repeats: int) -> Document:
    """Measure engine and floor in turn, after one short untimed run of each.

    Returns:
        Median CPU seconds per round and their ratios: ``ratio`` of everything,
        ``ratio_training_only`` of the two training loops, and
        ``ratio_without_evaluation`` of all that the engine does to the floor's
        training steps alone, the strictest one.
    """
    config = settings(rounds)
    data = load_data(config)
    for warm_up in (engine_seconds, training_seconds, floor_seconds):
        warm_up(settings(1), data)
    found = paired(
        {
            "engine": lambda: (engine_seconds(config, data),),
            "floor": lambda: floor_seconds(config, data)[:2],
            "training": lambda: (training_seconds(config, data),),
        },
        repeats,
    )
    engine, floor, training, bare = (
        statistics.median(figures) / rounds
        for figures in (
            [sum(seconds) for seconds in found["engine"]],
            [sum(seconds) for seconds in found["floor"]],
            [sum(seconds) for seconds in found["training"]],
            [seconds[0] for seconds in found["floor"]],
        )
    )
    return {
        "floor_cpu_s_per_round": round(floor, 6),
        "engine_cpu_s_per_round": round(engine, 6),
        "ratio": round(engine / floor, 4),
        "ratio_training_only": round(training / bare, 4),
        "ratio_without_evaluation": round(engine / bare, 4),
        "rounds": rounds,
        "repeats": repeats,
        "clients": config.clients.count,
        "torch": torch.__version__,
    }


def engine_seconds(config: Config, data: Dataset) -> float:
    """CPU seconds of all rounds of the engine."""
    with tempfile.TemporaryDirectory() as folder, deterministic():
        directory = RunDirectory.create(Path(folder) / "run", config)
        executor = prepare(config, data, directory)
        gc.collect()  # neither side pays for the other's rubbish
        begin = time.process_time()
        run_rounds(executor.method, executor, keep=directory.save, progress=SilentProgress())
        return time.process_time() - begin


def training_seconds(config: Config, data: Dataset) -> float:
    """CPU seconds of the engine's training alone: no evaluation, no files."""
    with deterministic():
        executor = LocalExecutor(assemble(config, data, Compute.of(config.engine)))
        gc.collect()
        begin = time.process_time()
        for number in range(1, config.method.rounds + 1):
            take_steps(executor.method, executor, number, executor.clients)
        return time.process_time() - begin


def floor_seconds(config: Config, data: Dataset) -> Floor:
    """CPU seconds of all rounds of the bare loop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        members = list(assemble(config, data, Compute.of(config.engine)).federation.clients)
        for member in members:
            _ = member.model  # built now: the engine's are, too
        test, labels = _test(data)
        gc.collect()
        return bare_loop(config, members, test, labels)
    finally:
        torch.set_num_threads(threads)


def prepare(config: Config, data: Dataset, directory: RunDirectory) -> LocalExecutor:
    """The engine as a run has it, ready for the first round."""
    method = assemble(
        config, data, Compute.of(config.engine), directory.record_upload, record=directory.record
    )
    return LocalExecutor(method, TestSet(*_test(data)))


def bare_loop(config: Config, members: Sequence[Client], test: Tensor, labels: Tensor) -> Floor:
    """The floor: see the top of this file.

    Args:
        members: Used for their data and weights only; the weights are trained in place.
        test: Images [N, channels, size, size].
        labels: [N].
    """
    training, evaluation, accuracies = 0.0, 0.0, list[float]()
    for number in range(1, config.method.rounds + 1):
        begin = time.process_time()
        for member in members:
            stream = generator(config.seed, member.id, number, "train")
            _train(
                member.model, member.images, member.labels, ~member.present, config.training, stream
            )
        trained = time.process_time()
        accuracies = [_accuracy(member.model, test, labels) for member in members]
        training += trained - begin
        evaluation += time.process_time() - trained
    return Floor(training, evaluation, accuracies)


def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    absent: Tensor,
    recipe: TrainingSettings,
    stream: torch.Generator,
) -> None:
    model.train()
    adam = torch.optim.Adam(model.parameters(), lr=recipe.rate, fused=True)
    for _ in range(recipe.epochs):
        for batch in torch.split(torch.randperm(len(images), generator=stream), recipe.batch):
            x = images[batch]
            x = x + recipe.pixel_noise * torch.randn(x.shape, generator=stream)
            logits = model(x).masked_fill(absent, float("-inf"))
            loss = F.cross_entropy(logits, labels[batch])
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    logits = torch.cat([model(chunk) for chunk in torch.split(images, _CHUNK)])
    return float((logits.argmax(1) == labels).double().mean())


def _test(data: Dataset) -> tuple[Tensor, Tensor]:
    return as_images(data.x_test, torch.device("cpu")), torch.from_numpy(data.y_test.copy())


def _lines(result: Document) -> Iterator[str]:
    yield (
        f"five LeNet clients on digits, median of {result['repeats']} × {result['rounds']} rounds"
    )
    yield f"floor   {1e3 * result['floor_cpu_s_per_round']:8.1f} ms CPU a round (bare torch loop)"
    yield f"engine  {1e3 * result['engine_cpu_s_per_round']:8.1f} ms CPU a round"
    yield f"ratio   {result['ratio']:8.3f}"
    yield f"        {result['ratio_training_only']:8.3f} training steps alone"
    yield (
        f"        {result['ratio_without_evaluation']:8.3f} all of the engine to the floor's "
        "training steps alone"
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=3, help="per repeat (default: 3)")


STUDY = Study("engine", __doc__, _options, measure, _lines, repeats=25)


if __name__ == "__main__":
    STUDY.main()
