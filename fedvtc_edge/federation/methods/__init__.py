"""Methods by name: FedVTC and the baselines, on one harness."""

from fedvtc_edge.federation.federation import Federation, Traffic

from .base import Method, calibrated
from .fedproto import FedProto
from .fedvtc import FedVTC
from .supervised import Centralised, Local, LocalMatched

METHODS: dict[str, type[Method]] = {
    "fedvtc": FedVTC,
    "local": Local,
    "local-matched": LocalMatched,
    "fedproto": FedProto,
    "centralised": Centralised,
}

__all__ = ["METHODS", "Federation", "Method", "Traffic", "calibrated"]
