"""How far the virtual clock is off: steps of training as modelled and as measured here.

``python -m fedvtc_edge.benchmarks.studies.training [--device mine.toml] [--json]``

Each phase of a client's round (training, fitting the decoder, fine-tuning) of every
architecture is recorded as the clock does it, and timed: the median, over repeats, of the
thread's CPU time of some steps less that of one. Each architecture is predicted by the three
figures that were fitted to the *other* ones. With a profile of this machine
(``fedvtc-edge devices calibrate``) what the clock makes of it is held against the same times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from fedvtc_edge.config import load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.clock import Speed
from fedvtc_edge.devices.recorder import probe_copy, record
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.rounds import LocalExecutor, take_steps
from fedvtc_edge.federation.workload import TrainingTask, Workload, one_step
from fedvtc_edge.models import architectures
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.training.steps import Adam, step

from ..arguments import positive
from ..latency import BAND, NodeCost, Sample, fit, leave_one_out

_STEPS = 6
_LAYERS, _WIDTH, _TURNS = 20, 8, 200


def study(networks: Sequence[str], repeats: int, device: Speed | None = None) -> dict[str, Any]:
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
    """What torch needs to start one operation of a training step here, microseconds.

    Of a network so small that there is nothing else to wait for.
    """
    layers: list[nn.Module] = []
    for _ in range(_LAYERS):
        layers += [nn.Linear(_WIDTH, _WIDTH), nn.ReLU()]
    network, batch = nn.Sequential(*layers), torch.ones(2, _WIDTH)
    adam = Adam(network.parameters(), 1e-3)
    times = []
    with deterministic():
        for _ in range(_TURNS):
            begin = time.thread_time()
            step(network(batch).square().mean(), adam)
            times.append(time.thread_time() - begin)
        operations = record(lambda: step(network(batch).square().mean(), adam)).flops.size
    return 1e6 * statistics.median(times) / operations


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.benchmarks.studies.training``."""
    parser = argparse.ArgumentParser(
        prog="fedvtc_edge.benchmarks.studies.training", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--architectures", default=",".join(architectures()), metavar="NAME,…")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--device", help="profile of this machine, to hold against the times")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    try:
        device = Speed.training(DeviceProfile.load(given.device)) if given.device else None
        result = study(given.architectures.split(","), given.repeats, device)
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    print(json.dumps(result, indent=2) if given.json else "\n".join(_lines(result)))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{'phase':<32}{'operations':>11}{'measured':>10}{'modelled':>10}{'ratio':>7}{'clock':>7}"
    ]
    for row in result["phases"]:
        clock = f"{row['device_ratio']:7.2f}" if "device_ratio" in row else f"{'-':>7}"
        lines.append(
            f"{row['name']:<32}{row['operations']:11}{row['measured_ms']:10.2f}"
            f"{row['predicted_ms']:10.2f}{row['ratio']:7.2f}{clock}"
        )
    count, fitted, band = len(result["phases"]), result["fitted"], result["band"]
    lines += [
        f"{result['unit']}; {result['repeats']} repeats, torch {result['torch']}",
        f"modelled by the other architectures: {result['within']} of {count} phases within "
        f"{1 / band:g} to {band:g} of measured",
        f"fitted to all: {fitted['gflops']:.3g} GFLOP/s, {fitted['gbps']:.3g} GB/s, "
        f"{fitted['overhead_us']:.3g} µs an operation",
        f"torch_overhead_us of this machine: {result['torch_overhead_us']:.3g}",
    ]
    ratios = [row["device_ratio"] for row in result["phases"] if "device_ratio" in row]
    if ratios:
        inside = sum(1 / band <= ratio <= band for ratio in ratios)
        lines.append(f"what the clock makes of the device's profile: {inside} of {count} within")
    return lines


if __name__ == "__main__":
    main()
