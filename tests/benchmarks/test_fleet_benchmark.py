"""The benchmark of simulated devices: both runs are the same federation."""

from __future__ import annotations

import json

import pytest

from fedvtc_edge.benchmarks import fleet


@pytest.mark.slow
def test_profiles_change_the_time_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    fleet.main(["--clients", "5", "--rounds", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["accuracy_equal"]
    assert document["seconds_virtual"] > 0
    assert len(document["devices"]) >= 5
    (pair,) = document["pairs"]
    assert document["ratio"] == pytest.approx(pair["on_s"] / pair["off_s"])


def test_a_run_that_cannot_be_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fleet.main(["--clients", "9000", "--rounds", "1"])
    assert caught.value.code == 2
    assert "error: the run failed" in capsys.readouterr().err
