"""Whole runs under masks: the same result, nothing of one client to see, noise in shares."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import ConfigError, PrivacyError
from fedvtc_edge.federation.assembly import assemble
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor, centre, one_by_one
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.mechanism import coverages, mechanism_of
from fedvtc_edge.privacy.release import bounded_sums, check_norm
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.seeding import derive_seed
from fedvtc_edge.training.compute import Compute, deterministic
from fedvtc_edge.wire import decode_release, published
from fedvtc_edge.workflows.run import resume, run

Tiny = Callable[..., Config]
IDS = ["client-00", "client-01", "client-02", "client-03"]
FOUR = {"clients": {"count": 4}}
MASKED = {"transport": {"masking": True}, **FOUR}
PRIVACY = {"epsilon": 8.0, "population": 200, "delta": 1e-3}

pytestmark = pytest.mark.usefixtures("quick")


class Cut(Exception):  # noqa: N818  (what it stands for is no error)
    """Stands for the end of a process."""


def world_of(out: Path) -> Any:
    return published((out / "statistics.safetensors").read_bytes())


def entries(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "ledger.json").read_text())["releases"])


@pytest.mark.parametrize(
    "method",
    [
        {"share": "anchored"},
        {"share": "anchored", "moments": "diagonal"},
        {"share": "features"},
        {"name": "fedproto"},
    ],
    ids=["covariance", "diagonal", "features", "fedproto"],
)
def test_the_sum_is_the_sum(method: dict[str, str], tiny: Tiny, tmp_path: Path) -> None:
    """What is published first is what it would be without masks, to the grid."""
    worlds = []
    for masking in (True, False):
        out = tmp_path / str(masking)
        rounds = {"rounds": 1}
        run(tiny(method=method | rounds, transport={"masking": masking}, **FOUR), out=out)
        worlds.append(world_of(out))
    masked, plain = worlds
    np.testing.assert_array_equal(masked.count, plain.count)
    np.testing.assert_allclose(masked.mean, plain.mean, atol=1e-5)
    np.testing.assert_allclose(masked.std, plain.std, atol=1e-3)


def test_the_server_sees_five_messages_and_no_upload(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run(tiny(**MASKED), out=out).summary
    assert {path.name for path in (out / "server").rglob("*") if path.is_file()} == {
        f"{name}.anchor-mask{letter}.upload" for name in IDS for letter in "abcde"
    }
    assert "sees only the sum" in summary["uploads"][0]
    assert summary["epsilon"] is None
    assert [(e["client"], e["mechanism"], e["epsilon"]) for e in entries(out)] == [
        (name, None, None) for name in IDS
    ]
    assert not (out / "parties").exists()


TWO_GROUPS = {"transport": {"masking": True, "masking_group": 3}, "clients": {"count": 6}}
"""Of three each, as the tests' small groups may be."""


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvtc_edge.federation.preflight.LEAST_GROUP", 3)


@pytest.mark.usefixtures("small_groups")
def test_the_sums_of_groups_add_up_to_the_one_sum(tiny: Tiny, tmp_path: Path) -> None:
    """Whole numbers on a grid: not a bit differs."""
    privacy = {"collusion": 0.0}
    run(tiny(privacy=privacy, **TWO_GROUPS), out=tmp_path / "groups")
    one = tiny(privacy=privacy, transport={"masking": True}, clients={"count": 6})
    run(one, out=tmp_path / "one")
    found = [
        (tmp_path / name / "statistics.safetensors").read_bytes() for name in ("groups", "one")
    ]
    assert found[0] == found[1]
    summary = json.loads((tmp_path / "groups" / "summary.json").read_text())
    assert "only the sums of 2 groups of 3 clients" in summary["uploads"][0]
    up = [
        json.loads((tmp_path / name / "summary.json").read_text())["upload_bytes_total"]
        for name in ("groups", "one")
    ]
    assert up[0] < up[1], "each has fewer others to share secrets with"


