"""Clients whose networks are built when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fedvtc_edge.config import Config
from fedvtc_edge.models import Classifier, ImageShape, network, vtc
from fedvtc_edge.models.companion import Companion
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.models.tensors import from_tensors
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.plugins import MethodTraits
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute

NETWORKS = ("model", "decoder", "companion")
"""Attributes of a client that hold networks."""


class LazyClient(Client):
    """A client that builds its networks when one of them is first asked for."""

    source: NetworkSource

    def __getattr__(self, name: str) -> Any:
        """Networks; Python asks here for what an object does not have."""
        source = vars(self).get("source")
        if source is None or name not in NETWORKS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.model, self.decoder, self.companion = source.build()
        del self.source  # with the weights that were kept
        return vars(self)[name]

    @property
    def is_built(self) -> bool:
        """True once its networks are in memory."""
        return "model" in vars(self)


@dataclass(frozen=True)
class NetworkSource:
    """Origin of a client's networks: its seed, and the weights that were kept of them.

    Args:
        method: Says which networks there are beside the classifier; None is no other. A head on the
            extractor has no decoder.
        tensors: Kept weights by ``module/parameter``; empty for fresh networks.
        classifier: Name of the classifier among them.
    """

    config: Config
    client: str
    architecture: str
    shape: ImageShape
    classes: int
    compute: Compute
    method: type[MethodTraits] | None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    classifier: str = "classifier"

    def build(self) -> tuple[Classifier, VTC | None, Companion | None]:
        """Networks on the run's device.

        Raises:
            ConfigError: An unknown architecture.
            RunError: Weights of other networks.
        """
        seed = derive_seed(self.config.seed, self.client, "classifier")
        model = network(self.architecture, self.config, self.shape, classes=self.classes, seed=seed)
        decoder = None
        if self.architecture in ON_EXTRACTOR:
            model.anchor.to(self.compute.device)
        elif self.method is not None and self.method.has_decoder:
            seed = derive_seed(self.config.seed, self.client, "decoder")
            decoder = vtc.build(self.shape, latent=self.config.method.latent, seed=seed)
        companion: Companion | None = None
        if self.method is not None:
            seed = derive_seed(self.config.seed, "companion")  # the same for all clients
            companion = self.method.companion(
                self.config.method, self.shape, self.classes, seed=seed
            )
        networks: dict[str, nn.Module] = {self.classifier: model}
        if decoder is not None:
            networks["decoder"] = decoder
        if companion is not None:
            networks["companion"] = companion
        if self.tensors:
            from_tensors(
                self.tensors,
                networks,
                whose=f"the checkpoint of {self.client}",
                hint="was an architecture changed? start a new run",
            )
        device = self.compute.device
        for module in networks.values():
            module.to(device)
        return model, decoder, companion


def lazy_client(
    source: NetworkSource,
    device: str | None,
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor] | None,
) -> LazyClient:
    """A client without networks yet.

    Args:
        device: Name of its profile, or None.
        images: [N, channels, size, size] in [0, 1], on the run's device.
        labels: [N].
        held_out: Images and labels that it is never trained on, or None.
    """
    settings = source.config.training
    if source.architecture in ON_EXTRACTOR:
        # Features carry no cue of what is synthetic that pixel noise would have to hide.
        settings = settings.model_copy(update={"pixel_noise": 0.0})
    client = LazyClient(
        id=source.client,
        architecture=source.architecture,
        device_profile=device,
        images=images,
        labels=labels,
        classes=source.classes,
        model=nn.Module(),  # type: ignore[arg-type]
        decoder=None,
        settings=settings,
        compute=source.compute,
        seed=source.config.seed,
        held_out=held_out,
    )
    del client.model, client.decoder, client.companion
    client.source = source
    return client
