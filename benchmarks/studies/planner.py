"""Study of the planner: planned memory beside what a process really takes.

``python -m fedvtc_edge.benchmarks.studies planner --json``

For every registered architecture, three batches and two kinds of images, each cell in a
fresh process whose peak (``VmHWM``) is read at its end:

* **train**: torch. The phases of a client's round with the anchor's statistics: it trains,
  fits its decoder, fine-tunes and measures, one thread.
* **infer**: no torch. A bundle's classifier on onnxruntime, which takes 32 images at once.
* **synthesise**: no torch. The bundle's synthesiser, likewise.

``ratio`` is planned over measured: below 1 the plan would let a device run out of memory.
``ratio_working`` is the same without the runtime's baseline, planned and measured: what
the model knows of the work itself. The measured baseline is a process that stops once the
first kernels have run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedvtc_edge.config import load_config

from .runner import Document, Study, fresh_process, peak_mb, positive, table

# Nothing above imports torch, numpy or onnxruntime: the measured processes import this too.

SAMPLES = 256
"""Images of a measured client."""

_STEPS = 4
_SHAPES = ((8, 1), (32, 3))
_BATCHES = (8, 32, 128)
_WHATS = ("train", "infer", "synthesise")
_CLASSES = 10
_MB = 2**20
_TORCHVISION = "train-torchvision"
"""Training a network that comes from there."""


def measure(
    architectures: Sequence[str],
    batches: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    whats: Sequence[str],
) -> Document:
    """Plan and measure every cell.

    Args:
        architectures: Registered names.
        batches: Images in a step, or in a call of the bundle.
        whats: ``train``, ``infer``, ``synthesise``.
    """
    from fedvtc_edge.models import from_torchvision

    rows, bases = [], {what: _base(what) for what in whats}
    if "train" in whats and any(map(from_torchvision, architectures)):
        bases[_TORCHVISION] = _base(_TORCHVISION)
    with ExitStack() as stack:
        for shape in shapes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if set(whats) & {"infer", "synthesise"}:
                _export(folder, architectures, shape)
            for what in whats:
                for index, architecture in enumerate(architectures):
                    bundle = folder / "bundles" / f"client-{index:02d}"
                    more = what == "train" and from_torchvision(architecture)
                    base = bases[_TORCHVISION if more else what]
                    for batch in batches:
                        peak = _peak(what, architecture, *shape, batch, bundle)
                        rows.append(_row(what, architecture, shape, batch, peak, base))
    return {
        "schema": 1,
        "unit": "MB of 2^20 bytes",
        "samples": SAMPLES,
        "baseline_mb": bases,
        "cells": rows,
        "summary": {what: _extremes([r for r in rows if r["what"] == what]) for what in whats},
    }


def _row(
    what: str,
    architecture: str,
    shape: tuple[int, int],
    batch: int,
    peak: float,
    base: float,
) -> dict[str, Any]:
    from fedvtc_edge.devices.footprint import Use, needs, needs_bundle
    from fedvtc_edge.models import ImageShape

    config, form = load_config(), ImageShape(*shape)
    if what == "train":
        plan = needs(architecture, config, form, _CLASSES, batch=batch, samples=SAMPLES)
    else:
        use: Use = "infer" if what == "infer" else "synthesise"
        plan = needs_bundle(architecture, config, form, _CLASSES, use=use, batch=batch)
    return {
        "what": what,
        "architecture": architecture,
        "size": form.size,
        "channels": form.channels,
        "batch": batch,
        "planned_mb": round(plan.total / _MB, 1),
        "measured_mb": round(peak, 1),
        "ratio": round(plan.total / _MB / peak, 3),
        "ratio_working": round(plan.working / _MB / max(peak - base, 0.1), 3),
    }


def _extremes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for key in ("ratio", "ratio_working"):
        found[f"{key}_least"] = min(row[key] for row in rows)
        found[f"{key}_most"] = max(row[key] for row in rows)
    return found


def _export(folder: Path, architectures: Sequence[str], shape: tuple[int, int]) -> None:
    """Bundles of a federation that trained next to nothing: memory does not ask what is known."""
    import numpy as np

    from fedvtc_edge import run
    from fedvtc_edge.export.exporting import export

    draw = np.random.Generator(np.random.Philox(key=0))
    count = max(16 * len(architectures), 8 * _CLASSES)
    labels = np.arange(count) % _CLASSES
    images = draw.integers(0, 256, (count, shape[0], shape[0], shape[1]), np.uint8)
    names = np.array([str(label) for label in range(_CLASSES)])
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(folder / "data.npz", allow_pickle=False, class_names=names, **arrays)
    settings = {
        "data": {"name": str(folder / "data.npz"), "partition": "iid"},
        "clients": {"count": len(architectures), "architectures": list(architectures)},
        "method": {"rounds": 1},
        "training": {"epochs": 1, "decoder_steps": 1, "finetune_last": 0},
    }
    run(load_config(settings), out=folder / "run")
    export(folder / "run", folder / "bundles")


# ---------------------------------------------------------------- one cell, in its own process


def _peak(*words: object) -> float:
    """Peak memory of a fresh process that works on one cell, in MB."""
    code = (
        "import sys; from fedvtc_edge.benchmarks.studies.planner import cell; cell(*sys.argv[1:])"
    )
    return float(fresh_process(code, *words))


def _base(what: str) -> float:
    return _peak(f"{what}-baseline")


def cell(what: str, *words: str) -> None:
    """Work on one cell and print this process's peak memory in MB."""
    work: dict[str, Callable[..., None]] = {
        "train": _train,
        "train-baseline": _train_baseline,
        "train-torchvision-baseline": _torchvision_baseline,
        "infer": _infer,
        "infer-baseline": _runner_baseline,
        "synthesise": _synthesise,
        "synthesise-baseline": _runner_baseline,
    }
    work[what](*words)
    print(peak_mb())


