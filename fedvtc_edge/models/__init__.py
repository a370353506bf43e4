"""Registry of architectures; each emits features [N, p] and logits [N, C]."""

from .builtin import from_torchvision  # and registers what it defines
from .classifier import Classifier, build
from .extractor_head import ExtractorHead, check_architecture, network
from .registry import ImageShape, architectures, body, find, register, register_extractor

__all__ = [
    "Classifier",
    "ExtractorHead",
    "ImageShape",
    "architectures",
    "body",
    "build",
    "check_architecture",
    "find",
    "from_torchvision",
    "network",
    "register",
    "register_extractor",
]
