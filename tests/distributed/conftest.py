"""A federation of members and a coordinator in one process, without Flower, clock or luck."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import Config, client_ids, load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.data.own import terms_of
from fedvtc_edge.distributed.client.keys import Consent, Party
from fedvtc_edge.distributed.client.local_data import dealt
from fedvtc_edge.distributed.client.participant import Member
from fedvtc_edge.distributed.client.state import Home
from fedvtc_edge.distributed.mailbox import Reply
from fedvtc_edge.distributed.messages import HELLO, Answer, Order
from fedvtc_edge.distributed.server.session import Keys, serve
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import RunDirectory, as_toml, public_name
from fedvtc_edge.sealing import Identity, TrustList, unseal
from fedvtc_edge.wire.context import Context

Fate = Callable[[str, Order], str]
"""What becomes of an order: ``""`` arrives, ``lost``, ``deaf`` (answered, and the answer
lost), ``twice``."""

SMALL: dict[str, Any] = {
    "data": {"limit": 120, "test_limit": 50, "alpha": 1.0},
    "clients": {"count": 3, "architectures": ["mlp"]},
    "method": {"rounds": 2, "anchor": 12, "latent": 8},
    "training": {
        "epochs": 1,
        "decoder_steps": 2,
        "finetune_steps": 2,
        "finetune_from": 2,
        "finetune_last": 2,
    },
    "engine": {"name": "flower"},
    "server": {"deadline_s": 10.0},
    "privacy": {"collusion": 0.0},
}


class Killed(BaseException):
    """A process that ends where it stands; no ``except`` of ours may see it."""


class Clock:
    """Passes only while somebody waits for something that does not come."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Story(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Reaper:
    """Kills once at each moment: before and after a file takes its name, and before messages.

    A moment is known by what would be written, so that it is met once however often a
    process has to begin anew. Without ``hunting`` nobody dies.
    """

    death = Killed

    def __init__(self) -> None:
        self.hunting = "nobody"
        self.now, self.scene = SERVER, ""
        self.every = 1
        self.met: set[str] = set()
        self.killed: list[str] = []

    def pass_by(self, moment: str) -> None:
        if self.now != self.hunting or moment in self.met:
            return
        self.met.add(moment)
        if len(self.met) % self.every == 0:
            self.killed.append(moment)
            assert len(self.killed) < 1000, self.killed[-4:]  # moments that are ever new
            raise Killed(moment)

    def replace(self, source: Any, target: Any) -> None:
        moment = f"{self._named(Path(source), Path(target))} {self.scene}"
        self.pass_by(f"before {moment}")
        _REPLACE(source, target)
        self.pass_by(f"after {moment}")

    @staticmethod
    def _named(source: Path, target: Path) -> str:
        name = re.sub(r"[0-9a-f]{64}", "*", target.name)
        data = source.read_bytes() if source.is_file() else b""
        if target.suffix == ".jsonl":
            data = str(data.count(b"\n")).encode()
        elif target.name == "last.upload":
            data = data.partition(b"\n")[0]  # the order; what answers it is sealed anew
        elif target.name in _ANEW or target.suffix in _ANEW:
            data = b""
        return f"{target.parent.name}/{name} {hashlib.sha256(data).hexdigest()[:8]}"


_REPLACE = os.replace
_ANEW = {".safetensors", ".html", ".npz", ".release", ".key", ".part", ".taken"} | {
    "summary.json",
    "client.json",
}
"""Files with times, noise or new keys in them: written again, they are other bytes."""


