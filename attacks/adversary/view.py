"""An adversary's view and prior knowledge, and the interface of an attack on it.

An attack gets a :class:`Case` (a view and candidates) and returns a :class:`Guess`. It never
gets the truth: who is in the data is compared with the guess afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import Array

Map = Callable[[Tensor], Tensor]
"""Images [N, channels, size, size] in [0, 1] to features [N, p], or the other way round."""

_RIDGE = 0.05
"""Share of the mean variance that is added to every direction of a covariance."""

_KEPT = 128
_known: OrderedDict[int, tuple[Array, Array, Array]] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Population:
    """Prior knowledge of a class' features, from the adversary's own images.

    Args:
        mean: Mean of the class' features, [p].
        covariance: Covariance within classes, [p, p]; positive definite.
    """

    mean: Array
    covariance: Array


@dataclass(frozen=True, eq=False)
class Pairs:
    """Records whose hidden features the adversary came to know.

    Args:
        substitute: An extractor that everybody can build.
        known: Its features of P records, [P, q].
        hidden: Their features under the client's own extractor, [P, p].
    """

    substitute: Map
    known: Array
    hidden: Array


@dataclass(frozen=True, eq=False)
class View:
    """One adversary's knowledge of one class at one client (or of all clients together).

    Args:
        who: The adversary: ``server``, ``colluders`` (all clients but one), ``device`` (who takes
            one apart), or ``server+device``, both together.
        count: Samples n, as seen: under noise an estimate, 1 at least.
        mean: Mean of their features, [p].
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
        pairs: Substitute for an extractor that the adversary does not have; or None.
        after: The same class after one of its records has left; None where nobody saw that.
        again: The same records under other extractors: other rounds, or other runs.
        second: The same records in a second noised run with the same extractor; or None.
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
    second: View | None = None


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
        return self._features

    @cached_property  # one attack after the other asks for them
    def _features(self) -> Array:
        assert self.view.extract is not None
        extract: Map = self.view.extract
        if isinstance(extract, Anchor) and extract.sha256:
            extract = extract.embed
        with torch.no_grad():
            features: Array = extract(self.candidates).double().cpu().numpy()
        return features

    def with_view(self, view: View) -> Case:
        """The same question about another view with the same extractor."""
        case = Case(view, self.candidates)
        assert view.extract is self.view.extract
        case.__dict__["_features"] = self.features()
        return case


@dataclass(frozen=True, eq=False)
class Guess:
    """An attack's answer to a case.

    Args:
        scores: Per candidate, [K]; a higher score is "more likely a member".
        picture: What the adversary believes a record looks like, [channels, size, size] in
            [0, 1]; None for attacks that make no picture.
    """

    scores: Array
    picture: Tensor | None = None


class Attack(Protocol):
    """Attack: guesses from statistics.

    One that takes long may say how many trials of a group it is worth: an attribute ``most``. One
    that looks at neither ``after``, ``again`` nor ``second`` may say so: ``needs_pairs = False``.
    One that has more than an audited run gave says what no claim of that run covers, in words:
    ``uncovered``; nothing hangs on it.
    """

    @property
    def name(self) -> str:
        """One word, as ``--attacks`` takes it."""

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """Answer each case by itself; None where the view lacks what the attack needs.

        Several at once only for speed: no answer may depend on another case.

        Args:
            cases: Questions, all of the same adversary.
            stream: The only source of chance.
        """


class CaseAttack(ABC):
    """Base of an attack without chance that answers one case after the other."""

    name: str

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """Answer each case; see :class:`Attack`."""
        return [self.answer(case) for case in cases]

    @abstractmethod
    def answer(self, case: Case) -> Guess | None:
        """Answer one case; None where the view lacks what the attack needs."""


def populations(features: Array, labels: NDArray[np.int64], classes: int) -> list[Population]:
    """Prior knowledge of each class: its mean, shrunk toward all classes', and one covariance.

    The covariance is that within all classes, because a class has few public images; shrunk
    toward a multiple of the identity (Ledoit and Wolf 2004, with a fixed weight) and so
    positive definite.

    Args:
        features: Of the adversary's own images, [N, p].
        labels: Their classes, [N].
        classes: Number C; for a class without images, the mean of all stands in.
    """
    width = features.shape[1]
    common = features.mean(0) if len(features) else np.zeros(width)
    within, seen = np.zeros((width, width)), np.unique(labels)
    for each in seen:
        part = features[labels == each]
        centred = part - part.mean(0)
        within += centred.T @ centred
    freedom = max(len(features) - len(seen), 1)
    within /= freedom
    size = max(float(np.trace(within)) / width, 1e-12)
    weight = min(1.0, _RIDGE + width / (freedom + width) * 0.5)
    covariance = (1 - weight) * within + weight * size * np.eye(width)
    owns = [features[labels == label] for label in range(classes)]
    return [Population((own.sum(0) + common) / (len(own) + 1), covariance) for own in owns]


def spectrum(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues [p], ascending, and eigenvectors [p, p] of a symmetric matrix.

    The last few are kept, by the array's identity: one that is changed in place is not looked
    at again. They are kept together with the array, so that no other can have its identity.
    """
    kept = _known.get(id(matrix))
    if kept is None:
        kept = (matrix, *np.linalg.eigh(matrix))
        _known[id(matrix)] = kept
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    return kept[1], kept[2]
