"""Bundles of methods that train nothing: one head on the extractor, without torch as with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.config import load_config
from fedvtc_edge.export import Bundle, verify
from fedvtc_edge.export.exporting import export
from fedvtc_edge.export.graphs import CommonHead
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.workflows.run import run

SMALL: dict[str, Any] = {
    "data": {"limit": 200, "test_limit": 100},
    "clients": {"count": 3, "architectures": ["mlp"]},
    "method": {"anchor": 16, "rounds": 1},
}


def test_the_graph_is_the_classifier_of_the_run() -> None:
    shape, rng = ImageShape(8, 1), np.random.default_rng(0)
    anchor = Anchor(shape, 16, 0).eval()
    mean, std = rng.standard_normal((4, 16)), rng.uniform(0.5, 1, (4, 16))
    known = GlobalStatistics(np.array([5.0, 0.0, 3.0, 2.0]), mean, std)
    quadratic, linear, offset = (rng.standard_normal(s) for s in ((16, 4), (16, 4), 4))
    head = quadratic, linear, offset
    images = torch.rand(6, 1, 8, 8)
    found = CommonHead(anchor, head, known.present)(images)
    expected = Discriminant(known, device=torch.device("cpu"), head=head)(anchor(images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[:, 1] == -1e4).all()


@pytest.mark.parametrize(
    ("name", "moments"), [("statistics", "diagonal"), ("fishermix", "covariance")]
)
def test_a_bundle_classifies_as_the_run_did(name: str, moments: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "bundles"
    method = {**SMALL["method"], "name": name, "moments": moments}
    summary = run(load_config({**SMALL, "method": method}), out=folder).summary
    client = summary["clients"][1]
    made = export(folder, out, clients=[client["id"]], with_prior=True)["bundles"][0]
    assert made["architecture"] == "extractor-head"
    assert made["accuracy"]["classifier"] == pytest.approx(client["accuracy"], abs=0.011)
    assert made["accuracy"]["classifier_home"] == pytest.approx(client["accuracy_home"], abs=0.02)
    bundle, manifest = Bundle.open(out / client["id"]), verify(out / client["id"]).manifest
    assert set(manifest.graphs) == {"classifier", "anchor"}
    assert set(manifest.source) == {"statistics.safetensors"}
    assert bundle.classify(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
    assert FinishedRun.open(folder).trained == tuple(one["id"] for one in summary["clients"])
    assert not list((folder / "clients").rglob("*.safetensors"))