def _train(architecture: str, size: str, channels: str, batch: str, _: str) -> None:
    import fedvtc_edge.transport.channel  # noqa: F401  a client seals what it sends
    from fedvtc_edge.devices.probes import probe_client, probe_statistics
    from fedvtc_edge.models import ImageShape
    from fedvtc_edge.training.compute import deterministic

    method, shape = load_config().method, ImageShape(int(size), int(channels))
    with deterministic():
        knowledge, anchor = probe_statistics(shape, _CLASSES, method)
        client = probe_client(architecture, shape, _CLASSES, method, images=SAMPLES)
        client.settings = client.settings.model_copy(
            update={"batch": int(batch), "decoder_steps": _STEPS}
        )
        client.train(1, knowledge.codes, kl=0.1)
        client.fit_decoder(1, knowledge, match=True)
        client.finetune(1, knowledge, steps=_STEPS, kl=0.1)
        assert anchor is not None
        client.measure_anchor(anchor, pooled=True)
    assert "onnxruntime" not in sys.modules


def _train_baseline() -> None:
    import torch
    from torch import nn

    import fedvtc_edge.training.client
    import fedvtc_edge.transport.channel  # noqa: F401
    from fedvtc_edge.models.builtin import group_norm
    from fedvtc_edge.training.compute import deterministic
    from fedvtc_edge.training.steps import Adam, step

    with deterministic():
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), group_norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2)
        )
        loss = network(torch.zeros(2, 1, 8, 8)).square().mean()
        step(loss, Adam(network.parameters(), 1e-3))


def _torchvision_baseline() -> None:
    import torchvision  # noqa: F401

    _train_baseline()


def _runner_baseline() -> None:
    import fedvtc_edge.export.bundle  # noqa: F401


def _infer(_: str, size: str, channels: str, batch: str, folder: str) -> None:
    import numpy as np

    from fedvtc_edge.export import Bundle

    images = np.zeros((int(batch), int(size), int(size), int(channels)), np.uint8)
    Bundle.open(folder).classify(images)
    assert "torch" not in sys.modules


def _synthesise(_: str, size: str, channels: str, batch: str, folder: str) -> None:
    import numpy as np

    from fedvtc_edge.export import Bundle

    bundle = Bundle.open(folder)
    known = np.flatnonzero(bundle.codes.known)
    bundle.synthesize(np.resize(known, int(batch)), 0)
    assert "torch" not in sys.modules


def _lines(result: Document) -> Iterator[str]:
    header = ("what", "architecture", "image", "batch", "planned", "measured", "ratio", "working")
    rows = [
        [
            *(row["what"], row["architecture"], f"{row['size']}x{row['channels']}"),
            *(str(row["batch"]), f"{row['planned_mb']:.1f}", f"{row['measured_mb']:.1f}"),
            *(f"{row['ratio']:.2f}", f"{row['ratio_working']:.2f}"),
        ]
        for row in result["cells"]
    ]
    yield from table(header, rows, left=2)
    for what, found in result["summary"].items():
        yield (
            f"{what}: planned is {found['ratio_least']:.2f} to {found['ratio_most']:.2f} times "
            f"measured, {found['ratio_working_least']:.2f} to {found['ratio_working_most']:.2f} "
            f"without the baseline ({result['baseline_mb'][what]:.0f} MB measured)"
        )
    yield result["unit"]


def _options(parser: argparse.ArgumentParser) -> None:
    from fedvtc_edge.models import architectures

    sizes = [size for size, _ in _SHAPES]
    add = parser.add_argument
    add("--architecture", action="append", choices=architectures(), help="default: all")
    add("--batch", action="append", type=positive, help="default: 8, 32, 128")
    add("--what", action="append", choices=_WHATS, help="default: all")
    add("--size", action="append", type=int, choices=sizes, help="of images")


def _measure(
    architecture: Sequence[str] | None,
    batch: Sequence[int] | None,
    what: Sequence[str] | None,
    size: Sequence[int] | None,
) -> Document:
    from fedvtc_edge.models import architectures

    shapes = [shape for shape in _SHAPES if shape[0] in (size or [shape[0]])]
    return measure(architecture or architectures(), batch or _BATCHES, shapes, what or _WHATS)


STUDY = Study("planner", __doc__, _options, _measure, _lines)


if __name__ == "__main__":
    STUDY.main()
