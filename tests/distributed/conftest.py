"""A federation of members and a coordinator in one process, without Flower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from fedvtc_edge.assembly import client_ids
from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.distributed.belongings import dealt
from fedvtc_edge.distributed.home import Home
from fedvtc_edge.distributed.member import Member
from fedvtc_edge.distributed.orders import Answer, Order
from fedvtc_edge.distributed.party import Consent, Party
from fedvtc_edge.distributed.post import Reply
from fedvtc_edge.distributed.serving import Keys, serve
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs import RunDirectory
from fedvtc_edge.sealing import Identity, TrustList

Fate = Callable[[str, Order], str]
"""What becomes of an order: ``""`` arrives, ``lost``, ``deaf`` (answered, and the answer
lost), ``twice``."""


class Story(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Village:
    """All parties of one run; members are made anew for every order, as on Flower."""

    def __init__(self, config: Config, folder: Path, *, telling: bool = True) -> None:
        self.config, self.folder = config, folder
        self.names = client_ids(config)
        self.keys = {name: Identity.generate("x25519") for name in ("server", *self.names)}
        self.trusted = TrustList()
        for name in self.names:
            self.trusted.add(name, self.keys[name].public)
        self.consent = Consent(telling=telling)
        self.fate: Fate = lambda name, order: ""
        self.asleep: set[str] = set()
        self.orders: list[tuple[str, Order]] = []
        self.story = Story()
        self._waiting: list[Reply] = []
        self._idle = 0

    def home(self, name: str) -> Home:
        return Home(self.folder / "homes" / name, name)

    def member(self, name: str) -> Member:
        index = self.names.index(name)
        return Member(
            self.home(name),
            Party(name, self.keys[name], self.keys["server"].public, self.trusted),
            dealt(index),
            index=index,
            consent=self.consent,
        )

    def answer(self, name: str, order: Order) -> Answer:
        # As over a wire: everything is written and read again.
        asked = Order.from_record(order.to_record())
        return Answer.from_record(self.member(name).answer(asked).to_record())

    # The post.

    def nodes(self) -> frozenset[int]:
        return frozenset(
            number for number, name in enumerate(self.names) if name not in self.asleep
        )

    def send(self, orders: Mapping[int, Order]) -> None:
        for node, order in orders.items():
            name = self.names[node]
            self.orders.append((name, order))
            fate = self.fate(name, order)
            if fate == "lost" or name in self.asleep:
                continue
            reply = Reply(node, order, self.answer(name, order))
            if fate != "deaf":
                self._waiting += [reply] * (2 if fate == "twice" else 1)

    def receive(self, wait_s: float) -> Iterable[Reply]:
        replies, self._waiting = self._waiting, []
        self._idle = 0 if replies else self._idle + 1
        assert self._idle < 100_000, self.story.lines[-5:]  # a test that would wait for ever
        return replies

    # The server.

    @property
    def run_path(self) -> Path:
        return self.folder / "run"

    def serve(self) -> RunDirectory:
        if (self.run_path / "config.toml").exists():
            directory = RunDirectory.reopen(self.run_path)
            directory.begin()
        else:
            directory = RunDirectory.create(self.run_path, self.config)
        self._waiting = []
        data = load_dataset(self.config.data)
        keys = Keys([self.keys["server"]], self.trusted)
        serve(directory, data, keys, self, self.story)
        return directory


@pytest.fixture
def village(tmp_path: Path) -> Callable[..., Village]:
    def make(config: Config, **options: bool) -> Village:
        return Village(config, tmp_path, **options)

    return make
