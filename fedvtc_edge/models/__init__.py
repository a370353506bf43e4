"""Registry of architectures; each emits features [N, p] and logits [N, C]."""

from .builtin import from_torchvision  # and registers what it defines
from .classifier import Classifier, build
from .extractor_head import ExtractorHead, ExtractorTail, check_architecture, network, on_extractor
from .registry import ImageShape, architectures, body, find, register, register_extractor

__all__ = [
    "Classifier",
    "ExtractorHead",
    "ExtractorTail",
    "ImageShape",
    "architectures",
    "body",
    "build",
    "check_architecture",
    "find",
    "from_torchvision",
    "network",
    "on_extractor",
    "register",
    "register_extractor",
]
