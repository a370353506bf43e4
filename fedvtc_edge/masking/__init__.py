"""Secure aggregation: the server learns the sum of the clients' vectors and nothing else.

After Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving
Machine Learning". Client and server are state machines that exchange bytes; whoever
uses them moves the bytes. What each message looks like, and who learns what, is told
in ``docs/masking.md``.
"""

from .client import MaskingClient
from .fixed_point import decode_fixed, encode_fixed, grid_bound
from .messages import traffic_of
from .plan import (
    LARGEST_BOUND,
    MaskingError,
    MaskingPlan,
    MaskingStep,
    in_groups,
    threshold_of,
)
from .server import MaskedSum, MaskingServer
from .simulation import run_masked_sum
from .vault import Vault, take_step

__all__ = [
    "LARGEST_BOUND",
    "MaskedSum",
    "MaskingClient",
    "MaskingError",
    "MaskingPlan",
    "MaskingServer",
    "MaskingStep",
    "Vault",
    "decode_fixed",
    "encode_fixed",
    "grid_bound",
    "in_groups",
    "run_masked_sum",
    "take_step",
    "threshold_of",
    "traffic_of",
]
