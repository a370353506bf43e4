"""Memory that a process takes before any network is in it: torch, or onnxruntime."""

from __future__ import annotations

from .profile import Figure

# Baselines are recorded once and never measured at plan time: a plan has to be the same on
# every machine. The CUDA build of torch is what ``pip install torch`` brings on x86-64 Linux;
# it takes far more than a CPU wheel, whether or not there is a GPU.
_TORCH_CUDA = Figure(
    value=549,
    kind="measured",
    source="VmHWM after what a client imports and one step with Adam, torch 2.14.1+cu130, x86-64, "
    "one thread: python -m fedvtc_edge.benchmarks.studies.planner, 2026-11-25",
)
_TORCH_CPU = Figure(
    value=259,
    kind="assumed",
    source="as on x86-64 with a CPU wheel, where it was measured: the same process, torch "
    "2.13.0+cpu, 2026-11-25",
)
_TORCHVISION_CUDA = Figure(
    value=711,
    kind="measured",
    source="the same process after the import of torchvision 0.29.1, which imports torch's "
    "compiler and Triton, 2026-11-26",
)
_TORCHVISION_CPU = Figure(
    value=344,
    kind="assumed",
    source="that of torch, 73 MB of torch's compiler, measured on x86-64 with a CPU wheel, and "
    "12 MB of torchvision itself, 2026-11-26",
)
_ONNXRUNTIME = Figure(
    value=62,
    kind="measured",
    source="VmHWM after the import of the bundle's runner, onnxruntime 1.32.0, x86-64: "
    "python -m fedvtc_edge.benchmarks.studies.planner, 2026-11-25",
)


def torch_mb(arch: str, *, torchvision: bool = False) -> Figure:
    """Baseline of training with torch on a processor architecture, in MB of 2^20 bytes.

    Args:
        arch: As profiles name it.
        torchvision: Whether the network comes from there.
    """
    if arch == "x86_64":
        return _TORCHVISION_CUDA if torchvision else _TORCH_CUDA
    return _TORCHVISION_CPU if torchvision else _TORCH_CPU


def onnxruntime_mb(arch: str) -> Figure:
    """Baseline of the bundle's runner on a processor architecture, in MB of 2^20 bytes."""
    if arch == "x86_64":
        return _ONNXRUNTIME
    return _ONNXRUNTIME.model_copy(
        update={"kind": "assumed", "source": f"as on x86-64: {_ONNXRUNTIME.source}"}
    )
