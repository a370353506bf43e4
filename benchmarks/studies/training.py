"""Study of the virtual clock's error: steps of training as modelled and as measured here.

``python -m fedvtc_edge.benchmarks.studies training [--device mine.toml] [--json]``

Each phase of a client's round (training, fitting the decoder, fine-tuning) of every
architecture is recorded as the clock does it, and timed: the median, over repeats, of the
thread's CPU time of some steps less that of one. Each architecture is predicted by the three
figures that were fitted to the *other* ones. With a profile of this machine
(``fedvtc-edge devices calibrate``) what the clock makes of it is held against the same times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import nn

from fedvtc_edge.config import load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.recorder import probe_copy, record
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.federation.workload import TrainingTask, Workload, one_step
from fedvtc_edge.models import architectures
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.training.steps import Adam, step

from ..latency import BAND, NodeCost, Sample, fit, leave_one_out
from .runner import Document, Study, listed, table, timed

_STEPS = 6
_LAYERS, _WIDTH, _TURNS = 20, 8, 200


def study(networks: Sequence[str], repeats: int, device: Speed | None = None) -> Document:
    """Measure the phases of some architectures on the built-in digits and predict them.

    Args:
        networks: At least three architectures.
        repeats: Of each measurement.
        device: What the clock makes of this machine's profile.

    Raises:
        ConfigError: No such architecture, or too few of them.
    """
    config = load_config({"clients": {"count": len(networks), "architectures": list(networks)}})
    data, samples = load_data(config), []
    with deterministic():
        method = assemble(config, data, Compute.of(config.engine))
        executor = LocalExecutor(method)
        take_steps(method, executor, 0, executor.clients)
        for client in method.federation.clients:
            tasks = Workload(method, config.method.rounds).of(client).tasks
            for task in {task.name: task for task in reversed(tasks)}.values():
                samples.append(_sample(client, task, repeats))
    rows = []
    for sample, held in zip(samples, leave_one_out(samples), strict=True):
        row = asdict(held) | {"within": held.within, "operations": len(sample.nodes)}
        if device is not None:
            flops, traffic = zip(*((n.flops, n.bytes) for n in sample.nodes), strict=True)
            row["device_ratio"] = 1e3 * device.seconds(flops, traffic) / sample.ms
        rows.append(row)
    return {
        "schema": 1,
        "unit": "milliseconds of thread CPU time per step, median; one thread",
        "repeats": repeats,
        "torch": torch.__version__,
        "band": BAND,
        "phases": rows,
        "within": sum(row["within"] for row in rows),
        "fitted": asdict(fit(samples)),
        "torch_overhead_us": overhead_us(),
    }


def overhead_us() -> float:
    """Microseconds that torch needs to start one operation of a training step here.

    Of a network so small that there is nothing else to wait for.
    """
    layers: list[nn.Module] = []
    for _ in range(_LAYERS):
        layers += [nn.Linear(_WIDTH, _WIDTH), nn.ReLU()]
    network, batch = nn.Sequential(*layers), torch.ones(2, _WIDTH)
    adam = Adam(network.parameters(), 1e-3)

    def tiny_step() -> None:
        step(network(batch).square().mean(), adam)

    with deterministic():
        seconds = timed(tiny_step)
        median = statistics.median(seconds() for _ in range(_TURNS))
        operations = record(tiny_step).flops.size
    return 1e6 * median / operations


def _sample(client: Client, task: TrainingTask, repeats: int) -> Sample:
    size = max(round(min(task.size, client.settings.batch)), 1)
    work = one_step(client, task, size)
    nodes = tuple(
        NodeCost("training", float(flops), float(traffic))
        for flops, traffic in zip(work.flops, work.traffic, strict=True)
    )

    def spent(steps: int) -> float:
        probe = probe_copy(client, size, steps)
        begin = time.thread_time()
        task.work(probe, steps)
        return time.thread_time() - begin

    spent(2)
    taken = [(spent(1 + _STEPS) - spent(1)) / _STEPS for _ in range(repeats)]
    name = f"{client.architecture} {task.name} x{size}"
    return Sample(name, nodes, 1e3 * statistics.median(taken), group=client.architecture)


def _lines(result: Document) -> Iterator[str]:
    rows = [
        [
            row["name"],
            str(row["operations"]),
            *(f"{row[key]:.2f}" for key in ("measured_ms", "predicted_ms", "ratio")),
            f"{row['device_ratio']:.2f}" if "device_ratio" in row else "-",
        ]
        for row in result["phases"]
    ]
    header = ("phase", "operations", "measured", "modelled", "ratio", "clock")
    yield from table(header, rows)
    count, fitted, band = len(rows), result["fitted"], result["band"]
    yield f"{result['unit']}; {result['repeats']} repeats, torch {result['torch']}"
    yield (
        f"modelled by the other architectures: {result['within']} of {count} phases within "
        f"{1 / band:g} to {band:g} of measured"
    )
    yield (
        f"fitted to all: {fitted['gflops']:.3g} GFLOP/s, {fitted['gbps']:.3g} GB/s, "
        f"{fitted['overhead_us']:.3g} µs an operation"
    )
    yield f"torch_overhead_us of this machine: {result['torch_overhead_us']:.3g}"
    ratios = [row["device_ratio"] for row in result["phases"] if "device_ratio" in row]
    if ratios:
        inside = sum(1 / band <= ratio <= band for ratio in ratios)
        yield f"what the clock makes of the device's profile: {inside} of {count} within"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--architectures", type=listed(str), default=architectures(), metavar="NAME,…"
    )
    parser.add_argument("--device", help="profile of this machine, to hold against the times")


def _measure(architectures: Sequence[str], repeats: int, device: str | None) -> Document:
    speed = Speed.training(DeviceProfile.load(device)) if device else None
    return study(architectures, repeats, speed)


STUDY = Study("training", __doc__, _options, _measure, _lines, repeats=5)


if __name__ == "__main__":
    STUDY.main()
