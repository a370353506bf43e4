"""A method of one's own: local training with a pull toward the mean features of all clients."""

from collections.abc import Sequence

import torch

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.methods import Federation, Method, register
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.losses import ClassMoments


class Magnet(Method):
    """Features pulled toward the means of all clients' features, which travel once a round."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.means: ClassMoments | None = None

    @classmethod
    def shared(cls, settings: Config) -> str:
        """What leaves a client, for reports and the audit."""
        return "features"

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Nothing before the first round; then one epoch, and statistics of own features."""
        if number == 0:
            return []
        width = self.federation.config.method.latent
        exchange = self.federation.exact("features", Client.measure, width, pooled=False)
        return [RoundStep(lambda client: client.train(number, self.means, kl=0.1), exchange)]

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up what was published last: after an exchange, and after a restart."""
        super().restore(published)
        if "features" in published:
            known, device = wire.published(published["features"]), self.federation.compute.device
            mean = torch.from_numpy(known.mean).float().to(device)
            present = torch.from_numpy(known.present).to(device)
            self.means = ClassMoments(mean, torch.ones_like(mean), present)

    def uploads(self) -> list[str]:
        """What travels, in words."""
        return ["every round: class counts, sums and sums of squares of its own features"]


register("magnet", Magnet)
