"""One client, asked this and that by a server that need not mean well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge import wire
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.distributed.client.keys import DisclosurePolicy
from fedvtc_edge.distributed.client.local_data import from_partition, from_path
from fedvtc_edge.distributed.client.state import ClientState
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    REPORT,
    SHUTDOWN,
    Status,
    TaskReply,
    TaskRequest,
    digest_of,
)
from fedvtc_edge.masking import MaskingPlan, MaskingServer, MaskingStep
from fedvtc_edge.runs.directory import as_toml, public_name
from fedvtc_edge.sealing import TrustList
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.storage.lock import alone
from fedvtc_edge.transport.masked_sum import mask_kind
from fedvtc_edge.wire.context import Context

NUMBER = "0123456789abcdef" * 2
"""Of the village's run."""

ME, OTHER = "client-00", "client-01"
MASKED = {"transport": {"masking": True}}
ADVERTISE = mask_kind("anchor", MaskingStep.ADVERTISE)

Make = Callable[..., Any]


@pytest.fixture
def there(village: Make, small: Make) -> Make:
    """``there(**tables)``: a village whose first client has joined."""

    def joined(share_metrics: bool | None = True, **tables: Any) -> Any:
        made = village(small(**tables), share_metrics=share_metrics)
        assert made.reply(ME, made.hello("nonce")).status is Status.NONE
        return made

    return joined


