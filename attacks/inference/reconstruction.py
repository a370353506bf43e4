"""Pictures from class means: by a decoder, by optimisation, over several extractors.

Scores are how near a candidate is to the picture; with a single record it is that record.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fedvtc_edge.models.extractor import in_chunks

from ..adversary.view import Case, CaseAttack, Guess, Map, View

STEPS, RATE = 100, 0.05
"""Adam steps of an inversion, and their length in brightness; 200 come no nearer."""

VARIATION = 1e-3
"""Weight of the total-variation prior beside a relative error of features (Mahendran and
Vedaldi 2015); chosen on staged uploads of training digits."""

MOST = 50
"""Most trials of a group that are inverted."""

_RIDGE = 1e-2


class Decode:
    """Decoding: x̂ = ψ(c), one forward pass.

    With the client's own ψ where the adversary has it, else with a linear decoder that it fits
    to features of its public images.
    """

    name = "decode"
    needs_pairs = False

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """Answer each case; see :class:`~fedvtc_edge.attacks.adversary.view.Attack`."""
        fitted = cache(_linear_decoder)
        guesses: list[Guess | None] = []
        for case in cases:
            view = case.view
            decode = view.decode
            if decode is None and view.extract is not None:
                decode = fitted(view.extract, view.everyday)
            guesses.append(None if decode is None else _nearest(case, _decoded(decode, view)))
        return guesses


class Inversion:
    """Inversion: min ‖g(x) − c‖² / ‖c‖² + λ·TV(x), started at what ψ makes of c.

    Geiping et al. 2020 invert gradients so; features are easier. Over several extractors
    (``view.again``) the errors add, for the same x. Pretrained networks are not inverted: steps
    through them cost hundreds of times as much, and through onnxruntime there are none.

    Args:
        joint: Whether to use ``view.again``; the attack is then called ``rounds``.
    """

    def __init__(self, *, joint: bool = False) -> None:
        self.joint, self.name = joint, "rounds" if joint else "inversion"
        self.needs_pairs = joint

    @property
    def most(self) -> int:
        """Most cases that are worth their time: a picture costs as much as a thousand tests."""
        return MOST

    def guess(self, cases: Sequence[Case], stream: torch.Generator) -> list[Guess | None]:
        """Answer each case; see :class:`~fedvtc_edge.attacks.adversary.view.Attack`."""
        guesses: list[Guess | None] = [None] * len(cases)
        groups: dict[tuple[Map, ...], list[int]] = {}
        for place, case in enumerate(cases):
            views = self._views(case.view)
            maps = tuple(view.extract for view in views if view.extract is not None)
            if len(maps) != len(views) or not all(getattr(one, "matches", True) for one in maps):
                continue  # nothing to invert, or a pretrained network
            if len(views) > 1 or not self.joint:
                groups.setdefault(maps, []).append(place)
        starts = Decode().guess(cases, stream)
        for maps, places in groups.items():
            started = [starts[place] for place in places]
            first = torch.stack(
                [g.picture for g in started if g is not None and g.picture is not None]
            )
            means = [
                torch.stack([_mean(self._views(cases[place].view)[i]) for place in places])
                for i in range(len(maps))
            ]
            for place, picture in zip(places, invert(maps, means, first), strict=True):
                guesses[place] = _nearest(cases[place], picture)
        return guesses

    def _views(self, view: View) -> list[View]:
        return [view, *view.again] if self.joint else [view]


def invert(maps: Sequence[Map], means: Sequence[Tensor], start: Tensor) -> Tensor:
    """Pictures whose features come near to given means.

    Args:
        means: Per extractor [N, p].
        start: First guesses [N, channels, size, size].

    Returns:
        [N, channels, size, size] in [0, 1].
    """
    picture = start.clamp(0.02, 0.98).clone().requires_grad_()
    optimiser = torch.optim.Adam([picture], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        shown = picture.clamp(0, 1)
        error = sum(
            ((extract(shown) - mean).square().sum(1) / mean.square().sum(1).clamp_min(1e-12)).sum()
            for extract, mean in zip(maps, means, strict=True)
        )
        loss = error / len(maps) + VARIATION * _variation(shown)
        (picture.grad,) = torch.autograd.grad(loss, [picture])  # the extractor gets no gradients
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            picture.clamp_(0, 1)  # outside, the clamp above would stop the gradient for good
    return picture.detach()


class ClassMean(CaseAttack):
    """Mean of public images: no attack at all, and what it reaches is no leak."""

    name = "class-mean"

    def answer(self, case: Case) -> Guess | None:
        """Answer one case."""
        public = case.view.public
        return _nearest(case, public.mean(0)) if len(public) else None


def _variation(pictures: Tensor) -> Tensor:
    """Total variation, summed over the pictures; a mean over the pixels of each."""
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean((1, 2, 3))
    along = (pictures[..., 1:] - pictures[..., :-1]).abs().mean((1, 2, 3))
    return (down + along).sum()


def _mean(view: View) -> Tensor:
    return torch.from_numpy(view.mean).float()


def _decoded(decode: Map, view: View) -> Tensor:
    with torch.no_grad():
        return decode(_mean(view)[None])[0].clamp(0, 1)


def _nearest(case: Case, picture: Tensor) -> Guess:
    distance = (case.candidates - picture).square().flatten(1).sum(1)
    return Guess(-distance.double().numpy(), picture)


def _linear_decoder(extract: Map, images: Tensor) -> Map:
    """Ridge regression from features to pixels on the adversary's own images."""
    features = in_chunks(extract, images).double().numpy()
    pixels = images.flatten(1).double().numpy()
    middle, centre = features.mean(0), pixels.mean(0)
    centred = features - middle
    gram = centred.T @ centred
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, centred.T @ (pixels - centre))
    shape = images.shape[1:]

    def decode(z: Tensor) -> Tensor:
        flat = (z.double().numpy() - middle) @ weights + centre
        return torch.from_numpy(flat).float().reshape(-1, *shape)

    return decode
