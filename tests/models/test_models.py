"""Every architecture keeps the same contract, a user's own included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvtc_edge.config import ClientSettings
from fedvtc_edge.errors import ConfigError, MissingExtra
from fedvtc_edge.models import Classifier, ImageShape, architectures, body, build, registry
from fedvtc_edge.models.builtin import InvertedResidual, Residual, Shuffle, group_norm
from fedvtc_edge.plugins import ARCHITECTURES

SMALL = ("lenet", "resnet8", "mobilenet", "shufflenet", "mlp")
ADAPTED = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18")
CASES = [(name, size) for name in SMALL for size in (8, 28, 32, 64)]
CASES += [(name, size) for name in ADAPTED for size in (8, 32)]
LATENT, CLASSES = 16, 5


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(ARCHITECTURES, "_known", dict(ARCHITECTURES._known))


def pictures(count: int, shape: ImageShape) -> torch.Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.rand((count, shape.channels, shape.size, shape.size), generator=stream)


def make(name: str, shape: ImageShape, seed: int = 0) -> Classifier:
    return build(name, shape, latent=LATENT, classes=CLASSES, seed=seed)


def test_every_registered_architecture_is_tested_here() -> None:
    assert set(architectures()) == {*SMALL, *ADAPTED}
    assert ClientSettings().architectures == SMALL


@pytest.mark.parametrize(("name", "size"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(name: str, size: int, channels: int) -> None:
    shape = ImageShape(size, channels)
    model, x = make(name, shape), pictures(3, shape)

    features, logits = model.features(x), model(x)
    assert features.shape == (3, LATENT)
    norm = features.norm(dim=1) / LATENT**0.5
    assert norm.max() <= 1 + 1e-6  # the bound that privacy rests on; ε of LayerNorm keeps below
    assert norm.min() > 0.98
    torch.testing.assert_close(features.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert logits.shape == (3, CLASSES)
    assert torch.equal(logits, model.head(features))
    assert (logits[0] - logits[1]).abs().max() > 0

    # No image's features depend on another's, in training or not.
    assert not any("BatchNorm" in type(module).__name__ for module in model.modules())
    for mode in (True, False):
        one = model.train(mode)(x[:1])
        torch.testing.assert_close(one, logits[:1], atol=1e-4, rtol=1e-4)

    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])))
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_the_seed_decides_and_the_global_stream_stands_still(name: str) -> None:
    shape = ImageShape(8, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = (make(name, shape, seed).state_dict() for seed in (5, 6))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again = make(name, shape, 5).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["projection.weight"], other["projection.weight"])


@pytest.mark.usefixtures("own_names")
def test_a_body_of_ones_own_is_one_line() -> None:
    registry.register("mine")(lambda shape: nn.Sequential(nn.Flatten(), nn.LazyLinear(32)))
    assert architectures()[-1] == "mine"
    shape = ImageShape(12, 3)
    model = make("mine", shape)
    assert model.projection.in_features == 32
    assert model(pictures(2, shape)).shape == (2, CLASSES)
    assert not any(nn.parameter.is_lazy(p) for p in model.parameters())
    same = make("mine", shape).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in model.state_dict().items())


@pytest.mark.usefixtures("own_names")
def test_a_name_is_given_once() -> None:
    before = body("mlp", ImageShape(8, 1))
    with pytest.raises(ConfigError, match="'mlp' is registered already"):
        registry.register("mlp")(lambda shape: nn.Flatten())
    assert str(body("mlp", ImageShape(8, 1))) == str(before)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lenett", "did you mean lenet?"),
        ("resnet-18", "did you mean resnet18?"),
        ("vision-transformer", "known: "),
    ],
)
def test_unknown_names_get_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown architecture '{name}'") as error:
        make(name, ImageShape(8, 1))
    assert error.value.hint.startswith(hint)
    assert hint != "known: " or all(known in error.value.hint for known in architectures())


def test_a_broken_torchvision_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(MissingExtra, match="torchvision does not import") as error:
        body("resnet18", ImageShape(8, 1))
    assert "pip install" in error.value.hint


@pytest.mark.parametrize("channels", [*range(1, 50), 64, 96, 100, 144, 576])
def test_group_norm_divides_any_number_of_channels(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_channels == channels
    if channels % 8 == 0:
        assert channels // norm.num_groups == 8


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("cout", [16, 24])
@pytest.mark.parametrize("block", [Residual, InvertedResidual])
def test_blocks_keep_their_promise_about_shapes(
    block: type[nn.Module], cout: int, stride: int
) -> None:
    x = torch.zeros(2, 16, 8, 8)
    assert block(16, cout, stride)(x).shape == (2, cout, 8 // stride, 8 // stride)


def test_shuffling_interleaves_the_untouched_half() -> None:
    x = pictures(2, ImageShape(6, 16))
    assert torch.equal(Shuffle(16)(x)[:, 0::2], x[:, :8])
