"""Statistics to bytes and back; whatever comes in is bounded before it is believed.

Byte by byte in docs/wire-format.md.
"""

from .context import Context
from .framing import WireError, context_of
from .publication import publish, published
from .releases import (
    LARGEST_RELEASE,
    Weights,
    decode_release,
    decode_weights,
    encode_release,
    encode_weights,
)
from .uploads import (
    Precision,
    decode,
    decode_means,
    encode,
    encode_means,
    symmetric,
    upper,
)

__all__ = [
    "LARGEST_RELEASE",
    "Context",
    "Precision",
    "Weights",
    "WireError",
    "context_of",
    "decode",
    "decode_means",
    "decode_release",
    "decode_weights",
    "encode",
    "encode_means",
    "encode_release",
    "encode_weights",
    "publish",
    "published",
    "symmetric",
    "upper",
]
