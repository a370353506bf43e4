"""Costs of extractors: counted by hand where that can be done, and measured otherwise."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedvtc_edge.devices.extractor_costs import costs_of, names
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.pretrained import LITE0, LITE0_SHA256
from fedvtc_edge.plugins import EXTRACTORS


def test_what_can_be_counted_by_hand() -> None:
    def build(shape: ImageShape) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.channels * shape.size**2, 7))

    with EXTRACTORS.lent({"linear": build}):
        assert "linear" in names()
        costs = costs_of("linear", ImageShape(8, 1))
    assert (costs.features, costs.resolution, costs.sha256) == (7, 8, "")
    assert costs.macs == 64 * 7 + 7 * 2  # the projection to two features is counted, too
    assert costs.weights_bytes == 4 * (64 * 7 + 7)
    assert costs.ms > 0


def test_the_random_filters() -> None:
    costs = costs_of("random", ImageShape(8, 1))
    # Filters of 5 × 5 and 3 × 3 at each of 8 × 8 places, and the projection.
    assert costs.macs == 64 * (32 * 25 + 64 * 32 * 9) + 1024 * 2
    assert costs.features == 1024


def test_efficientnet_lite0() -> None:
    costs = costs_of(LITE0, ImageShape(32, 3))
    assert (costs.features, costs.resolution, costs.sha256) == (1280, 128, LITE0_SHA256)
    assert costs.weights_bytes == pytest.approx(4 * 3.35e6, rel=0.01)  # without its classifier
    assert costs.macs is not None
    # The paper's 407 million at 224 px, by area.
    assert costs.macs == pytest.approx(407e6 * (128 / 224) ** 2, rel=0.1)


def test_a_thread_count_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ConfigError):
        costs_of("nothing", ImageShape(8, 1))
    costs_of("random", ImageShape(8, 1))
    assert torch.get_num_threads() == before


def test_the_list_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from click.testing import CliRunner

    from fedvtc_edge.commands.extractors import command

    usual: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "lite0" in n else usual(n))
    result = CliRunner().invoke(command, ["--json", "--size", "16"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert next(costs["name"] for costs in document["extractors"]) == "random"
    assert "fedvtc-edge[pretrained]" in document["unavailable"][LITE0]
    assert set(document) == {"schema", "size", "channels", "extractors", "unavailable"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["random", "--channels", "1", "--size", "8"], 0, "million MACs"),
        (["--weights", "w.safetensors"], 2, "whose are they"),
        (["--size", "7"], 2, "--size"),
    ],
)
def test_the_command(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fedvtc_edge.commands.extractors import command

    result = CliRunner().invoke(command, words)
    assert result.exit_code == code
    assert said in result.output
