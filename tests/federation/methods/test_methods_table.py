"""The table of methods in docs/method.md against the code: names, numbers, masks and modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvtc_edge.config import load_config
from fedvtc_edge.federation.methods import Method
from fedvtc_edge.plugins import METHODS

PAGE = Path(__file__).parents[3] / "docs" / "method.md"


def rows() -> dict[str, list[str]]:
    lines = PAGE.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| `method.name` |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[cells[0].strip("`")] = cells
    return found


def built_in() -> dict[str, type[Method]]:
    kinds = {name: METHODS.find(name) for name in METHODS.names()}
    return {
        name: kind  # type: ignore[misc]
        for name, kind in kinds.items()
        if kind.__module__.startswith("fedvtc_edge.")
    }


def test_every_method_has_its_row() -> None:
    assert set(rows()) == set(built_in())


@pytest.mark.parametrize("name", sorted(built_in()))
def test_a_row_says_what_the_code_does(name: str) -> None:
    _, _, knob, masks, privacy, _, _ = rows()[name]
    kind = built_in()[name]
    if kind.knob is None:
        assert knob == "–"
    else:
        assert float(knob.rpartition(", ")[2]) == kind.knob.default
    settings = load_config({"method": {"name": name}})
    assert masks == ("yes" if kind.maskable(settings) else "no")
    assert privacy == (", ".join(kind.variants) or "–")
