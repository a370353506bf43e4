"""FedCOF (Goswami et al., NeurIPS 2025, arXiv 2412.14326): covariances from class means alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import Doubt, Exchange, Means
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import Array, ClassStatistics, GlobalStatistics
from fedvtc_edge.statistics.gaussian import Coefficients, coefficients
from fedvtc_edge.training.client import Client
from fedvtc_edge.wire.context import Context

from .base import Knob
from .closed_form import ClosedForm


class FedCOF(ClosedForm):
    """FedCOF: counts and class sums up, once; the covariance is estimated from how means differ.

    A class mean of n examples scatters about the class's own by Σ / n. So the spread of the
    clients' means tells Σ, and no second moment travels: the smallest upload of all. The server
    needs each client's means, which masked sums hide, and noise would pass for spread: refused
    under masks and privacy modes.

    One covariance for all classes, and the discriminant on it. The paper scales the directions
    to length 1 in place of the discriminant's constants, which did worse on validation data.
    """

    sends_moments = False
    trimmable = False
    knob: ClassVar[Knob | None] = Knob(
        "shrinkage γ, as a share of the covariance's mean diagonal", 1.0, (0.1, 0.3, 1.0, 3.0), 1e-6
    )

    @classmethod
    def maskable(cls, settings: Config) -> bool:
        """Each client's means are needed."""
        return False

    @classmethod
    def head(cls, settings: Config, known: GlobalStatistics) -> Coefficients:
        """The discriminant's coefficients."""
        return coefficients(known, cls.strength_in(settings))

    def _anchor_statistics(self, anchor: Anchor) -> Exchange[Any]:
        measure = partial(Client.measure_anchor, anchor=anchor, pooled=True)
        server, width = self.federation.config.server, self.federation.config.method.anchor
        return SpreadMeans("anchor", measure, self.federation.classes, width, True, server=server)

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return [
            "once, before the first round: class counts and per-class sums of the frozen anchor's "
            "features"
        ]


class SpreadMeans(Means):
    """Class counts and sums, of which the spread over the clients gives the pooled covariance.

    The covariance within class y is estimated, without bias, by
    Σ_k n_ky (μ_ky - μ_y)(μ_ky - μ_y)ᵀ / (K_y - 1) over its K_y holders; pooled over the classes
    by their degrees of freedom. The sum is one of n_ky μ_ky μ_kyᵀ, less the one that belongs to
    μ_y: each client's summand takes the place of its second moment.
    """

    def decode(self, upload: bytes, context: Context) -> ClassStatistics:
        """Read one client's counts and sums, with what they add to the spread."""
        return with_spread(super().decode(upload, context))

    def doubts(self, parts: Sequence[ClassStatistics]) -> dict[int, Doubt[ClassStatistics]]:
        """Objections to uploads that claim too many samples.

        What contradicts others is not looked for: that takes the spread within a client.
        """
        return self._outweighing(range(len(parts)), parts)

    def _statistics(self, total: ClassStatistics, holders: NDArray[np.int64]) -> GlobalStatistics:
        return covariance_of_means(total, holders)


def with_spread(part: ClassStatistics) -> ClassStatistics:
    """The same with Σ_y n_y μ_y μ_yᵀ as its pooled second moment."""
    rows: Array = part.total / np.sqrt(np.maximum(part.count, 1.0))[:, None]
    return ClassStatistics(part.count, part.total, rows.T @ rows, True)


def covariance_of_means(total: ClassStatistics, holders: NDArray[np.int64]) -> GlobalStatistics:
    """Global statistics from the sum of :func:`with_spread` over clients.

    Args:
        holders: Clients K_y that have a class, [C]. Where no class has two, nothing is known of
            the spread: the covariance is the identity.
    """
    freedom = int(np.maximum(holders - 1, 0).sum())
    known = GlobalStatistics.from_sum(total)
    assert known.covariance is not None
    if freedom == 0:
        covariance = np.eye(total.width)
    else:
        covariance = known.covariance * float(total.count.sum()) / freedom
    std = np.sqrt(np.maximum(np.diag(covariance), 0.0))[None].repeat(total.classes, 0)
    return dataclasses.replace(known, std=std, covariance=covariance)