def contents(home: ClientState) -> dict[str, bytes]:
    paths = (path for path in home.path.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


def refused(reply: TaskReply, said: str) -> None:
    assert reply.status is Status.REFUSED, reply
    assert not reply.envelope
    assert said in reply.problem


# ---------------------------------------------------------------- turns


def test_a_home_that_joined_nothing_does_nothing(village: Make, small: Make) -> None:
    made = village(small())
    refused(made.reply(ME, made.request(ME, 0, "anchor")), "folder belongs to no run")
    refused(made.reply(ME, made.request(ME, 2, SHUTDOWN)), "folder belongs to no run")


def test_an_order_for_somebody_else_is_refused(there: Make) -> None:
    made = there()
    refused(made.reply(ME, made.request(OTHER, 0, "anchor")), f"for {OTHER}, this is {ME}")
    refused(made.reply(ME, made.request("server", 0, "anchor")), f"for server, this is {ME}")
    greeting = made.hello("nonce")
    addressed = replace(greeting, context=replace(greeting.context, sender=ME))
    refused(made.reply(ME, addressed), f"for {ME}, this is {ME}")


def test_a_client_that_the_server_does_not_take_says_so(village: Make, small: Make) -> None:
    made = village(small())
    why = b"client client-00 was revoked\x1b[2J" + b"x" * 1000 + b"\xff"
    dismissed = made.reply(ME, made.request("server", 2, DISMISSAL, message=why))
    refused(dismissed, "the server does not take this client: client client-00 was revoked [2Jx")
    assert dismissed.problem.isprintable()
    assert len(dismissed.problem) < 500
    addressed = made.reply(ME, made.request(ME, 2, DISMISSAL, message=why))
    refused(addressed, f"for {ME}, this is {ME}")


def test_work_is_done_in_its_turn_and_once(there: Make) -> None:
    made = there()
    first = made.request(ME, 0, "anchor")
    for early in (made.request(ME, 0, "anchor", 1), made.request(ME, 1, REPORT, 1)):
        refused(made.reply(ME, early), "asked for after round 0, step -1")
    done = made.reply(ME, first)
    assert done.envelope
    before = contents(made.home(ME))
    assert made.reply(ME, first) == done
    for late in (
        replace(first, phase=1),
        replace(first, last=True),
        replace(first, message=b"x"),
        made.request(ME, 0, REPORT),
        made.request(ME, 0, "features"),
    ):
        refused(made.reply(ME, late), "asked for after round 0, step 0")
    refused(made.reply(ME, made.request(ME, 3, REPORT)), "round 3 of 2 is asked for")
    assert contents(made.home(ME)) == before
    assert len(made.ledger(ME)) == 1


def test_another_run_is_refused(there: Make, small: Make) -> None:
    made, config = there(), small(method={"rounds": 9})
    mine, other = public_name(made.config, NUMBER), public_name(config, NUMBER)
    said = f"belongs to run {mine}, asked is {other}"
    request, greeting = made.request(ME, 0, "anchor"), made.hello("n")
    strange = replace(request, context=replace(request.context, run=other))
    refused(made.reply(ME, strange), said)
    strange = replace(
        greeting,
        context=replace(greeting.context, run=other),
        settings=as_toml(config).decode(),
    )
    refused(made.reply(ME, strange), said)


def test_a_kind_that_the_step_does_not_upload(there: Make) -> None:
    made = there()
    for kind in ("features", "decoder", "everything"):
        refused(made.reply(ME, made.request(ME, 0, kind)), f"uploads no {kind}")
    assert made.ledger(ME) == []


@pytest.mark.parametrize(("share", "lacked"), [("anchored", "anchor"), ("features", "features")])
def test_what_was_never_published_is_not_worked_with(there: Make, share: str, lacked: str) -> None:
    made, step = there(method={"share": share}), 0
    if share == "features":
        assert made.reply(ME, made.request(ME, 1, "features")).envelope
        step = 1
    refused(made.reply(ME, made.request(ME, 1, REPORT, step)), f"{lacked} was never published")


def test_what_is_not_in_the_home_is_asked_for(there: Make) -> None:
    made = there()
    world = GlobalStatistics(np.ones(10), np.zeros((10, 12)), np.ones((10, 12)), np.eye(12))
    data = wire.publish(world)
    request = made.request(ME, 1, REPORT, digests={"anchor": digest_of(data)})
    reply = made.reply(ME, request)
    assert reply.status is Status.MISSING_INPUT
    assert "lacks anchor" in reply.problem
    assert made.reply(ME, replace(request, published={"anchor": data})).envelope
    again = made.request(ME, 2, REPORT, digests={"anchor": digest_of(data)})
    assert made.reply(ME, again).envelope  # it has kept it
    damaged = TaskRequest.to_record(replace(request, published={"anchor": data}))
    damaged["published/anchor"] = data[:-1]
    with pytest.raises(Exception, match="not what its digest says"):
        TaskRequest.from_record(damaged)


def test_bytes_that_are_no_statistics_are_refused(there: Make) -> None:
    made, data = there(), b"no statistics"
    request = made.request(
        ME, 1, REPORT, digests={"anchor": digest_of(data)}, published={"anchor": data}
    )
    refused(made.reply(ME, request), "not safetensors")
    assert made.home(ME).state().round == 0


@pytest.mark.parametrize("share", ["anchored", "features"])
def test_statistics_of_other_shapes_are_refused(there: Make, share: str) -> None:
    made, kind, step = there(method={"share": share}), "anchor", 0
    if share == "features":
        kind, step = "features", 1
        assert made.reply(ME, made.request(ME, 1, kind)).envelope
    for classes, width in ((10, 5), (7, 12), (12, 8), (1, 1), (10, 200)):
        zero = np.zeros((classes, width))
        data = wire.publish(GlobalStatistics(np.ones(classes), zero, zero + 1, None))
        lie = {"digests": {kind: digest_of(data)}, "published": {kind: data}}
        reply = made.reply(ME, made.request(ME, 1, REPORT, step, **lie))
        refused(reply, f"{kind} was published for ({classes}, {width})")


def test_a_busy_home_says_so(there: Make) -> None:
    made = there()
    with alone(made.home(ME).path):
        for request in (made.hello("n"), made.request(ME, 0, "anchor")):
            reply = made.reply(ME, request)
            assert (reply.status, reply.envelope) == (Status.BUSY, b"")
    assert made.reply(ME, made.request(ME, 0, "anchor")).envelope


def test_a_damaged_home_tells_its_terminal_which_file_and_the_server_only_that(
    there: Make,
) -> None:
    made = there(share_metrics=None, privacy={"mode": "anchored"})
    (made.home(ME).path / "config.toml").write_bytes(b"\xff")
    request = made.request(ME, 0, "anchor")
    refused(made.participant(ME).reply(request), "config.toml is damaged")
    told = made.reply(ME, request)
    refused(told, "RunError: the client's own terminal says more")
    assert str(made.folder) not in told.problem


# ---------------------------------------------------------------- conditions


def test_settings_that_are_not_its_own_are_refused(village: Make, small: Make) -> None:
    made = village(small())
    made.policy = DisclosurePolicy(small(method={"rounds": 3}), share_metrics=True)
    refused(made.reply(ME, made.hello("n")), "not those that this client takes part in")
    assert made.home(ME).joined is None
    made.policy = DisclosurePolicy(small(), share_metrics=True)
    assert made.reply(ME, made.hello("n")).envelope
    made.policy = DisclosurePolicy(
        small(method={"rounds": 3}), share_metrics=True
    )  # joined again, stricter
    refused(made.reply(ME, made.request(ME, 0, "anchor")), "not those that this client takes")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("= no TOML", "no TOML"),
        ("[data]\nname = 7", "data.name"),
        ("[unknown]\nkey = 1", "unknown"),
        ("x = " + "[" * 10_000, "no TOML"),
        ("", "not of run"),
    ],
)
def test_settings_of_a_stranger(village: Make, small: Make, settings: str, said: str) -> None:
    made = village(small())
    refused(made.reply(ME, made.hello("n", settings=settings)), said)
    assert made.home(ME).joined is None


