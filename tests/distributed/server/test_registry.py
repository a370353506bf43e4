"""Who is at which node: believed for an envelope that answers this very question."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.mailbox import NodeReply
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    HELLO,
    SHUTDOWN,
    Status,
    TaskReply,
    TaskRequest,
)
from fedvtc_edge.distributed.server.registry import ClientRegistry, some
from fedvtc_edge.sealing import Identity, TrustList, seal
from fedvtc_edge.wire.context import Context

RUN = "0" * 32
NAMES = ("client-00", "client-01", "client-02")


class Nodes:
    """A post whose answers a test writes, with the clock that passes while it waits."""

    def __init__(self) -> None:
        self.here: set[int] = set()
        self.sent: list[tuple[int, TaskRequest]] = []
        self.waiting: list[NodeReply] = []
        self.answering: Callable[[int, TaskRequest], TaskReply | None] = lambda node, request: None
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def nodes(self) -> frozenset[int]:
        return frozenset(self.here)

    def send(self, requests: Mapping[int, TaskRequest]) -> None:
        for node, request in requests.items():
            self.sent.append((node, request))
            reply = self.answering(node, request)
            if reply is not None:
                self.waiting.append(NodeReply(node, request, reply))

    def receive(self, wait_s: float) -> Iterable[NodeReply]:
        replies, self.waiting = self.waiting, []
        self.now += 0.0 if replies else wait_s
        assert self.now < 1e6  # a test that would wait for ever
        return replies


@pytest.fixture(scope="module")
def keys() -> dict[str, Identity]:
    return {name: Identity.generate("x25519") for name in ("server", "stranger", *NAMES)}


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes()
    monkeypatch.setattr("fedvtc_edge.distributed.server.registry.time", made)
    return made


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def registry(
    mailbox: Nodes, said: list[str], keys: dict[str, Identity], small: Callable[..., Config]
) -> ClientRegistry:
    trusted = TrustList()
    for name in NAMES:
        trusted.add(name, keys[name].public)
    ring = [keys["server"]]
    words = (RUN, RUN, "settings", "terms")
    return ClientRegistry(small(), *words, 3, ring, trusted, mailbox, said.append)


def document(request: TaskRequest, **changes: Any) -> dict[str, Any]:
    made = {
        "nonce": request.nonce,
        "architecture": "mlp",
        "wants_test": True,
        "samples": 6,
        "class_counts": [1, 2, 3],
    }
    return made | changes


def hello(
    keys: dict[str, Identity], name: str, request: TaskRequest, *, signer: str = "", **changes: Any
) -> TaskReply:
    payload = json.dumps(document(request, **changes)).encode()
    context = replace(request.context, sender=name)
    sender = keys[signer or name]
    return TaskReply(
        name, seal(payload, recipient=keys["server"].public, sender=sender, context=context)
    )


def at_home(keys: dict[str, Identity]) -> Callable[[int, TaskRequest], TaskReply]:
    return lambda node, request: hello(keys, NAMES[node], request)


def test_clients_say_who_and_what_they_are(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    mailbox.here, mailbox.answering = {0, 1, 2}, at_home(keys)
    registry.gather(NAMES, 3, 60.0)
    assert [registry.node(name) for name in NAMES] == [0, 1, 2]
    info = registry.client_info["client-01"]
    assert (info.architecture, info.wants_test, info.samples) == ("mlp", True, 6)
    assert info.class_counts == (1, 2, 3)
    assert len(mailbox.sent) == 3
    assert len({request.nonce for _, request in mailbox.sent}) == 3
    assert mailbox.sent[0][1].settings == "settings"
    assert said == [f"{name} is here (mlp)" for name in NAMES]
    registry.gather(NAMES, 3, 60.0)
    assert len(mailbox.sent) == 3  # known nodes are not asked again


def test_counts_that_are_not_told(registry: ClientRegistry, mailbox: Nodes, keys: Any) -> None:
    mailbox.here = {0}
    mailbox.answering = lambda node, request: hello(keys, NAMES[0], request, class_counts=None)
    registry.gather(NAMES, 1, 1.0)
    assert registry.client_info[NAMES[0]].class_counts is None
    assert registry.client_info[NAMES[0]].samples is None


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "old"},
        {"nonce": None},
        {"architecture": "x" * 65},
        {"architecture": "\x1b[2J"},
        {"class_counts": [1, 2]},
        {"class_counts": [1, 2, 3, 4]},
        {"class_counts": [1, 2, -3]},
        {"class_counts": [1, 2, 2.5]},
        {"class_counts": [1, 2, True]},
        {"class_counts": [1, 2, "3"]},
        {"class_counts": [1, 2, 2**41]},
        {"class_counts": [1, 2, float("inf")]},
        {"class_counts": [1, 2, float("nan")]},
        {"class_counts": 7},
        {"class_counts": "123"},
        {"class_counts": {"0": 1, "1": 2, "2": 3}},
        {"class_counts": [[1], [2], [3]]},
    ],
    ids=str,
)
def test_a_hello_that_is_none_ends_nothing_but_itself(
    registry: ClientRegistry, mailbox: Nodes, keys: Any, said: list[str], changes: dict[str, Any]
) -> None:
    mailbox.here = {0, 1}
    mailbox.answering = lambda node, request: hello(
        keys, NAMES[node], request, **({} if node else changes)
    )
    registry.gather(NAMES, 1, 1.0)
    assert registry.node(NAMES[0]) is None
    assert registry.node(NAMES[1]) == 1
    assert any("node 0 (client-00) does not take part" in line for line in said)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"7", b"\xff", b"[" * 99_999, b"null"])
def test_a_payload_that_is_no_document(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], payload: bytes
) -> None:
    def sealed(node: int, request: TaskRequest) -> TaskReply:
        context = replace(request.context, sender=NAMES[0])
        server = keys["server"].public
        return TaskReply(
            NAMES[0], seal(payload, recipient=server, sender=keys[NAMES[0]], context=context)
        )

    mailbox.here, mailbox.answering = {0}, sealed
    registry.identify_nodes(0)
    for arrived in mailbox.receive(0.0):
        registry.handle_reply(arrived)
    assert registry.client_info == {}


def test_nobody_is_believed_without_the_right_key(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    replies = {
        0: lambda request: hello(keys, NAMES[0], request, signer="stranger"),
        1: lambda request: hello(keys, "stranger", request),
        2: lambda request: hello(keys, NAMES[0], request, signer=NAMES[1]),
        3: lambda request: replace(hello(keys, NAMES[1], request), client=NAMES[0]),
        4: lambda request: TaskReply(NAMES[0], b"no envelope"),
        5: lambda request: TaskReply("no id at all!", b"x" * 200),
        6: lambda request: TaskReply("", problem="no home here", status=Status.REFUSED),
        7: lambda request: TaskReply(NAMES[0]),
    }
    mailbox.here, mailbox.answering = set(replies), lambda node, request: replies[node](request)
    registry.identify_nodes(0)
    for arrived in mailbox.receive(0.0):
        registry.handle_reply(arrived)
    assert registry.client_info == {}
    assert len(said) == len(replies)
    assert "no home here" in said[6]


def test_an_old_hello_is_not_taken_again(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity]
) -> None:
    mailbox.here = {0}
    registry.identify_nodes(0)
    _, first = mailbox.sent[0]
    recorded = hello(keys, NAMES[0], first)
    registry.handle_reply(NodeReply(0, first, recorded))
    assert registry.node(NAMES[0]) == 0
    registry.handle_reply(NodeReply(0, first, recorded))  # twice: nothing waits for it any more
    mailbox.here = {0, 9}
    registry.identify_nodes(0)
    node, second = mailbox.sent[1]
    assert (node, second.nonce == first.nonce) == (9, False)
    registry.handle_reply(NodeReply(9, second, recorded))  # who has seen it would be client-00
    registry.handle_reply(NodeReply(9, first, recorded))
    assert registry.node(NAMES[0]) == 0


def test_who_refuses_is_asked_again_only_when_it_has_connected_anew(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    refusal = TaskReply(NAMES[0], problem="not my settings", status=Status.REFUSED)
    mailbox.here, mailbox.answering = {0}, lambda node, request: refusal
    for _ in range(50):
        registry.identify_nodes(0)
        for arrived in mailbox.receive(60.0):
            registry.handle_reply(arrived)
    assert len(mailbox.sent) == 1
    assert said == ["node 0 (client-00) does not take part: not my settings"]
    mailbox.here = set()
    registry.identify_nodes(0)
    mailbox.here, mailbox.answering = {0}, at_home(keys)
    registry.gather(NAMES[:1], 1, 60.0)
    assert registry.node(NAMES[0]) == 0


def test_who_believes_to_be_in_and_is_not_is_told_why(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    """Else its command would wait for a run that never asks for it."""

    def by_a_stranger(node: int, request: TaskRequest) -> TaskReply | None:
        if request.context.kind == DISMISSAL:
            return TaskReply(NAMES[0], problem="so be it", status=Status.REFUSED)
        return hello(keys, NAMES[0], request, signer="stranger")

    mailbox.here, mailbox.answering = {0}, by_a_stranger
    for _ in range(5):
        registry.identify_nodes(3)
        for arrived in mailbox.receive(60.0):
            registry.handle_reply(arrived)
    _, (node, dismissal) = mailbox.sent
    assert (node, dismissal.context) == (0, Context(RUN, 3, "server", DISMISSAL))
    assert dismissal.message.decode() in said[0]
    assert len(said) == 1
    # It is an order like others: what a client reads of it is what was sent.
    assert TaskRequest.from_record(dismissal.to_record()) == dismissal


def test_a_hello_that_is_lost_is_sent_again(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity]
) -> None:
    mailbox.here = {0}
    registry.identify_nodes(0)
    registry.identify_nodes(0)
    assert len(mailbox.sent) == 1
    mailbox.now += 10.0  # deadline_s
    registry.identify_nodes(0)
    assert len(mailbox.sent) == 2
    first, second = (request for _, request in mailbox.sent)
    assert first.nonce == second.nonce
    registry.handle_reply(NodeReply(0, first, hello(keys, NAMES[0], first)))  # late counts, too
    assert registry.node(NAMES[0]) == 0


@pytest.mark.parametrize("status", [Status.BUSY, Status.UNREACHABLE])
def test_a_client_at_work_is_asked_again_but_not_at_once(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], status: Status
) -> None:
    def answering(node: int, request: TaskRequest) -> TaskReply:
        if mailbox.now < 1030.0:
            return TaskReply(NAMES[0], problem="still at work", status=status)
        return hello(keys, NAMES[0], request)

    mailbox.here, mailbox.answering = {0}, answering
    registry.gather(NAMES[:1], 1, 60.0)
    assert registry.node(NAMES[0]) == 0
    assert 2 < len(mailbox.sent) < 10


def test_two_nodes_that_claim_one_client_are_not_asked_in_turn_for_ever(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    mailbox.here = {0, 5}
    mailbox.answering = lambda node, request: hello(keys, NAMES[0], request)
    registry.gather(NAMES, 1, 30.0)
    assert registry.node(NAMES[0]) == 5
    assert [(node, request.context.kind) for node, request in mailbox.sent] == [
        (0, HELLO),
        (5, HELLO),
        (0, DISMISSAL),
    ]
    assert "client-00 was at node 0 and is at node 5 now" in said
    mailbox.here = {0}  # the newer one goes
    assert registry.node(NAMES[0]) is None


def test_a_client_that_comes_back_at_another_node(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity]
) -> None:
    mailbox.answering = lambda node, request: hello(keys, NAMES[0], request)
    for node in (3, 4):
        mailbox.here = {node}
        registry.gather(NAMES[:1], 1, 30.0)
        assert registry.node(NAMES[0]) == node


def test_all_are_waited_for_and_after_a_while_enough(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    mailbox.here, mailbox.answering = {0, 1}, at_home(keys)
    begun = mailbox.now
    registry.gather(NAMES, 2, 60.0)
    assert 60.0 <= mailbox.now - begun < 62.0
    assert any(line == "waiting for client-02 to connect" for line in said)

    def receive(wait_s: float) -> list[NodeReply]:
        replies, mailbox.waiting = mailbox.waiting, []
        mailbox.now += wait_s
        if mailbox.now - begun > 600.0:
            mailbox.here.add(2)
        return replies

    mailbox.receive = receive  # type: ignore[method-assign]
    registry.gather(NAMES, 3, 60.0)  # enough are waited for as long as it takes
    assert registry.node(NAMES[2]) == 2


def test_who_is_gone_and_who_may_come_back(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity]
) -> None:
    assert not registry.are_gone([NAMES[0]])  # of a server that has just begun
    mailbox.here = {0}
    registry.identify_nodes(0)
    mailbox.now += 60.0
    assert not registry.are_gone([NAMES[0]])  # it may be the one that was asked
    registry.handle_reply(
        NodeReply(0, mailbox.sent[0][1], hello(keys, NAMES[0], mailbox.sent[0][1]))
    )
    assert not registry.are_gone([NAMES[0]])
    assert registry.are_gone([NAMES[1]])
    mailbox.here = set()
    assert registry.are_gone([NAMES[0]])


def test_good_bye_is_said_to_those_that_are_here_and_not_for_ever(
    registry: ClientRegistry, mailbox: Nodes, keys: dict[str, Identity]
) -> None:
    def answering(node: int, request: TaskRequest) -> TaskReply | None:
        if request.context.kind == HELLO:
            return hello(keys, NAMES[node], request)
        return TaskReply(NAMES[0]) if node == 0 else None

    mailbox.here, mailbox.answering = {0, 1, 2}, answering
    registry.gather(NAMES, 3, 60.0)
    mailbox.here, mailbox.sent, begun = {0, 1}, [], mailbox.now
    registry.shutdown_clients(7, 30.0)
    assert [(n, o.context) for n, o in mailbox.sent] == [
        (n, Context(RUN, 7, NAMES[n], SHUTDOWN)) for n in (0, 1)
    ]
    assert 30.0 <= mailbox.now - begun < 32.0


def test_some_names() -> None:
    assert some([]) == ""
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
