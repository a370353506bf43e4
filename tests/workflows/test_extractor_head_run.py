"""Federations with heads on the extractor: alone, mixed, private, cut off, served and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedvtc_edge.config import Config
from fedvtc_edge.devices.footprint import needs, needs_bundle
from fedvtc_edge.devices.planner import plan
from fedvtc_edge.devices.profile import DeviceProfile
from fedvtc_edge.errors import ConfigError, RunError
from fedvtc_edge.export.exporting import export
from fedvtc_edge.models import ImageShape
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
HEAD = {"clients": {"architectures": ["extractor-head"]}}
MIXED = {"clients": {"architectures": ["mlp", "extractor-head"]}}


def weights(out: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(out.glob("clients/*/*.safetensors")):
        found |= {f"{file.parent.name}/{k}": v for k, v in load_file(file).items()}
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": {"moments": "diagonal"}},
        {"data": {"holdout": 0.2}},
        {"transport": {"precision": "float16"}},
        {"privacy": {"mode": "anchored"}},
        {"privacy": {"mode": "client"}},
        {"clients": {"devices": ["rpi4"], "architectures": ["extractor-head"]}},
        {"method": {"name": "local"}},
        {"method": {"name": "centralised"}},
    ],
    ids=str,
)
def test_every_mode_ends(tiny: Tiny, changes: dict[str, Any]) -> None:
    summary = run(tiny(**{**HEAD, **changes})).summary
    assert {client["architecture"] for client in summary["clients"]} == {"extractor-head"}
    classes = len(summary["class_names"])
    assert all(client["parameters"] % (classes * 13) == 0 for client in summary["clients"]) or (
        "privacy" in changes  # another width
    )


def test_it_reaches_its_statistics(tiny: Tiny) -> None:
    config = tiny(**HEAD, method={"anchor": 48}, training={"finetune_last": 60})
    summary = run(config).summary
    assert summary["accuracy_mean"] > summary["accuracy_control"] - 0.02


def test_private_examples_enter_through_noised_gradients_alone(tiny: Tiny) -> None:
    private = {"mode": "example", "epsilon": 50.0}
    summary = run(tiny(**MIXED, privacy=private, method={"rounds": 1})).summary
    assert 0 < summary["epsilon"] <= 50


@pytest.mark.parametrize("changes", [HEAD, MIXED], ids=["alone", "mixed"])
def test_a_run_that_was_cut_off_ends_alike(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], untimed: Callable[[Any], Any]
) -> None:
    config = tiny(**changes)
    calm = run(config, out=tmp_path / "calm").summary
    done: list[Any] = []

    def cut(line: Any) -> None:
        done.append(line)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, out=tmp_path / "cut", callbacks=[cut])
    assert untimed(resume(tmp_path / "cut").summary) == untimed(calm)
    one, two = weights(tmp_path / "calm"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(value.equal(two[name]) for name, value in one.items())


@pytest.mark.parametrize("changes", [HEAD, MIXED], ids=["alone", "mixed"])
def test_what_is_left_is_small_and_exported(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    summary = run(tiny(**changes), out=out).summary
    heads = [c["id"] for c in summary["clients"] if c["architecture"] == "extractor-head"]
    for name in heads:
        assert set(load_file(out / "clients" / name / "classifier.safetensors")) == {
            "head.weight",
            "head.bias",
        }
        assert not (out / "clients" / name / "decoder.safetensors").exists()
        assert FinishedRun.open(out).decoder(name, ImageShape(8, 1)) is None
    export(out, tmp_path / "bundles")
    manifest = json.loads((tmp_path / "bundles" / heads[0] / "manifest.json").read_text())
    assert "synthesizer" not in manifest["graphs"]
    assert manifest["accuracy"]["classifier"] == pytest.approx(
        next(c["accuracy"] for c in summary["clients"] if c["id"] == heads[0]), abs=1e-9
    )
    with pytest.raises(RunError, match="synthesises none"):
        export(out, tmp_path / "int8", clients=heads[:1], int8=True)


def test_it_is_refused_by_name_where_own_features_are_shared(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="extractor-head"):
        run(tiny(**HEAD, method={"share": "features"}))


def test_plans_count_the_extractor_below_the_head(tiny: Tiny) -> None:
    config, shape = tiny(**HEAD), ImageShape(8, 1)
    small = needs("extractor-head", config, shape, 10, batch=8)
    many = needs("extractor-head", config, shape, 10, batch=8, samples=100)
    assert many.data - small.data == 100 * 4 * (64 + 12)  # pixels and features
    assert small.gradients == 4 * 10 * 13
    assert small.weights > 50 * small.gradients
    bundle = needs_bundle("extractor-head", config, shape, 10, use="infer", batch=1)
    assert bundle.weights > small.weights
    with pytest.raises(ConfigError, match="has no synthesiser"):
        needs_bundle("extractor-head", config, shape, 10, use="synthesise", batch=1)
    rows = plan(config, DeviceProfile.load("rpi4"), batches=[8]).rows
    assert {row.what for row in rows if row.architecture == "extractor-head"} == {"train", "infer"}