def test_terms_that_do_not_fit_the_data_are_refused_by_name(
    village: Make, small: Make, tmp_path: Path
) -> None:
    made = village(small(), share_metrics=None)
    agreed = made.hello("n")
    terms = DataTerms.from_json(agreed.terms)
    renamed = replace(terms, class_names=("zero", *terms.class_names[1:]))
    strange = replace(agreed, terms=renamed.to_json())
    refused(made.participant(ME).reply(strange), "class 0 is '0' here, 'zero' there")
    refused(made.reply(ME, strange), "DataError: the client's own terminal says more")
    images = np.zeros((3, 8, 8, 1), np.uint8)
    names = np.array(["zero", "one", "two"])
    np.savez(tmp_path / "patients.npz", x=images, y=np.arange(3), class_names=names)
    participant = made.participant(ME, source=from_path(tmp_path / "patients.npz"))
    reply = participant.reply(agreed)
    refused(reply, "patients.npz: class_names: 'zero' is none of the 10 agreed classes")
    assert "patients" not in TaskReply.from_record(reply.to_record()).problem
    for damaged in ("", "{}", "[1]", '{"class_names": 7}'):
        refused(made.reply(ME, replace(agreed, terms=damaged)), "DataError")
    assert made.home(ME).joined is None
    assert made.reply(ME, agreed).envelope
    refused(made.reply(ME, strange), "DataError")  # of a home that has agreed to others, too


def test_a_masked_run_needs_the_keys_of_all_others(village: Make, small: Make) -> None:
    made = village(small(**MASKED))
    keys, short = made.client_keys(ME), TrustList()
    short.add(ME, keys.identity.public)
    swapped = TrustList()
    for name, whose in zip(made.names, reversed(made.names), strict=True):
        swapped.add(name, made.keys[whose].public)
    for trusted, said in (
        (None, "has no trust list"),
        (short, "the trust list has 1 clients, clients.count is 3"),
        (swapped, "another identity for client-00"),
    ):
        reply = made.participant(ME, keys=replace(keys, trusted=trusted)).reply(made.hello("n"))
        refused(reply, said)


def test_masks_are_neither_left_out_nor_put_on(there: Make) -> None:
    made = there(**MASKED)
    refused(made.reply(ME, made.request(ME, 0, "anchor")), "asked for without masks")
    refused(
        made.reply(ME, made.request(ME, 0, mask_kind("anchor", MaskingStep.MASK))), "no masked sum"
    )
    assert made.ledger(ME) == []


def test_a_plain_run_uploads_nothing_under_another_name(there: Make) -> None:
    made = there(privacy={"mode": "anchored"})
    refused(made.reply(ME, made.request(ME, 0, ADVERTISE)), "asked for under masks")
    refused(
        made.reply(ME, made.request(ME, 0, mask_kind("anchor", MaskingStep.SHARE))), "no masked sum"
    )
    assert made.ledger(ME) == []


# ---------------------------------------------------------------- what is told


TELLING_NOTHING: list[tuple[bool | None, dict[str, Any]]] = [
    (False, {}),
    (None, {"privacy": {"mode": "anchored"}}),
    (None, MASKED),
]


@pytest.mark.parametrize(
    ("share_metrics", "tables"), TELLING_NOTHING, ids=["no", "privacy", "masks"]
)
def test_nothing_that_counts_or_measures_data_is_told(
    village: Make, small: Make, share_metrics: bool | None, tables: dict[str, Any]
) -> None:
    config = small(method={"rounds": 1}, **tables)
    made = village(config, share_metrics=share_metrics)
    made.serve()
    payloads: dict[str, list[dict[str, Any]]] = {"hello": [], REPORT: []}
    for name, request, reply in made.replies:
        if request.context.kind in payloads:
            told = json.loads(made.opened(name, request, reply))
            payloads[request.context.kind].append(told)
    assert len(payloads["hello"]) == len(payloads[REPORT]) == 3
    for hello in payloads["hello"]:
        assert set(hello) == {"nonce", "architecture", "wants_test"}
        assert hello["wants_test"] is False
    for report in payloads[REPORT]:
        assert set(report) == {"seconds", "parameters"}
        assert report["seconds"] == int(report["seconds"])
    for client in made.rounds()[-1]["clients"]:
        assert not any(
            value for key, value in client.items() if key.startswith(("accuracy", "recall"))
        )
        assert client["took_part"]


