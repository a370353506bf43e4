"""Who is at which node: believed for an envelope that answers this very question."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.mailbox import Reply
from fedvtc_edge.distributed.messages import DISMISSAL, FAREWELL, HELLO, Answer, Order, Trouble
from fedvtc_edge.distributed.server.registry import Register, some
from fedvtc_edge.sealing import Identity, TrustList, seal
from fedvtc_edge.wire.context import Context

RUN = "0" * 32
NAMES = ("client-00", "client-01", "client-02")


class Nodes:
    """A post whose answers a test writes, with the clock that passes while it waits."""

    def __init__(self) -> None:
        self.here: set[int] = set()
        self.sent: list[tuple[int, Order]] = []
        self.waiting: list[Reply] = []
        self.answering: Callable[[int, Order], Answer | None] = lambda node, order: None
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def nodes(self) -> frozenset[int]:
        return frozenset(self.here)

    def send(self, orders: Mapping[int, Order]) -> None:
        for node, order in orders.items():
            self.sent.append((node, order))
            answer = self.answering(node, order)
            if answer is not None:
                self.waiting.append(Reply(node, order, answer))

    def receive(self, wait_s: float) -> Iterable[Reply]:
        replies, self.waiting = self.waiting, []
        self.now += 0.0 if replies else wait_s
        assert self.now < 1e6  # a test that would wait for ever
        return replies


@pytest.fixture(scope="module")
def keys() -> dict[str, Identity]:
    return {name: Identity.generate("x25519") for name in ("server", "stranger", *NAMES)}


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes()
    monkeypatch.setattr("fedvtc_edge.distributed.server.registry.time", made)
    return made


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def register(
    post: Nodes, said: list[str], keys: dict[str, Identity], small: Callable[..., Config]
) -> Register:
    trusted = TrustList()
    for name in NAMES:
        trusted.add(name, keys[name].public)
    ring = [keys["server"]]
    return Register(small(), RUN, "settings", "terms", 3, ring, trusted, post, said.append)


def document(order: Order, **changes: Any) -> dict[str, Any]:
    made = {
        "nonce": order.nonce,
        "architecture": "mlp",
        "wants_test": True,
        "samples": 6,
        "class_counts": [1, 2, 3],
    }
    return made | changes


def hello(
    keys: dict[str, Identity], name: str, order: Order, *, signer: str = "", **changes: Any
) -> Answer:
    payload = json.dumps(document(order, **changes)).encode()
    context = replace(order.context, sender=name)
    sender = keys[signer or name]
    return Answer(
        name, seal(payload, recipient=keys["server"].public, sender=sender, context=context)
    )


def at_home(keys: dict[str, Identity]) -> Callable[[int, Order], Answer]:
    return lambda node, order: hello(keys, NAMES[node], order)


def test_clients_say_who_and_what_they_are(
    register: Register, post: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    post.here, post.answering = {0, 1, 2}, at_home(keys)
    register.gather(NAMES, 3, 60.0)
    assert [register.node(name) for name in NAMES] == [0, 1, 2]
    portrait = register.portraits["client-01"]
    assert (portrait.architecture, portrait.wants_test, portrait.samples) == ("mlp", True, 6)
    assert portrait.class_counts == (1, 2, 3)
    assert len(post.sent) == 3
    assert len({order.nonce for _, order in post.sent}) == 3
    assert post.sent[0][1].settings == "settings"
    assert said == [f"{name} is here (mlp)" for name in NAMES]
    register.gather(NAMES, 3, 60.0)
    assert len(post.sent) == 3  # known nodes are not asked again


def test_counts_that_are_not_told(register: Register, post: Nodes, keys: Any) -> None:
    post.here = {0}
    post.answering = lambda node, order: hello(keys, NAMES[0], order, class_counts=None)
    register.gather(NAMES, 1, 1.0)
    assert register.portraits[NAMES[0]].class_counts is None
    assert register.portraits[NAMES[0]].samples is None


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
    register: Register, post: Nodes, keys: Any, said: list[str], changes: dict[str, Any]
) -> None:
    post.here = {0, 1}
    post.answering = lambda node, order: hello(
        keys, NAMES[node], order, **({} if node else changes)
    )
    register.gather(NAMES, 1, 1.0)
    assert register.node(NAMES[0]) is None
    assert register.node(NAMES[1]) == 1
    assert any("node 0 (client-00) does not take part" in line for line in said)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"7", b"\xff", b"[" * 99_999, b"null"])
def test_a_payload_that_is_no_document(
    register: Register, post: Nodes, keys: dict[str, Identity], payload: bytes
) -> None:
    def sealed(node: int, order: Order) -> Answer:
        context = replace(order.context, sender=NAMES[0])
        server = keys["server"].public
        return Answer(
            NAMES[0], seal(payload, recipient=server, sender=keys[NAMES[0]], context=context)
        )

    post.here, post.answering = {0}, sealed
    register.ask_strangers(0)
    for reply in post.receive(0.0):
        register.hear(reply)
    assert register.portraits == {}


def test_nobody_is_believed_without_the_right_key(
    register: Register, post: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    answers = {
        0: lambda order: hello(keys, NAMES[0], order, signer="stranger"),
        1: lambda order: hello(keys, "stranger", order),
        2: lambda order: hello(keys, NAMES[0], order, signer=NAMES[1]),
        3: lambda order: replace(hello(keys, NAMES[1], order), client=NAMES[0]),
        4: lambda order: Answer(NAMES[0], b"no envelope"),
        5: lambda order: Answer("no id at all!", b"x" * 200),
        6: lambda order: Answer("", problem="no home here", trouble=Trouble.REFUSED),
        7: lambda order: Answer(NAMES[0]),
    }
    post.here, post.answering = set(answers), lambda node, order: answers[node](order)
    register.ask_strangers(0)
    for reply in post.receive(0.0):
        register.hear(reply)
    assert register.portraits == {}
    assert len(said) == len(answers)
    assert "no home here" in said[6]


def test_an_old_hello_is_not_taken_again(
    register: Register, post: Nodes, keys: dict[str, Identity]
) -> None:
    post.here = {0}
    register.ask_strangers(0)
    _, first = post.sent[0]
    recorded = hello(keys, NAMES[0], first)
    register.hear(Reply(0, first, recorded))
    assert register.node(NAMES[0]) == 0
    register.hear(Reply(0, first, recorded))  # twice: nothing waits for it any more
    post.here = {0, 9}
    register.ask_strangers(0)
    node, second = post.sent[1]
    assert (node, second.nonce == first.nonce) == (9, False)
    register.hear(Reply(9, second, recorded))  # who has seen it would be client-00
    register.hear(Reply(9, first, recorded))
    assert register.node(NAMES[0]) == 0


def test_who_refuses_is_asked_again_only_when_it_has_connected_anew(
    register: Register, post: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    refusal = Answer(NAMES[0], problem="not my settings", trouble=Trouble.REFUSED)
    post.here, post.answering = {0}, lambda node, order: refusal
    for _ in range(50):
        register.ask_strangers(0)
        for reply in post.receive(60.0):
            register.hear(reply)
    assert len(post.sent) == 1
    assert said == ["node 0 (client-00) does not take part: not my settings"]
    post.here = set()
    register.ask_strangers(0)
    post.here, post.answering = {0}, at_home(keys)
    register.gather(NAMES[:1], 1, 60.0)
    assert register.node(NAMES[0]) == 0


def test_who_believes_to_be_in_and_is_not_is_told_why(
    register: Register, post: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    """Else its command would wait for a run that never asks for it."""

    def by_a_stranger(node: int, order: Order) -> Answer | None:
        if order.context.kind == DISMISSAL:
            return Answer(NAMES[0], problem="so be it", trouble=Trouble.REFUSED)
        return hello(keys, NAMES[0], order, signer="stranger")

    post.here, post.answering = {0}, by_a_stranger
    for _ in range(5):
        register.ask_strangers(3)
        for reply in post.receive(60.0):
            register.hear(reply)
    _, (node, dismissal) = post.sent
    assert (node, dismissal.context) == (0, Context(RUN, 3, "server", DISMISSAL))
    assert dismissal.letter.decode() in said[0]
    assert len(said) == 1
    # It is an order like others: what a client reads of it is what was sent.
    assert Order.from_record(dismissal.to_record()) == dismissal


def test_a_hello_that_is_lost_is_sent_again(
    register: Register, post: Nodes, keys: dict[str, Identity]
) -> None:
    post.here = {0}
    register.ask_strangers(0)
    register.ask_strangers(0)
    assert len(post.sent) == 1
    post.now += 10.0  # deadline_s
    register.ask_strangers(0)
    assert len(post.sent) == 2
    first, second = (order for _, order in post.sent)
    assert first.nonce == second.nonce
    register.hear(Reply(0, first, hello(keys, NAMES[0], first)))  # late counts, too
    assert register.node(NAMES[0]) == 0


@pytest.mark.parametrize("trouble", [Trouble.BUSY, Trouble.AWAY])
def test_a_client_at_work_is_asked_again_but_not_at_once(
    register: Register, post: Nodes, keys: dict[str, Identity], trouble: Trouble
) -> None:
    def answering(node: int, order: Order) -> Answer:
        if post.now < 1030.0:
            return Answer(NAMES[0], problem="still at work", trouble=trouble)
        return hello(keys, NAMES[0], order)

    post.here, post.answering = {0}, answering
    register.gather(NAMES[:1], 1, 60.0)
    assert register.node(NAMES[0]) == 0
    assert 2 < len(post.sent) < 10


def test_two_nodes_that_claim_one_client_are_not_asked_in_turn_for_ever(
    register: Register, post: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    post.here = {0, 5}
    post.answering = lambda node, order: hello(keys, NAMES[0], order)
    register.gather(NAMES, 1, 30.0)
    assert register.node(NAMES[0]) == 5
    assert [(node, order.context.kind) for node, order in post.sent] == [
        (0, HELLO),
        (5, HELLO),
        (0, DISMISSAL),
    ]
    assert "client-00 was at node 0 and is at node 5 now" in said
    post.here = {0}  # the newer one goes
    assert register.node(NAMES[0]) is None


def test_a_client_that_comes_back_at_another_node(
    register: Register, post: Nodes, keys: dict[str, Identity]
) -> None:
    post.answering = lambda node, order: hello(keys, NAMES[0], order)
    for node in (3, 4):
        post.here = {node}
        register.gather(NAMES[:1], 1, 30.0)
        assert register.node(NAMES[0]) == node


def test_all_are_waited_for_and_after_a_while_enough(
    register: Register, post: Nodes, keys: dict[str, Identity], said: list[str]
) -> None:
    post.here, post.answering = {0, 1}, at_home(keys)
    begun = post.now
    register.gather(NAMES, 2, 60.0)
    assert 60.0 <= post.now - begun < 62.0
    assert any(line == "waiting for client-02 to connect" for line in said)

    def receive(wait_s: float) -> list[Reply]:
        replies, post.waiting = post.waiting, []
        post.now += wait_s
        if post.now - begun > 600.0:
            post.here.add(2)
        return replies

    post.receive = receive  # type: ignore[method-assign]
    register.gather(NAMES, 3, 60.0)  # enough are waited for as long as it takes
    assert register.node(NAMES[2]) == 2


def test_who_is_gone_and_who_may_come_back(
    register: Register, post: Nodes, keys: dict[str, Identity]
) -> None:
    assert not register.is_gone(NAMES[0])  # of a server that has just begun
    post.here = {0}
    register.ask_strangers(0)
    post.now += 60.0
    assert not register.is_gone(NAMES[0])  # it may be the one that was asked
    register.hear(Reply(0, post.sent[0][1], hello(keys, NAMES[0], post.sent[0][1])))
    assert not register.is_gone(NAMES[0])
    assert register.is_gone(NAMES[1])
    post.here = set()
    assert register.is_gone(NAMES[0])


def test_good_bye_is_said_to_those_that_are_here_and_not_for_ever(
    register: Register, post: Nodes, keys: dict[str, Identity]
) -> None:
    def answering(node: int, order: Order) -> Answer | None:
        if order.context.kind == HELLO:
            return hello(keys, NAMES[node], order)
        return Answer(NAMES[0]) if node == 0 else None

    post.here, post.answering = {0, 1, 2}, answering
    register.gather(NAMES, 3, 60.0)
    post.here, post.sent, begun = {0, 1}, [], post.now
    register.take_leave(7, 30.0)
    assert [(n, o.context) for n, o in post.sent] == [
        (n, Context(RUN, 7, NAMES[n], FAREWELL)) for n in (0, 1)
    ]
    assert 30.0 <= post.now - begun < 32.0


def test_some_names() -> None:
    assert some([]) == ""
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
