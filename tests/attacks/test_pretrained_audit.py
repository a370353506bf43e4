"""Attacks on uploads of a pretrained extractor: scaled as it releases, embedded once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedvtc_edge.attacks.adversary.observations import of_release
from fedvtc_edge.attacks.adversary.view import Case, View
from fedvtc_edge.attacks.inference.reconstruction import Inversion
from fedvtc_edge.config import load_config
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor, centre
from fedvtc_edge.privacy.mechanism import anchor_width, mechanism_of
from fedvtc_edge.privacy.release import bounded_sums, estimate
from fedvtc_edge.privacy.release_spec import ReleaseSpec

WIDTH, CLASSES = 12, 3


def directions(seed: int, count: int) -> np.ndarray:
    z = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True) * np.sqrt(WIDTH))


def test_what_was_released_is_read_back() -> None:
    spec = ReleaseSpec(CLASSES, WIDTH, True, 2.0, 4.0, 1e-5, pretrained=True)
    features, labels = directions(1, 90), np.arange(90) % CLASSES
    sums = bounded_sums(spec, features, labels, np.zeros(WIDTH))
    mean = np.stack([features[labels == label].mean(0) for label in range(CLASSES)])
    seen = of_release(
        spec, sums, np.zeros(WIDTH), who="server", client="client-00", round_=0, draws=0.0
    )
    assert np.allclose(seen.mean, mean, atol=1e-4)
    assert np.allclose(seen.count, 30, atol=1e-3)
    known = estimate(replace(spec, epsilon=900.0), sums, 0, np.zeros(WIDTH))
    assert known.covariance is not None
    second = features.T @ features / 90
    assert np.allclose(known.covariance, second, atol=1e-3)


class Network(nn.Module):
    """A pretrained network that counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.flatten(1)[:, : 2 * WIDTH]


def pretrained_anchor() -> Anchor:
    anchor = Anchor(ImageShape(8, 1), WIDTH, 3).eval()
    anchor.body, anchor.sha256, anchor.matches = Network(), "5a" * 32, False
    anchor.project = torch.randn(2 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
    return anchor


def test_candidates_are_embedded_once_and_nothing_is_inverted() -> None:
    anchor, candidates = pretrained_anchor(), torch.rand(50, 1, 8, 8)
    view = View(
        who="server",
        label=0,
        count=1.0,
        mean=np.ones(WIDTH),
        std=None,
        public=candidates[:20],
        everyday=candidates,
        scatter=None,
        freedom=0.0,
        noise=0.0,
        rounding=0.0,
        extract=anchor,
        decode=None,
        pairs=None,
        population=None,
    )
    case = Case(view, candidates)
    assert isinstance(anchor.body, Network)
    first, seen = case.features(), anchor.body.seen
    assert np.array_equal(case.features(), first)
    assert anchor.body.seen == seen > 0
    assert Inversion().guess([case], torch.Generator()) == [None]
    assert Inversion(joint=True).guess([case], torch.Generator()) == [None]


def test_the_public_centre_of_a_pretrained_network_is_the_origin() -> None:
    assert not centre(pretrained_anchor(), ImageShape(8, 1)).any()
    assert centre(Anchor(ImageShape(8, 1), WIDTH, 3).eval(), ImageShape(8, 1)).any()


def test_names_of_pretrained_networks_choose_the_rule() -> None:
    names = "efficientnet-lite0", "efficientnet-lite0@160", "timm:x", "torchvision:y", "a.onnx"
    for name in names:
        config = load_config(
            {
                "method": {"extractor": name, "anchor": 256},
                "privacy": {"mode": "anchored", "population": 10_000, "epsilon": 4.0},
                "clients": {"count": 5},
            }
        )
        mechanism = mechanism_of(config, 10)
        assert mechanism is not None
        assert mechanism.spec.pretrained
        assert anchor_width(config, 10) == 256
    assert not load_config({}).method.pretrained
    assert not load_config({"method": {"extractor": "corners"}}).method.pretrained
