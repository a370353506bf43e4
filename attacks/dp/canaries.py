"""Many canaries in one upload: each is in it or not by a coin of its own, and told from the sum.

A release of many numbers has room for many directions. Where its noise is Gaussian, equal and
independent in all of them, as many trials come of one upload as there are canaries with
directions of their own (Steinke et al. 2023, for one run; here exact, since what the others
move is known).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import PrivacyError, ScoreError
from fedvtc_edge.privacy.release_spec import Array

Bits = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ManyCanaries:
    """A mechanism, and k units each of which it may or may not have seen.

    The score of a canary is what the upload has in its direction once the exact base and
    what the *other* canaries add are taken off. Any two uploads that differ in its coin alone are
    of neighbours, whatever the others' are, so that the score is a test of membership
    as a claim limits it; directions are orthogonalised (Löwdin), so that scores of one
    upload are independent under Gaussian noise of one scale.

    Args:
        draw: One upload [d] with the canaries whose bits [k] are set, with noise drawn afresh.
        base: The upload without canaries and noise, [d].
        moves: What each canary adds to it, [k, d]; linearly independent. Where the mechanism adds
            something else, that is what the scores tell.
        seed: Of the coins.
    """

    draw: Callable[[Bits], NDArray[np.int64] | Array]
    base: Array
    moves: Array
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stream", np.random.default_rng(self.seed))

    def scores(self, trials: int) -> tuple[Array, Array]:
        """Scores of absent and of present canaries, at least ``trials`` of each.

        Raises:
            PrivacyError: Uploads of another length than the base.
            ScoreError: Numbers that are not finite.
        """
        absent: list[Array] = []
        present: list[Array] = []
        many = [0, 0]
        while min(many) < trials:
            bits = self._coins()
            found = self._score(self.draw(bits), bits)
            absent.append(found[~bits])
            present.append(found[bits])
            many = [many[0] + int((~bits).sum()), many[1] + int(bits.sum())]
        return np.concatenate(absent), np.concatenate(present)

    def _coins(self) -> Bits:
        coins: Bits = self._stream.random(len(self.moves)) < 0.5  # type: ignore[attr-defined]
        return coins

    def _score(self, upload: NDArray[np.int64] | Array, bits: Bits) -> Array:
        if upload.shape != self.base.shape:
            raise PrivacyError(
                f"an upload of shape {list(upload.shape)}, expected {list(self.base.shape)}",
                hint="uploads must be of one length, or their length tells who is in them",
            )
        left = upload.astype(np.float64) - self.base - bits @ self.moves
        if not np.isfinite(left).all():
            raise ScoreError(
                "an upload has numbers that are not finite",
                hint="find out why: an honest release is of finite numbers",
            )
        directions, own = self._orthogonal
        found: Array = left @ directions + bits * own
        return found

    @cached_property
    def _orthogonal(self) -> tuple[Array, Array]:
        """Orthonormal directions [d, k] nearest to the moves, and each move's part in its own."""
        values, vectors = np.linalg.eigh(self.moves @ self.moves.T)
        if values[0] <= 1e-9 * values[-1]:
            raise ScoreError(
                "the canaries move the upload along directions that depend on each other",
                hint="give each a direction of its own",
            )
        inverse = (vectors / np.sqrt(values)) @ vectors.T
        directions: Array = self.moves.T @ inverse
        return directions, np.diag((vectors * np.sqrt(values)) @ vectors.T).copy()
