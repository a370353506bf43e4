"""Study of the latency model's error, on graphs that it was not fitted to.

``python -m fedvtc_edge.benchmarks.studies latency`` exports the classifier of every
architecture, the synthesiser and the anchor, runs them in onnxruntime on one thread,
and predicts each network by a model that was fitted to the others alone: all sizes and
batches of a network are left out together, for they tell of each other. Figures are
medians of the thread's CPU time; before each timed run the graph runs a few times, as
it would when it is used over and over.

With ``--anchors`` nothing is run: two networks at 224 × 224 pixels are modelled with each
shipped profile's figures and held against the times that others measured on the devices.
The networks are counted from their published layers, BatchNorm folded into the
convolutions and activations fused, as every runtime does. Where a profile's efficiency was
taken from an anchor, that anchor proves nothing; the efficiency's own source says so. The
anchors were timed in ncnn, which is not the runtime that the model describes: it computes
3 × 3 convolutions by Winograd's algorithm, so that ResNet-18 takes less time than its FLOP
need at a core's peak.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from fedvtc_edge.devices import DeviceProfile, profile_names
from fedvtc_edge.devices.calibration import calibrate
from fedvtc_edge.export.graphs import AnchorGraph, ClassifierGraph, SynthesizerGraph, convert
from fedvtc_edge.export.runtime import Arrays, Session
from fedvtc_edge.models import ImageShape, architectures, build, vtc
from fedvtc_edge.models.extractor import Anchor

from ..latency import BAND, LatencyModel, NodeCost, Sample, fit, leave_one_out, node_costs
from .runner import Document, Study, listed, medians, positive, table, timed

_WARM_UP = 4
_FLOAT = 4
_LATENT, _ANCHOR, _CLASSES, _SEED = 64, 128, 10, 0
_COLOURED = 32
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


def study(
    networks: Sequence[str],
    sizes: Sequence[int],
    batches: Sequence[int],
    repeats: int,
    device: Callable[[], LatencyModel] | None = None,
) -> Document:
    """Measure the graphs and predict each network from the others.

    Args:
        networks: Architectures whose classifiers are measured.
        device: Gives a model of this machine, to hold against the same times; asked just
            before these are taken.

    Raises:
        ConfigError: No such architecture, or too few graphs to fit to.
    """
    sides: dict[str, Callable[[], float]] = {}
    about: dict[str, tuple[str, bytes, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in exported(networks, sizes, Path(folder)):
            _say(f"exported {graph.network}, {graph.size} pixels")
            for batch in batches:
                name = f"{graph.network} {graph.size}px x{batch}"
                sides[name] = timed(partial(graph.session, graph.feed(batch)), warm_up=_WARM_UP)
                about[name] = (graph.network, graph.model, batch)
        modelled = None if device is None else device()
        seconds = medians(sides, repeats)
    samples = [
        Sample(name, node_costs(model, batch=batch), 1e3 * seconds[name], group=network)
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
    document: Document = {
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


@dataclass(frozen=True)
class Exported:
    """One graph for images of one size, with fresh weights: trained ones take the same time.

    Args:
        network: Name of the architecture, or ``synthesizer`` or ``anchor``.
        model: Content of the ONNX file.
    """

    network: str
    size: int
    model: bytes
    session: Session

    def feed(self, batch: int) -> Arrays:
        """Inputs for one inference of ``batch`` samples, the same every time."""
        draw = np.random.Generator(np.random.Philox(key=_SEED))
        arrays = {}
        for name, (kind, axes) in self.session.inputs.items():
            shape = [axis if isinstance(axis, int) else batch for axis in axes]
            top = _CLASSES if name == "labels" else 256
            arrays[name] = draw.integers(0, top, shape).astype(_TYPES[kind])
        return arrays


def exported(networks: Sequence[str], sizes: Sequence[int], folder: Path) -> Iterator[Exported]:
    """Export the networks' classifiers, the synthesiser and the anchor for every size.

    Args:
        networks: Architectures by their names.
        sizes: Of the images; grey below 32 pixels, coloured from there.
        folder: An empty one, for as long as the graphs are used.

    Raises:
        ConfigError: No such architecture.
    """
    for size in sizes:
        shape = ImageShape(size, 1 if size < _COLOURED else 3)
        images = {"images": torch.zeros(2, size, size, shape.channels, dtype=torch.uint8)}
        for name in networks:
            model = build(name, shape, latent=_LATENT, classes=_CLASSES, seed=_SEED)
            yield _export(name, size, ClassifierGraph(model), images, folder)
        synthesizer = SynthesizerGraph(vtc.build(shape, latent=_LATENT, seed=_SEED))
        yield _export("synthesizer", size, synthesizer, _latents(), folder, ("means", "stds"))
        yield _export("anchor", size, AnchorGraph(Anchor(shape, _ANCHOR, _SEED)), images, folder)


def _latents() -> dict[str, Tensor]:
    return {
        "labels": torch.zeros(2, dtype=torch.int64),
        "means": torch.zeros(_CLASSES, _LATENT),
        "stds": torch.ones(_CLASSES, _LATENT),
        "noise": torch.zeros(2, _LATENT),
    }


def _export(
    network: str,
    size: int,
    module: nn.Module,
    example: dict[str, Tensor],
    folder: Path,
    fixed: tuple[str, ...] = (),
) -> Exported:
    path = folder / f"{network}-{size}.onnx"
    convert(module, example, path, output="out", fixed=fixed)
    model = path.read_bytes()
    return Exported(network, size, model, Session(model, name=path.name, folder=folder))


# ---------------------------------------------------------------- published times


def networks() -> dict[str, tuple[NodeCost, ...]]:
    """The anchors' networks by the names that profiles give them, one image each."""
    return {"mobilenet_v2_224": tuple(_mobilenet_v2()), "resnet18_224": tuple(_resnet18())}


