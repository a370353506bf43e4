"""Does the noise keep what is claimed? A lower bound on ε from two worlds, or a refutation.

One way: :mod:`claims` says what is claimed and what no measurement could save, :mod:`releases`
makes uploads of two worlds that differ in one unit, :mod:`likelihood` scores one,
:mod:`bounds` turns scores into a lower bound on ε, :mod:`game` says what it comes to.
"""

from .claims import Claim, Thresholds, claim_of_run, read_claim, reasons_against
from .game import AuditResult, Mechanism, audit, trials_for
from .releases import ClientRelease, ExampleRelease

__all__ = [
    "AuditResult",
    "Claim",
    "ClientRelease",
    "ExampleRelease",
    "Mechanism",
    "Thresholds",
    "audit",
    "claim_of_run",
    "read_claim",
    "reasons_against",
    "trials_for",
]
