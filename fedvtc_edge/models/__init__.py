"""Registry of architectures; each emits features [N, p] and logits [N, C]."""

from .builtin import from_torchvision  # and registers what it defines
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
