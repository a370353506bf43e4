"""Top eigenvectors of the pooled covariance as an attack.

Of few records the scatter W has as many eigenvectors with weight as there are records less
classes, and each is a combination of their very deviations; a record that lies far out bends the
first of them toward itself. It needs no extractor's population, and works on noised matrices, too.
"""

from __future__ import annotations

import numpy as np

from ..adversary.view import Case, CaseAttack, Guess, spectrum

TOP = 8
"""Most eigenvectors that are looked at; what lies behind them is mostly the population's."""


class Eigenvectors(CaseAttack):
    """Share of a candidate's deviation from the class mean in the span of the top eigenvectors."""

    name = "eigenvectors"
    needs_pairs = False

    def answer(self, case: Case) -> Guess | None:
        """Answer one case; None without second moments or an extractor."""
        view = case.view
        if view.scatter is None or view.extract is None or view.freedom < 1:
            return None
        values, axes = spectrum(view.scatter)
        top = min(TOP, max(int(view.freedom), 1), len(values))
        deviations = case.features() - view.mean
        lengths = np.linalg.norm(deviations, axis=1)
        inside = np.linalg.norm(deviations @ axes[:, -top:], axis=1)
        # The one record of its class deviates by nothing, which is no reason to rank it first.
        return Guess(np.where(lengths > 0, inside / np.where(lengths > 0, lengths, 1.0), 0.0))
