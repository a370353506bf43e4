"""FedVTC (arXiv 2508.01669) in its three sharing modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import Decoders, Exchange, RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models import vtc
from fedvtc_edge.models.anchor import Anchor, centre
from fedvtc_edge.privacy.mechanism import release_spec_of
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.client import Client, in_chunks
from fedvtc_edge.training.finetuning import steps_in
from fedvtc_edge.training.knowledge import GlobalKnowledge, from_anchor, from_features

from .base import Method

KL = 0.1
"""Weight of the pull toward prototypes; the pull itself is divided by 2σ²."""

STD_FLOOR = 0.2
"""Least published σ of own features; below it painted images become class means."""


class FedVTC(Method):
    """Statistics up, painted images at home.

    ``anchored``: one upload of anchor statistics before the first round; codes are
    constants, so that rounds need no further message. ``features``: the published
    text, prototypes and stds of own features in each round. ``features+decoder``:
    that, and the decoders are averaged.
    """

    has_decoder = True

    @classmethod
    def shared(cls, settings: Config) -> str:
        """As configured."""
        return settings.method.share

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        settings = federation.config.method
        self.share, self.ablate = settings.share, set(settings.ablate)
        self.kl = 0.0 if "kl" in self.ablate else KL
        self.spec = release_spec_of(federation.config, federation.classes)
        self._knowledge: GlobalKnowledge | None = None
        self.anchor: Anchor | None = None
        if self.share == "anchored":
            seed = derive_seed(federation.config.seed, "anchor")
            width = self.spec.width if self.spec else settings.anchor
            anchor = Anchor(federation.shape, width, seed, settings.extractor)
            self.anchor = anchor.to(federation.compute.device)

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
            steps = steps_in(number, self.federation.config.method.rounds, client.settings)
            if steps:
                assert self._knowledge is not None
                self._finetune(client, number, self._knowledge, steps)

        if self.share == "anchored":
            return [RoundStep(_in_turn(train, fit, finetune))]
        if self.share == "features":
            return [RoundStep(train, self._features()), RoundStep(_in_turn(fit, finetune))]
        return [
            RoundStep(train, self._features()),
            RoundStep(fit, self._decoders()),
            RoundStep(finetune),
        ]

    def learn(self, kind: str, data: bytes, cohort: Sequence[Client]) -> None:
        """Statistics change what is known of the world, averaged decoders their owners."""
        if kind != Decoders.kind:
            super().learn(kind, data, cohort)
        for client in cohort if kind == Decoders.kind else ():
            client.load_decoder(wire.decode_weights(data, like=client.decoder_weights()))

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
        return known.classifier(in_chunks(known.anchor, images).to(images.device)).cpu()

    def knowledge(self) -> GlobalKnowledge | None:
        """What clients know of the world by now."""
        return self._knowledge

    def epsilon(self) -> float | None:
        """All of the budget, from the one release on; None where nothing is claimed."""
        if self.spec is None:
            return None
        return self.spec.epsilon if self._knowledge is not None else 0.0

    def uploads(self) -> list[str]:
        """What travels from a client to the server, in words."""
        if self.spec is not None:
            what = ", and all classes' second moments" if self.spec.second else ""
            return [
                "once, before the first round, noised: counts and sums of the frozen anchor's "
                f"{self.spec.width} features per class of the public list{what}"
            ]
        if self.share == "anchored":
            what = (
                "one pooled second-moment matrix"
                if self.federation.config.method.moments == "covariance"
                else "per-class sums of squares"
            )
            return [
                "once, before the first round: class counts, per-class sums and "
                f"{what} of the frozen anchor's features"
            ]
        own = "every round: class counts, per-class sums and sums of squares of its own features"
        if self.share == "features":
            return [own]
        return [own, "every round: all weights of its decoder"]

    def _train(self, client: Client, number: int) -> None:
        client.train(number, self._knowledge.codes if self._knowledge else None, kl=self.kl)

    def _fit_decoder(self, client: Client, number: int, knowledge: GlobalKnowledge) -> None:
        client.fit_decoder(number, knowledge, match="dm" not in self.ablate)

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
        )

    def _anchor_statistics(self, anchor: Anchor) -> Exchange[Any]:
        """What is measured of the anchor's features: exact, or noised before it leaves."""
        if self.spec is None:
            settings = self.federation.config.method
            pooled = settings.moments == "covariance"
            measure = partial(Client.measure_anchor, anchor=anchor, pooled=pooled)
            return self.federation.exact("anchor", measure, settings.anchor, pooled=pooled)
        spec, about = self.spec, centre(anchor, self.federation.shape)
        return self.federation.noised(
            "anchor", lambda client: client.release_anchor(anchor, spec, about), spec, about
        )

    def _features(self) -> Exchange[Any]:
        width = self.federation.config.method.latent
        return self.federation.exact(
            "features", Client.measure, width, pooled=False, floor=STD_FLOOR
        )

    def _decoders(self) -> Decoders:
        """ψ has one shape for all; its weights travel as float32."""
        latent = self.federation.config.method.latent
        blank = vtc.build(self.federation.shape, latent=latent, seed=0).state_dict()
        like = {name: value.numpy() for name, value in blank.items()}
        return Decoders(like, self.federation.config.server.minimum_contributors)


def _in_turn(*phases: Callable[[Client], None]) -> Callable[[Client], None]:
    def work(client: Client) -> None:
        for phase in phases:
            phase(client)

    return work
