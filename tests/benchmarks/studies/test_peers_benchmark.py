"""The study of peers: the same work for every side, and nothing said of what is not installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvtc_edge.benchmarks.studies import peers
from fedvtc_edge.workflows.run import run


def test_everybody_has_the_same_images_and_all_of_them() -> None:
    dealt = peers.parts(7)
    sizes = [len(labels) for _, labels in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert [tuple(images.shape) for images, _ in dealt] == [(size, 1, 8, 8) for size in sizes]
    assert sum(sizes) == sum(len(labels) for _, labels in peers.parts(1))


@pytest.mark.parametrize(("method", "extra"), [("local", 0), ("fedproto", 1)])
def test_our_sides_take_the_steps_that_are_counted(
    method: str, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    backward = torch.autograd.backward

    def count(*words: Any, **named: Any) -> None:
        taken[-1].append(1)
        backward(*words, **named)

    monkeypatch.setattr(torch.autograd, "backward", count)
    for rounds in (1, 2, 4):  # the planner tries some steps in the first
        taken.append([])
        run(peers.settings(method, clients=2, epochs=1, rounds=rounds))
    assert len(taken[2]) - len(taken[1]) == 2 * 2 * (peers._steps(2, 1) + extra)


@pytest.mark.parametrize("pull", [False, True])
def test_the_floor_takes_as_many_steps(pull: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(peers, "fit", lambda *words: taken.append(len(list(words[3]))))
    floor = peers.Floor(2, 3, pull=pull)
    for _ in range(4):
        floor.round()
    assert taken == [peers._steps(2, 3) + pull] * 8


def test_the_floor_learns() -> None:
    images, labels = peers.parts(2)[0]
    torch.manual_seed(0)
    model = peers.network()
    peers.fit(model, images, labels, peers._batches(len(labels), 4))
    assert (model.eval()(images).argmax(1) == labels).double().mean() > 0.5


def test_sides_and_floors_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def side(clients: int, epochs: int, rounds: int, turn: Callable[[], None]) -> None:
        assert (clients, epochs) == (2, 1)
        for _ in range(rounds):
            ran.append("side")
            turn()

    monkeypatch.setitem(peers.SIDES, "local", side)
    monkeypatch.setattr(peers.Floor, "round", lambda _: ran.append("floor"))
    peers.alternate("local", 2, 1, 3, str(tmp_path / "turns.json"))
    assert ran == ["side", "floor"] * 3
    turns = json.loads((tmp_path / "turns.json").read_text())
    assert [len(turns[kind]) for kind in ("side", "floor")] == [3, 3]


def test_our_side_ends_every_round(tmp_path: Path) -> None:
    peers.alternate("local", 2, 1, 2, str(tmp_path / "turns.json"))
    turns = json.loads((tmp_path / "turns.json").read_text())
    assert len(turns["side"]) == len(turns["floor"]) == 2
    assert min(*turns["side"], *turns["floor"]) > 0


def test_the_first_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(command: list[str]) -> dict[str, float]:
        side, clients, epochs, rounds = command[3], *map(int, command[4:7])
        assert command[0] == sys.executable
        assert (clients, epochs) == (3, 2)
        turns = {"side": [9.0, 9.0, *[3.0] * (rounds - 2)], "floor": [2.0] * rounds}
        Path(command[7]).write_text(json.dumps(turns))
        each = 5.0 if side == "flower" else 0.0
        return {"cpu_s": 10 + rounds * (each + 2.0), "wall_s": 0.0, "peak_mb": 0.0}

    monkeypatch.setattr(peers, "tree_cost", spent)
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "pfl" else object())
    found = peers.measure(clients=3, epochs=2, rounds=5, repeats=2)
    assert {side: one["ratio"] for side, one in found["sides"].items()} == {
        "local": 1.5,
        "statistics": 1.5,
        "flower": 2.5,  # all processes, without the floors in between
    }
    assert found["skipped"]["pfl"] == "pfl is not installed"
    assert "htfllib" in found["skipped"]
    told = list(peers._lines(found))
    assert told[0].startswith("3 clients, ")
    assert any(line.startswith("flower") and line.endswith("2.500") for line in told)
    assert "pfl: skipped: pfl is not installed" in told
