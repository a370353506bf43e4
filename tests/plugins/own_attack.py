"""An attack of one's own: statistics in, guesses out."""

import numpy as np

from fedvtc_edge.attacks import register
from fedvtc_edge.attacks.adversary.view import Case, CaseAttack, Guess


class Nearest(CaseAttack):
    """Scores a candidate by how near its features lie to the uploaded class mean."""

    name = "nearest"

    def answer(self, case: Case) -> Guess | None:
        """One score per candidate; None where the adversary does not have the extractor."""
        if case.view.extract is None:
            return None
        return Guess(-np.linalg.norm(case.features() - case.view.mean, axis=1))


register(Nearest())
