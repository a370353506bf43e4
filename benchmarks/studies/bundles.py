"""What a bundle costs on a device, beside the same networks in torch.

``python -m fedvtc_edge.benchmarks.studies.bundles RUN BUNDLES --json``

RUN is a finished run, BUNDLES the folder that ``export`` wrote of it. For every
client, at batch 1 and on one thread:

* **torch**: eager, in inference mode, on input that is ready: scaled float32 images
  for the classifier, latents for the decoder. Nothing but the network.
* **onnxruntime**: the bundle's graph on what a device has: uint8 pixels, or labels
  and noise. Scaling, sampling and rounding are in it.
* **bundle**: ``Bundle.classify`` and ``Bundle.paint``, with all their checks.

The three take turns in one process, and figures are medians of the thread's CPU
time, so that a busy machine spoils neither side. Memory is each a fresh process's
peak (``VmHWM``): one that imports torch and stops, one that opens a bundle,
verifies it, classifies and paints. ``ru_maxrss`` would report the parent's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.export import Bundle
from fedvtc_edge.export.runtime import Session
from fedvtc_edge.models import ImageShape
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.training.compute import deterministic

from ..arguments import positive

Step = Callable[[], object]

_WARM_UP = 20

_PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""
_TORCH = "import torch\n" + _PEAK
_DEVICE = (
    """
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
"""
    + _PEAK
)


def measure(run: Path, bundles: Path, repeats: int) -> dict[str, Any]:
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
    document: dict[str, Any] = {
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


def _client(finished: FinishedRun, name: str, folder: Path, repeats: int) -> dict[str, Any]:
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
        painter = _session(folder, "synthesizer.onnx")
        feed = {
            "labels": labels,
            "means": bundle.codes.mean,
            "stds": bundle.codes.std,
            "noise": noise,
        }
        steps = {
            "torch": lambda: decoder(latents),
            "onnxruntime": lambda: painter(feed),
            "bundle": lambda: bundle.paint(labels, noise),
        }
        if "int8" in manifest.graphs["synthesizer"].variants:
            small_painter = _session(folder, "synthesizer.int8.onnx")
            steps["int8"] = lambda: small_painter(feed)
        row["synthesizer"] = _compare(steps, repeats)
    return row


def _session(folder: Path, name: str) -> Session:
    return Session((folder / name).read_bytes(), name=name, folder=folder)


def _compare(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Medians in µs of steps that take turns, and each one's ratio to torch."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + _WARM_UP):
        for name, step in steps.items():
            begin = time.thread_time()
            step()
            times[name].append(time.thread_time() - begin)
    medians = {name: 1e6 * statistics.median(taken[_WARM_UP:]) for name, taken in times.items()}
    row = {f"{name}_us": round(value, 1) for name, value in medians.items()}
    for name in medians:
        if name != "torch":
            row[f"{name}_ratio"] = round(medians[name] / medians["torch"], 3)
    return row


def _memory(folders: Sequence[Path]) -> dict[str, float]:
    importing = _peak(_TORCH)
    session = max(_peak(_DEVICE, str(folder)) for folder in folders)
    return {
        "import_torch_mb": round(importing / 1024, 1),
        "device_session_mb": round(session / 1024, 1),
        "ratio": round(session / importing, 3),
    }


def _peak(code: str, *words: str) -> int:
    done = subprocess.run(  # noqa: S603  (the two programs above)
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def _help_seconds() -> float:
    """CPU seconds of ``fedvtc-edge --help``, from start to exit."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "fedvtc_edge", "--help"], stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.benchmarks.studies.bundles``."""
    parser = argparse.ArgumentParser(
        prog="fedvtc_edge.benchmarks.studies.bundles", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("bundles", type=Path, help="the folder that export wrote of it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--repeats", type=positive, default=500, help="default: 500")
    given = parser.parse_args(arguments)
    try:
        result = measure(given.run, given.bundles, given.repeats)
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    if given.json:
        print(json.dumps(result))
    else:
        print("\n".join(_lines(result)))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{'client':<12}{'network':<28}{'torch':>9}{'ORT':>9}{'bundle':>9}{'int8':>9}{'ORT/torch':>11}"
    ]
    for row in result["clients"]:
        for part in ("classifier", "synthesizer"):
            if part not in row:
                continue
            figures = row[part]
            what = f"{part} ({row['architecture']})" if part == "classifier" else part
            small = f"{figures['int8_us']:9.1f}" if "int8_us" in figures else f"{'-':>9}"
            lines.append(
                f"{row['client']:<12}{what:<28}{figures['torch_us']:9.1f}"
                f"{figures['onnxruntime_us']:9.1f}{figures['bundle_us']:9.1f}{small}"
                f"{figures['onnxruntime_ratio']:11.3f}"
            )
    lines.append(f"{result['unit']}; batch 1, one thread, {result['repeats']} repeats")
    if "memory" in result:
        memory = result["memory"]
        lines.append(
            f"peak memory: device session {memory['device_session_mb']} MB, import torch "
            f"{memory['import_torch_mb']} MB, ratio {memory['ratio']}"
        )
    lines.append(f"fedvtc-edge --help: {result['help_cpu_s']} s of CPU")
    return lines


if __name__ == "__main__":
    main()
