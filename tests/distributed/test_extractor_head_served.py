"""A head on the extractor over messages, beside a network of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]


def test_it_is_served(village: Make, small: Make) -> None:
    there = village(small(clients={"architectures": ["extractor-head", "mlp"]}))
    directory = there.serve()
    summary = json.loads((directory.path / "summary.json").read_text())
    assert [c["architecture"] for c in summary["clients"]][:2] == ["extractor-head", "mlp"]
    home = there.home("client-00").path / "clients" / "client-00"
    assert (home / "classifier.safetensors").stat().st_size < 10_000
    assert not (home / "decoder.safetensors").exists()