class Village:
    """All parties of one run; members are made anew for every order, as on Flower."""

    def __init__(self, config: Config, folder: Path, *, telling: bool | None = True) -> None:
        self.config, self.folder = config, folder
        self.names = client_ids(config)
        self.keys = {name: Identity.generate("x25519") for name in (SERVER, *self.names)}
        self.ring = [self.keys[SERVER]]
        self.sealing_to = dict.fromkeys(self.names, self.keys[SERVER].public)
        self.trusted = TrustList()
        for name in self.names:
            self.trusted.add(name, self.keys[name].public)
        self.believed = self.trusted  # the server's copy of the list
        self.consent = Consent(telling=telling)
        self.fate: Fate = lambda name, order: ""
        self.asleep: set[str] = set()
        self.nowhere: set[str] = set()
        self.orders: list[tuple[str, Order]] = []
        self.answers: list[tuple[str, Order, Answer]] = []
        self.story, self.clock, self.reaper = Story(), Clock(), Reaper()
        self.data = load_dataset(config.data)
        self._waiting: list[Reply] = []
        self._idle = 0

    def home(self, name: str) -> Home:
        return Home(self.folder / "homes" / name, name)

    def party(self, name: str) -> Party:
        return Party(name, self.keys[name], self.sealing_to[name], self.trusted)

    def member(self, name: str, **changes: Any) -> Member:
        index = self.names.index(name)
        options: dict[str, Any] = {
            "home": self.home(name),
            "party": self.party(name),
            "source": dealt(index),
            "index": index,
            "consent": self.consent,
        }
        return Member(**(options | changes))

    def answer(self, name: str, order: Order) -> Answer:
        # As over a wire: everything is written and read again.
        asked = Order.from_record(order.to_record())
        while True:
            self.reaper.now = name
            self.reaper.scene = f"{order.context.kind} {order.context.round}"
            try:
                given = self.member(name).answer(asked)
            except Killed:
                continue  # another process is given the same order
            finally:
                self.reaper.now, self.reaper.scene = SERVER, ""
            self.answers.append((name, order, given))
            return Answer.from_record(given.to_record())

    def hello(self, nonce: str = "", **changes: Any) -> Order:
        made: dict[str, Any] = {
            "settings": as_toml(self.config).decode(),
            "terms": terms_of(self.data, self.config.data.image_size).to_json(),
            "nonce": nonce,
        }
        context = Context(public_name(self.config), 0, SERVER, HELLO)
        return Order(context, 0, 0, **(made | changes))

    def order(self, name: str, number: int, kind: str, step: int = 0, **fields: Any) -> Order:
        context = Context(public_name(self.config), number, name, kind)
        return Order(context, fields.pop("phase", 0), step, **fields)

    def opened(self, name: str, order: Order, answer: Answer) -> bytes:
        """What only the server can read."""
        context = Context(order.context.run, order.context.round, name, order.context.kind)
        return unseal(answer.envelope, recipient=self.ring, trusted=self.trusted, context=context)

    # The post.

    def nodes(self) -> frozenset[int]:
        return frozenset(
            number for number, name in enumerate(self.names) if name not in self.nowhere
        )

    def send(self, orders: Mapping[int, Order]) -> None:
        kinds = sorted((self.names[n], o.context.kind, o.context.round) for n, o in orders.items())
        self.reaper.pass_by(f"send {kinds}")
        for node, order in orders.items():
            name = self.names[node]
            self.orders.append((name, order))
            fate = self.fate(name, order)
            if fate == "lost" or name in self.asleep or name in self.nowhere:
                continue
            reply = Reply(node, order, self.answer(name, order))
            if fate != "deaf":
                self._waiting += [reply] * (2 if fate == "twice" else 1)
        self.reaper.pass_by(f"sent {kinds}")

    def receive(self, wait_s: float) -> Iterable[Reply]:
        replies, self._waiting = self._waiting, []
        self._idle = 0 if replies else self._idle + 1
        assert self._idle < 1000, self.story.lines[-5:]  # a test that would wait for ever
        if not replies:
            self.clock.now += wait_s
        for reply in replies:
            context = reply.order.context
            self.reaper.pass_by(f"receive {context.kind} {context.round} {reply.node}")
            yield reply

    # The server.

    @property
    def run_path(self) -> Path:
        return self.folder / "run"

    def serve(self) -> RunDirectory:
        if (self.run_path / "config.toml").exists():
            directory = RunDirectory.reopen(self.run_path)
            directory.begin()
        else:
            self.reaper.now = ""  # what is not begun yet is no run
            directory = RunDirectory.create(self.run_path, self.config)
            self.reaper.now = SERVER
        self._waiting = []
        serve(directory, self.data, Keys(self.ring, self.believed), self, self.story)
        return directory

    def serve_through(self, hunted: str, *, every: int = 1) -> list[str]:
        """The whole run, with somebody killed at each moment (or at each so many)."""
        self.reaper.hunting, self.reaper.every = hunted, every
        while True:
            try:
                self.serve()
            except Killed:
                continue
            return self.reaper.killed

    # What came of it.

    def published(self) -> bytes:
        return (self.run_path / "statistics.safetensors").read_bytes()

    def rounds(self) -> list[dict[str, Any]]:
        lines = (self.run_path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def untimed(self) -> list[dict[str, Any]]:
        rounds = self.rounds()
        for record in rounds:
            record.pop("seconds")
            for client in record["clients"]:
                client.pop("seconds")
        return rounds

    def ledger(self, name: str | None = None) -> list[dict[str, Any]]:
        """Releases in the ledger of a client, or the server's."""
        path = self.run_path if name is None else self.home(name).path
        found: list[dict[str, Any]] = json.loads((path / "ledger.json").read_text())["releases"]
        return found

    def refusals(self) -> list[dict[str, Any]]:
        path = self.run_path / "server" / "refusals.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def small() -> Callable[..., Config]:
    """``small(method={"rounds": 3})``: the small settings with some keys changed."""

    def settings(**tables: Any) -> Config:
        base = {key: dict(value) for key, value in SMALL.items()}
        for table, values in tables.items():
            base.setdefault(table, {}).update(values)
        return load_config(base)

    return settings


@pytest.fixture
def village(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Village]:
    """``village(config)``: parties in a folder of their own, whose clock is no real one."""

    def make(config: Config, *, at: str = "village", **options: Any) -> Village:
        one = Village(config, tmp_path / at, **options)
        # Who was made last has the clock and the disk.
        monkeypatch.setattr("fedvtc_edge.distributed.server.collector.time", one.clock)
        monkeypatch.setattr("fedvtc_edge.distributed.server.registry.time", one.clock)
        monkeypatch.setattr("fedvtc_edge.storage.atomic.os.replace", one.reaper.replace)
        monkeypatch.setattr("fedvtc_edge.federation.summary.render", lambda path: path)
        return one

    return make
