"""FedProto, FedGH and FedTGP against their formulas, step by step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ServerError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import Method, fedgh, fedtgp
from fedvtc_edge.federation.methods.fedproto import LONGEST, FedProto
from fedvtc_edge.federation.robustness import CheckError
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.federation.server_training import encode_trained
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.training.losses import kl_to_prior

Tiny = Callable[..., Config]


def played(config: Config, rounds: int) -> Method:
    """A method after so many rounds with everybody."""
    method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    with deterministic():
        executor = LocalExecutor(method)
        for number in range(rounds + 1):
            take_steps(method, executor, number, executor.clients)
    return method


def published(mean: np.ndarray, counts: list[float]) -> bytes:
    return wire.publish(GlobalStatistics(np.array(counts), mean, np.zeros_like(mean)))


# FedProto.


def test_the_pull_is_the_mean_square_over_dimensions(tiny: Tiny) -> None:
    config = tiny(method={"name": "fedproto", "knob": 2.5})
    method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    assert isinstance(method, FedProto)
    assert method.strength == 2.5
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(10, 8)).astype(np.float32)
    method.restore({"prototypes": published(mean, [1.0] * 9 + [0.0])})
    prior = method._prior()
    assert prior is not None
    z, y = torch.randn(4, 8), torch.tensor([3, 3, 9, 0])
    expected = np.mean(
        [np.square(z[i].numpy() - mean[y[i]]).mean() * (y[i] != 9) for i in range(4)]
    )
    assert kl_to_prior(z, y, prior).item() == pytest.approx(expected, rel=1e-5)


def test_its_number_changes_what_is_learned(tiny: Tiny) -> None:
    for name in ("fedproto", "fedtgp", "fedgh"):
        low, high = (
            played(tiny(method={"name": name, "knob": knob}), 2).federation.clients[0].model
            for knob in (0.01, 5.0)
        )
        assert not torch.equal(low.head.weight, high.head.weight)


def test_prototypes_that_no_features_have_are_not_believed(tiny: Tiny) -> None:
    config = tiny(method={"name": "fedproto"})
    method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    mean = np.zeros((10, 8), np.float32)
    mean[3, 0] = LONGEST * 8**0.5 * 0.99
    method.restore({"prototypes": published(mean, [1.0] * 10)})
    mean[3, 0] *= 1.1
    with pytest.raises(CheckError, match="a published prototype of norm"):
        method.restore({"prototypes": published(mean, [1.0] * 10)})


# FedGH.


def test_the_head_is_trained_on_pairs_of_mean_and_class() -> None:
    """The slow twin: gradients by hand, one pair at a time."""
    rng = np.random.default_rng(2)
    means, labels = rng.normal(size=(23, 4)), rng.integers(0, 3, 23)
    begin = fedgh.first_head(3, 4, seed=1)
    found = fedgh.fit(begin, means, labels, 0.5, torch.Generator().manual_seed(3))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(3)).tolist()
    weight, bias = begin["weight"].astype(np.float64), begin["bias"].astype(np.float64)
    for first in range(0, 23, fedgh.BATCH):
        batch = order[first : first + fedgh.BATCH]
        slope_w, slope_b = np.zeros_like(weight), np.zeros_like(bias)
        for index in batch:
            scores = np.exp(weight @ means[index] + bias)
            error = scores / scores.sum() - np.eye(3)[labels[index]]
            slope_w += np.outer(error, means[index]) / len(batch)
            slope_b += error / len(batch)
        weight, bias = weight - 0.5 * slope_w, bias - 0.5 * slope_b
    np.testing.assert_allclose(found["weight"], weight, atol=1e-5)
    np.testing.assert_allclose(found["bias"], bias, atol=1e-5)
    assert np.abs(found["weight"] - begin["weight"]).max() > 0.01


def test_all_clients_have_the_published_head_and_their_own_extractor(tiny: Tiny) -> None:
    method = played(tiny(method={"name": "fedgh"}, clients={"architectures": ["mlp"]}), 2)
    assert isinstance(method, fedgh.FedGH)
    first, second, _ = method.federation.clients
    for name, value in first.weights("head").items():
        np.testing.assert_array_equal(value, method.global_head[name])
        np.testing.assert_array_equal(value, second.weights("head")[name])
    assert not torch.equal(first.model.projection.weight, second.model.projection.weight)
    begin = fedgh.first_head(10, 8, method.federation.config.seed)
    assert not np.array_equal(begin["weight"], method.global_head["weight"])


def test_a_rate_at_which_the_head_diverges_publishes_nothing() -> None:
    head = fedgh.first_head(2, 2, 0)
    far = fedgh.fit(head, np.eye(2) * 1e4, np.arange(2), 100.0, torch.Generator().manual_seed(0))
    with pytest.raises(ServerError, match="what the server trains has a weight of"):
        encode_trained(far)


# FedTGP.


def test_the_margin_is_the_largest_distance_between_centres() -> None:
    means = np.array([[0.0, 0], [2, 0], [0, 3], [0, 5], [7, 0]])
    labels = np.array([0, 0, 1, 1, 2])  # centres (1, 0), (0, 4), (7, 0)
    assert fedtgp.margin(means, labels) == pytest.approx((49 + 16) ** 0.5)
    assert fedtgp.margin(means * 1e3, labels) == fedtgp.LARGEST_MARGIN
    assert fedtgp.margin(means[:2], labels[:2]) == 0


def test_the_separation_is_a_cross_entropy_of_distances() -> None:
    """The slow twin: one mean and one class at a time."""
    rng = np.random.default_rng(4)
    trained, x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    absent = np.array([False, False, False, True])
    total = 0.0
    for mean, label in zip(x, y, strict=True):
        scores = {
            c: -(np.linalg.norm(mean - trained[c]) + (1.5 if c == label else 0)) for c in range(3)
        }
        total -= scores[label] - np.log(sum(np.exp(s) for s in scores.values()))
    tensors = [torch.from_numpy(value) for value in (trained, x, y, absent)]
    found = fedtgp.separation(*tensors, 1.5)
    assert found.item() == pytest.approx(total / 5, rel=1e-6)


def test_a_mean_on_its_prototype_has_a_finite_slope() -> None:
    trained = torch.zeros(2, 3, requires_grad=True)
    x, y = torch.zeros(1, 3), torch.tensor([0])
    fedtgp.separation(trained, x, y, torch.tensor([False, False]), 1.0).backward()
    assert trained.grad is not None
    assert torch.isfinite(trained.grad).all()


def test_training_brings_prototypes_to_their_means_and_apart() -> None:
    rng = np.random.default_rng(5)
    centres = np.array([[3.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]])
    labels = np.repeat(np.arange(3), 6)
    means = centres[labels] + 0.3 * rng.normal(size=(18, 4))
    network, before = fedtgp.PrototypeNetwork(3, 4, seed=0), fedtgp.PrototypeNetwork(3, 4, seed=0)
    for round_ in range(5):
        stream = torch.Generator().manual_seed(round_)
        fedtgp.fit(network, means, labels, np.ones(3, bool), stream)

    def right(one: fedtgp.PrototypeNetwork) -> int:
        made = one().detach().numpy()
        nearest = np.linalg.norm(means[:, None] - made[None], axis=2).argmin(1)
        return int((nearest == labels).sum())

    assert right(network) == 18 > right(before)


def test_the_server_goes_on_from_what_it_keeps_and_clients_are_not_given_it(tiny: Tiny) -> None:
    config = tiny(method={"name": "fedtgp"})
    method = played(config, 1)
    assert isinstance(method, fedtgp.FedTGP)
    assert set(method.published) == {"prototypes", fedtgp.NETWORK}
    assert set(method.sent()) == set(method.statistics()) == {"prototypes"}
    network = method._network()
    with torch.no_grad():
        made = network().numpy()
    known = wire.published(method.published["prototypes"])
    np.testing.assert_allclose(known.mean[known.present], made[known.present], rtol=1e-6)
    assert not known.mean[~known.present].any()
    fresh = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    assert isinstance(fresh, fedtgp.FedTGP)
    assert not torch.equal(fresh._network().vectors, network.vectors)
    fresh.restore(method.published)
    assert torch.equal(fresh._network().vectors, network.vectors)


def test_long_prototypes_are_shortened_to_what_clients_accept() -> None:
    rows = np.array([[30.0, 40.0], [0.3, 0.4], [0.0, 0.0]])
    found = fedtgp._shortened(rows)
    assert np.linalg.norm(found[0]) < LONGEST * 2**0.5
    np.testing.assert_allclose(found[0] / np.linalg.norm(found[0]), [0.6, 0.8])
    np.testing.assert_array_equal(found[1:], rows[1:])
