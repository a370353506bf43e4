"""What a runtime needs before it holds a single number of ours, by its build.

Recorded once and never measured at plan time: a plan has to be the same on every machine.
The CUDA build of torch is what ``pip install torch`` brings on x86-64 Linux; it takes far
more than a CPU wheel, whether or not there is a GPU.
"""

from __future__ import annotations

from .profile import Figure

_TORCH_CUDA = Figure(
    value=696,
    kind="measured",
    source="VmHWM after what a client imports and one step with Adam, torch 2.14.1+cu130, x86-64, "
    "one thread: python -m fedvtc_edge.benchmarks.planner, 2026-11-25",
)
_TORCH_CPU = Figure(
    value=370,
    kind="assumed",
    source="the same process less the resident pages of CUDA's libraries and of Triton "
    "(/proc/self/smaps), 2026-11-25; no CPU wheel was measured",
)
_ONNXRUNTIME = Figure(
    value=62,
    kind="measured",
    source="VmHWM after the import of the bundle's runner, onnxruntime 1.32.0, x86-64: "
    "python -m fedvtc_edge.benchmarks.planner, 2026-11-25",
)


def torch_mb(arch: str) -> Figure:
    """Of training with torch on a processor architecture, in MB of 2^20 bytes."""
    return _TORCH_CUDA if arch == "x86_64" else _TORCH_CPU


def onnxruntime_mb(arch: str) -> Figure:
    """Of the bundle's runner on a processor architecture, in MB of 2^20 bytes."""
    if arch == "x86_64":
        return _ONNXRUNTIME
    return _ONNXRUNTIME.model_copy(
        update={"kind": "assumed", "source": f"as on x86-64: {_ONNXRUNTIME.source}"}
    )
