"""Pretrained extractors: what they are proven to be, what fits them, and what is refused.

No test touches a network: whatever would fetch is replaced by what fails as an offline machine.
"""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, pretrained, weight_files
from fedvtc_edge.models.extractor import Anchor, extractor_of, pinned
from fedvtc_edge.models.pretrained import LITE0, LITE0_SHA256, Pretrained, source_of
from fedvtc_edge.models.weight_files import without_downloads

COLOUR, GREY = ImageShape(16, 3), ImageShape(16, 1)
SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and no way out."""

    def fail(*_: Any, **__: Any) -> None:
        raise URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    pretrained._loaded.cache_clear()


def images(count: int, shape: ImageShape = COLOUR) -> torch.Tensor:
    stream = torch.Generator().manual_seed(2)
    return torch.rand(count, shape.channels, shape.size, shape.size, generator=stream)


def saved(network: nn.Module, path: Path) -> str:
    save_file({name: value.clone() for name, value in network.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def shuffled() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(SMALL, weights=None)
    return network.eval()


# ---------------------------------------------------------------- EfficientNet-Lite0


def test_lite0_is_one_function_for_all() -> None:
    anchor, x = Anchor(COLOUR, 8, 0, LITE0).eval(), images(3)
    out = anchor(x)
    assert out.shape == (3, 8)
    np.testing.assert_allclose(out.norm(dim=1).numpy(), 8**0.5, rtol=1e-5)
    assert (out[0] - out[1]).norm() > 0.1
    # The seed draws nothing: the projection is the public classifier's own.
    torch.testing.assert_close(out, Anchor(COLOUR, 8, 1, LITE0).eval()(x), atol=0, rtol=0)
    assert anchor.sha256 == LITE0_SHA256
    assert not any(weight.requires_grad for weight in anchor.parameters())


def test_lite0_golden_values() -> None:
    """A change here makes every statistic that was ever published meaningless."""
    i = torch.arange(3 * 32**2, dtype=torch.float64)
    x = (0.5 + 0.5 * torch.sin(0.37 * i + i.sqrt())).view(1, 3, 32, 32).float()
    out = Anchor(ImageShape(32, 3), 4, 0, LITE0).eval()(x)[0]
    np.testing.assert_allclose(out.numpy(), GOLDEN, atol=2e-3)


GOLDEN = [-0.81256, -0.87080, -0.78598, -1.40132]


def test_loading_draws_nothing_and_is_done_once() -> None:
    before = torch.get_rng_state()
    first = source_of(LITE0)
    assert torch.equal(before, torch.get_rng_state())
    assert source_of(LITE0) is first


def test_two_anchors_share_no_weight() -> None:
    """One may be moved to a GPU while the other stays."""
    one, other = Anchor(COLOUR, 4, 0, LITE0), Anchor(COLOUR, 4, 0, LITE0)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


def test_grey_images_are_given_as_colour_ones() -> None:
    x = images(2, GREY)
    torch.testing.assert_close(
        Anchor(GREY, 8, 0, LITE0)(x), Anchor(COLOUR, 8, 0, LITE0)(x.expand(-1, 3, -1, -1))
    )


def test_small_images_are_refused_with_the_smallest_size() -> None:
    with pytest.raises(ConfigError, match="images of 8 px for a pretrained extractor, from 16"):
        Anchor(ImageShape(8, 1), 4, 0, LITE0)


@pytest.mark.parametrize(("size", "side"), [(16, 128), (64, 128), (130, 160), (300, 224)])
def test_images_are_enlarged_within_bounds(size: int, side: int) -> None:
    assert Pretrained(nn.Flatten(), ImageShape(size, 3)).resolution == side


def test_another_side_may_be_asked_for() -> None:
    plain, large = source_of(LITE0), source_of(f"{LITE0}@224")
    assert plain is not None
    assert large is not None
    assert large.build(COLOUR).resolution == 224
    assert plain.build(COLOUR).resolution == 128
    assert (large.sha256, large.name) == (plain.sha256, f"{LITE0}@224")


@pytest.mark.parametrize("side", ["0", "100", "1024", "16"])
def test_a_side_that_fits_no_network_is_refused(side: str) -> None:
    with pytest.raises(ConfigError, match="expected a multiple of 32 up to 512"):
        source_of(f"{LITE0}@{side}")


def test_a_side_is_no_name() -> None:
    assert source_of("random@96") is None
    with pytest.raises(ConfigError, match="unknown extractor 'random@96'"):
        pinned(Config().replace(method={"extractor": "random@96"}))


def test_pixels_are_normalised_as_asked() -> None:
    body = Pretrained(nn.Flatten(), COLOUR, (0.1, 0.2, 0.3), (2.0, 4.0, 5.0), resolution=16)
    x = images(2)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([2.0, 4.0, 5.0])
    expected = (x - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(body(x), expected.flatten(1))


def test_more_features_than_directions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.anchor = 1001 .* which has 1000 directions"):
        Anchor(COLOUR, 1001, 0, LITE0)


def planted(monkeypatch: pytest.MonkeyPatch, folder: Path, data: bytes | None) -> None:
    """The wheel, as if it lay in ``folder``; without data it is not installed."""
    spec = None
    if data is not None:
        (folder / "models").mkdir(parents=True)
        (folder / "models" / pretrained.LITE0_FILE).write_bytes(data)
        spec = importlib.machinery.ModuleSpec("wheel", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_a_changed_wheel_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = bytearray(pretrained.lite0_file().read_bytes())
    data[len(data) // 2] ^= 1
    planted(monkeypatch, tmp_path / "wheel", bytes(data))
    with pytest.raises(ConfigError, match=r"has sha256 .* expected 579344248a93e230") as caught:
        source_of(LITE0)
    assert "pip install --force-reinstall" in caught.value.hint


def test_a_missing_wheel_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted(monkeypatch, tmp_path, None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        source_of(LITE0)
    assert "fedvtc-edge[pretrained]" in caught.value.hint
    with pytest.raises(ConfigError, match="timm is not installed") as caught:
        source_of("timm:resnet18")
    assert "fedvtc-edge[timm]" in caught.value.hint


# ---------------------------------------------------------------- settings


def test_a_run_names_its_hash_and_keeps_to_it() -> None:
    config = Config().replace(method={"extractor": LITE0})
    named = pinned(config)
    assert named.method.extractor_sha256 == LITE0_SHA256
    assert pinned(named) is named
    other = config.replace(method={"extractor_sha256": "0" * 64})
    with pytest.raises(ConfigError, match=r"sha256 579344248a93e230…, the run's has 0000"):
        pinned(other)
    with pytest.raises(ConfigError, match=r"sha256 579344248a93e230…, the run's has 0000"):
        extractor_of(other, COLOUR, 2)


def test_a_hash_without_a_pretrained_extractor_is_refused() -> None:
    with pytest.raises(ConfigError, match="sha256 none…, the run's has"):
        pinned(Config().replace(method={"extractor_sha256": "0" * 64}))


def test_the_default_is_left_as_it_is() -> None:
    assert pinned(Config()) == Config()
    assert source_of("random") is None


@pytest.mark.parametrize("name", ["random", LITE0, "mine.onnx"])
def test_weights_for_what_has_its_own_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="which has its own"):
        source_of(name, "weights.safetensors")


# ---------------------------------------------------------------- torchvision and timm


@pytest.mark.parametrize("name", ["nothing", "fcn_resnet50", "r3d_18", "list_models"])
def test_what_is_no_classifier_of_torchvision_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="torchvision has no such classifier"):
        source_of(f"torchvision:{name}")


@pytest.mark.parametrize("name", ["nothing", "resnet18.nothing_in1k"])
def test_what_timm_has_not_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="timm has no such model"):
        source_of(f"timm:{name}")


def test_weights_at_hand(tmp_path: Path, shuffled: nn.Module) -> None:
    """Features are those before the last layer, projected by that layer's own matrix."""
    file = saved(shuffled, tmp_path / "w.safetensors")
    anchor, x = Anchor(COLOUR, 6, 0, f"torchvision:{SMALL}", file).eval(), images(2)
    body = anchor.body
    assert isinstance(body, Pretrained)
    headless = copy.deepcopy(shuffled)
    assert isinstance(headless.fc, nn.Linear)
    matrix = headless.fc.weight.detach()
    headless.fc = nn.Identity()
    large = nn.functional.interpolate(x, size=(128, 128), mode="bilinear", align_corners=False)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(body(x), headless((large - mean) / std), atol=1e-4, rtol=1e-4)
    assert body.classifier is not None
    assert torch.equal(body.classifier, matrix)
    project = anchor.get_buffer("project").double()
    torch.testing.assert_close(project.T @ project, torch.eye(6).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "features", "side"),
    [("squeezenet1_1", 512, 128), ("mobilenet_v3_small", 1024, 128), ("vit_b_32", 768, 224)],
)
def test_classifiers_of_other_kinds_are_taken_off(name: str, features: int, side: int) -> None:
    """A convolution, the second of two layers, and one of a network of a fixed size."""
    network: nn.Module
    if name == "vit_b_32":
        network = torchvision.models.VisionTransformer(224, 32, 1, 12, 768, 64)
    else:
        network = torchvision.models.get_model(name, weights=None)
    network.eval()
    matrix = pretrained._without_classifier(network, side, name)
    assert matrix.shape == (1000, features)
    with torch.no_grad():
        assert network(torch.zeros(2, 3, side, side)).shape == (2, features)


