"""A second release of the same data is known again, whoever is killed in between."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import RunError
from fedvtc_edge.privacy import spending
from fedvtc_edge.privacy.accountant import epsilon_spent
from fedvtc_edge.privacy.mechanism import Mechanism, mechanism_of
from fedvtc_edge.privacy.spending import Spending, Spent, SpentError, state_folder, total_epsilon


def images(seed: int, number: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 4, 4, 1), np.uint8)


def mechanism(mode: str = "anchored", **privacy: Any) -> Mechanism:
    made = mechanism_of(load_config({"privacy": {"mode": mode, **privacy}}), 3)
    assert made is not None
    return made


def spent(token: str, mode: str = "anchored", **privacy: Any) -> Spent:
    return Spent.of(mechanism(mode, **privacy), "a" * 32, token)


def test_the_first_release_passes_and_the_second_is_refused_with_the_total(tmp_path: Path) -> None:
    assert Spending(tmp_path).enter(spent("one"), images(1), again=False) == ""
    z = mechanism().spec.noise_multiplier
    total = epsilon_spent([(z, 1.0, 2)], 1e-5)
    assert 5.5 < total < 8  # not twice ε: Gaussian releases compose by squares
    with pytest.raises(SpentError, match=rf"released once before.*epsilon {total:.3g} .*not 4"):
        Spending(tmp_path).enter(spent("two"), images(1), again=False)
    assert len(json.loads((tmp_path / "spending.json").read_text())["releases"]) == 1
    told = Spending(tmp_path).enter(spent("two"), images(1), again=True)
    assert f"epsilon {total:.3g}" in told
    told = Spending(tmp_path).enter(spent("three", epsilon=1.0), images(1), again=True)
    low = mechanism(epsilon=1.0).spec.noise_multiplier
    both = epsilon_spent([(z, 1.0, 2), (low, 1.0, 1)], 1e-5)
    assert "released 2 times before" in told
    assert f"epsilon {both:.3g}" in told


def test_a_resumed_run_is_no_second_release(tmp_path: Path) -> None:
    for _ in range(3):
        assert Spending(tmp_path).enter(spent("one"), images(1), again=False) == ""
    assert len(json.loads((tmp_path / "spending.json").read_text())["releases"]) == 1


def test_looking_up_notes_nothing(tmp_path: Path) -> None:
    assert Spending(tmp_path).enter(spent("one"), images(1), again=False, dry=True) == ""
    assert not (tmp_path / "spending.json").exists()


@pytest.mark.parametrize("way", ["turned", "more", "fewer", "one more"])
def test_the_same_records_are_known_in_another_form(tmp_path: Path, way: str) -> None:
    Spending(tmp_path).enter(spent("one"), images(1, 400), again=False)
    same = {
        "turned": images(1, 400)[::-1],
        "more": np.concatenate([images(2, 900), images(1, 400)]),
        "fewer": images(1, 400)[:100],
        "one more": np.concatenate([images(1, 400), images(2, 1)]),
    }[way]
    with pytest.raises(SpentError):
        Spending(tmp_path).enter(spent("two"), same, again=False)


def test_other_records_are_others_also_with_a_blank_one_in_common(tmp_path: Path) -> None:
    blank = np.zeros((1, 4, 4, 1), np.uint8)
    for token in range(3):
        data = np.concatenate([images(token, 100), blank])
        assert Spending(tmp_path).enter(spent(str(token)), data, again=False) == ""


def test_nobody_reads_marks_back_without_the_key(tmp_path: Path) -> None:
    """Not even of one image of which all are known: the same data have other marks elsewhere."""
    for home in ("here", "there"):
        Spending(tmp_path / home).enter(spent("one"), images(1, 2), again=False)
    marks = [
        json.loads((tmp_path / home / "spending.json").read_text())["releases"][0]["marks"]
        for home in ("here", "there")
    ]
    assert not set(marks[0]) & set(marks[1])
    assert len(marks[0]) == 2
    for path in tmp_path.rglob("spending.*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "here").stat().st_mode) == 0o700


def _enter(folder: Path, token: str) -> None:
    Spending(folder).enter(spent(token), images(int(token)), again=False)


def test_two_processes_lose_no_release(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_enter, args=(tmp_path, str(k))) for k in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = json.loads((tmp_path / "spending.json").read_text())["releases"]
    assert sorted(entry["token"] for entry in found) == list("012345")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spending.json", b"{"),
        ("spending.json", b'{"schema": 2, "releases": []}'),
        ("spending.json", b'{"schema": 1, "releases": [{"run": 1}]}'),
        ("spending.json", b'{"schema": 1, "releases": 3}'),
        ("spending.key", b"short"),
        ("spending.key", None),
    ],
)
def test_damage_is_refused_and_never_taken_for_nothing(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    Spending(tmp_path).enter(spent("one"), images(1), again=False)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError):
        Spending(tmp_path).enter(spent("two"), images(2), again=True)


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "MOST_RELEASES", 2)
    for token in "12":
        Spending(tmp_path).enter(spent(token), images(int(token), 5000), again=False)
    assert (tmp_path / "spending.json").stat().st_size < 2 * 2000
    with pytest.raises(RunError, match="as many as it may"):
        Spending(tmp_path).enter(spent("3"), images(3), again=False)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError) as refused:
        Spending(tmp_path / "file" / "below").enter(spent("one"), images(1), again=False)
    assert "XDG_STATE_HOME" in refused.value.hint


def test_units_are_not_mixed_up() -> None:
    """One example changes a client's clipped upload by twice the bound at most."""
    one, client = spent("one"), spent("two", "client", delta=1e-5)
    (z, _, _), (zc, _, count) = one.steps[0], client.steps[0]
    expected = epsilon_spent([(z, 1.0, 1), (zc / 2, 1.0, count)], 1e-5)
    assert total_epsilon([one, client], 1e-5) == expected
    assert total_epsilon([client], 1e-5) == epsilon_spent([(zc, 1.0, count)], 1e-5)
    assert total_epsilon([spent("x", epsilon=900.0)] * 9, 1e-5) == math.inf


def test_the_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "fedvtc-edge"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_folder().is_absolute()
    monkeypatch.setattr("fedvtc_edge.privacy.spending.sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", os.path.join(tmp_path, "local"))
    assert state_folder() == tmp_path / "local" / "fedvtc-edge"
    monkeypatch.setattr("fedvtc_edge.privacy.spending.sys.platform", "darwin")
    assert "Application Support" in str(state_folder())