@pytest.mark.usefixtures("small_groups")
def test_a_group_of_too_few_is_left_out(tiny: Tiny, tmp_path: Path) -> None:
    from fedvtc_edge.federation.assembly import assemble
    from fedvtc_edge.federation.local import LocalExecutor
    from fedvtc_edge.masking import MaskingError

    four = {"transport": {"masking": True, "masking_group": 4}, "clients": {"count": 8}}
    config = tiny(privacy={"collusion": 0.0}, **four)
    method = assemble(config, load_dataset(config.data), Compute.of(config.engine))
    executor = LocalExecutor(method)
    exchange: Any = next(step.exchange for step in method.steps(0) if step.exchange is not None)
    context = method.federation.context("server", 0, exchange.kind)
    everybody = config.client_ids
    total, heard, _ = executor.masked_sum(0, exchange, context, everybody, 1)
    assert heard == 8
    first, number, _ = executor.masked_sum(0, exchange, context, everybody[:6], 1)
    assert number == 4, "of the second group two are there"
    both, number, _ = executor.masked_sum(0, exchange, context, everybody[:2] + everybody[3:], 1)
    assert number == 7, "of the first group three are, which is enough"
    with pytest.raises(MaskingError, match="3 of 8 clients in 2 masked sums, expected 3 in one"):
        executor.masked_sum(0, exchange, context, [*everybody[:2], everybody[5]], 1)
    alone = [exchange.vector(client, context)[0] for client in method.federation.clients]
    np.testing.assert_array_equal(total, sum(alone))
    np.testing.assert_array_equal(first, sum(alone[:4]))
    np.testing.assert_array_equal(both, sum(alone) - alone[2])


@pytest.mark.parametrize("mode", ["anchored", "client"])
def test_each_groups_sum_keeps_the_claim_by_itself(mode: str) -> None:
    """What is seen is a sum of ten with colluders among them, not one of thirty."""
    document = {
        "privacy": PRIVACY | {"mode": mode, "collusion": 0.05},
        "clients": {"count": 30},
        "transport": {"masking": True, "masking_group": 10},
    }
    config = load_config(document)
    check(config)
    assert (config.sums, config.smallest_sum) == (3, 10)
    spec, mechanism = spec_of(config), mechanism_of(config)
    assert mechanism is not None
    assert spec.shares == 10 - 3 - 2
    assert spec.shares * spec.share**2 >= spec.sigma**2
    assert "each of the masked sums of 3 groups" in mechanism.covers
    assert "up to 2 of 30 clients in league with it, all in one group" in mechanism.covers
    assert any(re.fullmatch(pattern, mechanism.covers) for pattern in coverages())


def spec_of(config: Config) -> ReleaseSpec:
    mechanism = mechanism_of(config, 10)
    assert mechanism is not None
    return mechanism.spec


@pytest.mark.parametrize("mode", ["anchored", "client"])
def test_noise_is_shared(mode: str, tiny: Tiny, tmp_path: Path) -> None:
    """Each client's kept release carries a share, and all of them more than the claim needs."""
    config, out = tiny(privacy=PRIVACY | {"mode": mode}, **MASKED), tmp_path / "run"
    summary = run(config, out=out).summary
    spec = spec_of(config)
    # Four clients, of which one may drop out and one collude: two are surely honest.
    assert spec.shares == 4 - 1 - 1
    data = load_dataset(config.data)
    height, _, channels = data.image_shape
    shape = ImageShape(height, channels)
    anchor = Anchor(shape, spec.width, derive_seed(config.seed, "anchor"))
    about = centre(anchor, shape)
    noise = []
    for client in assemble(config, data, Compute.of(config.engine)).federation.clients:
        kept = (out / "clients" / client.id / "anchor.release").read_bytes()
        released = decode_release(kept, size=spec.size)
        with deterministic():
            features = one_by_one(anchor, client.images).numpy()
        if isinstance(spec, ClientReleaseSpec):
            from fedvtc_edge.privacy.release import clipped_upload

            exact = clipped_upload(spec, features, client.labels.numpy(), about)
            check_norm(spec, exact)
        else:
            exact = bounded_sums(spec, features, client.labels.numpy(), about)
        noise.append((released - exact) / float(spec.share))
    spread = np.concatenate(noise)
    assert abs(spread.std() - 1) < 6 / (2 * spread.size) ** 0.5
    assert summary["privacy_unit"] == UNITS[{"anchored": "example", "client": "client"}[mode]]
    assert summary["epsilon"] == 8.0
    assert [(e["client"], e["epsilon"]) for e in entries(out)] == [(name, 8.0) for name in IDS]


@pytest.mark.parametrize("mode", ["anchored", "client"])
def test_the_claim_counts_honest_clients_only(mode: str) -> None:
    document = {
        "privacy": PRIVACY | {"mode": mode, "collusion": 0.2},
        "clients": {"count": 10},
        "transport": {"masking": True},
    }
    config = load_config(document)
    check(config)
    spec = spec_of(config)
    assert spec.shares == 10 - 3 - 2
    assert spec.shares * spec.share**2 >= spec.sigma**2
    mechanism = mechanism_of(config)
    assert mechanism is not None
    assert "in shares of 5 honest clients" in str(mechanism.claim.mechanism)
    assert mechanism.is_release_of("client-00")
    assert "up to 2 of 10 clients in league" in mechanism.covers


