"""Put the classifier and the image synthesiser on a device that has no torch.

What a device needs is imported here; :mod:`fedvtc_edge.export.exporting`, which
makes bundles and needs torch and onnx, is not.
"""

from .bundle import Bundle
from .verification import verify

__all__ = ["Bundle", "verify"]
