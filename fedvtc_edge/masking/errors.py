"""The one error of secure aggregation."""

from __future__ import annotations

from fedvtc_edge.errors import FedVTCError


class MaskingError(FedVTCError):
    """A message, a vector or a round that secure aggregation refuses.

    Whatever the cause, nothing unmasked has left: a client that raises it says no more
    in this round, and a server that raises it has no sum.
    """
