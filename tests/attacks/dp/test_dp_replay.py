"""Replay on neighbours: the release path of every mode, and planted violations of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvtc_edge.attacks.auditing import audit
from fedvtc_edge.attacks.dp.replay import HOSTILE, Replay, findings_of_replay, replay
from fedvtc_edge.config import Config
from fedvtc_edge.errors import UsageError
from fedvtc_edge.federation.methods import fedvtc
from fedvtc_edge.models import extractor
from fedvtc_edge.privacy import mechanism as mechanism_module
from fedvtc_edge.privacy import release as release_path
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.workflows.run import run

PRIVACY = {"epsilon": 4.0, "population": 300}
MASKS = {"transport": {"masking": True}}
FEATURES = {"method": {"share": "features"}}


def settings(mode: str, **changes: Any) -> dict[str, Any]:
    delta = 1e-3 if mode == "client" else 1e-5
    return {"privacy": {"mode": mode, "delta": delta, **PRIVACY}, **changes}


MODES = {
    "anchored": settings("anchored"),
    "anchored, masked": settings("anchored", **MASKS),
    "anchored, first moments": settings("anchored", method={"moments": "diagonal"}),
    "client": settings("client"),
    "client, masked": settings("client", **MASKS),
    "client, own features": settings("client", **FEATURES),
    "client, own features, masked": settings("client", **FEATURES, **MASKS),
    "example": settings("example"),
    "example, masked": settings("example", **MASKS),
    "example, own features": settings("example", **FEATURES),
}

Play = Callable[[str], list[Replay]]


@pytest.fixture
def play(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Play:
    """Outcomes of a mode, on four records of each of three clients, 8 pixels wide.

    Features are taken eight at a time and about the origin, which is all that costs time.
    """
    monkeypatch.setattr(extractor, "_chunk", lambda function, images: 8)
    monkeypatch.setattr(fedvtc, "centre", lambda anchor, shape: np.zeros(anchor.width))
    draw = torch.Generator().manual_seed(0)
    holdings = [
        (torch.rand(4, 1, 8, 8, generator=draw), torch.randint(0, 9, (4,), generator=draw))
        for _ in range(3)
    ]

    def played(mode: str) -> list[Replay]:
        config = tiny(clients={"architectures": ["mlp"]}).replace(**MODES[mode])
        return replay(config, holdings, 10)

    return played


def said(found: list[Replay]) -> str:
    return " | ".join(f"{one.name}: {', '.join(one.violations)}" for one in found)


@pytest.mark.parametrize("mode", MODES)
def test_the_release_path_moves_by_no_more_than_is_declared(mode: str, play: Play) -> None:
    found = play(mode)
    assert [one for one in found if one.violations] == []
    assert len(found) == len(HOSTILE) + (2 if mode.startswith("client") else 3)
    # Something does move it by all that the clip allows, or the test would show nothing.
    assert 0.99 < max(one.moved for one in found) <= 1
    (finding,) = findings_of_replay(found, "server")
    assert finding.passed
    assert "of the declared sensitivity at most" in finding.note


def test_nothing_is_claimed_and_nothing_replayed(tiny: Callable[..., Config]) -> None:
    assert replay(tiny(), [(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))], 10) == []


def test_a_clip_that_is_skipped_is_found(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    clipped = release_path.contributions
    monkeypatch.setattr(
        release_path,
        "contributions",
        lambda spec, features, centre, *, bound=None: clipped(spec, features, centre, bound=1e3),
    )
    found = play("anchored")
    assert "client-00 moves by" in said(found)
    (finding,) = findings_of_replay(found, "server")
    assert finding.passed is False
    assert "of the declared sensitivity" in finding.note
    assert "the masked sum moves by" in said(play("anchored, masked"))


def test_a_client_that_is_clipped_by_class_is_found(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped = release_path.clipped_upload

    def per_class(spec: Any, features: Any, labels: Any, centre: Any) -> Any:
        parts = [
            clipped(spec, features[labels == c], labels[labels == c], centre) for c in range(10)
        ]
        return np.sum(parts, axis=0)

    monkeypatch.setattr(mechanism_module, "clipped_upload", per_class)
    # The trusted server itself refuses what is beyond the norm; under masks nobody does.
    assert "refused: an upload of norm" in said(play("client"))
    assert "client-00 moves by" in said(play("client, masked"))


def test_what_is_no_number_must_add_nothing(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = release_path.bounded_sums

    def careless(spec: Any, features: Any, labels: Any, centre: Any, **options: Any) -> Any:
        made = sums(spec, features, labels, centre, **options)
        made[0] += 2**22 * int(np.isnan(np.asarray(features)).any())
        return made

    monkeypatch.setattr(release_path, "bounded_sums", careless)
    assert "a record that is not a number: client-00 moves by" in said(play("anchored"))


def test_draws_that_depend_on_data_are_found(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def release(spec: Any, features: Any, labels: Any, centre: Any) -> Any:
        made = release_path.bounded_sums(spec, features, labels, centre)
        draws = 1 + len(labels) % 2
        return made + sum(
            release_path.discrete_gaussian(spec.share, spec.size) for _ in range(draws)
        )

    monkeypatch.setattr(mechanism_module, "release", release)
    assert "noise differ: " in said(play("anchored"))

    def scaled(spec: Any, features: Any, labels: Any, centre: Any) -> Any:
        made = release_path.bounded_sums(spec, features, labels, centre)
        return made + release_path.discrete_gaussian(spec.share * (1 + len(labels)), spec.size)

    monkeypatch.setattr(mechanism_module, "release", scaled)
    assert "noise differ: " in said(play("anchored, masked"))


def test_files_that_tell_are_found(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    once = ReleaseStore.once

    def telling(store: ReleaseStore, sender: str, kind: str, draw: Callable[[], bytes]) -> bytes:
        data = once(store, sender, kind, draw)
        assert store._folder is not None
        note: Path = store._home(store._folder, sender) / "note.txt"
        note.write_bytes(b"-" * (sum(data) % 97))
        return data

    monkeypatch.setattr(ReleaseStore, "once", telling)
    assert "files differ: ('clients/client-00/note.txt'" in said(play("anchored"))


def test_a_length_or_a_branch_that_depends_on_data_is_found(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvtc_edge import wire

    encode = wire.encode_release

    def shorter(release: Any, *, context: Any = None) -> bytes:
        return encode(release[: len(release) - int(release.sum()) % 2], context=context)

    monkeypatch.setattr(wire, "encode_release", shorter)
    assert "refused: " in said(play("anchored"))
    monkeypatch.undo()
    sums = release_path.bounded_sums

    def branching(spec: Any, features: Any, labels: Any, centre: Any, **options: Any) -> Any:
        if not np.isfinite(np.asarray(features)).all():
            _ = spec.sizes
        return sums(spec, features, labels, centre, **options)

    monkeypatch.setattr(release_path, "bounded_sums", branching)
    assert "calls differ: " in said(play("anchored"))


def test_the_noise_is_frozen_only_within(play: Play) -> None:
    draw = release_path.discrete_gaussian
    play("anchored, first moments")
    assert release_path.discrete_gaussian is draw
    assert (draw(5000, 20) != draw(5000, 20)).any()


def test_an_audit_replays_when_it_is_asked_to(
    tiny: Callable[..., Config],
    tiny_run: Path,
    quickly: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extractor, "_chunk", lambda function, images: 8)
    private = tiny(method={"name": "statistics", "rounds": 1}, privacy={"mode": "anchored"})
    with quickly():
        run(private, out=tmp_path / "run")
    document = audit(tmp_path / "run", attacks=["membership"], trials=20, replay=True).document
    (finding,) = [each for each in document["findings"] if each["attack"] == "replay"]
    assert (finding["passed"], finding["trials"]) == (True, len(HOSTILE) + 3)
    clipped = release_path.contributions
    monkeypatch.setattr(
        release_path,
        "contributions",
        lambda spec, features, centre, *, bound=None: clipped(spec, features, centre, bound=1e3),
    )
    document = audit(tmp_path / "run", attacks=["membership"], trials=20, replay=True).document
    assert document["verdict"] == "leak"
    assert any("of the declared sensitivity" in reason for reason in document["reasons"])
    with pytest.raises(UsageError, match="no claim whose release path"):
        audit(tiny_run, attacks=["membership"], trials=20, replay=True)
