"""The same federation in one process and beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedvtc_edge
from fedvtc_edge.config import Config

MIXED = {"clients": {"architectures": ["mlp", "lenet"]}}


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
        record.pop("upload_bytes")  # as with the clients': envelopes, and messages of masked sums
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
        {"method": {"name": "fedgh"}},
        {"method": {"name": "fedtgp"}},
        {"method": {"name": "fedgen"}},
        {"method": {"name": "ccvr"}},
        {"method": {"name": "local"}},
    ],
    ids=str,
)
def test_same_bits_as_in_one_process(
    village: Any, small: Any, tmp_path: Path, tables: dict[str, Any]
) -> None:
    config = small(**MIXED, **tables)
    there = village(config).serve().path
    here = local(config, tmp_path / "local")
    if config.method.name not in ("local", "fedgh", "fedgen", "ccvr"):
        published = "statistics.safetensors"
        assert (there / published).read_bytes() == (here / published).read_bytes()
    assert untimed(there) == untimed(here)
