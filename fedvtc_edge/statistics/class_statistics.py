"""Statistics that add: what a client uploads, and what the server makes of the sum.

Sums travel, never means: aggregation is ``+``, masking and noise act on sums,
and the one division happens in :meth:`GlobalStatistics.from_sum`. Classes with
no or one sample then need no special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import FedVTCError

Array = NDArray[np.float64]


class StatisticsError(FedVTCError):
    """Statistics of unequal shapes, or impossible values."""


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Per-class sums of p features over C classes; ``a + b`` describes the union of the data.

    The law: ``ClassStatistics.of(x ∪ y) == ClassStatistics.of(x) + ClassStatistics.of(y)``.

    Args:
        count: Samples per class, [C].
        total: Sum of features per class, [C, p].
        square: Sum of squared features per class, [C, p] (diagonal), or the sum of
            outer products over all classes, [p, p] (pooled).
        pooled: Which of the two ``square`` is; needed only where C = p, else read
            off its shape.

    Raises:
        StatisticsError: Shapes that do not fit together.
    """

    count: Array
    total: Array
    square: Array
    pooled: bool | None = None

    def __post_init__(self) -> None:
        for name in ("count", "total", "square"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.pooled is None:
            object.__setattr__(self, "pooled", self.square.shape != self.total.shape)
        if (
            self.total.ndim != 2
            or self.count.shape != self.total.shape[:1]
            or self.square.shape != ((self.width,) * 2 if self.pooled else self.total.shape)
        ):
            raise StatisticsError(
                f"shapes {self.count.shape}, {self.total.shape}, {self.square.shape} do not fit",
                hint="expected count [C], total [C, p] and square [C, p] or [p, p]",
            )

    @classmethod
    def of(
        cls, features: ArrayLike, labels: ArrayLike, *, classes: int, pooled: bool = False
    ) -> ClassStatistics:
        """Measure features [N, p] with integer labels [N] in 0…classes-1; N may be 0."""
        z = np.asarray(features, np.float64)
        y = np.asarray(labels, np.int64)
        if (
            z.ndim != 2
            or y.shape != z.shape[:1]
            or (y.size and not 0 <= y.min() <= y.max() < classes)
        ):
            raise StatisticsError(
                f"features {z.shape} and labels {y.shape} do not fit {classes} classes",
                hint="expected features [N, p] and labels [N] in 0…classes-1",
            )
        # A product with the one-hot matrix adds in a fixed order, unlike a scatter.
        member = (y[None, :] == np.arange(classes)[:, None]).astype(np.float64)
        square = z.T @ z if pooled else member @ np.square(z)
        return cls(member.sum(1), member @ z, square, pooled)

    def __add__(self, other: ClassStatistics) -> ClassStatistics:
        if self.total.shape != other.total.shape or self.pooled != other.pooled:
            raise StatisticsError(
                f"cannot add {other.total.shape} to {self.total.shape}",
                hint="all clients must agree on classes, width and moments",
            )
        return ClassStatistics(
            self.count + other.count,
            self.total + other.total,
            self.square + other.square,
            self.pooled,
        )

    @property
    def classes(self) -> int:
        """Number C of classes."""
        return int(self.total.shape[0])

    @property
    def width(self) -> int:
        """Number p of features."""
        return int(self.total.shape[1])

    @property
    def mean(self) -> Array:
        """Per-class means [C, p]; zero where a class has no sample."""
        return self.total / np.maximum(self.count, 1.0)[:, None]

    @property
    def std(self) -> Array:
        """Standard deviations [C, p], biased (divided by n); pooled: one row for all classes."""
        if self.pooled:
            variance = np.diag(_within(self))[None, :].repeat(self.classes, 0)
        else:
            variance = self.square / np.maximum(self.count, 1.0)[:, None] - np.square(self.mean)
        return np.sqrt(np.maximum(variance, 0.0))


def sum_of(parts: list[ClassStatistics]) -> ClassStatistics:
    """Add in the order given, so that the same parts give the same bits."""
    return reduce(add, parts)


def _within(statistics: ClassStatistics) -> Array:
    """Pooled within-class covariance [p, p]: (Σ z zᵀ − Σ_y n_y μ_y μ_yᵀ) / n."""
    mean = statistics.mean
    between = (mean * statistics.count[:, None]).T @ mean
    within = (statistics.square - between) / max(statistics.count.sum(), 1.0)
    symmetric: Array = (within + within.T) / 2.0
    return symmetric


@dataclass(frozen=True, eq=False)
class GlobalStatistics:
    """Published distribution of features over all clients.

    Args:
        count: Samples per class over all clients, [C].
        mean: Prototypes c^y, [C, p].
        std: Class standard deviations σ^y, [C, p], never below the floor.
        covariance: Pooled within-class covariance [p, p], or None (diagonal).
    """

    count: Array
    mean: Array
    std: Array
    covariance: Array | None = None

    @classmethod
    def from_sum(cls, total: ClassStatistics, *, floor: float = 0.0) -> GlobalStatistics:
        """The one division, by the law of total variance.

        The spread *between* clients counts: a std averaged over clients would
        miss it.

        Args:
            floor: Least standard deviation, in units of the features.
        """
        covariance = _within(total) if total.pooled else None
        return cls(total.count, total.mean, np.maximum(total.std, floor), covariance)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Classes [C] of which at least one client has a sample."""
        return self.count > 0

    def sample(self, labels: ArrayLike, noise: ArrayLike) -> Array:
        """Latents v = c^y + σ^y ⊙ ε for labels [N] and noise ε [N, p]."""
        y = np.asarray(labels, np.int64)
        return self.mean[y] + self.std[y] * np.asarray(noise, np.float64)
