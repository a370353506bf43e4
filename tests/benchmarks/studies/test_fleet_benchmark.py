"""The benchmark of simulated devices: both runs are the same federation."""

from __future__ import annotations

import pytest

from fedvtc_edge.benchmarks.studies import fleet


@pytest.mark.slow
def test_profiles_change_the_time_and_nothing_else() -> None:
    training = {"decoder_steps": 1, "finetune_last": 1, "epochs": 1}
    clients = {"count": 5, "architectures": ["mlp"]}
    data = {"partition": "iid", "limit": 100, "test_limit": 40}
    tables = {"training": training, "clients": clients, "data": data}
    document = fleet.measure(5, 1, 1, tables)
    assert document["accuracy_equal"]
    assert document["seconds_virtual"] > 0
    assert len(document["devices"]) >= 5
    (pair,) = document["pairs"]
    assert document["ratio"] == pytest.approx(pair["on_s"] / pair["off_s"])


def test_a_run_that_cannot_be_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_CHILD", "raise SystemExit('too few samples')")
    with pytest.raises(SystemExit) as caught:
        fleet.STUDY.main(["--clients", "9000", "--rounds", "1"])
    assert caught.value.code == 2
    assert "error: the run failed: too few samples" in capsys.readouterr().err
