"""FML (Shen et al. 2020, arXiv 2006.16765): mutual learning with a small network that travels.

It stands for methods with a proxy model, FedMAN among them.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import distill, masked_cross_entropy
from fedvtc_edge.training.own_objective import BatchLoss

from .base import Knob
from .companions import SharedCompanion, both


class FML(SharedCompanion):
    """Each network learns from labels and from what the other one predicts.

    With α = β: α · CE + (1 - α) · KL(other ‖ own), the mean over images of a sum over classes.
    Shared are all weights of the small network, in every round.
    """

    knob: ClassVar[Knob | None] = Knob(
        "α = β, the weight of labels beside the other network", 0.5, (0.1, 0.5, 0.9), 0.0, 1.0
    )

    def objective(self, client: Client) -> BatchLoss:
        """Both losses; neither network moves by the other one's."""
        outputs, alpha = both(client), self.strength

        def loss(x: Tensor, labels: Tensor) -> Tensor:
            (_, own), (_, small) = outputs(x)
            losses = []
            for logits, other in ((own, small), (small, own)):
                taught = distill(logits, other.detach().log_softmax(1))
                labelled = masked_cross_entropy(logits, labels, client.present)
                losses.append(alpha * labelled + (1 - alpha) * taught)
            return losses[0] + losses[1]

        return loss
