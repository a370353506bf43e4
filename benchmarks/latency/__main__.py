"""How far the latency model is off, on graphs that it was not fitted to.

``python -m fedvtc_edge.benchmarks.latency`` exports the classifier of every
architecture, the synthesiser and the anchor, runs them in onnxruntime on one thread,
and predicts each network by a model that was fitted to the others alone: all sizes and
batches of a network are left out together, for they tell of each other.

The graphs take turns in one process, and figures are medians of the thread's CPU time,
so that a busy machine spoils none of them alone. Before each timed run the graph runs
a few times, as it would when it is used over and over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime

from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.devices.calibration import calibrate
from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.export.runtime import Arrays, Session
from fedvtc_edge.models import architectures

from ..arguments import positive
from . import BAND, LatencyModel, Sample, fit, leave_one_out
from .costs import node_costs
from .graphs import exported

_WARM_UP = 4


def study(
    networks: Sequence[str],
    sizes: Sequence[int],
    batches: Sequence[int],
    repeats: int,
    device: Callable[[], LatencyModel] | None = None,
) -> dict[str, Any]:
    """Measure the graphs and predict each network from the others.

    Args:
        networks: Architectures whose classifiers are measured.
        sizes: Of the images.
        batches: Samples of one inference.
        repeats: Turns of the measurement.
        device: Gives a model of this machine, to hold against the same times; asked just
            before these are taken.

    Raises:
        ConfigError: No such architecture, or too few graphs to fit to.
    """
    steps: dict[str, tuple[Session, Arrays]] = {}
    about: dict[str, tuple[str, bytes, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in exported(networks, sizes, Path(folder)):
            _say(f"exported {graph.network}, {graph.size} pixels")
            for batch in batches:
                name = f"{graph.network} {graph.size}px x{batch}"
                steps[name] = (graph.session, graph.feed(batch))
                about[name] = (graph.network, graph.model, batch)
        modelled = None if device is None else device()
        medians = _medians(steps, repeats)
    samples = [
        Sample(name, node_costs(model, batch=batch), medians[name], group=network)
        for name, (network, model, batch) in about.items()
    ]
    rows = []
    for sample, held in zip(samples, leave_one_out(samples), strict=True):
        row = asdict(held) | {
            "within": held.within,
            "nodes": len(sample.nodes),
            "mflop": sum(node.flops for node in sample.nodes) / 1e6,
            "mbyte": sum(node.bytes for node in sample.nodes) / 1e6,
        }
        if modelled is not None:
            row["device_ms"] = modelled.milliseconds(sample.nodes)
            row["device_ratio"] = row["device_ms"] / sample.ms
        rows.append(row)
    document = {
        "schema": 1,
        "unit": "milliseconds of thread CPU time, median; one thread",
        "repeats": repeats,
        "onnxruntime": onnxruntime.__version__,
        "band": BAND,
        "graphs": rows,
        "within": sum(row["within"] for row in rows),
        "fitted": asdict(fit(samples)),
    }
    if modelled is not None:
        inside = [1 / BAND <= row["device_ratio"] <= BAND for row in rows]
        document["device"] = asdict(modelled) | {"within": sum(inside)}
    return document


def _medians(steps: dict[str, tuple[Session, Arrays]], repeats: int) -> dict[str, float]:
    """Milliseconds of steps that take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, (session, feed) in steps.items():
            for _ in range(_WARM_UP):
                session(feed)
            begin = time.thread_time()
            session(feed)
            times[name].append(time.thread_time() - begin)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.benchmarks.latency``."""
    parser = argparse.ArgumentParser(prog="fedvtc_edge.benchmarks.latency", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--batches", type=_numbers, default=(1, 32), help="default: 1,32")
    parser.add_argument(
        "--sizes", type=_sizes, default=(8, 32), help="pixels, multiples of 4; default: 8,32"
    )
    parser.add_argument(
        "--architectures", type=_words, default=architectures(), help="default: all"
    )
    parser.add_argument("--repeats", type=positive, default=21, help="default: 21")
    second = parser.add_mutually_exclusive_group()
    second.add_argument("--device", help="profile of this machine, to hold against the times too")
    second.add_argument(
        "--calibrate", action="store_true", help="make that profile just before they are taken"
    )
    given = parser.parse_args(arguments)
    try:
        device = _calibrated if given.calibrate else None
        if given.device is not None:
            model = LatencyModel.of(DeviceProfile.load(given.device))
            device = lambda: model  # noqa: E731
        result = study(given.architectures, given.sizes, given.batches, given.repeats, device)
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    print(json.dumps(result) if given.json else "\n".join(_lines(result)))


def _calibrated() -> LatencyModel:
    return LatencyModel.of(calibrate("this-machine", report=_say))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


def _sizes(text: str) -> tuple[int, ...]:
    sizes = _numbers(text)
    for size in sizes:
        if size % 4 or not 8 <= size <= 64:
            raise argparse.ArgumentTypeError(f"{size}: expected a multiple of 4 from 8 to 64")
    return sizes


def _lines(result: dict[str, Any]) -> list[str]:
    device = result.get("device")
    lines = [
        f"{'graph':<30}{'nodes':>6}{'MFLOP':>9}{'MB':>8}{'measured':>10}{'modelled':>10}{'ratio':>7}"
        + (f"{'of device':>11}" if device else "")
    ]
    for row in result["graphs"]:
        lines.append(
            f"{row['name']:<30}{row['nodes']:6}{row['mflop']:9.2f}{row['mbyte']:8.2f}"
            f"{row['measured_ms']:10.3f}{row['predicted_ms']:10.3f}{row['ratio']:7.2f}"
            + (f"{row['device_ratio']:11.2f}" if device else "")
        )
    count, fitted = len(result["graphs"]), result["fitted"]
    low, high = 1 / result["band"], result["band"]
    lines += [
        f"{result['unit']}; {result['repeats']} repeats, onnxruntime {result['onnxruntime']}",
        f"modelled by the other networks: {result['within']} of {count} graphs within "
        f"{low:g} to {high:g} of measured ({result['within'] / count:.0%})",
        f"fitted to all: {_figures(fitted)}",
    ]
    if device:
        share = device["within"] / count
        lines.append(
            f"modelled by the device's profile: {device['within']} of {count} ({share:.0%})"
        )
        lines.append(f"the profile: {_figures(device)}")
    return lines


def _figures(model: dict[str, float]) -> str:
    return (
        f"{model['gflops']:.1f} GFLOP/s, {model['gbps']:.1f} GB/s, "
        f"{model['overhead_us']:.2f} us a node"
    )


if __name__ == "__main__":
    main()
