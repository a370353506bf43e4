"""Audit of DP-SGD's noised steps, by many canaries in one gradient.

What one sees who reads every step: the noised sum of clipped gradients. Each canary is in a batch
or not by a coin; its own gradient, computed without Opacus and clipped by hand, is the direction in
which it is looked for. A step is held to its own claim, noise of z times the clip bound,
before sampling amplifies anything; what all steps come to is the accountant's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedvtc_edge.privacy.accountant import epsilon_spent
from fedvtc_edge.privacy.claim import Claim
from fedvtc_edge.privacy.dpsgd import KEY_BYTES, PrivateGradients, SecretStream
from fedvtc_edge.privacy.mechanism import ExampleMechanism
from fedvtc_edge.privacy.release_spec import Array
from fedvtc_edge.privacy.schedule import Schedule

from ..adversary.observations import EVERYONE
from ..adversary.trials import AuditedRun
from ..scoring.findings import Finding
from .canaries import Bits, ManyCanaries
from .game import CONFIDENCE, MechanismAudit, audit_scores, trials_for

MOST_CANARIES = 10
"""Most canaries in one batch, each of another class: gradients of one class are much alike."""

MOST_STEPS = 400
"""Most steps of the mechanism, and of its control."""

_BESIDE = 8
"""Natural records that are in every batch."""

_LOUD = 1e4
"""Factor of a canary's loss, so that its gradient is clipped to the whole bound."""


@dataclass(frozen=True, eq=False)
class NoisedSteps:
    """Gradients of one network by the package's own DP-SGD.

    Args:
        model: Put into training mode; its weights stay as they are.
        inputs: What the model is given, [N, …]: records that are always there, then canaries.
        labels: Their classes, [N].
        canaries: Number k of the last ones that are canaries, 2 or more.
        schedule: Says noise, clip bound and expected batch.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    canaries: int
    schedule: Schedule

    @property
    def claim(self) -> Claim:
        """The claim of one step in which an example is certain to be."""
        noise, delta = self.schedule.noise_multiplier, self.schedule.delta
        return Claim(
            epsilon=epsilon_spent([(noise, 1.0, 1)], delta),
            delta=delta,
            unit="example",
            neighbouring="add/remove",
            mechanism=f"Gaussian, noise multiplier {noise:.6g}, one step",
            accountant="exact",
        )

    def halved(self) -> NoisedSteps:
        """The positive control: the same steps with half of the noise."""
        schedule = _Halved(**vars(self.schedule))
        return NoisedSteps(self.model, self.inputs, self.labels, self.canaries, schedule)

    def many_canaries(self) -> ManyCanaries:
        """Uploads that are gradients, times the expected batch."""
        gradients = self._clipped
        beside = len(self.inputs) - self.canaries
        noise = SecretStream(os.urandom(KEY_BYTES), "audit of steps")
        always = torch.arange(beside)

        def draw(bits: Bits) -> Array:
            batch = torch.cat([always, beside + torch.from_numpy(np.flatnonzero(bits))])
            # Hooks of one step alone: another sampler works on the same network.
            private = PrivateGradients(self.model, self.schedule, noise)
            try:
                private.compute(batch, self._loss)
                found = [p.grad.flatten() for p in self._weights if p.grad is not None]
                return torch.cat(found).double().numpy() * self.schedule.batch
            finally:
                private.close()

        return ManyCanaries(draw, gradients[:beside].sum(0), gradients[beside:])

    @property
    def _weights(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _loss(self, batch: Tensor) -> Tensor:
        """Sum of losses, of canaries so large that clipping decides."""
        loud = torch.where(batch >= len(self.inputs) - self.canaries, _LOUD, 1.0)
        x = self.inputs[batch].requires_grad_()
        each = cross_entropy(self.model(x), self.labels[batch], reduction="none")
        return (each * loud).sum()

    @cached_property
    def _clipped(self) -> Array:
        """Each record's gradient, clipped as the claim says, [N, d]."""
        self.model.train()
        rows = []
        for index in range(len(self.inputs)):
            found = torch.autograd.grad(
                self._loss(torch.tensor([index])), self._weights, allow_unused=True
            )
            pairs = zip(self._weights, found, strict=True)
            row = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
            row = row.double()
            rows.append(row * min(1.0, self.schedule.clip / max(float(row.norm()), 1e-300)))
        clipped: Array = torch.stack(rows).numpy()
        return clipped


class _Halved(Schedule):
    """A schedule whose steps have half of the noise that it was calibrated to."""

    @property
    def noise_multiplier(self) -> float:
        return super().noise_multiplier / 2


def audit_steps(steps: NoisedSteps) -> MechanismAudit:
    """Try to refute the claim of one step; see :func:`~.game.audit_scores`."""
    claim = steps.claim
    return audit_scores(
        steps.many_canaries().scores,
        steps.halved().many_canaries().scores,
        claim,
        trials=trials_for(claim, confidence=CONFIDENCE),
        confidence=CONFIDENCE,
        most=MOST_STEPS * steps.canaries // 2,
    )


def step_findings(audited: AuditedRun) -> list[Finding]:
    """Finding on a run's DP-SGD steps; none where it trains without noise.

    On the network of the first client that took part, as the run left it.
    """
    mechanism = audited.mechanism
    if not isinstance(mechanism, ExampleMechanism):
        return []
    named = (name for name in audited.holdings if name != EVERYONE)
    client = next((name for name in named if audited.run.has_network(name)), None)
    if client is None:
        return []
    model = audited.run.classifier(client, audited.shape, audited.classes)
    steps = steps_of(
        model,
        audited.images[audited.holdings[client]],
        audited.labels[audited.holdings[client]].tolist(),
        mechanism.schedule,
        audited.classes,
    )
    return [finding_of(audit_steps(steps), steps.claim)]


def steps_of(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int],
    schedule: Schedule,
    classes: int,
) -> NoisedSteps:
    """Steps on a few records of a client, and canaries: pictures of noise, one of each class.

    Args:
        model: A classifier, whose ``inputs`` turn images into what it is given.
        images: [N, channels, size, size].
        labels: Their classes, [N].
        classes: Number C of classes, 2 or more.
    """
    many = min(classes, MOST_CANARIES)
    draw = torch.Generator().manual_seed(0)
    odd = torch.rand((many, *images.shape[1:]), generator=draw)
    together = torch.cat([images[:_BESIDE], odd])
    inputs = model.inputs(together).detach()  # type: ignore[operator]
    return NoisedSteps(
        model, inputs, torch.tensor([*labels[:_BESIDE], *range(many)]), many, schedule
    )


def finding_of(found: MechanismAudit, claim: Claim) -> Finding:
    """The finding on one step of DP-SGD."""
    common = {
        "attack": "training steps",
        "view": "device",
        "metric": "refuted",
        "group": "a step of DP-SGD",
        "threshold": 0.0,
        "trials": found.trials,
        "note": f"epsilon of one step is at least {found.lower_bound:.3g}, claimed "
        f"{claim.epsilon:.3g}; half of the noise: at least {found.control.best:.3g}",
    }
    if found.verdict == "inconclusive":
        return Finding(decides_by="more steps", **common)  # type: ignore[arg-type]
    return Finding.fact(value=float(found.verdict == "leak"), **common)