def test_a_last_layer_that_is_no_classifier_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match="no classifier that could be taken off"):
        pretrained._without_classifier(network, 16, "mine")


def test_weights_of_another_network_are_refused(tmp_path: Path, shuffled: nn.Module) -> None:
    file = saved(shuffled, tmp_path / "w.safetensors")
    for name in ("torchvision:resnet18", "timm:resnet18.a1_in1k"):
        with pytest.raises(ConfigError, match=f"these weights are not those of {name}"):
            source_of(name, file)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, shuffled: nn.Module) -> None:
    bad = copy.deepcopy(shuffled)
    next(bad.parameters()).data.view(-1)[3] = float("nan")
    with pytest.raises(ConfigError, match="are not finite"):
        source_of(f"torchvision:{SMALL}", saved(bad, tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", b"x", "expected a .safetensors file"),
        ("w.safetensors", b"no such thing", "is no safetensors file"),
        ("w.safetensors", None, "cannot read"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        source_of(f"torchvision:{SMALL}", str(tmp_path / name))


def test_the_hash_is_of_the_arrays_and_not_of_the_file(tmp_path: Path, shuffled: nn.Module) -> None:
    name = f"torchvision:{SMALL}"
    state = {key: value.clone() for key, value in shuffled.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors", metadata={"format": "pt"})
    state["fc.bias"][0] += 1  # the classifier is no part of the extractor
    save_file(state, tmp_path / "c.safetensors")
    state["conv1.0.weight"][0] += 1
    save_file(state, tmp_path / "d.safetensors")
    hashes = []
    for letter in "abcd":
        source = source_of(name, str(tmp_path / f"{letter}.safetensors"))
        assert source is not None
        hashes.append(source.sha256)
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


def test_a_timm_network_with_weights_at_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", pretrained=False)
    file = saved(network, tmp_path / "w.safetensors")
    name = "timm:mobilenetv3_small_050.lamb_in1k"
    source = source_of(name, file)
    assert source is not None
    assert source.licence == "apache-2.0"
    anchor = Anchor(COLOUR, 6, 0, name, file).eval()
    assert anchor(images(2)).shape == (2, 6)


@pytest.mark.parametrize("name", [f"torchvision:{SMALL}", "timm:resnet18.a1_in1k"])
def test_an_offline_machine_hears_what_to_do(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be fetched .*name resolution") as caught:
        source_of(name)
    assert "method.extractor_weights" in caught.value.hint


@pytest.mark.parametrize("name", [f"torchvision:{SMALL}", "timm:resnet18.a1_in1k"])
def test_nothing_is_fetched_for_somebody_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(*_: Any, local_files_only: bool = False, **__: Any) -> None:
        asked.append(local_files_only)
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with (
        without_downloads(),
        pytest.raises(ConfigError, match="not in the cache here, and nobody asked") as caught,
    ):
        source_of(name)
    assert "fedvtc-edge extractors NAME" in caught.value.hint
    assert asked in ([], [True])  # not asked for at all, or for what lies here


def test_a_cached_file_of_torchvision_is_as_its_name_says(
    tmp_path: Path, shuffled: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of another hash never reach torch's reader, wherever they came from."""
    import hashlib

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(shuffled.state_dict(), tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    start = hashlib.sha256(data).hexdigest()[:8]
    (folder / f"net-{start}.pth").write_bytes(data)
    with without_downloads():
        assert weight_files.fetched("net", f"https://example.org/net-{start}.pth") == data
    (folder / f"net-{start}.pth").write_bytes(data + b"x")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ConfigError, match="is not what its name says"):
        weight_files.fetched("net", f"https://example.org/net-{start}.pth")
    with pytest.raises(ConfigError, match="does not name its hash"):
        weight_files.fetched("net", "https://example.org/net.pth")
