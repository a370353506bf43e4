"""Attacks by name, as ``audit --attacks`` takes them.

An attack of one's own is one file, named by ``--plugin FILE.py`` or the entry-point group
``fedvtc_edge.attacks``::

    from fedvtc_edge.attacks import register
    from fedvtc_edge.attacks.adversary.view import Case, CaseAttack, Guess

    class Nearest(CaseAttack):
        name = "nearest"

        def answer(self, case: Case) -> Guess | None:
            if case.view.extract is None:  # this adversary cannot compute features
                return None
            return Guess(-abs(case.features() - case.view.mean).sum(1))

    register(Nearest())

It gets a :class:`~.adversary.view.Case`: all that one adversary knows of one class of an upload
(:class:`~.adversary.view.View`), and candidate images, one of which is a member. It returns a
:class:`~.adversary.view.Guess`: one score per candidate, higher for "more likely a member", and
a picture if it makes one; or None where the view lacks what it needs. The audit compares scores
with the truth and puts the attack into its tables, limits and verdict as any other. An attack
that draws by chance, or is faster on many cases, has all of :class:`~.adversary.view.Attack`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedvtc_edge.errors import UsageError
from fedvtc_edge.plugins import Registry

from .adversary.view import Attack
from .inference.averaging import Averaging
from .inference.eigenvectors import Eigenvectors
from .inference.exact_recovery import Differencing, ExactRecovery
from .inference.membership import Membership, SecondMoments, Shadow
from .inference.reconstruction import Decode, Inversion

ATTACKS: Registry[Attack] = Registry("attack", "--attacks", "fedvtc_edge.attacks", error=UsageError)
"""Registered attacks, in the order of the report."""


def register(attack: Attack) -> None:
    """Make an attack part of every audit, and available to ``--attacks`` by its name.

    Raises:
        UsageError: The name is taken.
    """
    ATTACKS.register(attack.name, attack)


def parse_attacks(names: Sequence[str | Attack] | None) -> list[Attack]:
    """Attacks by name or as they are; all that are registered where none is given.

    Raises:
        UsageError: An unknown name.
    """
    return [
        ATTACKS.find(name) if isinstance(name, str) else name for name in names or ATTACKS.names()
    ]


for _attack in (
    Decode(),
    Inversion(),
    ExactRecovery(),
    Membership(),
    SecondMoments(),
    Differencing(),
    Inversion(joint=True),
    Shadow(),
    Eigenvectors(),
    Averaging(),
):
    register(_attack)
