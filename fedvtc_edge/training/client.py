"""One client: it sees raw data, and only statistics leave it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvtc_edge.config import TrainingSettings
from fedvtc_edge.models import Classifier, ExtractorHead
from fedvtc_edge.models.companion import Companion
from fedvtc_edge.models.extractor import Anchor, in_chunks, one_by_one
from fedvtc_edge.models.registry import built_in
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.privacy.mechanism import Mechanism
from fedvtc_edge.seeding import derive_seed, generator, seed_layers
from fedvtc_edge.statistics.class_statistics import ClassStatistics

from . import decoder_training, distillation, finetuning, head_training, own_objective, supervised
from .compute import Compute, channels_last
from .knowledge import GlobalKnowledge
from .losses import ClassMoments
from .steps import Gradients


@dataclass(eq=False)
class Client:
    """A device with its own data, architecture and random streams.

    Args:
        id: Name, unique in the federation.
        architecture: Name of its body in the registry.
        device_profile: Name of the device it stands for, or None.
        images: [N, channels, size, size] in [0, 1].
        labels: [N] in 0…C-1.
        classes: Number C of classes.
        decoder: ψ, or None for methods and networks that synthesise no images.
        compute: Where and how precisely steps run.
        seed: Of the run; the client's streams are named by it and ``id``.
        held_out: Images and labels of its own that it is never trained on, or None.
        companion: The small network that it shares, or None for methods without one.
    """

    id: str
    architecture: str
    device_profile: str | None
    images: Tensor
    labels: Tensor
    classes: int
    model: Classifier
    decoder: VTC | None
    settings: TrainingSettings
    compute: Compute
    seed: int
    held_out: tuple[Tensor, Tensor] | None = None
    seconds: float = 0.0
    samples_seen: int = 0
    # No default of the class: who builds networks late is asked for what an object lacks.
    companion: Companion | None = field(default_factory=lambda: None)
    present: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.bincount(self.labels.cpu(), minlength=self.classes)
        self.present = (self.counts > 0).to(self.labels.device)

    def stream(self, round_: int, phase: str) -> torch.Generator:
        """The stream of one phase of one round; layers with randomness of their own follow it."""
        seed_layers(derive_seed(self.seed, self.id, round_, phase, "layers"), self.labels.device)
        return generator(self.seed, self.id, round_, phase)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Adds the wall time of a phase to the client's account."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    def _channels_last(self, gradients: Gradients | None = None) -> AbstractContextManager[None]:
        """For networks of our own, on the CPU: others may count on torch's usual order."""
        if self.images.device.type != "cpu" or gradients is not None or self.decoder is None:
            return nullcontext()
        if not built_in(self.architecture):
            return channels_last(self.decoder)
        return channels_last(self.model, self.decoder)

    @property
    def inputs(self) -> Tensor:
        """What training gives the model for each image."""
        return self.model.inputs(self.images)

    def start(self, knowledge: GlobalKnowledge) -> None:
        """Let a head on the extractor begin as the discriminant on the published statistics."""
        model, known = self.model, knowledge.anchored
        if isinstance(model, ExtractorHead) and model.untrained and known is not None:
            model.start(*known.linear)

    def train(
        self,
        round_: int,
        prior: ClassMoments | None = None,
        *,
        kl: float = 0.0,
        gradients: Gradients | None = None,
    ) -> None:
        """Phase A: f on local data, pulled toward the published prototypes.

        Under private gradients all classes compete: which of them a client has is private.
        """
        stream = self.stream(round_, "train")
        self._supervise(
            self.inputs,
            self.labels,
            self.present if gradients is None else None,
            gradients or Gradients(stream),
            supervised.epochs(len(self.images), self.settings, stream),
            prior,
            kl,
        )

    def train_on(
        self,
        round_: int,
        images: Tensor,
        labels: Tensor,
        present: Tensor,
        steps: int,
        *,
        prior: ClassMoments | None = None,
        kl: float = 0.0,
    ) -> None:
        """So many gradient steps on any labelled images: the baselines' phase A."""
        stream = self.stream(round_, "train")
        batches = supervised.random_batches(len(images), steps, self.settings, stream)
        self._supervise(
            self.model.inputs(images), labels, present, Gradients(stream), batches, prior, kl
        )

    def train_by(
        self,
        round_: int,
        steps: int,
        objective: own_objective.Objective[Client],
        *,
        examples: tuple[Tensor, Tensor] | None = None,
        clip: float = math.inf,
        phase: str = "train",
    ) -> None:
        """So many gradient steps, on its networks together, on a method's own objective.

        Args:
            objective: Makes the loss of a batch, for this client.
            examples: Images [N, channels, size, size] and what the loss takes beside them, [N, …];
                by default the client's own with their labels.
            clip: Largest norm of a gradient.
            phase: Name of the random stream.
        """
        images, targets = examples or (self.images, self.labels)
        with self.working(), self.compute.phase():
            self.samples_seen += own_objective.train(
                list(self.networks.values()),
                images,
                targets,
                objective(self),
                self.settings,
                self.compute,
                self.stream(round_, phase),
                steps=steps,
                clip=clip,
            )

    def _supervise(
        self,
        images: Tensor,
        labels: Tensor,
        present: Tensor | None,
        gradients: Gradients,
        batches: Iterable[Tensor],
        prior: ClassMoments | None,
        kl: float,
    ) -> None:
        how = self.settings, self.compute, gradients
        if isinstance(self.model, ExtractorHead):
            prior = None  # its features are frozen: nothing could be pulled
        with self.working(), self.compute.phase():
            self.samples_seen += supervised.train(
                self.model, images, labels, present, *how, batches, prior=prior, kl=kl
            )

    def fit_decoder(
        self,
        round_: int,
        knowledge: GlobalKnowledge,
        *,
        match: bool,
        gradients: Gradients | None = None,
    ) -> None:
        """Phase B: ψ on local data and on latents of the global distribution; f is frozen."""
        assert self.decoder is not None
        stream = self.stream(round_, "decoder")
        with self.working(), self.compute.phase(), self._channels_last(gradients):
            self.samples_seen += decoder_training.train_decoder(
                self.model,
                self.decoder,
                self.images,
                self.labels,
                knowledge,
                self.settings,
                self.compute,
                gradients or Gradients(stream),
                stream,
                match=match,
            )

    def finetune(
        self,
        round_: int,
        knowledge: GlobalKnowledge,
        *,
        steps: int,
        kl: float,
        head_only: bool = False,
        decay: bool = False,
        real: bool = True,
        pictures: int | None = None,
        late: float = distillation.LATE,
        painted: float = distillation.PAINTED,
    ) -> None:
        """Phase C: all of f on synthetic images of all classes, beside real ones or alone.

        A head on the extractor learns from synthetic features, which need no decoder.

        Args:
            pictures: Size of the pool that a teacher labels; by the number of steps if None.
            late: Share of the steps on it without plain local images.
            painted: Share of synthesised images in it.
        """
        if isinstance(self.model, ExtractorHead):
            with self.working():
                self.samples_seen += head_training.finetune(
                    self.model,
                    self.inputs if real else self.inputs[:0],
                    self.labels,
                    self.present,
                    knowledge,
                    self.settings,
                    self.stream(round_, "finetune"),
                    steps=steps,
                    decay=decay,
                )
            return
        assert self.decoder is not None
        with self.working(), self.compute.phase(), self._channels_last():
            self.samples_seen += finetuning.finetune(
                self.model,
                self.decoder,
                self.images if real else self.images[:0],
                self.labels,
                self.present,
                knowledge,
                self.settings,
                self.compute,
                self.stream(round_, "finetune"),
                steps=steps,
                kl=kl,
                head_only=head_only,
                decay=decay,
                pictures=pictures,
                late=late,
                painted=painted,
            )

    def measure(self) -> ClassStatistics:
        """Per-class sums of the client's own features g(x), [C, p]."""
        with self.working():
            features = in_chunks(self.model.eval().features, self.images)
            return ClassStatistics.of(features, self.labels.cpu(), classes=self.classes)

    def measure_anchor(self, anchor: Anchor, *, pooled: bool) -> ClassStatistics:
        """Per-class sums of the anchor's features R(x), [C, m]; the model is not involved."""
        with self.working():
            return ClassStatistics.of(
                anchor.embed(self.images), self.labels.cpu(), classes=self.classes, pooled=pooled
            )

    def protect(
        self,
        extractor: Callable[[Tensor], Tensor],
        mechanism: Mechanism,
        centre: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Sums of an extractor's features as the privacy mechanism lets them go, int64 [size].

        Where single examples are protected, none may move the features of another.
        """
        apply = one_by_one if mechanism.unit == "example" else in_chunks
        with self.working():
            features = apply(extractor, self.images).numpy()
            return mechanism.protect(features, self.labels.cpu().numpy(), centre)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks that it trains, by the names under which they are kept."""
        found = {"classifier": self.model, "decoder": self.decoder, "companion": self.companion}
        return {name: network for name, network in found.items() if network is not None}

    def weights(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Parameters that may travel, as float32 arrays by name.

        Args:
            name: ``head``, ``weight`` [C, p] and ``bias`` [C] of h; or one of :attr:`networks`.
        """
        return {
            key: value.detach().float().cpu().numpy()
            for key, value in self._travelling(name).state_dict().items()
        }

    def load(self, name: str, weights: Mapping[str, NDArray[Any]]) -> None:
        """Replace what :meth:`weights` reads."""
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in weights.items()}
        self._travelling(name).load_state_dict(tensors)

    def _travelling(self, name: str) -> nn.Module:
        network = self.model.head if name == "head" else self.networks[name]
        return network.network if isinstance(network, Companion) else network

    def synthesise(self, knowledge: GlobalKnowledge, labels: Tensor, round_: int = 0) -> Tensor:
        """One synthetic image per label [N], from the published statistics."""
        assert self.decoder is not None
        noise = self.stream(round_, "synthesise")
        with torch.no_grad():
            made: Tensor = self.decoder(knowledge.sample(labels.to(self.labels.device), noise))
        return made.cpu()
