"""Registry of architectures; each emits features [N, p] and logits [N, C]."""

from . import small as _small  # noqa: F401  registers the five built-in bodies
from .adapters import from_torchvision  # and registers torchvision's networks
from .classifier import Classifier, build
from .registry import ImageShape, architectures, body, find, register, register_extractor

__all__ = [
    "Classifier",
    "ImageShape",
    "architectures",
    "body",
    "build",
    "find",
    "from_torchvision",
    "register",
    "register_extractor",
]
