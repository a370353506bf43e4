"""Clients that come and go: nothing of them depends on who is live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.federation import roster as rosters
from fedvtc_edge.federation.account import Account
from fedvtc_edge.federation.assembly import roster_of
from fedvtc_edge.federation.methods import method_of
from fedvtc_edge.federation.roster import Roster, ids_of, one_per_architecture
from fedvtc_edge.models.extractor import Anchor, frozen
from fedvtc_edge.runs.weights import WeightStore
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.workflows.run import run

Tiny = Callable[..., Config]


def roster_for(config: Config, weights: WeightStore | None = None) -> Roster:
    data = load_dataset(config.data)
    return roster_of(config, data, Compute.of(config.engine), method_of(config), weights)


def state(roster: Roster, name: str) -> dict[str, torch.Tensor]:
    client = roster.client(name)
    found = dict(client.model.state_dict())
    if client.decoder is not None:
        found |= {f"decoder/{key}": value for key, value in client.decoder.state_dict().items()}
    found |= {f"local/{k}": v for k, v in roster.baseline(name).model.state_dict().items()}
    return {key: value.clone() for key, value in found.items()}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("share", ["anchored", "features+decoder"])
def test_one_live_client_at_a_time_changes_no_bit(
    tiny: Tiny,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    share: str,
) -> None:
    config = tiny(method={"share": share, "rounds": 2}, clients={"count": 4, "cohort": 0.75})
    run(config, out=tmp_path / "all")
    with monkeypatch.context() as patched:
        patched.setattr(rosters, "_limits", lambda config: (1, 0))
        run(config, out=tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "all")


def test_networks_are_built_when_first_needed(tiny: Tiny) -> None:
    roster = roster_for(tiny(method={"name": "statistics"}))
    client: Any = roster.client("client-01")
    assert len(client.images) == len(roster.samples_of("client-01")[0])
    assert not client.is_built
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = client.colour
    assert not client.is_built
    first = client.model
    assert client.is_built
    assert client.model is first
    assert client.decoder is None


def test_who_was_used_longest_ago_goes_and_comes_back_as_it_was(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rosters, "_limits", lambda config: (2, 2**40))
    with deterministic():
        roster = roster_for(tiny())
        fresh = state(roster, "client-00")
        roster.at_work("client-00").train(1)
        roster.baseline("client-00", at_work=True).train(1)
        first = roster.client("client-00")
        trained, spent = state(roster, "client-00"), roster.spent("client-00")
        assert not all(torch.equal(trained[key], value) for key, value in fresh.items())
        roster.client("client-01")
        assert roster.client("client-00") is first, "it was used since"
        assert roster.trained() == ["client-00"]
        for name in ("client-01", "client-02"):
            roster.client(name)
        assert roster.client("client-00") is not first
        again = state(roster, "client-00")
        assert again.keys() == trained.keys()
        assert all(torch.equal(again[key], value) for key, value in trained.items())
        assert roster.spent("client-00") == spent
        # Trained again without its baseline, whose weights must not be lost with it.
        roster.at_work("client-00").train(2)
        for name in ("client-01", "client-02"):
            roster.client(name)
        later = state(roster, "client-00")
    own = {key for key in trained if key.startswith("local/")}
    assert all(torch.equal(later[key], trained[key]) for key in own)
    assert not all(torch.equal(later[key], trained[key]) for key in trained.keys() - own)


def test_weights_of_before_go_once_no_checkpoint_names_them(tiny: Tiny, tmp_path: Path) -> None:
    with deterministic():
        roster = roster_for(tiny(), WeightStore(tmp_path / "weights"))
        kept = []
        for number in (1, 2):
            roster.at_work("client-00").train(number)
            assert roster.changed_now() == {"client-00"}
            kept.append(roster.keep("client-00"))
        files = {path.stem for path in (tmp_path / "weights").iterdir()}
    assert files == set(kept)
    assert kept[0] != kept[1]
    roster.forget_old()
    assert {path.stem for path in (tmp_path / "weights").iterdir()} == {kept[1]}
    assert roster.changed_now() == set()
    assert roster.keep("client-00") == kept[1], "nothing has changed since"


def test_asking_for_ids_makes_nobody_live(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = roster_for(tiny(method={"name": "statistics"}, clients={"count": 5}))
    monkeypatch.setattr(roster, "_wake", lambda name: pytest.fail(f"{name} became live"))
    ids = [f"client-0{index}" for index in range(5)]
    assert ids_of(roster) == roster.ids == ids
    assert ids_of(roster.some(ids[1:3])) == ids[1:3]
    assert len(roster) == 5
    assert sum(roster.counts(name).sum() for name in ids) == 200
    monkeypatch.undo()
    assert [client.id for client in one_per_architecture(roster)] == ids[:2]
    assert [client.id for client in roster[1:3]] == ids[1:3]


def test_an_account_counts_what_everybody_receives_once() -> None:
    account = Account(["a", "b", "c"], {"told": None})
    account.uploaded("a", 5)
    account.downloaded_by_all(7)
    account.downloaded("b", 2)
    assert account.total("a") | {"seconds": 0} == {
        "seconds": 0, "samples": 0, "up": 5, "down": 7, "told": None,
    }  # fmt: skip
    assert [account.total(name)["down"] for name in "abc"] == [7, 9, 7]
    assert (account.up, account.down) == (5, 3 * 7 + 2)
    assert account.changed == {"a", "b"}
    again = Account(["a", "b", "c"])
    again.restore({name: dict(account.of(name)) for name in "ab"}, account.totals())
    assert [again.total(name)["down"] for name in "abc"] == [7, 9, 7]
    assert (again.up, again.down, again.changed) == (5, 23, set())


def test_features_of_several_clients_at_once_are_theirs_bit_for_bit(tiny: Tiny) -> None:
    config = tiny(clients={"count": 4})
    with deterministic():
        roster = roster_for(config)
        together = frozen(config, roster.shape, roster.classes)
        alone = Anchor(roster.shape, together.width, derive_seed(config.seed, "anchor")).eval()
        images = [client.images for client in roster]
        together.embed_together(images)
        together.embed_together(images[:1])
        for own in images:
            assert torch.equal(together.embed(own), alone.embed(own))
