"""The class of FedType (Wang et al. 2024, ICML): a proxy model, and conformal sets of what is sure.

From its description alone, and not all of it: the sets are plain split-conformal ones, calibrated
anew in each round on a part of the client's own data; the paper's own dynamic adjustment of their
level is left out.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.seeding import generator
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import masked_cross_entropy
from fedvtc_edge.training.own_objective import BatchLoss

from .base import Knob
from .companions import SharedCompanion, both, networks_of

CALIBRATION = 0.2
"""Share of a client's data that calibrates and is not trained on."""


class FedType(SharedCompanion):
    """Both networks say which classes an image may have, and teach by how few these are.

    The small one always learns what the own one says within its set, weighted by one over the
    set's size; the own one learns from the small one only where that one's set is no larger than
    its own. Shared are all weights of the small network, in every round.
    """

    knob: ClassVar[Knob | None] = Knob(
        "share of images whose class is to be in its set", 0.9, (0.8, 0.9, 0.95), 0.5, 0.999
    )

    def train(self, client: Client, number: int) -> None:
        """Steps on what does not calibrate."""
        _, rest = split(client)
        self.take_steps(client, number, examples=(client.images[rest], client.labels[rest]))

    def objective(self, client: Client) -> BatchLoss:
        """Both losses, by thresholds of the networks as the round begins."""
        outputs, (held, _) = both(client), split(client)
        images, labels = client.images[held], client.labels[held].cpu()
        own_least, small_least = (
            threshold(in_chunks(network.eval(), images).softmax(1), labels, self.strength)
            for network in (client.model, networks_of(client).network)
        )
        for network in client.networks.values():
            network.train()

        def loss(x: Tensor, labels: Tensor) -> Tensor:
            (_, own), (_, small) = outputs(x)
            own_set, small_set = conformal(own, own_least), conformal(small, small_least)
            own_size, small_size = own_set.sum(1), small_set.sum(1)
            to_small = taught(small, own, own_set) / own_size
            to_own = taught(own, small, small_set) / small_size * (small_size <= own_size)
            labelled = (masked_cross_entropy(n, labels, client.present) for n in (own, small))
            return sum(labelled, to_small.mean() + to_own.mean())

        return loss


def split(client: Client) -> tuple[Tensor, Tensor]:
    """Indices of a client's images that calibrate, and of the rest; a single image is both."""
    size = len(client.images)
    order = torch.randperm(size, generator=generator(client.seed, client.id, "calibration"))
    held = max(1, round(CALIBRATION * size))
    order = order.to(client.images.device)
    return order[:held], order[held:] if size > 1 else order


def threshold(posteriors: Tensor, labels: Tensor, coverage: float) -> float:
    """Least posterior of a class in a set, by split conformal prediction.

    Of images like these, the true class of that share of them is above it; 0 where they are too
    few to say.

    Args:
        posteriors: [N, C].
        labels: [N].
        coverage: Share of images, in (0, 1).
    """
    true = posteriors[torch.arange(len(labels)), labels].sort().values
    allowed = len(true) - math.ceil((len(true) + 1) * coverage)
    return float(true[allowed]) if allowed >= 0 else 0.0


def conformal(logits: Tensor, least: float) -> Tensor:
    """Classes that an image may have, boolean [n, C]; the likeliest always."""
    found = logits.detach().softmax(1) >= least
    return found.scatter(1, logits.argmax(1, keepdim=True), True)


def taught(logits: Tensor, other: Tensor, classes: Tensor) -> Tensor:
    """KL of a network's prediction from the other one's within its classes, [n]."""
    teacher = other.detach().masked_fill(~classes, float("-inf")).log_softmax(1)
    # Where a class is not in the set, 0 times a finite number in place of infinity.
    gap = teacher.masked_fill(~classes, 0.0) - logits.log_softmax(1)
    return (teacher.exp() * gap).sum(1)
