"""FedVTC (arXiv 2508.01669) in its three sharing modes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.federation.averaging import Average
from fedvtc_edge.federation.exchange import Exchange, RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models import vtc
from fedvtc_edge.models.extractor import Anchor, centre, extractor_of
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.privacy.release import Integers
from fedvtc_edge.privacy.release_spec import Array
from fedvtc_edge.training import cohort
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.distillation import PAINTED
from fedvtc_edge.training.finetuning import steps_in
from fedvtc_edge.training.knowledge import (
    CODE_STD,
    GlobalKnowledge,
    from_anchor,
    from_features,
)
from fedvtc_edge.training.steps import Gradients

from .base import Knob, Method

KL = Knob("weight of the pull toward prototypes, divided by 2σ²", 0.1, (0.03, 0.1, 0.3, 1.0))

STD_FLOOR = 0.2
"""Least published σ of own features; below it synthetic images become class means."""


class FedVTC(Method):
    """Statistics up; images are synthesised from their sum on every client.

    ``anchored``: one upload of anchor statistics before the first round; codes are
    constants, so that rounds need no further message. ``features``: prototypes and
    stds of own features in each round, as the paper's summary has it. ``features+decoder``:
    that, and the decoders are averaged, as its reviews have it.
    """

    has_decoder = True
    knob: ClassVar[Knob | None] = KL
    for_senders = frozenset({"decoder"})

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Sharing mode of the settings."""
        return settings.method.share

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        settings = federation.config.method
        self.share, self.ablate = settings.share, set(settings.ablate)
        self.kl = 0.0 if "kl" in self.ablate or self.knob is None else self.strength
        self.mechanism = federation.mechanism
        self.spec = None if self.mechanism is None else self.mechanism.spec
        self._knowledge: GlobalKnowledge | None = None
        self._decoder_seconds = 0.0
        self.anchor = extractor_of(federation.config, federation.shape, federation.classes)
        if self.anchor is not None:
            self.anchor.to(federation.compute.device)

    def steps(self, number: int) -> Sequence[RoundStep]:
        """Phases A, B and C; own features and decoders travel where the mode says so.

        Anchored: everyone that can uploads once, before the first round, whatever the
        cohorts later are.
        """
        if number == 0:
            return (
                []
                if self.anchor is None
                else [RoundStep(None, self._anchor_statistics(self.anchor))]
            )

        def train(client: Client) -> None:
            self._train(client, number)

        def fit(client: Client) -> None:
            assert self._knowledge is not None
            self._fit_decoder(client, number, self._knowledge)

        def finetune(client: Client) -> None:
            rounds, classes = self.federation.config.method.rounds, self.federation.classes
            steps = steps_in(number, rounds, classes, client.settings)
            if steps:
                assert self._knowledge is not None
                self._finetune(client, number, self._knowledge, steps)

        if self.share == "anchored":
            together = partial(self._together, number, fit) if self._stacks else None
            return [RoundStep(_in_turn(train, fit, finetune), None, together)]
        if self.share == "features":
            return [RoundStep(train, self._features()), RoundStep(_in_turn(fit, finetune))]
        return [
            RoundStep(train, self._features()),
            RoundStep(fit, self._decoders()),
            RoundStep(finetune),
        ]

    def learn(self, kind: str, data: bytes, cohort: Sequence[Client]) -> None:
        """Statistics change the global knowledge, averaged decoders their owners."""
        if kind not in self.for_senders:
            super().learn(kind, data, cohort)
            return
        for client in cohort:
            client.load(kind, wire.decode_weights(data, like=client.weights(kind)))

    def restore(self, published: dict[str, bytes]) -> None:
        """Rebuild the knowledge from the bytes that were published."""
        super().restore(published)
        device = self.federation.compute.device
        if "anchor" in published and self.anchor is not None:
            self._knowledge = from_anchor(
                wire.published(published["anchor"]),
                self.anchor,
                latent=self.federation.config.method.latent,
                device=device,
                teach="teacher" not in self.ablate,
            )
        elif "features" in published:
            self._knowledge = from_features(wire.published(published["features"]), device=device)

    def control(self, images: Tensor) -> Tensor | None:
        """The discriminant on the anchor statistics alone."""
        if self._knowledge is None or self._knowledge.anchored is None:
            return None
        known = self._knowledge.anchored
        return known.classifier(known.anchor.embed(images).to(images.device)).cpu()

    def knowledge(self) -> GlobalKnowledge | None:
        """Global statistics as clients have them by now."""
        return self._knowledge

    def epsilon(self) -> float | None:
        """ε that each client has spent by the end of the last round."""
        if self.mechanism is None:
            return None
        return self.mechanism.epsilon_after(self.done) if self._knowledge is not None else 0.0

    def decoder_cost(self) -> dict[str, float]:
        """Seconds of phase B in this process, and bytes of one decoder's weights as float32."""
        if not self.has_decoder or "synthesis" in self.ablate:
            return {}
        size = sum(array.nbytes for array in self._blank_decoder().values())
        return {"decoder_seconds": round(self._decoder_seconds, 3), "decoder_bytes": size}

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        anchored, settings = self.share == "anchored", self.federation.config.method
        when = "once, before the first round" if anchored else "every round"
        whose = "the frozen anchor's" if anchored else "its own network's"
        decoder = "every round: all weights of its decoder"
        if self.mechanism is not None:
            spec, decoder = self.mechanism.spec, f"{decoder}, trained by DP-SGD"
            what = ", and all classes' second moments" if spec.second else ""
            statistics = (
                f"{when}, {self.mechanism.upload}: counts and sums of {whose} {spec.width} "
                f"features per class of the public list{what}"
            )
        elif anchored and settings.moments == "covariance":
            statistics = (
                f"{when}: class counts, per-class sums and one pooled second-moment matrix of "
                f"{whose} features"
            )
        else:
            statistics = (
                f"{when}: class counts, per-class sums and per-class sums of squares of {whose} "
                "features"
            )
        return [statistics, decoder] if self.share == "features+decoder" else [statistics]

    def _gradients(self, client: Client, number: int, phase: str) -> Gradients | None:
        """How a client's phase turns losses into steps; None is plain gradient descent."""
        return None

    @property
    def _stacks(self) -> bool:
        """True where all clients take the same plain steps, and all weights move."""
        return self.mechanism is None and not {"head-only", "synthesis"} & self.ablate

    def _together(
        self, number: int, fit: Callable[[Client], None], clients: Sequence[Client]
    ) -> None:
        """Phases A and C by stacks of equal networks; B, and heads on the extractor, in turn."""
        heads = [client for client in clients if client.architecture in ON_EXTRACTOR]
        others = [client for client in clients if client.architecture not in ON_EXTRACTOR]
        knowledge, config = self._knowledge, self.federation.config
        assert knowledge is not None
        rounds = config.method.rounds
        steps = steps_in(number, rounds, self.federation.classes, config.training)
        for client in heads:
            self._train(client, number)
        cohort.train(others, number, knowledge.codes, kl=self.kl)
        for client in others:
            fit(client)
        if steps:
            for client in heads:
                self._finetune(client, number, knowledge, steps)
            cohort.finetune(
                others, number, knowledge, steps=steps, kl=self.kl, decay=number == rounds
            )

    def _train(self, client: Client, number: int) -> None:
        codes = self._knowledge.codes if self._knowledge else None
        if client.architecture in ON_EXTRACTOR and self._knowledge is not None:
            client.start(self._knowledge)
            if self._tunes_on_data:
                return  # the last fine-tuning has its own data from the best start there is
        gradients = self._gradients(client, number, "train")
        client.train(number, codes, kl=self.kl, gradients=gradients)

    def _fit_decoder(self, client: Client, number: int, knowledge: GlobalKnowledge) -> None:
        if client.architecture in ON_EXTRACTOR:
            return  # synthetic features need no decoder
        if "synthesis" in self.ablate:
            return
        gradients = self._gradients(client, number, "decoder")
        begin = time.perf_counter()
        client.fit_decoder(number, knowledge, match="dm" not in self.ablate, gradients=gradients)
        self._decoder_seconds += time.perf_counter() - begin

    def _finetune(
        self, client: Client, number: int, knowledge: GlobalKnowledge, steps: int
    ) -> None:
        client.finetune(
            number,
            knowledge,
            steps=steps,
            kl=self.kl,
            head_only="head-only" in self.ablate,
            decay=number == self.federation.config.method.rounds,
            real=self._tunes_on_data,
            painted=0.0 if "synthesis" in self.ablate else PAINTED,
        )

    @property
    def _tunes_on_data(self) -> bool:
        """Else fine-tuning is post-processing, which costs no privacy."""
        return self.mechanism is None or not self.mechanism.protects_models

    def _anchor_statistics(self, anchor: Anchor) -> Exchange[Any]:
        """What is measured of the anchor's features: exact, or noised before it leaves."""
        if self.spec is None:
            settings = self.federation.config.method
            pooled = settings.moments == "covariance"
            measure = partial(Client.measure_anchor, anchor=anchor, pooled=pooled)
            return self.federation.exact("anchor", measure, settings.anchor, pooled=pooled)
        about = centre(anchor, self.federation.shape)
        return self._protected("anchor", lambda _: anchor, about)

    def _features(self) -> Exchange[Any]:
        if self.spec is None:
            width = self.federation.config.method.latent
            return self.federation.exact(
                "features", Client.measure, width, pooled=False, floor=STD_FLOOR
            )
        about = np.zeros(self.spec.width)
        return self._protected("features", lambda c: c.model.eval().features, about, CODE_STD)

    def _protected(
        self,
        kind: str,
        extractor: Callable[[Client], Callable[[Tensor], Tensor]],
        about: Array,
        std: float | None = None,
    ) -> Exchange[Any]:
        mechanism = self.mechanism
        assert mechanism is not None

        def protect(client: Client) -> Integers:
            return client.protect(extractor(client), mechanism, about)

        return self.federation.protected(kind, protect, about, std)

    def _decoders(self) -> Average:
        """ψ has one shape for all; its weights travel as float32."""
        like, least = self._blank_decoder(), self.federation.config.server.minimum_contributors
        return Average("decoder", lambda c: c.weights("decoder"), like, least, for_all=False)

    def _blank_decoder(self) -> dict[str, Array]:
        latent = self.federation.config.method.latent
        blank = vtc.build(self.federation.shape, latent=latent, seed=0).state_dict()
        return {name: value.numpy() for name, value in blank.items()}


def _in_turn(*phases: Callable[[Client], None]) -> Callable[[Client], None]:
    def work(client: Client) -> None:
        for phase in phases:
            phase(client)

    return work