def _mobilenet_v2() -> Iterator[NodeCost]:
    """Sandler et al. 2018, table 2: 3.5 million weights, 0.3 billion multiply-adds."""
    yield _conv(3, 32, 3, 112, 2)
    side, wide = 112, 32
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for factor, out, count, first in (*blocks, (6, 160, 3, 2), (6, 320, 1, 1)):
        for number in range(count):
            stride = first if number == 0 else 1
            inner = factor * wide
            if factor > 1:
                yield _conv(wide, inner, 1, side)
            side //= stride
            yield _conv(inner, inner, 3, side, stride, groups=inner)
            yield _conv(inner, out, 1, side)
            if number:
                yield _add(out, side)
            wide = out
    yield _conv(wide, 1280, 1, side)
    yield NodeCost("GlobalAveragePool", 1280.0 * side**2, _FLOAT * 1280.0 * (side**2 + 1))
    yield _product(1280, 1000)


def _resnet18() -> Iterator[NodeCost]:
    """He et al. 2016, table 1: 11.7 million weights, 1.8 billion multiply-adds."""
    yield _conv(3, 64, 7, 112, 2)
    yield NodeCost("MaxPool", 9.0 * 64 * 56**2, _FLOAT * 64.0 * (112**2 + 56**2))
    side, wide = 56, 64
    for out in (64, 128, 256, 512):
        for stride in (2 if out > wide else 1, 1):
            side //= stride
            yield _conv(wide, out, 3, side, stride)
            yield _conv(out, out, 3, side)
            if stride > 1:
                yield _conv(wide, out, 1, side, stride)
            yield _add(out, side)
            wide = out
    yield NodeCost("GlobalAveragePool", 512.0 * side**2, _FLOAT * 512.0 * (side**2 + 1))
    yield _product(512, 1000)


def _conv(
    narrow: int, wide: int, kernel: int, side: int, stride: int = 1, *, groups: int = 1
) -> NodeCost:
    """Of ``side`` × ``side`` pixels that come out."""
    weights = wide * narrow // groups * kernel**2
    values = narrow * (side * stride) ** 2 + weights + wide * side**2
    return NodeCost("Conv", 2.0 * weights * side**2, float(_FLOAT * values))


def _add(wide: int, side: int) -> NodeCost:
    return NodeCost("Add", float(wide * side**2), float(3 * _FLOAT * wide * side**2))


def _product(narrow: int, wide: int) -> NodeCost:
    return NodeCost("Gemm", 2.0 * narrow * wide, float(_FLOAT * (narrow * wide + narrow + wide)))


