"""The same federation in one process and beyond it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedvtc_edge
from fedvtc_edge.config import Config

SMALL: dict[str, Any] = {
    "data": {"limit": 120, "test_limit": 50, "alpha": 1.0},
    "clients": {"count": 3, "architectures": ["mlp", "lenet"]},
    "method": {"rounds": 2, "anchor": 32, "latent": 16},
    "training": {
        "epochs": 1,
        "decoder_steps": 2,
        "finetune_steps": 2,
        "finetune_from": 2,
        "finetune_last": 2,
    },
    "engine": {"name": "flower"},
    "server": {"deadline_s": 0.05},
    "privacy": {"collusion": 0.0},
}


def settings(**tables: Any) -> Config:
    base = {key: dict(value) for key, value in SMALL.items()}
    for table, values in tables.items():
        base.setdefault(table, {}).update(values)
    return fedvtc_edge.load_config(base)


def local(config: Config, out: Path) -> Path:
    fedvtc_edge.run(config.replace(engine={"name": "local"}), out=out)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    """Rounds without their seconds, bytes (envelopes are of other keys) and what one has alone."""
    rounds = lines(path)
    for record in rounds:
        record.pop("seconds")
        record.pop("void", None)
        for client in record["clients"]:
            client.pop("seconds")
            client.pop("upload_bytes")
    return rounds


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"transport": {"masking": True}},
        {"method": {"share": "features"}},
        {"method": {"share": "features+decoder"}},
        {"method": {"share": "features"}, "transport": {"masking": True}},
        {"method": {"name": "fedproto"}},
        {"method": {"name": "local"}},
    ],
    ids=["anchored", "masked", "features", "decoders", "features-masked", "fedproto", "local"],
)
def test_same_bits_as_in_one_process(village: Any, tmp_path: Path, tables: dict[str, Any]) -> None:
    config = settings(**tables)
    there = village(config).serve().path
    here = local(config, tmp_path / "local")
    if config.method.name != "local":
        published = "statistics.safetensors"
        assert (there / published).read_bytes() == (here / published).read_bytes()
    assert untimed(there) == untimed(here)
