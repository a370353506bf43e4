"""The table of what each sharing mode gives away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvtc_edge.attacks import sweep as sweeping
from fedvtc_edge.attacks.sweep import SweepRow, main, table


def test_a_row_per_setting_and_a_column_per_number_of_records() -> None:
    def row(records: str, epsilon: float | None, value: float) -> SweepRow:
        return SweepRow(
            "digits",
            "anchored",
            "diagonal",
            epsilon,
            records,
            "membership",
            value,
            0.0,
            1.0,
            0.5,
            None,
            3.0 if epsilon else None,
            0.9,
        )

    lines = table([row("1", None, 1.0), row("5", None, 0.25), row("1", 4.0, 0.02)]).splitlines()
    assert lines[0] == ("| data | shared | moments | ε | n = 1 | n = 5 | ε at least | accuracy |")
    assert lines[2:] == [
        "| digits | anchored | diagonal | – | 100, 50, – | 25, 50, – | – | 90.0% |",
        "| digits | anchored | diagonal | 4 | 2, 50, – |  | 3.0 | 90.0% |",
    ]


@pytest.mark.slow
def test_the_command_stages_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sweeping, "EPSILONS", (None, 8.0))
    monkeypatch.setattr(sweeping, "STAGED", (1, 5))
    # The audit of the widest design alone takes a minute; it has tests of its own.
    monkeypatch.setattr(sweeping, "audit_claim", lambda *given, quick: {"lower_bound": 1.25})
    words = ["--share", "anchored", "--trials", "20", "--out", str(tmp_path), "--quiet"]
    main(words)
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    by = {(r["moments"], r["epsilon"], r["records"]): r for r in rows}
    assert by["diagonal", None, "1"]["identification"] == 1.0
    assert by["diagonal", 8.0, "5"]["identification"] < 0.5
    assert by["covariance", 8.0, "1"]["epsilon_lower_bound"] == 1.25
    assert by["covariance", None, "1"]["epsilon_lower_bound"] is None
    assert "| digits | anchored | covariance | 8 |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["--data", "none", "--out", str(tmp_path), "--quiet"])
    assert left.value.code == 2
