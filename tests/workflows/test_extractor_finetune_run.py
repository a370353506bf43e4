"""Federations that train the extractor's last blocks: whole, cut off, planned and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedvtc_edge.config import Config
from fedvtc_edge.devices.footprint import needs
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.export.exporting import export
from fedvtc_edge.models import ImageShape
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
SMALL = {
    "data": {"image_size": 16, "limit": 60, "test_limit": 20},
    "clients": {"count": 2, "architectures": ["extractor-finetune", "extractor-head"]},
    "method": {"extractor": "efficientnet-lite0@32", "rounds": 2},
}


def test_a_run_that_was_cut_off_ends_alike_and_is_exported(
    tiny: Tiny, tmp_path: Path, untimed: Callable[[Any], Any]
) -> None:
    config = tiny(**SMALL)
    calm = run(config, out=tmp_path / "calm").summary

    def cut(line: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, out=tmp_path / "cut", callbacks=[cut])
    assert untimed(resume(tmp_path / "cut").summary) == untimed(calm)
    kept = "clients/client-00/classifier.safetensors"
    one, two = load_file(tmp_path / "calm" / kept), load_file(tmp_path / "cut" / kept)
    assert one.keys() == two.keys()
    assert {key.split(".")[0] for key in one} == {"tail", "head"}
    assert all(value.equal(two[name]) for name, value in one.items())
    assert not (tmp_path / "calm/clients/client-00/decoder.safetensors").exists()
    export(tmp_path / "calm", tmp_path / "bundles", clients=["client-00"])
    manifest = json.loads((tmp_path / "bundles/client-00/manifest.json").read_text())
    assert manifest["accuracy"]["classifier"] == pytest.approx(
        calm["clients"][0]["accuracy"], abs=1e-9
    )


@pytest.mark.parametrize(
    "changes", [{"privacy": {"mode": "anchored"}}, {"method": {"name": "local"}}], ids=str
)
def test_other_modes_end(tiny: Tiny, changes: dict[str, Any]) -> None:
    config = tiny(**SMALL).replace(method={"rounds": 1}, clients={"count": 1}).replace(**changes)
    assert run(config).summary["clients"][0]["parameters"] > 1_400_000


def test_it_is_refused_before_data_are_read(tiny: Tiny) -> None:
    config = tiny(**{**SMALL, "data": {"name": "nowhere"}}).replace(method={"extractor": "random"})
    with pytest.raises(ConfigError, match="extractor-finetune"):
        run(config)


def test_plans_count_what_is_kept_and_trained(tiny: Tiny) -> None:
    config, shape = tiny(**SMALL), ImageShape(16, 3)
    few, many = (
        needs("extractor-finetune", config, shape, 10, batch=8, samples=count) for count in (0, 100)
    )
    assert many.data - few.data == 100 * 4 * (3 * 16**2 + 192 + 12)  # pixels, cut, features
    assert few.gradients > 4 * 1_400_000
    head = needs("extractor-head", config, shape, 10, batch=8)
    assert few.total > head.total