def test_a_client_tells_where_its_exact_statistics_tell_it_anyway(there: Make) -> None:
    made = there(share_metrics=None)
    _, request, reply = made.replies[0]
    told = json.loads(made.opened(ME, request, reply))
    own = from_partition(0)(made.config, DataTerms.from_json(request.terms)).own
    counts = np.bincount(own.labels, minlength=10)
    assert told["class_counts"] == counts.tolist()
    assert told["samples"] == counts.sum()


# ---------------------------------------------------------------- the same again


def redone(made: Any, request: TaskRequest) -> tuple[bytes, bytes]:
    """Payloads of one order before and after a crash between its answer and its state."""
    home = made.home(ME).path
    kept = home / "state.safetensors"
    before = kept.read_bytes() if kept.exists() else None
    first = made.reply(ME, request)
    if before is None:
        kept.unlink()
    else:
        kept.write_bytes(before)
    second = made.reply(ME, request)
    assert second.envelope != first.envelope  # sealed anew
    assert made.reply(ME, request) == second
    return made.opened(ME, request, first), made.opened(ME, request, second)


def test_work_whose_state_was_lost_is_done_again_with_the_same_result(there: Make) -> None:
    made = there()
    first, second = redone(made, made.request(ME, 0, "anchor"))
    assert first == second
    assert len(made.ledger(ME)) == 1
    world = GlobalStatistics(np.ones(10), np.zeros((10, 12)), np.ones((10, 12)), np.eye(12))
    data = wire.publish(world)
    request = made.request(
        ME, 1, REPORT, digests={"anchor": digest_of(data)}, published={"anchor": data}
    )
    one, other = (json.loads(payload) for payload in redone(made, request))
    for report in (one, other):
        report.pop("seconds")
    assert one == other


def test_a_noised_release_is_drawn_once_whatever_crashes(there: Make) -> None:
    made = there(privacy={"mode": "anchored"})
    request = made.request(ME, 0, "anchor")
    first, second = redone(made, request)
    assert first == second
    (entry,) = made.ledger(ME)
    assert entry["epsilon"] is not None
    releases = list(made.home(ME).path.glob("clients/*/*.release"))
    assert [path.read_bytes() for path in releases] == [first]


# ---------------------------------------------------------------- without torch

LIGHT = """
import ast
import sys
from pathlib import Path
from fedvtc_edge.distributed.client.state import ClientState
from fedvtc_edge.distributed.client.participant import Participant
from fedvtc_edge.distributed.messages import TaskRequest
from fedvtc_edge.distributed.client.keys import ClientKeys
from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList
folder = Path(sys.argv[1])
keys = ClientKeys(
    "client-00",
    Identity.load(folder / "me.key"),
    PublicIdentity.load(folder / "server.pub"),
    TrustList.load(folder / "trust.json"),
)
def source(config, terms):
    raise AssertionError("no data is needed")
request = TaskRequest.from_record(ast.literal_eval((folder / "request").read_text()))
state = ClientState(folder / "homes" / "client-00", "client-00")
reply = Participant(state, keys, source).reply(request)
print(reply.status.value or len(reply.envelope), reply.problem)
print(sorted({"torch", "matplotlib", "onnx", "sklearn"} & set(sys.modules)))
"""


def test_a_later_step_of_a_masked_sum_needs_no_torch(there: Make) -> None:
    made = there(**MASKED)
    adverts = {}
    for name in made.names:
        made.reply(name, made.hello("n"))
        request = made.request(name, 0, ADVERTISE)
        adverts[name] = made.opened(name, request, made.reply(name, request))
    noted = made.home(ME).notes("sum")
    keys = {name: made.trusted.lookup(name).key for name in made.names}
    context = Context(public_name(made.config, NUMBER), 0, "server", "anchor")
    server = MaskingServer(MaskingPlan(context, keys, noted["size"], noted["bound"]))
    for name, advert in adverts.items():
        server.receive(advert, sender=name)
    messages = server.advance()
    request = made.request(
        ME, 0, mask_kind("anchor", MaskingStep.SHARE), message=messages[ME], phase=1
    )
    folder = made.folder
    made.keys[ME].save(folder / "me.key")
    made.keys["server"].public.save(folder / "server.pub")
    made.trusted.save(folder / "trust.json")
    (folder / "request").write_text(repr(dict(request.to_record())))
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answered, modules = done.stdout.splitlines()
    assert int(answered) > 100
    assert modules == "[]"
    server.receive(
        made.opened(ME, request, made.participant(ME).reply(request)), sender=ME
    )  # the answer that the other process kept
