"""A home after the last round: a finished run of one client, which nobody else needs to know of."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.client.local_data import from_path
from fedvtc_edge.distributed.messages import REPORT, SHUTDOWN, TaskRequest
from fedvtc_edge.errors import RunError
from fedvtc_edge.export import Bundle
from fedvtc_edge.export.exporting import export
from fedvtc_edge.export.task import task_of
from fedvtc_edge.export.verification import verify
from fedvtc_edge.models import ImageShape
from fedvtc_edge.report import render
from fedvtc_edge.runs.finished import FinishedRun

Small = Callable[..., Config]


def summary_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "summary.json").read_text())
    return found


def without_test(village: Any, folder: Path) -> None:
    """Let the first client bring its own images, and with them no test set."""
    data, first, from_partition = village.data, village.names[0], village.participant
    names = np.array(data.class_names)
    np.savez(folder / "own.npz", x=data.x_train[:40], y=data.y_train[:40], class_names=names)

    def participant(name: str, **changes: Any) -> Any:
        own = {"source": from_path(folder / "own.npz")} if name == first else {}
        return from_partition(name, **(own | changes))

    village.participant = participant


def test_a_home_becomes_a_finished_run_and_the_server_learns_nothing(
    village: Any, small: Small
) -> None:
    config = small(clients={"count": 2})
    there = village(config, share_metrics=False)

    def early(name: str, request: TaskRequest) -> str:
        homes = [there.home(one).path for one in there.names]
        number, kind = request.context.round, request.context.kind
        last = number == config.method.rounds and kind in (REPORT, SHUTDOWN)
        assert last or not any((home / "summary.json").exists() for home in homes)
        return ""

    there.fate = early
    run = there.serve().path
    told = summary_of(run)
    assert told["accuracy_mean"] is None
    assert told["accuracy_control"] is not None
    assert told["samples_per_second"] is None  # images seen are as good as a count
    assert all(client["class_counts"] is None for client in told["clients"])
    assert "Not told:" in render(run).read_text()
    for name in there.names:
        home = there.home(name).path
        finished = FinishedRun.open(home)
        assert finished.clients == (name,)
        assert finished.is_home
        kept = there.home(name).state().tensors
        for part in ("classifier", "decoder"):
            path = home / "clients" / name / f"{part}.safetensors"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for key, value in load_file(path).items():
                assert torch.equal(kept[f"{part}/{key}"], value)
        assert (home / "statistics.safetensors").read_bytes() == there.published()
        task, shape = task_of(finished), ImageShape(8, 1)
        np.testing.assert_array_equal(task.x_test, there.data.x_test)
        images = torch.from_numpy(task.x_test).permute(0, 3, 1, 2).float() / 255
        guessed = finished.classifier(name, shape, task.classes)(images).argmax(1).numpy()
        accuracy = finished.record(name).accuracy
        assert accuracy == pytest.approx(float((guessed == task.y_test).mean()))
        assert finished.summary.accuracy_control == pytest.approx(told["accuracy_control"])
    page = render(home).read_text()
    assert "one client's own page" in page
    assert 'id="pictures"' in page
    with pytest.raises(RunError, match="networks stayed with the clients"):
        export(run, run / "bundles")


def test_what_is_told_anyway_is_the_same_in_the_home(village: Any, small: Small) -> None:
    there = village(small(clients={"count": 2}, method={"rounds": 1}), share_metrics=True)
    told = summary_of(there.serve().path)
    for client in told["clients"]:
        own = summary_of(there.home(client["id"]).path)["clients"][0]
        same = {"samples", "class_counts", "parameters"} | {k for k in own if "accuracy" in k}
        same.add("recall")
        assert {key: own[key] for key in same} == {key: client[key] for key in same}


def test_a_client_killed_while_it_leaves_leaves_again(village: Any, small: Small) -> None:
    there = village(small(clients={"count": 2}, method={"rounds": 1}))
    name, reaper = there.names[0], there.reaper
    reaper.hunting, passing = name, reaper.pass_by

    def pass_by(moment: str) -> None:
        reaper.every = 1 if f"{name}/summary.json" in moment else 10**9
        passing(moment)

    reaper.pass_by = pass_by
    there.serve()
    assert [moment.split()[0] for moment in reaper.killed] == ["before", "after"]
    for one in there.names:
        assert FinishedRun.open(there.home(one).path).clients == (one,)
    reports = [a.envelope for n, o, a in there.replies if n == name and o.last]
    assert len(reports) == 1


def test_who_was_away_in_the_last_round_leaves_with_what_it_has(village: Any, small: Small) -> None:
    there = village(small(server={"quorum": 0.3}))
    _, late, never = there.names
    since = {late: 2, never: 1}

    def fate(name: str, request: TaskRequest) -> str:
        here = request.context.kind == SHUTDOWN or request.context.round < since.get(name, 3)
        return "" if here else "lost"

    there.fate = fate
    there.serve()
    finished = FinishedRun.open(there.home(late).path)
    kept = there.home(late).state()
    assert kept.round == 1
    assert finished.record(late).accuracy is not None
    weights = load_file(finished.path / "clients" / late / "classifier.safetensors")
    assert all(torch.equal(kept.tensors[f"classifier/{k}"], v) for k, v in weights.items())
    assert not there.home(never).ready  # it has trained nothing
    there.reply(late, there.request(late, 2, SHUTDOWN))


def test_nothing_is_left_where_a_server_calls_an_early_order_the_last(
    village: Any, small: Small
) -> None:
    there = village(small(clients={"count": 2}, method={"name": "local"}))
    name = there.names[0]
    there.reply(name, there.hello("n"))
    reply = there.reply(name, there.request(name, 1, REPORT, last=True))
    assert reply.envelope
    home = there.home(name).path
    assert not (home / "summary.json").exists()
    with pytest.raises(RunError, match="of a client whose run is not over") as refused:
        FinishedRun.open(home)
    assert "fedvtc-edge join" in refused.value.hint
    with pytest.raises(RunError, match="of a client whose run is not over"):
        render(home)


def test_without_a_test_set_a_home_claims_no_accuracy(
    village: Any, small: Small, tmp_path: Path
) -> None:
    there = village(small(clients={"count": 2}, method={"rounds": 1}), share_metrics=False)
    without_test(there, tmp_path)
    there.serve()
    home = there.home(there.names[0]).path
    summary = summary_of(home)
    assert summary["evaluated_on"] is None
    assert not any(v for k, v in summary["clients"][0].items() if k.startswith("accuracy"))
    assert summary["clients"][0]["samples"] == 40
    assert task_of(FinishedRun.open(home)).x_test.shape == (0, 8, 8, 1)
    assert "This client has no test set" in render(home).read_text()


@pytest.mark.slow
def test_a_home_without_a_test_set_is_exported_and_classifies(
    village: Any, small: Small, tmp_path: Path
) -> None:
    there = village(small(clients={"count": 2}), share_metrics=False)
    without_test(there, tmp_path)
    there.serve()
    name = there.names[0]
    document = export(there.home(name).path, tmp_path / "out")
    assert document["evaluated_on"] is None
    manifest = verify(tmp_path / "out" / name, None).manifest
    assert manifest.accuracy["images"] == 0
    assert manifest.accuracy["classifier"] is None
    for graph in ("classifier", "anchor"):
        assert set(manifest.parity[graph]) == {"random", "painted"}
    bundle = Bundle.open(tmp_path / "out" / name)
    painted = bundle.synthesize([3, 4], seed=1)
    assert painted.shape == (2, 8, 8, 1)
    images = there.data.x_test[:5]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    model = FinishedRun.open(there.home(name).path).classifier(name, ImageShape(8, 1), 10)
    with torch.no_grad():
        expected = model(tensor).numpy()
    np.testing.assert_allclose(bundle.classify(images), expected, atol=1e-3)