def test_less_noise_than_each_clients_own() -> None:
    """The same rule, wider: what masking is for."""
    document: dict[str, Any] = {
        "privacy": {"mode": "anchored", "epsilon": 1.0},
        "clients": {"count": 20},
    }
    own = spec_of(load_config(document))
    shared = spec_of(load_config(document | {"transport": {"masking": True}}))
    assert float(own.share) * 20**0.5 > 3 * float(shared.share) * 20**0.5
    assert (shared.width, shared.second) >= (own.width, own.second)


def test_example_level_releases_keep_all_their_noise(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(privacy=PRIVACY | {"mode": "example"}, **MASKED)
    spec = spec_of(config)
    assert spec.shares == 1
    summary = run(config, out=tmp_path / "run").summary
    assert "models and bundle" in summary["privacy_covers"]
    assert 7.7 <= summary["epsilon"] <= 8.0


def test_a_sum_begun_anew_takes_the_same_noise(tiny: Tiny, tmp_path: Path) -> None:
    """Cut off when all was sent and nothing saved: other masks, the same releases."""
    config, out = tiny(privacy=PRIVACY | {"mode": "anchored"}, **MASKED), tmp_path / "run"

    class CutAtOnce(SilentProgress):
        def advance(self, note: str = "") -> None:
            raise Cut

    with pytest.raises(Cut):
        run(config, out=out, progress=CutAtOnce())
    shutil.rmtree(out / "checkpoint")
    (out / "checkpoint").mkdir()
    before = {name: (out / "clients" / name / "anchor.release").read_bytes() for name in IDS}
    masked = (out / "server" / "round-0000" / "client-00.anchor-maskc.upload").read_bytes()
    resume(out)
    assert {n: (out / "clients" / n / "anchor.release").read_bytes() for n in IDS} == before
    again = (out / "server" / "round-0000" / "client-00.anchor-maskc.upload").read_bytes()
    assert again != masked, "masks are never used twice"
    assert len(entries(out)) == 4


def test_too_few_contributors_are_seen_through_the_masks(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"server": {"minimum_contributors": 2}, **MASKED}
    out, plain = tmp_path / "masked", tmp_path / "plain"
    run(tiny(**settings), out=out)
    run(tiny(server={"minimum_contributors": 2}, **FOUR), out=plain)
    np.testing.assert_array_equal(world_of(out).count, world_of(plain).count)
    assert (world_of(out).count == 0).any(), "a class that one client has is left out"


@pytest.mark.parametrize(
    ("tables", "message", "hint"),
    [
        ({"method": {"share": "features+decoder"}}, "decoders are not masked", '"anchored"'),
        ({"clients": {"count": 2}}, "2 clients in a sum", "clients.count"),
        (
            {"clients": {"count": 20, "cohort": 0.5}, "method": {"share": "features"}},
            "drawn by a seed of the server's there may be any",
            "clients.cohort to 1",
        ),
        ({"server": {"trim": 0.2}}, "server.trim", "to 0"),
        ({"transport": {"masking": True, "precision": "float16"}}, "float16", "float32"),
        ({"privacy": {"collusion": 0.5}}, "see through the masks", "lower privacy.collusion"),
        ({"transport": {"masking": True, "masking_group": 3}}, "masking_group = 3 with 4", "small"),
        (
            {"transport": {"masking": True, "masking_group": 30}},
            "masking_group = 30 with 4",
            "0 is",
        ),
        (
            {"transport": {"masking": True, "masking_group": 30}, "clients": {"count": 300}},
            "30 of 300 clients in league with the server, all in one of 10 groups,",
            "masking_group",
        ),
        ({"clients": {"count": 1001}}, "1001 clients in a sum", "masking_group"),
    ],
)
def test_what_cannot_be_masked(tables: dict[str, Any], message: str, hint: str) -> None:
    config = load_config({**MASKED, **tables})
    with pytest.raises(ConfigError, match=message) as refused:
        check(config)
    assert hint in refused.value.hint


def test_a_noise_too_fine_to_share_is_refused() -> None:
    """Shares below 2^12 steps: the sum of discrete Gaussians would not be one, nearly."""
    document = {
        "privacy": {"mode": "anchored", "epsilon": 1000.0, "delta": 1e-3, "clip": 0.003},
        "clients": {"count": 1000},
        "transport": {"masking": True},
    }
    with pytest.raises((ConfigError, PrivacyError)) as refused:
        check(load_config(document))
    assert refused.value.hint
