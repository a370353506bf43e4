"""Federated learning from statistics alone, for unequal edge devices.

Heavy parts load on first use, so that a device without torch can import the package.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config, load_config
    from .workflows.compare import compare
    from .workflows.run import RunResult, resume, run

# Read once, when onnxruntime is first imported: since 1.29 its wheels otherwise write a device
# id into the user's cache folder. Set here, so that no order of our imports can be too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = ["Config", "RunResult", "audit", "compare", "load_config", "resume", "run"]

_HOMES = {
    "Config": "config",
    "RunResult": "workflows.run",
    "audit": "attacks.auditing",
    "compare": "workflows.compare",
    "load_config": "config",
    "resume": "workflows.run",
    "run": "workflows.run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 3 MB that a device can do without

        return version("fedvtc-edge")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
