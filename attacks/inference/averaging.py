"""What a second run on the same data adds: two draws of noise, averaged."""

from __future__ import annotations

from dataclasses import replace

from ..adversary.view import Case, CaseAttack, Guess
from .membership import Membership


class Averaging(CaseAttack):
    """Membership from the average of two noised uploads of the same records.

    The noise of an average is 1/√2 of that of one. Two runs spend twice what one does, so that no
    claim of one run limits this: it says what ``spend again`` costs.
    """

    name = "averaging"
    uncovered = "a second run on the same data, which the claim of one does not cover"

    def answer(self, case: Case) -> Guess | None:
        """Answer one case; None where nothing is noised, or nobody uploaded again."""
        view, second = case.view, case.view.second
        if second is None or view.noise == 0 or second.noise == 0:
            return None
        both = replace(
            view,
            count=max((view.count + second.count) / 2, 1.0),
            mean=(view.mean + second.mean) / 2,
            noise=(view.noise**2 + second.noise**2) ** 0.5 / 2,
            second=None,
        )
        return Membership().answer(case.with_view(both))
