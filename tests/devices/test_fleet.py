"""Devices are given in turn, and memory decides what they train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.devices.fleet import fleet, notes
from fedvtc_edge.devices.footprint import needs
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape

Tiny = Callable[..., Config]
SHAPE, CLASSES = ImageShape(8, 1), 10
IDS = ["a", "b", "c", "d"]


def test_without_devices_everybody_trains_what_the_settings_say(tiny: Tiny) -> None:
    assignments = fleet(tiny(), IDS, SHAPE, CLASSES)
    assert [place.architecture for place in assignments] == ["mlp", "lenet"] * 2
    assert all(place.profile is None for place in assignments)
    assert notes(assignments) == []


def test_a_device_that_trains_nothing_sits_out(tiny: Tiny) -> None:
    config = tiny(clients={"devices": ["rpi5", "stm32h7", "rpi-zero-2w"]})
    assignments = fleet(config, IDS, SHAPE, CLASSES)
    assert [place.architecture for place in assignments] == ["mlp", None, None, "lenet"]
    assert notes(assignments) == [
        "b sits out, nothing that trains runs on stm32h7",
        "c sits out, no architecture can be trained in the memory of rpi-zero-2w",
    ]
    many = fleet(config, [f"k{index}" for index in range(15)], SHAPE, CLASSES)
    assert notes(many)[0] == "k1, k4, k7 and 2 more sit out, nothing that trains runs on stm32h7"


def test_what_does_not_fit_makes_way_for_the_planners_choice(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(clients={"architectures": ["resnet18", "mlp"]})
    large, small = (
        needs(name, config, SHAPE, CLASSES, batch=config.training.batch).total / 2**20
        for name in ("resnet18", "mlp")
    )
    assert small < large
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "small"\ntitle = "small"\narch = "x86_64"\nruntime = "onnxruntime"\n'
        'cores = { value = 1, kind = "assumed", source = "a test" }\n'
        f'memory_total_mb = {{ value = {(small + large) / 2}, kind = "assumed", source = "x" }}\n'
    )
    assignments = fleet(config.replace(clients={"devices": [str(path)]}), IDS[:2], SHAPE, CLASSES)
    assert [place.architecture for place in assignments] == ["mlp", "mlp"]
    assert notes(assignments) == [
        "a trains mlp in place of resnet18, which does not fit the memory of small"
    ]


def test_unknown_devices_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="unknown device 'rpi6'"):
        fleet(tiny(clients={"devices": ["rpi6"]}), IDS, SHAPE, CLASSES)
