"""Study of a bundle's cost on a device, beside the same networks in torch.

``python -m fedvtc_edge.benchmarks.studies bundles RUN BUNDLES --json``

RUN is a finished run, BUNDLES the folder that ``export`` wrote of it. For every
client, at batch 1 and on one thread:

* **torch**: eager, in inference mode, on input that is ready: scaled float32 images
  for the classifier, latents for the decoder. Nothing but the network.
* **onnxruntime**: the bundle's graph on what a device has: uint8 pixels, or labels
  and noise. Scaling, sampling and rounding are in it.
* **bundle**: ``Bundle.classify`` and ``Bundle.decode``, with all their checks.

Figures are medians of the thread's CPU time, so that a busy machine spoils no side.
Memory is each a fresh process's peak: one that imports torch and stops, one that opens
a bundle, verifies it, classifies and synthesises.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedvtc_edge.export import Bundle
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.models import ImageShape
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.training.compute import deterministic

from .runner import Document, Study, fresh_process, medians, table, timed

Step = Callable[[], object]

_WARM_UP = 20

_PEAK = "from fedvtc_edge.benchmarks.studies.runner import peak_mb; print(peak_mb())"
_TORCH = f"import torch\n{_PEAK}"
_DEVICE = f"""
import sys
import numpy as np
from fedvtc_edge.export import Bundle
bundle = Bundle.open(sys.argv[1])
form = bundle.manifest.image
image = np.zeros((1, form.size, form.size, form.channels), np.uint8)
bundle.classify(image)
if "anchor" in bundle.manifest.graphs:
    bundle.classify(image, calibrated=True)
if "synthesizer" in bundle.manifest.graphs:
    bundle.synthesize(np.flatnonzero(bundle.codes.known)[:1], 0)
assert "torch" not in sys.modules
{_PEAK}
"""


def measure(run: Path, bundles: Path, repeats: int) -> Document:
    """Measure every client of ``run`` that has a bundle.

    Raises:
        RunError: No finished run there.
        VerificationError: A bundle is not what was exported.
    """
    finished = FinishedRun.open(run)
    names = [name for name in finished.clients if (bundles / name).is_dir()]
    rows = []
    with deterministic(), torch.inference_mode():
        for name in names:
            rows.append(_client(finished, name, bundles / name, repeats))
    document: Document = {
        "schema": 1,
        "unit": "microseconds of thread CPU time, median",
        "batch": 1,
        "threads": 1,
        "repeats": repeats,
        "clients": rows,
        "torch": torch.__version__,
    }
    if names and Path("/proc/self/status").exists():
        document["memory"] = _memory([bundles / name for name in names])
    document["help_cpu_s"] = round(min(_help_seconds() for _ in range(3)), 3)
    return document


def _client(finished: FinishedRun, name: str, folder: Path, repeats: int) -> Document:
    bundle = Bundle.open(folder, variant="fp32")
    manifest, form = bundle.manifest, bundle.manifest.image
    shape = ImageShape(form.size, form.channels)
    model = finished.classifier(name, shape, len(manifest.classes))
    draw = np.random.Generator(np.random.Philox(key=0))
    pixels = draw.integers(0, 256, (1, form.size, form.size, form.channels), np.uint8)
    ready = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255.0).contiguous()
    session = _session(folder, "classifier.onnx")
    steps: dict[str, Step] = {
        "torch": lambda: model(ready),
        "onnxruntime": lambda: session({"images": pixels}),
        "bundle": lambda: bundle.classify(pixels),
    }
    if "int8" in manifest.graphs["classifier"].variants:
        smaller = _session(folder, "classifier.int8.onnx")
        steps["int8"] = lambda: smaller({"images": pixels})
    row = {
        "client": name,
        "architecture": manifest.architecture,
        "classifier": _compare(steps, repeats),
    }
    decoder = finished.decoder(name, shape)
    if decoder is not None and "synthesizer" in manifest.graphs:
        labels = np.flatnonzero(bundle.codes.known)[:1]
        noise = bundle.noise(1, 0)
        latents = torch.from_numpy(bundle.codes.mean[labels] + bundle.codes.std[labels] * noise)
        synthesizer = _session(folder, "synthesizer.onnx")
        feed = {
            "labels": labels,
            "means": bundle.codes.mean,
            "stds": bundle.codes.std,
            "noise": noise,
        }
        steps = {
            "torch": lambda: decoder(latents),
            "onnxruntime": lambda: synthesizer(feed),
            "bundle": lambda: bundle.decode(labels, noise),
        }
        if "int8" in manifest.graphs["synthesizer"].variants:
            smaller_synthesizer = _session(folder, "synthesizer.int8.onnx")
            steps["int8"] = lambda: smaller_synthesizer(feed)
        row["synthesizer"] = _compare(steps, repeats)
    return row


def _session(folder: Path, name: str) -> Session:
    return Session((folder / name).read_bytes(), name=name, folder=folder)


def _compare(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Medians in µs of the steps, and each one's ratio to torch."""
    sides = {name: timed(step) for name, step in steps.items()}
    figures = {
        name: 1e6 * value for name, value in medians(sides, repeats, warm_up=_WARM_UP).items()
    }
    row = {f"{name}_us": round(value, 1) for name, value in figures.items()}
    for name in figures:
        if name != "torch":
            row[f"{name}_ratio"] = round(figures[name] / figures["torch"], 3)
    return row


def _memory(folders: Sequence[Path]) -> dict[str, float]:
    importing = float(fresh_process(_TORCH))
    session = max(float(fresh_process(_DEVICE, folder)) for folder in folders)
    return {
        "import_torch_mb": round(importing, 1),
        "device_session_mb": round(session, 1),
        "ratio": round(session / importing, 3),
    }


def _help_seconds() -> float:
    """CPU seconds of ``fedvtc-edge --help``, from start to exit."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "fedvtc_edge", "--help"], stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _lines(result: Document) -> Iterator[str]:
    header = ("client", "network", "torch", "ORT", "bundle", "int8", "ORT/torch")
    rows = [
        _row(row, part)
        for row in result["clients"]
        for part in ("classifier", "synthesizer")
        if part in row
    ]
    yield from table(header, rows, left=2)
    yield f"{result['unit']}; batch 1, one thread, {result['repeats']} repeats"
    if "memory" in result:
        memory = result["memory"]
        yield (
            f"peak memory: device session {memory['device_session_mb']} MB, import torch "
            f"{memory['import_torch_mb']} MB, ratio {memory['ratio']}"
        )
    yield f"fedvtc-edge --help: {result['help_cpu_s']} s of CPU"


def _row(row: Document, part: str) -> list[str]:
    figures = row[part]
    sides = ("torch_us", "onnxruntime_us", "bundle_us", "int8_us")
    return [
        row["client"],
        f"{part} ({row['architecture']})" if part == "classifier" else part,
        *(f"{figures[side]:.1f}" if side in figures else "-" for side in sides),
        f"{figures['onnxruntime_ratio']:.3f}",
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("bundles", type=Path, help="the folder that export wrote of it")


STUDY = Study("bundles", __doc__, _options, measure, _lines, repeats=500)


if __name__ == "__main__":
    STUDY.main()
