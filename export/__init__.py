"""Put the classifier and the image synthesiser on a device that has no torch.

What a device needs is found here, and loaded on first use, so that the command
line answers before onnxruntime is there; :mod:`fedvtc_edge.export.exporting`,
which makes bundles and needs torch and onnx, is imported by its own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .verification import verify

__all__ = ["Bundle", "verify"]


def __getattr__(name: str) -> Any:
    if name == "Bundle":
        from .bundle import Bundle

        return Bundle
    if name == "verify":
        from .verification import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
