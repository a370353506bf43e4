"""A finished run in words: a row for each client, or the spread and the ends of thousands."""

from __future__ import annotations

from typing import Any

import pytest

from fedvtc_edge.commands.run import print_summary
from fedvtc_edge.runs.records import Summary


def summary_of(clients: int) -> dict[str, Any]:
    records = [
        {
            "id": f"client-{place:04d}",
            "architecture": "mlp",
            "accuracy": place / clients if place else None,
            "samples": 1000 + place,
            "upload_bytes": 2000,
        }
        for place in range(clients)
    ]
    document = {"clients": records, "seconds": 1.0, "data": "digits", "method": "local"}
    return Summary.model_validate(document).model_dump()


def test_few_clients_have_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary_of(30))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("client-") for line in lines) == 30
    assert not any("median" in line for line in lines)


def test_many_clients_are_spread_and_have_ends(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary_of(1000))
    out = capsys.readouterr().out
    lines = out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("client-")]
    assert names == [f"client-{place:04d}" for place in [*range(1, 9), *range(999, 991, -1)]]
    own = next(line for line in lines if line.startswith("Own model")).split()
    assert own[2:] == ["999", "0.1%", "5.1%", "25.1%", "50.0%", "74.9%", "94.9%", "99.9%"]
    assert "\u202f" not in out
    assert len(lines) < 40
