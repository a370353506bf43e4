"""Networks on the run's extractor: what they hold, what they share, and what they refuse."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import (
    ExtractorHead,
    ExtractorTail,
    ImageShape,
    architectures,
    body,
    check_architecture,
    find,
    network,
)
from fedvtc_edge.models.extractor import Anchor, extractor_of, frozen, in_chunks

Tiny = Callable[..., Config]
SHAPE, CLASSES, WIDTH = ImageShape(8, 1), 4, 12


def images(count: int) -> torch.Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def head(seed: int = 0) -> ExtractorHead:
    return ExtractorHead(Anchor(SHAPE, WIDTH, seed).eval(), CLASSES)


def started() -> ExtractorHead:
    model = head()
    draw = torch.Generator().manual_seed(1)
    model.start(torch.randn((WIDTH, CLASSES), generator=draw), torch.randn(CLASSES, generator=draw))
    return model


def test_it_holds_nothing_but_its_head() -> None:
    model = head()
    assert set(model.state_dict()) == {"head.weight", "head.bias"}
    assert sum(p.numel() for p in model.parameters()) == (WIDTH + 1) * CLASSES


def test_copies_share_the_extractor_and_nothing_else() -> None:
    model = started()
    copied = copy.deepcopy(model)
    assert copied.anchor is model.anchor
    copied.start(torch.zeros(WIDTH, CLASSES), torch.zeros(CLASSES))
    assert copied.untrained
    assert not model.untrained


def test_images_and_their_features_are_scored_alike() -> None:
    model, x = started(), images(5)
    kept = model.inputs(x)
    assert kept.shape == (5, WIDTH)
    assert model.inputs(x) is kept  # not computed again
    torch.testing.assert_close(model(x), model(kept))
    torch.testing.assert_close(kept.norm(dim=1), torch.full((5,), WIDTH**0.5))


def test_it_starts_as_it_is_told() -> None:
    model, x = head(), images(3)
    assert model.untrained
    assert not model(x).any()
    linear, offset = torch.arange(48.0).view(WIDTH, CLASSES), torch.arange(4.0)
    model.start(linear, offset)
    assert not model.untrained
    torch.testing.assert_close(model(x), model.anchor(x) @ linear + offset)


@pytest.mark.parametrize("count", [1, 3, 257])
def test_features_do_not_depend_on_the_other_images(count: int) -> None:
    anchor, x = Anchor(SHAPE, WIDTH, 0).eval(), images(count)
    whole = anchor.embed(x)
    assert whole[:1].equal(anchor.embed(x[:1].clone()))
    torch.testing.assert_close(whole, in_chunks(anchor, x))


def test_a_process_has_one_extractor_for_as_long_as_it_is_in_use(tiny: Tiny) -> None:
    config = tiny()
    one = network("extractor-head", config, SHAPE, classes=CLASSES, seed=0)
    two = network("extractor-head", config, SHAPE, classes=CLASSES, seed=1)
    assert isinstance(one, ExtractorHead)
    assert isinstance(two, ExtractorHead)
    assert one.anchor is two.anchor is extractor_of(config, SHAPE, CLASSES)
    assert frozen(config.replace(seed=1), SHAPE, CLASSES) is not one.anchor
    before = one.anchor.get_buffer("project").clone()
    del one, two
    gc.collect()
    assert frozen(config, SHAPE, CLASSES).get_buffer("project").equal(before)


@pytest.mark.parametrize(
    "method", [{"share": "features"}, {"share": "features+decoder"}, {"name": "fedproto"}], ids=str
)
def test_own_features_are_refused(tiny: Tiny, method: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="extractor-head") as caught:
        network("extractor-head", tiny(method=method), SHAPE, classes=CLASSES, seed=0)
    assert "anchored" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["local", "local-matched", "centralised"])
def test_baselines_have_it_too(tiny: Tiny, name: str) -> None:
    config = tiny(method={"name": name})
    assert extractor_of(config, SHAPE, CLASSES) is None
    assert isinstance(network("extractor-head", config, SHAPE, classes=4, seed=0), ExtractorHead)


@pytest.mark.parametrize("name", ["extractor-head", "extractor-finetune"])
def test_the_names_are_known_but_have_no_body(name: str) -> None:
    assert find(name)
    assert name not in architectures()
    with pytest.raises(ConfigError, match="no body of their own"):
        body(name, SHAPE)


LITE0 = "efficientnet-lite0@32"
COLOUR = ImageShape(16, 3)


def tailed(extractor: str = LITE0) -> ExtractorTail:
    return ExtractorTail(Anchor(COLOUR, WIDTH, 0, extractor).eval(), CLASSES)


def colours(count: int) -> torch.Tensor:
    return torch.rand((count, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def test_last_blocks_start_as_the_extractor_and_are_the_clients_own() -> None:
    model, x = tailed(), colours(3)
    torch.testing.assert_close(model.features(x), model.anchor(x))
    torch.testing.assert_close(model.drift(model.features(x), model.inputs(x)), torch.tensor(0.0))
    assert model.features(x[:1]).requires_grad
    assert not model.anchor(x[:1]).requires_grad
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in model.parameters()) > 1_400_000
    assert {key.split(".")[0] for key in model.state_dict()} == {"tail", "head"}
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.tail.head.weight.mul_(0.5)
    assert copied.anchor is model.anchor
    torch.testing.assert_close(model.features(x), model.anchor(x))
    assert not torch.allclose(copied.features(x), model.anchor(x), atol=1e-3)


@pytest.mark.parametrize("side", [32, 64])
def test_images_and_what_is_kept_of_them_are_scored_alike(side: int) -> None:
    model, x = tailed(f"efficientnet-lite0@{side}"), colours(3)
    with torch.no_grad():
        model.tail.head.weight.mul_(1.1)
    kept = model.inputs(x)
    assert kept.shape == (3, model.kept) == (3, 192 * (side // 32) ** 2 + WIDTH)
    assert model.inputs(x) is kept  # not computed again
    torch.testing.assert_close(kept[:, -WIDTH:], model.anchor(x))
    torch.testing.assert_close(model.features(x), model.features(kept), atol=1e-4, rtol=1e-3)


def test_only_last_blocks_that_are_known_are_trained(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="efficientnet-lite0"):
        tailed("random")
    for extractor in ("random", "choose", "timm:resnet18", "dir/mine.onnx"):
        with pytest.raises(ConfigError, match="extractor-finetune") as caught:
            check_architecture("extractor-finetune", tiny(method={"extractor": extractor}))
        assert extractor.rpartition("/")[2] in str(caught.value)
        assert "extractor-head" in (caught.value.hint or "")
    check_architecture("extractor-finetune", tiny(method={"extractor": LITE0}))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"privacy": {"mode": "example"}}, "'example'"),
        ({"privacy": {"mode": "client"}}, "'client'"),
        ({"method": {"share": "features"}}, "features of the clients' own"),
    ],
    ids=str,
)
def test_last_blocks_are_refused_by_mode(tiny: Tiny, changes: dict[str, Any], what: str) -> None:
    config = tiny(**changes).replace(method={"extractor": LITE0})
    with pytest.raises(ConfigError, match=what):
        check_architecture("extractor-finetune", config)
