"""Does the noise keep what is claimed? A lower bound on ε from two worlds, or a refutation.

One way: :mod:`claims` says what is claimed and what no measurement could save, :mod:`releases`
makes uploads of two worlds that differ in one unit, :mod:`likelihood` scores one,
:mod:`bounds` turns scores into a lower bound on ε, :mod:`game` says what it comes to.
"""

from .claims import PrivacyClaim, Thresholds, claim_of_run, read_claim, reasons_against
from .game import AuditedMechanism, AuditResult, audit, trials_for
from .releases import ClientRelease, ExampleRelease

__all__ = [
    "AuditResult",
    "AuditedMechanism",
    "ClientRelease",
    "ExampleRelease",
    "PrivacyClaim",
    "Thresholds",
    "audit",
    "claim_of_run",
    "read_claim",
    "reasons_against",
    "trials_for",
]
