"""FedGen and head calibration against their formulas, and what clients refuse to take up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import Method, ccvr, fedgen, fedgh
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.robustness import CheckError
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.federation.server_training import Head, HeadUpload, decode_trained, encode_trained
from fedvtc_edge.seeding import generator
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.wire.framing import WireError

Tiny = Callable[..., Config]


def built(config: Config) -> Method:
    return assemble(config, load_dataset(config.data), Compute.of(config.engine))


def played(config: Config, rounds: int) -> Method:
    """A method after so many rounds with everybody."""
    method = built(config)
    with deterministic():
        executor = LocalExecutor(method)
        for number in range(rounds + 1):
            take_steps(method, executor, number, executor.clients)
    return method


def uploads(*counts: list[int], width: int = 3) -> list[HeadUpload]:
    return [
        HeadUpload(fedgh.first_head(len(count), width, seed), np.array(count, np.float64))
        for seed, count in enumerate(counts)
    ]


# FedGen.


def test_the_ensemble_weighs_heads_by_counts_of_the_class() -> None:
    """The slow twin: logits of each client's head, averaged for one feature at a time."""
    parts = uploads([3, 0, 1], [1, 0, 0])
    weight, bias = fedgen.ensemble(parts)
    z, labels = torch.randn(4, 3), torch.tensor([0, 2, 0, 2])
    found = torch.einsum("np,ncp->nc", z, weight[labels]) + bias[labels]
    for feature, label, logits in zip(z, labels, found, strict=True):
        counts = [part.count[label] for part in parts]
        expected = sum(
            count / sum(counts) * (part.head["weight"] @ feature.numpy() + part.head["bias"])
            for count, part in zip(counts, parts, strict=True)
        )
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert not weight[1].any()  # nobody has the class, nor is it drawn


def test_diversity_falls_as_unlike_noise_makes_unlike_features() -> None:
    noise, features = torch.rand(5, fedgen.NOISE), torch.randn(5, 3)
    pairs = [
        (features[i] - features[j]).abs().mean() * (noise[i] - noise[j]).square().mean()
        for i in range(5)
        for j in range(5)
    ]
    found = fedgen.diversity(noise, features)
    assert found.item() == pytest.approx(float((-torch.stack(pairs).mean()).exp()), rel=1e-5)
    assert fedgen.diversity(noise, features * 3) < found
    assert fedgen.diversity(noise, features * 0) == 1


def test_the_generator_learns_what_heads_take_for_a_class() -> None:
    parts = uploads([40, 10, 0], [10, 40, 0], width=8)
    made, count = fedgen.Generator(3, 8, seed=0), np.array([50.0, 50.0, 0.0])
    weight, bias = fedgen.ensemble(parts)

    def loss() -> float:
        stream = torch.Generator().manual_seed(1)
        noise, labels = made.draw(torch.tensor([0.5, 0.5, 0.0]), 200, stream)
        assert set(labels.tolist()) == {0, 1}
        features = made(noise, labels)
        norms = features.norm(dim=1)
        assert torch.allclose(norms, torch.full_like(norms, 8**0.5), atol=1e-2)
        logits = torch.einsum("np,ncp->nc", features, weight[labels]) + bias[labels]
        return F.cross_entropy(logits, labels).item()

    before = loss()
    fedgen.fit(made, parts, count, 32, 1e-3, torch.Generator().manual_seed(2))
    assert loss() < 0.8 * before


def test_a_step_adds_the_loss_on_generated_features(tiny: Tiny) -> None:
    method = played(tiny(method={"name": "fedgen", "knob": 3.0}), 1)
    assert isinstance(method, fedgen.FedGen)
    client, shares = method.federation.clients[0], method._shares
    assert shares is not None
    x, labels = client.images[:5], client.labels[:5]
    with torch.no_grad():
        found = method._objective(2, client)(x, labels)
        stream = generator(client.seed, client.id, 2, "generated features")
        noise, wanted = method._generator.draw(shares, client.settings.batch, stream)
        taught = F.cross_entropy(client.model.head(method._generator(noise, wanted)), wanted)
        logits = client.model(x).masked_fill(~client.present, -torch.inf)
        expected = F.cross_entropy(logits, labels) + 3 * taught
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not client.present[wanted].all()  # it learns of classes that it has not


def test_a_generator_that_nobody_trains_is_not_believed(tiny: Tiny) -> None:
    method = built(tiny(method={"name": "fedgen"}))
    assert isinstance(method, fedgen.FedGen)
    like = method._like()
    method.restore({"generator": encode_trained(like)})
    for changed, error in (
        ({"count": -like["count"]}, CheckError),
        ({"count": 0 * like["count"]}, CheckError),
        ({"head.bias": like["head.bias"] + 1e4}, CheckError),
        ({"out.bias": np.full_like(like["out.bias"], np.nan)}, WireError),
        ({"out.bias": like["out.bias"][1:]}, WireError),
    ):
        with pytest.raises(error):
            method.restore({"generator": wire.encode_weights({**like, **changed})})


# Head calibration.


def statistics() -> tuple[ClassStatistics, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], 50)
    features = rng.normal(size=(100, 4)) + 3 * np.eye(4)[labels]
    return ClassStatistics.of(features, labels, classes=3), features, labels


def right(head: Head, features: np.ndarray, labels: np.ndarray) -> float:
    scores = features @ head["weight"].T + head["bias"]
    return float((scores.argmax(1) == labels).mean())


def test_virtual_features_calibrate_a_head() -> None:
    known, features, labels = statistics()
    begin = {"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(3, np.float32)}
    world, stream = GlobalStatistics.from_sum(known), torch.Generator().manual_seed(0)
    found = ccvr.calibrated(begin, world, 2000, stream)
    assert not begin["weight"].any()
    assert right(found, features, labels) > 0.95
    assert found["bias"][1] < min(found["bias"][0], found["bias"][2])  # nobody has the class
    few = ccvr.calibrated(begin, world, 100, torch.Generator().manual_seed(0))
    assert not np.array_equal(few["weight"], found["weight"])


def test_heads_are_averaged_and_calibrated_after_the_last_round(tiny: Tiny) -> None:
    config = tiny(method={"name": "ccvr", "rounds": 2})
    before, after = played(config, 1), played(config, 2)
    for method in (before, after):
        assert set(method.published) == {"head"}
        assert isinstance(method, ccvr.CCVR)
        for client in method.federation.clients:
            for name, value in client.weights("head").items():
                np.testing.assert_array_equal(value, method.global_head[name])
        assert not method.statistics()
    kinds = [[s.exchange.kind for s in after.steps(n) if s.exchange] for n in (1, 2)]
    assert kinds == [["head"], ["head", "features"]]


def test_every_client_ends_with_what_was_trained_for_it(tiny: Tiny) -> None:
    """The published bytes are the head, whose bound a client checks."""
    method = played(tiny(method={"name": "ccvr", "rounds": 1}), 1)
    assert isinstance(method, ccvr.CCVR)
    head = decode_trained(method.published["head"], method.blank)
    np.testing.assert_array_equal(head["bias"], method.global_head["bias"])
    with pytest.raises(CheckError):
        method.restore({"head": wire.encode_weights({k: v + 1e4 for k, v in head.items()})})


@pytest.mark.parametrize("name", ["fedgen", "ccvr", "fedgh", "fedtgp"])
def test_heads_on_the_extractor_have_no_features_of_their_own(tiny: Tiny, name: str) -> None:
    with pytest.raises(ConfigError, match="features of the clients' own networks"):
        check(tiny(method={"name": name}, clients={"architectures": ["extractor-head", "mlp"]}))