def compare() -> list[dict[str, Any]]:
    """Each anchor with a number of threads, and what its profile predicts."""
    rows, counted = [], networks()
    for name in profile_names():
        profile = DeviceProfile.load(name)
        for anchor in profile.anchors:
            if anchor.threads is None or anchor.model not in counted:
                continue
            threads = min(anchor.threads, int(profile.cores.value))  # more gain nothing
            modelled = LatencyModel.of(profile, threads).milliseconds(counted[anchor.model])
            ratio = modelled / anchor.ms
            rows.append(
                {
                    "device": name,
                    "model": anchor.model,
                    "threads": anchor.threads,
                    "anchor_ms": anchor.ms,
                    "modelled_ms": modelled,
                    "ratio": ratio,
                    "within": 1 / BAND <= ratio <= BAND,
                }
            )
    return rows


# ---------------------------------------------------------------- the command


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batches", type=listed(positive), default=[1, 32], help="default: 1,32")
    add(
        "--sizes", type=listed(_size), default=[8, 32], help="pixels, multiples of 4; default: 8,32"
    )
    add("--architectures", type=listed(str), default=architectures(), help="default: all")
    second = parser.add_mutually_exclusive_group()
    second.add_argument("--device", help="profile of this machine, to hold against the times too")
    second.add_argument(
        "--calibrate", action="store_true", help="make that profile just before they are taken"
    )
    second.add_argument("--anchors", action="store_true", help="hold the shipped profiles")


def _size(text: str) -> int:
    size = positive(text)
    if size % 4 or not 8 <= size <= 64:
        raise argparse.ArgumentTypeError(f"{size}: expected a multiple of 4 from 8 to 64")
    return size


def _measure(
    batches: Sequence[int],
    sizes: Sequence[int],
    architectures: Sequence[str],
    device: str | None,
    calibrate: bool,
    anchors: bool,
    repeats: int,
) -> Document:
    if anchors:
        rows = compare()
        within = sum(row["within"] for row in rows)
        return {"schema": 1, "band": BAND, "anchors": rows, "within": within}
    model = _calibrated if calibrate else None
    if device is not None:
        known = LatencyModel.of(DeviceProfile.load(device))
        model = lambda: known  # noqa: E731
    unique = dict.fromkeys
    return study(architectures, list(unique(sizes)), list(unique(batches)), repeats, model)


def _calibrated() -> LatencyModel:
    return LatencyModel.of(calibrate("this-machine", report=_say))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _lines(result: Document) -> Iterator[str]:
    if "anchors" in result:
        yield from _anchor_lines(result)
        return
    device = result.get("device")
    header = ["graph", "nodes", "MFLOP", "MB", "measured", "modelled", "ratio"]
    rows = [
        [
            *(row["name"], str(row["nodes"]), f"{row['mflop']:.2f}", f"{row['mbyte']:.2f}"),
            *(f"{row[key]:.3f}" for key in ("measured_ms", "predicted_ms")),
            *(f"{row[key]:.2f}" for key in ("ratio", "device_ratio") if key in row),
        ]
        for row in result["graphs"]
    ]
    yield from table([*header, "of device"] if device else header, rows)
    count, low, high = len(rows), 1 / result["band"], result["band"]
    yield f"{result['unit']}; {result['repeats']} repeats, onnxruntime {result['onnxruntime']}"
    yield (
        f"modelled by the other networks: {result['within']} of {count} graphs within "
        f"{low:g} to {high:g} of measured ({result['within'] / count:.0%})"
    )
    yield f"fitted to all: {_figures(result['fitted'])}"
    if device:
        inside = device["within"]
        yield f"modelled by the device's profile: {inside} of {count} ({inside / count:.0%})"
        yield f"the profile: {_figures(device)}"


def _figures(model: dict[str, float]) -> str:
    return (
        f"{model['gflops']:.1f} GFLOP/s, {model['gbps']:.1f} GB/s, "
        f"{model['overhead_us']:.2f} us a node"
    )


def _anchor_lines(result: Document) -> Iterator[str]:
    rows = result["anchors"]
    header = ("device", "network", "threads", "anchor ms", "modelled", "ratio")
    cells = [
        [
            *(row["device"], row["model"], str(row["threads"])),
            *(f"{row['anchor_ms']:.1f}", f"{row['modelled_ms']:.1f}", f"{row['ratio']:.2f}"),
        ]
        for row in rows
    ]
    yield from table(header, cells, left=2)
    yield f"milliseconds; {result['within']} of {len(rows)} within a factor of {BAND:g}"


STUDY = Study("latency", __doc__, _options, _measure, _lines, repeats=21)


if __name__ == "__main__":
    STUDY.main()
