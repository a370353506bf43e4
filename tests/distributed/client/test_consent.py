"""What a client agrees to, said before it measures anything, and refused where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.distributed.client.consent import Conditions, agreement
from fedvtc_edge.distributed.client.keys import DisclosurePolicy
from fedvtc_edge.distributed.client.local_data import LocalData, from_builtin, from_path
from fedvtc_edge.distributed.messages import Status, TaskReply
from fedvtc_edge.errors import DataError, PrivacyError
from fedvtc_edge.privacy.spending import Spending

ME = "client-00"
PRIVATE = {"mode": "anchored", "epsilon": 4.0}
MASKED = {"masking": True}

Make = Callable[..., Any]


def config(**tables: Any) -> Config:
    return load_config(tables)


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("conditions", "tables", "said"),
    [
        ({}, {}, ""),
        ({"exact": False}, {}, "without noise, and no epsilon says"),
        ({"exact": False}, {"transport": MASKED}, "without noise, and no epsilon says"),
        ({"exact": False}, {"privacy": PRIVATE}, ""),
        ({"required": True}, {}, "under a privacy mode only"),
        ({"required": True}, {"privacy": PRIVATE}, ""),
        ({"required": True}, {"privacy": {"mode": "client", "delta": 1e-5}}, "left to the server"),
        (
            {"required": True},
            {"privacy": {"mode": "client", "delta": 1e-5}, "transport": MASKED},
            "",
        ),
        ({"most_epsilon": 4.0}, {}, "under a privacy mode only"),
        ({"most_epsilon": 4.0}, {"privacy": PRIVATE}, ""),
        ({"most_epsilon": 3.9}, {"privacy": PRIVATE}, "spends epsilon 4 .*accepts 3.9"),
        # A large δ makes any ε small: compared is ε at 1e-5.
        ({"most_epsilon": 1.0}, {"privacy": PRIVATE | {"epsilon": 0.9, "delta": 1e-3}}, "spends"),
    ],
)
def test_what_a_client_takes_part_in(
    conditions: dict[str, Any], tables: dict[str, Any], said: str
) -> None:
    if not said:
        Conditions(**conditions).check(config(**tables))
        return
    with pytest.raises(PrivacyError, match=said) as refused:
        Conditions(**conditions).check(config(**tables))
    assert refused.value.hint


def test_the_agreement_says_all_that_matters() -> None:
    tables = {"privacy": PRIVATE, "transport": MASKED, "method": {"rounds": 7}}
    words = " ".join(agreement(config(**tables, clients={"count": 9})))
    for part in (
        "'anchored'",
        "7 rounds",
        "extractor 'random'",
        "under masks",
        "epsilon 4 at delta 1e-05 per one training example of one client, added or removed",
        "it covers",
    ):
        assert part in words
    plain = " ".join(agreement(config(method={"rounds": 1})))
    assert "no epsilon says what they tell" in plain
    assert "1 round," in plain
    assert "no masks" in plain
    groups = {"masking": True, "masking_group": 10}
    (in_groups, _) = agreement(load_config({"clients": {"count": 25}, "transport": groups}))
    assert "under masks: the server sees sums of 12 clients or one more" in in_groups


# ---------------------------------------------------------------- the server's word for data


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../own",
        "own.npz",
        "mnist",
        "cifar10",
        "MNIST",
        "digits.npz",
        "~/images",
        "\0",
    ],
)
def test_a_server_names_no_path_and_no_set_of_the_clients(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", x_train=np.zeros((4, 8, 8, 1), np.uint8), y_train=np.arange(4))
    (tmp_path / "mnist.npz").write_bytes((tmp_path / "own.npz").read_bytes())
    terms = DataTerms(tuple("0123456789"), 8, 8, 1, 0)
    given = config(data={"name": name, "root": str(tmp_path)})
    with pytest.raises(DataError, match="takes the built-in digits alone") as refused:
        from_builtin(0)(given, terms)
    assert "--data PATH" in refused.value.hint


def test_nor_is_a_root_of_the_servers_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedvtc_edge.distributed.client import local_data

    asked: list[Config] = []

    def partition(index: int) -> Callable[[Config, DataTerms], LocalData]:
        return lambda config, terms: asked.append(config)  # type: ignore[return-value]

    monkeypatch.setattr(local_data, "from_partition", partition)
    terms = DataTerms(tuple("0123456789"), 8, 8, 1, 0)
    from_builtin(0)(config(data={"name": "digits", "root": "/secret"}), terms)
    assert asked[0].data.root == ""


# ---------------------------------------------------------------- by messages


def refused(reply: TaskReply, said: str) -> None:
    assert reply.status is Status.REFUSED
    assert said in reply.problem


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Sixty images of a client's own."""
    images = np.random.default_rng(0).integers(0, 17, (60, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "own.npz", x=images, y=np.arange(60) % 10)
    return tmp_path / "own.npz"


@pytest.mark.usefixtures("quick")
def test_exact_statistics_are_not_measured_without_a_word(village: Make, small: Make) -> None:
    made, said = village(small()), list[str]()
    made.policy = DisclosurePolicy(conditions=Conditions(exact=False))
    refused(made.participant(ME, say=said.append).reply(made.hello("n")), "privacy.mode = 'none'")
    assert said == []
    assert made.home(ME).joined is None


@pytest.mark.usefixtures("quick")
def test_what_is_agreed_is_said_before_any_image_is_read(village: Make, small: Make) -> None:
    made, said = village(small()), list[str]()

    def source(config: Config, terms: DataTerms) -> LocalData:
        assert any("privacy mode 'none'" in line for line in said)
        raise DataError("read", hint="too early?")

    reply = made.participant(ME, say=said.append, source=source).reply(made.hello("n"))
    refused(reply, "read")


@pytest.mark.usefixtures("quick")
def test_a_second_release_of_the_same_images_is_refused(
    village: Make, small: Make, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    private = small(privacy=PRIVATE)
    first, second = village(private), village(private, at="second")
    for made, policy, problem in (
        (first, DisclosurePolicy(), ""),
        (first, DisclosurePolicy(), ""),  # another process with the same home
        (second, DisclosurePolicy(), "released once before"),
        (second, DisclosurePolicy(conditions=Conditions(spend_again=True)), ""),
    ):
        said: list[str] = []
        participant = made.participant(ME, source=from_path(own), policy=policy, say=said.append)
        reply = participant.reply(made.hello("n"))
        if problem:
            refused(reply, problem)
            assert "epsilon" in reply.problem
            assert reply.aloud is not None  # what else these data went into is nobody's business
            assert "epsilon" not in reply.aloud
            continue
        assert reply.status is Status.NONE, reply.problem
        assert any("warning: these data" in line for line in said) is (made is second)
        reply = participant.reply(made.request(ME, 0, "anchor"))
        assert reply.status is Status.NONE, reply.problem
    document = json.loads((tmp_path / "state" / "fedvtc-edge" / "spending.json").read_text())
    assert len(document["releases"]) == 2


@pytest.mark.usefixtures("quick")
def test_it_is_noted_before_anything_leaves(
    village: Make, small: Make, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed between the note and the upload, the client goes on; a new home does not."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    private = small(privacy=PRIVATE)
    made = village(private)
    source = from_path(own)
    assert made.participant(ME, source=source).reply(made.hello("n")).status is Status.NONE
    enter = Spending.enter

    def killed(self: Spending, *args: Any, **options: Any) -> str:
        enter(self, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Spending, "enter", killed)
        with pytest.raises(KeyboardInterrupt):
            made.participant(ME, source=source).reply(made.request(ME, 0, "anchor"))
    assert made.ledger(ME) == []  # nothing has left
    reply = made.participant(ME, source=source).reply(made.request(ME, 0, "anchor"))
    assert reply.status is Status.NONE
    other = village(private, at="other")
    refused(other.participant(ME, source=source).reply(other.hello("n")), "released once before")
