"""One training round of a client, phase by phase, beside bare torch steps of its classifier.

Each phase has a floor of its own: so many steps of the network that it trains, on as
many images a step, but ready ones: forward, loss, backward, Adam. The ratio of phase A is
the price of the engine alone; phases B and C do more than train: they
synthesise, match distributions through two more networks, warp and join pictures and ask a teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import ClientSettings, EngineSettings, TrainingSettings
from fedvtc_edge.federation.methods.fedvtc import KL
from fedvtc_edge.models import Classifier, ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.training.knowledge import GlobalKnowledge, from_anchor
from fedvtc_edge.training.supervised import steps_per_round

SHAPE, LATENT, ANCHOR, CLASSES = ImageShape(8, 1), 64, 128, 10
SAMPLES = 160
SETTINGS = TrainingSettings(epochs=1, decoder_steps=5)
STEPS = steps_per_round(SAMPLES, SETTINGS)
COMPUTE = Compute.of(EngineSettings(device="cpu"))
Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module", params=ClientSettings().architectures)
def architecture(request: pytest.FixtureRequest) -> str:
    """The default fleet's."""
    return str(request.param)


@pytest.fixture
def client(architecture: str) -> Client:
    """A new client for each measurement; every class is among its images."""
    draw = torch.Generator().manual_seed(0)
    return Client(
        id="client-00",
        architecture=architecture,
        device_profile=None,
        images=torch.rand((SAMPLES, SHAPE.channels, SHAPE.size, SHAPE.size), generator=draw),
        labels=torch.arange(SAMPLES) % CLASSES,
        classes=CLASSES,
        model=_model(architecture),
        decoder=_decoder(),
        settings=SETTINGS,
        compute=COMPUTE,
        seed=0,
    )


@pytest.fixture
def knowledge(client: Client) -> GlobalKnowledge:
    """What an anchored federation of this one client would know."""
    anchor = Anchor(SHAPE, ANCHOR, 0)
    published = GlobalStatistics.from_sum(client.measure_anchor(anchor, pooled=True))
    return from_anchor(published, anchor, latent=LATENT, device=COMPUTE.device, teach=True)


class TestTrain:
    """Phase A: the classifier on local images."""

    @pytest.fixture
    def group(self, architecture: str) -> str:
        """A group per architecture."""
        return f"train, {STEPS} steps, {architecture}"

    @pytest.mark.floor
    def test_bare_steps(self, benchmark: BenchmarkFixture, client: Client) -> None:
        """On the very batches of phase A; from the same weights it ends where phase A does."""
        baseline, first = copy.deepcopy(client), copy.deepcopy(client.model)
        baseline.train(1)
        batches = list(_drawn(client))
        bare_steps(first, batches, F.cross_entropy, SETTINGS.rate)
        assert _equal(first, baseline.model)
        benchmark(bare_steps, client.model, batches, F.cross_entropy, SETTINGS.rate)

    def test_train(self, benchmark: BenchmarkFixture, client: Client) -> None:
        """As every method has it."""
        benchmark(client.train, 1)
        _check(client)

    def test_train_with_prototypes(
        self, benchmark: BenchmarkFixture, client: Client, knowledge: GlobalKnowledge
    ) -> None:
        """The same, pulled toward the published prototypes."""
        benchmark(client.train, 1, knowledge.codes, kl=KL.default)
        _check(client)


class TestFitDecoder:
    """Phase B: the decoder, on local images and on the published distribution."""

    @pytest.fixture
    def group(self, architecture: str) -> str:
        """A group per architecture, whose classifier sees the decoder's images."""
        return f"fit_decoder, {STEPS} steps, {architecture}"

    @pytest.mark.floor
    def test_bare_steps(
        self, benchmark: BenchmarkFixture, client: Client, knowledge: GlobalKnowledge
    ) -> None:
        """The decoder alone, toward images that are ready."""
        assert client.decoder is not None
        count = _images_per_step(
            client, lambda baseline: baseline.fit_decoder(1, knowledge, match=True)
        )
        draw = torch.Generator().manual_seed(1)
        x = client.images[torch.arange(count) % SAMPLES]
        batches = [(torch.randn((count, LATENT), generator=draw), x) for _ in range(STEPS)]
        benchmark(bare_steps, client.decoder, batches, F.mse_loss, SETTINGS.decoder_rate)
        _check(client)

    def test_fit_decoder(
        self, benchmark: BenchmarkFixture, client: Client, knowledge: GlobalKnowledge
    ) -> None:
        """With the matching of distributions, through classifier and anchor."""
        model = copy.deepcopy(client.model)
        benchmark(client.fit_decoder, 1, knowledge, match=True)
        _check(client)
        assert _equal(model, client.model)  # gradients went through it, and it stood still


class TestFinetune:
    """Phase C: the classifier on synthesised images of all classes beside real ones."""

    @pytest.fixture
    def group(self, architecture: str) -> str:
        """A group per architecture."""
        return f"finetune, {STEPS} steps, {architecture}"

    @pytest.mark.floor
    def test_bare_steps(
        self, benchmark: BenchmarkFixture, client: Client, knowledge: GlobalKnowledge
    ) -> None:
        """As many images a step, ready and labelled."""
        seen = _images_per_step(client, lambda baseline: _finetune(baseline, knowledge))
        batch = torch.arange(seen) % SAMPLES
        batches = [(client.images[batch], client.labels[batch])] * STEPS
        benchmark(bare_steps, client.model, batches, F.cross_entropy, SETTINGS.rate)
        _check(client)

    def test_finetune(
        self, benchmark: BenchmarkFixture, client: Client, knowledge: GlobalKnowledge
    ) -> None:
        """With synthesis, warped and joined pictures, and the teacher."""
        benchmark(_finetune, client, knowledge)
        _check(client)


def bare_steps(network: nn.Module, batches: Batches, loss: Loss, rate: float) -> None:
    """The loop that one would write by hand: a new Adam, and a step per batch."""
    network.train()
    adam = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    for x, y in batches:
        error = loss(network(x), y)
        adam.zero_grad()
        torch.autograd.backward(error)
        adam.step()


def _finetune(client: Client, knowledge: GlobalKnowledge) -> None:
    client.finetune(1, knowledge, steps=STEPS, kl=KL.default)


def _drawn(client: Client) -> Iterator[tuple[Tensor, Tensor]]:
    """What phase A draws in round 1."""
    stream = client.stream(1, "train")
    for batch in torch.split(torch.randperm(SAMPLES, generator=stream), SETTINGS.batch):
        x = client.images[batch]
        noise = torch.randn(x.shape, generator=stream)
        yield x + SETTINGS.pixel_noise * noise, client.labels[batch]


def _images_per_step(client: Client, phase: Callable[[Client], None]) -> int:
    """How many images go through the trained network in a step of a phase."""
    baseline = copy.deepcopy(client)
    phase(baseline)
    return baseline.samples_seen // STEPS


def _check(client: Client) -> None:
    """Some steps later, all weights are numbers, and those of one network are others."""
    names = ("model", "decoder")
    fresh = {"model": _model(client.architecture), "decoder": _decoder()}
    moved = [name for name in names if not _equal(fresh[name], getattr(client, name))]
    assert len(moved) == 1
    assert all(value.isfinite().all() for value in getattr(client, moved[0]).parameters())


def _equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


def _model(architecture: str) -> Classifier:
    return build(architecture, SHAPE, latent=LATENT, classes=CLASSES, seed=0)


def _decoder() -> VTC:
    return vtc.build(SHAPE, latent=LATENT, seed=0)
