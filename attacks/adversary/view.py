"""What an adversary sees, what it may be asked, and what it answers.

An attack gets a :class:`Case` (a view and candidates) and returns a :class:`Guess`. It never
gets the truth: who is in the data is compared with the guess by ``trials``, afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedvtc_edge.statistics.class_statistics import Array

Map = Callable[[Tensor], Tensor]
"""Images [N, channels, size, size] in [0, 1] to features [N, p], or the other way round."""


@dataclass(frozen=True, eq=False)
class Population:
    """What the adversary knows of a class before it sees an upload, from images of its own.

    Args:
        mean: Of the class' features, [p].
        covariance: Of them, [p, p]; positive definite.
    """

    mean: Array
    covariance: Array


@dataclass(frozen=True, eq=False)
class Pairs:
    """Records whose hidden features the adversary came to know.

    Args:
        probe_copy: An extractor that everybody can build.
        known: Its features of P records, [P, q].
        hidden: Their features under the client's own extractor, [P, p].
    """

    probe_copy: Map
    known: Array
    hidden: Array


@dataclass(frozen=True, eq=False)
class View:
    """What one adversary knows of one class at one client (or of all clients together).

    Args:
        who: The adversary: ``server``, ``colluders`` (all clients but one), ``device`` (who takes
            one apart), or ``server+device``, both in league.
        label: The class.
        count: Samples n, as seen: under noise an estimate, 1 at least.
        mean: Of their features, [p].
        std: Their biased standard deviation per feature, [p]; None where it is not seen.
        scatter: Within-class scatter W = Σ (z − c_y)(z − c_y)ᵀ over *all* of the client's
            classes, [p, p]; None where it is not seen.
        freedom: Samples less classes that ``scatter`` is of; 0 without one.
        noise: Standard deviation of privacy noise on each number of ``mean``; 0: exact.
        rounding: Relative error of each number, from its format: 2⁻²⁴ for float32.
        extract: g or R, differentiable; None where the adversary does not have it.
        decode: ψ, features to images; None where the adversary does not have it.
        population: Prior knowledge of the class' features; None without an extractor.
        public: Images of the class that the adversary owns, [M, channels, size, size].
        everyday: Its images of all classes, [L, channels, size, size].
        pairs: What stands in for an extractor that the adversary does not have; or None.
        after: The same class after one of its records has left; None where nobody saw that.
        again: The same records under other extractors: other rounds, or other runs.
    """

    who: str
    label: int
    count: float
    mean: Array
    std: Array | None
    public: Tensor
    everyday: Tensor
    scatter: Array | None = None
    freedom: float = 0.0
    noise: float = 0.0
    rounding: float = 2.0**-24
    extract: Map | None = None
    decode: Map | None = None
    population: Population | None = None
    pairs: Pairs | None = None
    after: View | None = None
    again: tuple[View, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """A question: which of the candidates are among the records that the view is of?

    Args:
        view: All that the adversary has.
        candidates: Images of the view's class, [K, channels, size, size]; some are members.
    """

    view: View
    candidates: Tensor

    def features(self) -> Array:
        """The candidates' features, [K, p]; only where the view has an extractor."""
        assert self.view.extract is not None
        with torch.no_grad():
            features: Array = self.view.extract(self.candidates).double().cpu().numpy()
        return features


@dataclass(frozen=True, eq=False)
class Guess:
    """An answer.

    Args:
        scores: Per candidate, [K]; a higher score is "more likely a member".
        picture: What the adversary believes a record looks like, [channels, size, size] in
            [0, 1]; None for attacks that paint nothing.
    """

    scores: Array
    picture: Tensor | None = None


class Attack(Protocol):
    """Statistics in, guesses out."""

    @property
    def name(self) -> str:
        """One word, as ``--attacks`` takes it."""

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """Answer each case by itself; None where the view lacks what the attack needs.

        Several at once only for speed: no answer may depend on another case.
        """
