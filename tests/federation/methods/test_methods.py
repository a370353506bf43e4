"""Methods: what travels, who learns what from it, and that each switch does something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation import methods
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.local import LocalExecutor
from fedvtc_edge.federation.methods import FedVTC, Method, calibrated, register
from fedvtc_edge.federation.methods.base import OWN_SHARE
from fedvtc_edge.federation.methods.fedvtc import STD_FLOOR
from fedvtc_edge.federation.methods.supervised import matched_steps
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.federation.rounds import take_steps
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.training.compute import Compute, as_images, deterministic
from fedvtc_edge.training.steps import Adam

Tiny = Callable[..., Config]
Heard = list[tuple[int, str, str, bytes]]


ENVELOPE = 1214
"""Bytes by which a sealed upload is longer than what the server opens."""


def method_of(config: Config, heard: Heard | None = None) -> Method:
    def recorder(round_: int, sender: str, kind: str, data: bytes) -> None:
        if heard is not None:
            heard.append((round_, sender, kind, data))

    return assemble(config, load_dataset(config.data), Compute.of(config.engine), recorder)


def play_round(method: Method, number: int, members: Sequence[str] | None = None) -> None:
    """One round, or the opening, with everybody or with some."""
    executor = LocalExecutor(method)
    take_steps(method, executor, number, executor.clients if members is None else members)


def executor_of(config: Config, heard: Heard | None = None) -> LocalExecutor:
    """After all rounds with everybody."""
    with deterministic():
        executor = LocalExecutor(method_of(config, heard))
        for number in range(config.method.rounds + 1):
            take_steps(executor.method, executor, number, executor.clients)
    return executor


def play(config: Config, heard: Heard | None = None) -> Method:
    """A method after all rounds with everybody."""
    return executor_of(config, heard).method


def weights(method: Method) -> Tensor:
    return torch.cat(
        [p.detach().flatten() for c in method.federation.clients for p in c.model.parameters()]
    )


def test_images(config: Config) -> Tensor:
    return as_images(load_dataset(config.data).x_test, torch.device("cpu"))


test_images.__test__ = False  # type: ignore[attr-defined]


def test_what_is_no_method_gets_no_name() -> None:
    for thing in (FedVTC.steps, int, "fedvtc"):
        with pytest.raises(ConfigError, match="expected a subclass of Method"):
            register("new", thing)  # type: ignore[arg-type]


def test_a_guarantee_is_not_inherited(tiny: Tiny) -> None:
    class Own(FedVTC):
        """Uploads what it likes."""

    assert set(FedVTC.variants) == {"anchored", "example", "client"}
    with METHODS.lent({"own": Own}):
        with pytest.raises(ConfigError, match="what that method uploads is not noised"):
            methods.method_of(tiny(method={"name": "own"}, privacy={"mode": "anchored"}))
        assert methods.method_of(tiny(method={"name": "own"})) is Own
    with pytest.raises(ConfigError, match="unknown method 'own'"):
        methods.method_of(tiny(method={"name": "own"}))


# What travels.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"share": "anchored"}, [(0, "anchor")]),
        ({"share": "features"}, [(1, "features"), (2, "features"), (3, "features")]),
        ({"name": "fedproto"}, [(1, "features"), (2, "features"), (3, "features")]),
        ({"name": "fedgh"}, [(1, "features"), (2, "features"), (3, "features")]),
        ({"name": "fedtgp"}, [(1, "features"), (2, "features"), (3, "features")]),
        ({"name": "fedgen"}, [(1, "head"), (2, "head"), (3, "head")]),
        ({"name": "ccvr"}, [(1, "head"), (2, "head"), (3, "head"), (3, "features")]),
        ({"name": "statistics", "share": "features"}, [(0, "anchor")]),
        ({"name": "local"}, []),
        ({"name": "local-matched"}, []),
        ({"name": "centralised"}, []),
    ],
    ids=str,
)
def test_what_travels(tiny: Tiny, changes: dict[str, Any], expected: list[tuple[int, str]]) -> None:
    heard: Heard = []
    executor = executor_of(tiny(method=changes), heard)
    ids = executor.clients
    assert [(round_, sender, kind) for round_, sender, kind, _ in heard] == [
        (round_, sender, kind) for round_, kind in expected for sender in ids
    ]
    for name in ids:
        own = [data for _, sender, _, data in heard if sender == name]
        sent = sum(len(data) + ENVELOPE for data in own)
        assert executor.account.total(name)["up"] == sent
    assert bool(executor.method.uploads()) == (bool(expected) or changes["name"] == "centralised")


@pytest.mark.parametrize("moments", ["covariance", "diagonal"])
def test_the_upload_is_as_large_as_it_must_be(tiny: Tiny, moments: str) -> None:
    heard: Heard = []
    config = tiny(method={"moments": moments})
    method = method_of(config, heard)
    play_round(method, 0)
    classes, width = 10, config.method.anchor
    square = width * (width + 1) // 2 if moments == "covariance" else classes * width
    for *_, data in heard:
        payload = 4 * (classes + classes * width + square)
        assert payload < len(data) < payload + 400
        statistics = wire.decode(data, classes=classes, width=width)
        assert statistics.pooled == (moments == "covariance")


def test_uploads_say_what_an_upload_holds(tiny: Tiny) -> None:
    texts = {
        share: method_of(tiny(method={"share": share})).uploads()
        for share in ("anchored", "features", "features+decoder")
    }
    assert "once, before the first round" in texts["anchored"][0]
    assert "pooled" in texts["anchored"][0]
    assert "every round" in texts["features"][0]
    assert texts["features+decoder"][:1] == texts["features"]
    assert "decoder" in texts["features+decoder"][1]
    diagonal = method_of(tiny(method={"moments": "diagonal"})).uploads()
    assert "per-class sums of squares" in diagonal[0]


# What is published.


@pytest.mark.parametrize("moments", ["covariance", "diagonal"])
def test_anchor_statistics_do_not_depend_on_the_partition(tiny: Tiny, moments: str) -> None:
    def published(**changes: Any) -> GlobalStatistics:
        method = method_of(tiny(method={"moments": moments}, **changes))
        play_round(method, 0)
        return wire.published(method.published["anchor"])

    alone = published(clients={"count": 1})
    for other in (
        published(clients={"count": 2}),
        published(clients={"count": 7, "architectures": ["resnet8"]}, data={"partition": "iid"}),
    ):
        assert other.count.tolist() == alone.count.tolist()
        assert other.count.sum() == 200
        for name in ("mean", "std", "covariance"):
            ours, theirs = getattr(alone, name), getattr(other, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                np.testing.assert_allclose(theirs, ours, atol=2e-4)


def test_anchor_statistics_are_those_of_the_pooled_data(tiny: Tiny) -> None:
    config = tiny(method={"moments": "diagonal"})
    method = method_of(config)
    play_round(method, 0)
    knowledge = wire.published(method.published["anchor"])
    data = load_dataset(config.data)
    anchor = method.anchor  # type: ignore[attr-defined]
    features = anchor(as_images(data.x_train, torch.device("cpu"))).double().numpy()
    for label in range(10):
        own = features[data.y_train == label]
        np.testing.assert_allclose(knowledge.mean[label], own.mean(0), atol=1e-4)
        np.testing.assert_allclose(knowledge.std[label], own.std(0), atol=1e-3)


def test_features_are_published_anew_with_a_floor(tiny: Tiny) -> None:
    config = tiny(method={"share": "features", "rounds": 2})
    with deterministic():
        method = method_of(config)
        play_round(method, 1)
        first = wire.published(method.published["features"])
        play_round(method, 2)
        second = wire.published(method.published["features"])
    assert first.std.min() >= np.float32(STD_FLOOR)
    assert first.mean.shape == (10, 8)
    assert not np.array_equal(first.mean, second.mean)


def test_decoders_are_averaged_and_nothing_else(tiny: Tiny) -> None:
    # Averaging comes after phase B and before phase C, which leaves decoders alone.
    method = play(tiny(method={"share": "features+decoder", "rounds": 1}))
    alone = play(tiny(method={"share": "features", "rounds": 1}))
    first, *others = (client.decoder for client in method.federation.clients)
    assert first is not None
    for name, value in first.state_dict().items():
        for decoder in others:
            assert decoder is not None
            assert torch.equal(decoder.state_dict()[name], value)
        own = [
            client.decoder.state_dict()[name]
            for client in alone.federation.clients
            if client.decoder is not None
        ]
        assert torch.allclose(value, torch.stack(own).mean(0))
        assert not torch.equal(own[0], own[1])
    heads = [client.model.head.weight for client in method.federation.clients]
    assert not torch.equal(heads[0], heads[1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moments": "diagonal"},
        {"share": "features"},
        {"name": "fedproto"},
        {"name": "fedgh"},
        {"name": "fedtgp"},
        {"name": "fedgen"},
        {"name": "ccvr"},
    ],
    ids=str,
)
def test_what_was_published_is_all_that_a_restart_needs(
    tiny: Tiny, changes: dict[str, Any]
) -> None:
    config = tiny(method=changes)
    played, fresh = play(config), method_of(config)
    fresh.restore(played.published)
    for old, new in zip(played.federation.clients, fresh.federation.clients, strict=True):
        new.model.load_state_dict(old.model.state_dict())
    images = test_images(config)
    client = fresh.federation.clients[0]
    assert torch.equal(
        fresh.scores(client, images), played.scores(played.federation.clients[0], images)
    )
    ours, theirs = played.control(images), fresh.control(images)
    assert (ours is None) == (theirs is None)
    assert ours is None or torch.equal(ours, theirs)  # type: ignore[arg-type]


# What is learned.


@pytest.mark.parametrize(
    "changes",
    [
        {"ablate": ["dm"]},
        {"ablate": ["kl"]},
        {"ablate": ["head-only"]},
        {"ablate": ["teacher"]},
        {"moments": "diagonal"},
        {"share": "features"},
        {"share": "features+decoder"},
    ],
    ids=str,
)
def test_every_switch_changes_the_result(tiny: Tiny, changes: dict[str, Any]) -> None:
    full, other = play(tiny()), play(tiny(method=changes))
    assert not torch.equal(weights(full), weights(other))


def test_head_only_leaves_the_body(tiny: Tiny) -> None:
    # With no other method between, phase C of one round is all that differs.
    recipe = {"finetune_from": 1, "finetune_last": 0}
    tuned = play(tiny(method={"rounds": 1, "ablate": ["head-only"]}, training=recipe))
    plain = play(tiny(method={"rounds": 1}, training=recipe | {"finetune_from": 9}))
    for ours, theirs in zip(tuned.federation.clients, plain.federation.clients, strict=True):
        own, other = ours.model.state_dict(), theirs.model.state_dict()
        changed = {name for name in own if not torch.equal(own[name], other[name])}
        assert changed == {"head.weight", "head.bias"}


def test_no_teacher_still_has_its_control(tiny: Tiny) -> None:
    config = tiny(method={"ablate": ["teacher"]})
    control = play(config).control(test_images(config))
    assert control is not None
    assert torch.allclose(control.exp().sum(1), torch.ones(60))


def test_clients_alone_hear_nothing_of_each_other(tiny: Tiny) -> None:
    config = tiny(method={"name": "local"})
    method, other = method_of(config), method_of(config)
    with deterministic():
        for number in (1, 2):
            play_round(method, number)
            play_round(other, number, ["client-01"])
    together, alone = method.federation.clients[1], other.federation.clients[1]
    for name, value in together.model.state_dict().items():
        assert torch.equal(alone.model.state_dict()[name], value)


def test_fedproto_classifies_by_the_nearest_prototype(tiny: Tiny) -> None:
    config = tiny(method={"name": "fedproto"})
    method = play(config)
    prototypes = wire.published(method.published["prototypes"]).mean
    client, images = method.federation.clients[0], test_images(config)
    with torch.no_grad():
        features = client.model.eval().features(images).double().numpy()
    expected = [int(np.square(prototypes - row).sum(1).argmin()) for row in features]
    scores = method.scores(client, images)
    assert scores.argmax(1).tolist() == expected
    assert torch.allclose(scores.exp().sum(1), torch.ones(len(images)))


def test_the_combined_prediction_is_a_geometric_mean() -> None:
    """The slow twin: sample by sample, in probabilities."""
    own, control = (torch.randn(5, 4).log_softmax(1) for _ in range(2))
    answer = calibrated(own, control).exp()
    for row in range(5):
        t, f = control[row].exp().tolist(), own[row].exp().tolist()
        mean = [a**OWN_SHARE * b ** (1 - OWN_SHARE) for a, b in zip(f, t, strict=True)]
        for y in range(4):
            assert answer[row, y].item() == pytest.approx(mean[y] / sum(mean), rel=1e-5)


def test_experts_that_agree_are_not_surer_together() -> None:
    scores = torch.randn(3, 4).log_softmax(1)
    torch.testing.assert_close(calibrated(scores, scores), scores)


def test_a_class_that_nobody_has_stays_impossible() -> None:
    own = torch.randn(3, 4).log_softmax(1)
    control = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]]).log_softmax(1).repeat(3, 1)
    answer = calibrated(own, control)
    assert not answer.isnan().any()
    assert (answer[:, 3] == float("-inf")).all()


@pytest.mark.parametrize("name", ["local-matched", "fedproto", "centralised"])
def test_matched_baselines_spend_the_budget_of_fedvtc(tiny: Tiny, name: str) -> None:
    """Counted, not computed: every step of every optimiser while all rounds are played."""

    def steps(config: Config) -> int:
        count = 0
        plain = Adam.step

        def counting(self: Any, *words: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            return plain(self, *words, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Adam, "step", counting)
            play(config)
        return count

    spent = steps(tiny())
    assert steps(tiny(method={"name": name})) == spent
    method = method_of(tiny(method={"name": name}))
    clients = method.federation.clients
    assert spent == sum(
        matched_steps(method.federation, client, number)
        for client in clients
        for number in (1, 2, 3)
    )


def test_centralised_sees_every_class(tiny: Tiny, archive: Callable[..., str]) -> None:
    name = archive([label for label in range(4) for _ in range(10)])
    data = {"name": name, "limit": 0, "partition": "shards", "shards": 1, "min_samples": 1}
    method = {"name": "centralised", "rounds": 4}
    config = tiny(data=data, clients={"count": 4}, method=method, training={"epochs": 20})
    played, images = play(config), test_images(config)
    for client in played.federation.clients:
        assert int(client.present.sum()) == 1
        assert len(set(played.scores(client, images).argmax(1).tolist())) == 4


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "local", "knob": 1.0}, "nothing to set"),
        ({"name": "fedvtc", "knob": -0.5}, "pull toward prototypes"),
    ],
)
def test_a_knob_that_means_nothing_is_refused(
    tiny: Tiny, method: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check(tiny(method=method))


def test_the_steps_of_few_rounds_are_spread_over_many(tiny: Tiny) -> None:
    def steps(**tables: Any) -> list[int]:
        federation = method_of(tiny(**tables)).federation
        rounds = federation.config.method.rounds
        return [matched_steps(federation, federation.clients[0], n + 1) for n in range(rounds)]

    few = steps(method={"rounds": 3})
    spread = steps(method={"rounds": 10}, training={"matched_rounds": 3})
    assert sum(spread) == sum(few)
    assert max(spread) - min(spread) <= 1
    assert len(spread) == 10


# An ablation.


def test_without_synthesis_no_decoder_is_trained(tiny: Tiny) -> None:
    config = tiny(method={"ablate": ["synthesis"]})
    heard: Heard = []
    method = method_of(config, heard)
    client = method.federation.clients[0]
    assert client.decoder is not None
    before = {name: value.clone() for name, value in client.decoder.state_dict().items()}
    own = {name: value.clone() for name, value in client.model.state_dict().items()}
    with deterministic():
        for number in range(config.method.rounds + 1):
            play_round(method, number)
    after = client.decoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any(not torch.equal(v, client.model.state_dict()[name]) for name, v in own.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"share": "features"}},
        {"method": {"ablate": ["synthesis", "teacher"]}},
        {"privacy": {"mode": "anchored"}},
        {"clients": {"architectures": ["mlp", "extractor-head"]}},
    ],
)
def test_something_must_be_left_to_fine_tune_on(tiny: Tiny, changes: dict[str, Any]) -> None:
    config = tiny(method={"ablate": ["synthesis"]}).replace(**changes)
    with pytest.raises(ConfigError, match=r"'synthesis' in method\.ablate with"):
        check(config)
