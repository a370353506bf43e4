"""A federation of clients and a server in one process, without Flower, clock or luck."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.data.own import terms_of
from fedvtc_edge.distributed.client.keys import ClientKeys, DisclosurePolicy
from fedvtc_edge.distributed.client.local_data import from_partition
from fedvtc_edge.distributed.client.participant import Participant
from fedvtc_edge.distributed.client.state import ClientState
from fedvtc_edge.distributed.mailbox import NodeReply
from fedvtc_edge.distributed.messages import HELLO, TaskReply, TaskRequest
from fedvtc_edge.distributed.server.session import Keys, serve
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.runs.directory import RunDirectory, as_toml, public_name
from fedvtc_edge.sealing import Identity, TrustList, unseal
from fedvtc_edge.storage.atomic import replace_tail
from fedvtc_edge.wire.context import Context

Fate = Callable[[str, TaskRequest], str]
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
    """Kills once at each moment: before and after a file takes its name or is appended to, and
    before messages.

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

    def append(self, path: Path, at: int, data: bytes, *, before: bytes = b"") -> None:
        moment = f"{path.parent.name}/{path.name} from {at} {self.scene}"
        self.pass_by(f"before {moment}")
        replace_tail(path, at, data, before=before)
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


NUMBER = "0123456789abcdef" * 2
"""Of every village's run, in place of a random one."""


class Village:
    """All parties of one run; members are made anew for every order, as on Flower."""

    def __init__(self, config: Config, folder: Path, *, share_metrics: bool | None = True) -> None:
        self.config, self.folder = config, folder
        self.names = config.client_ids
        self.keys = {name: Identity.generate("x25519") for name in (SERVER, *self.names)}
        self.ring = [self.keys[SERVER]]
        self.sealing_to = dict.fromkeys(self.names, self.keys[SERVER].public)
        self.trusted = TrustList()
        for name in self.names:
            self.trusted.add(name, self.keys[name].public)
        self.believed = self.trusted  # the server's copy of the list
        self.policy = DisclosurePolicy(share_metrics=share_metrics)
        self.fate: Fate = lambda name, request: ""
        self.asleep: set[str] = set()
        self.nowhere: set[str] = set()
        self.requests: list[tuple[str, TaskRequest]] = []
        self.replies: list[tuple[str, TaskRequest, TaskReply]] = []
        self.story, self.clock, self.reaper = Story(), Clock(), Reaper()
        self.data = load_dataset(config.data)
        self._waiting: list[NodeReply] = []
        self._idle = 0

    def home(self, name: str) -> ClientState:
        return ClientState(self.folder / "homes" / name, name)

    def client_keys(self, name: str) -> ClientKeys:
        return ClientKeys(name, self.keys[name], self.sealing_to[name], self.trusted)

    def participant(self, name: str, **changes: Any) -> Participant:
        index = self.names.index(name)
        options: dict[str, Any] = {
            "home": self.home(name),
            "keys": self.client_keys(name),
            "source": from_partition(index),
            "index": index,
            "policy": self.policy,
        }
        return Participant(**(options | changes))

    def reply(self, name: str, request: TaskRequest) -> TaskReply:
        # As over a wire: everything is written and read again.
        asked = TaskRequest.from_record(request.to_record())
        while True:
            self.reaper.now = name
            self.reaper.scene = f"{request.context.kind} {request.context.round}"
            try:
                given = self.participant(name).reply(asked)
            except Killed:
                continue  # another process is given the same order
            finally:
                self.reaper.now, self.reaper.scene = SERVER, ""
            self.replies.append((name, request, given))
            return TaskReply.from_record(given.to_record())

    def hello(self, nonce: str = "", **changes: Any) -> TaskRequest:
        made: dict[str, Any] = {
            "settings": as_toml(self.config).decode(),
            "terms": terms_of(self.data, self.config.data.image_size).to_json(),
            "nonce": nonce,
            "number": NUMBER,
        }
        context = Context(public_name(self.config, NUMBER), 0, SERVER, HELLO)
        return TaskRequest(context, 0, 0, **(made | changes))

    def request(
        self, name: str, number: int, kind: str, step: int = 0, **fields: Any
    ) -> TaskRequest:
        context = Context(public_name(self.config, NUMBER), number, name, kind)
        return TaskRequest(context, fields.pop("phase", 0), step, **fields)

    def opened(self, name: str, request: TaskRequest, reply: TaskReply) -> bytes:
        """What only the server can read."""
        context = Context(request.context.run, request.context.round, name, request.context.kind)
        return unseal(reply.envelope, recipient=self.ring, trusted=self.trusted, context=context)

    # The post.

    def nodes(self) -> frozenset[int]:
        return frozenset(
            number for number, name in enumerate(self.names) if name not in self.nowhere
        )

    def send(self, requests: Mapping[int, TaskRequest]) -> None:
        kinds = sorted(
            (self.names[n], o.context.kind, o.context.round) for n, o in requests.items()
        )
        self.reaper.pass_by(f"send {kinds}")
        for node, request in requests.items():
            name = self.names[node]
            self.requests.append((name, request))
            fate = self.fate(name, request)
            if fate == "lost" or name in self.asleep or name in self.nowhere:
                continue
            arrived = NodeReply(node, request, self.reply(name, request))
            if fate != "deaf":
                self._waiting += [arrived] * (2 if fate == "twice" else 1)
        self.reaper.pass_by(f"sent {kinds}")

    def receive(self, wait_s: float) -> Iterable[NodeReply]:
        replies, self._waiting = self._waiting, []
        self._idle = 0 if replies else self._idle + 1
        assert self._idle < 1000, self.story.lines[-5:]  # a test that would wait for ever
        if not replies:
            self.clock.now += wait_s
        for arrived in replies:
            context = arrived.request.context
            self.reaper.pass_by(f"receive {context.kind} {context.round} {arrived.node}")
            yield arrived

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
            directory = RunDirectory(self.run_path, self.config, number=NUMBER)
            directory.begin()
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
        for appending in ("privacy.ledger", "sealing.inbox"):
            monkeypatch.setattr(f"fedvtc_edge.{appending}.replace_tail", one.reaper.append)
        return one

    return make
