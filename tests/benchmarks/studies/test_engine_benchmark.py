"""The engine's benchmark: its floor is fair only if both sides do the same work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedvtc_edge.benchmarks.studies import engine as benchmark
from fedvtc_edge.data import load_dataset
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.rounds import run_rounds
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.training.compute import Compute, deterministic

KEYS = {"floor_cpu_s_per_round", "engine_cpu_s_per_round", "ratio"}


def test_engine_and_floor_reach_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    config = benchmark.settings(rounds=2)  # the second round shows that streams move on alike
    data = load_dataset(config.data)
    with deterministic():
        directory = RunDirectory.create(tmp_path / "run", config)
        engine = benchmark.prepare(config, data, directory)
        run_rounds(engine.method, engine, keep=directory.save, progress=SilentProgress())
        test, labels = benchmark._test(data)
    members = assemble(config, data, Compute.of(config.engine)).federation.clients
    begin = [parameter.clone() for parameter in members[0].model.parameters()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        accuracies = benchmark.bare_loop(config, members, test, labels).accuracies
    finally:
        torch.set_num_threads(threads)
    for ours, bare in zip(engine.federation.clients, members, strict=True):
        expected = bare.model.state_dict()
        for name, value in ours.model.state_dict().items():
            assert torch.equal(value, expected[name]), (ours.id, name)
    assert not torch.equal(begin[0], next(iter(members[0].model.parameters())))
    assert engine.record is not None
    assert accuracies == [record.accuracy for record in engine.record.clients]


def test_one_document_with_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.STUDY.main(["--json", "--rounds", "1", "--repeats", "1"])
    document = json.loads(capsys.readouterr().out)
    assert set(document) > KEYS
    assert all(document[key] > 0 for key in KEYS)
    assert document["rounds"] == document["repeats"] == 1


def test_people_get_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.STUDY.main(["--rounds", "1", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "five LeNet clients on digits, median of 1 × 1 rounds"
    assert [line.split()[0] for line in lines[1:4]] == ["floor", "engine", "ratio"]


@pytest.mark.parametrize("value", ["0", "-1", "some"])
def test_nothing_is_not_measured(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.STUDY.main(["--rounds", value])
    assert caught.value.code == 2
    assert "--rounds" in capsys.readouterr().err
