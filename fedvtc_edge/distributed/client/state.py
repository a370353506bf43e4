"""The state folder of a client: all that it keeps between two messages.

    home.json           the one run that it takes part in
    config.toml         the settings that it agreed to
    terms.json          the classes and shapes that it agreed to
    state.safetensors   networks, what was published, totals; renamed into place
    last.upload         the last envelope, and the digest of the request that it answers
    sum.part            its part in the masked sum that is open (0600)
    ledger.json         every release, written before it leaves
    spent.json          by which the user's record of releases knows this folder again
    clients/ID/         noised releases and the key of their noise

Whoever reads this folder reads models that have seen the client's data.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data.own import TERMS
from fedvtc_edge.distributed.messages import RequestError
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import ConfigError, RunError
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.runs.checkpoint import decode, encode, naming_damage, read_metadata
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.wire.context import Context

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
_HOME, _CONFIG, _STATE, _ANSWER = "home.json", "config.toml", "state.safetensors", "last.upload"
_ANEW = "join the run anew, with a new --home folder"


@dataclass
class ClientCheckpoint:
    """State of a client between two messages.

    Args:
        round: The last round that it worked in; 0 is the opening.
        step: The last step of it that is done; -1 is none.
        answered: Digest of the last request that was worked on.
        samples: Images that training has seen so far.
        published: What the server has published, by kind.
        tensors: Weights, by ``module/parameter``.
    """

    round: int = 0
    step: int = -1
    answered: str = ""
    seconds: float = 0.0
    samples: int = 0
    published: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class ClientState:
    """One client's state folder, in which it takes part in one run.

    Args:
        path: Made when there is none.
    """

    def __init__(self, path: Path, client: str) -> None:
        self.path = path
        self.client = client
        self.releases = ReleaseStore(path)
        self._ledger: Ledger | None = None

    @property
    def joined(self) -> str | None:
        """Public name of the run that this folder belongs to, or None.

        Raises:
            RunError: ``home.json`` is damaged, or of another client.
        """
        path = self.path / _HOME
        if not path.is_file():
            return None
        try:
            made = parse_json(path.read_text("utf-8"))
            schema, client, run = made["schema"], made["client"], made["run"]
        except (OSError, ValueError, KeyError, TypeError):
            schema, client, run = None, None, None
        if schema != SCHEMA or client != self.client or not isinstance(run, str):
            raise RunError(
                f"{path} is not of client {self.client}",
                hint="give each client a --home of its own",
            )
        return run

    @property
    def ready(self) -> bool:
        """True if the run is over for this client, so that the folder can be exported."""
        return (self.path / "summary.json").is_file()

    @property
    def number(self) -> str:
        """Random number of the run that this folder belongs to.

        Raises:
            RunError: ``home.json`` is damaged.
        """
        with naming_damage(self.path / _HOME, _ANEW):
            number = str(parse_json((self.path / _HOME).read_bytes())["number"])
        return number

    def join(self, run: str, settings: str, terms: str, number: str) -> None:
        """Bind the folder to a run, whose settings and terms never change from now on.

        Raises:
            RequestError: It belongs to another run, or has agreed to other terms.
            RunError: It is damaged, or cannot be written.
        """
        known = self.joined
        if known is not None:
            self.check(run)
            if self.terms() != terms:
                raise RequestError(
                    "the server's terms are not those that this client agreed to: "
                    "other classes or shapes in the same run",
                    hint="do not trust this server",
                )
            return
        with self._on_disk():
            self.path.mkdir(parents=True, exist_ok=True)
            Ledger(self.path / "ledger.json").begin()
        self._write(_CONFIG, settings.encode())
        self._write(TERMS, terms.encode())
        made = {"schema": SCHEMA, "client": self.client, "run": run, "number": number}
        self._write(_HOME, (json.dumps(made) + "\n").encode())

    def relocate(self, settings: str) -> None:
        """Write the same settings with other paths of this machine's files in them."""
        self._write(_CONFIG, settings.encode())

    def check(self, run: str) -> None:
        """Refuse whatever is not of this folder's run.

        Raises:
            RequestError: It belongs to none, or to another.
        """
        known = self.joined
        if known != run:
            raise RequestError(
                f"this folder belongs to {f'run {known}' if known else 'no run'}, asked is {run}",
                hint="releases are counted per folder: join another run with a new --home",
            )

    def config(self) -> Config:
        """The settings that were agreed to.

        Raises:
            RunError: They are damaged.
        """
        try:
            return load_config(self.path / _CONFIG)
        except ConfigError as error:
            raise RunError(
                f"{self.path / _CONFIG} is damaged: {error!s:.200}", hint=_ANEW
            ) from None

    def terms(self) -> str:
        """The terms that were agreed to, JSON.

        Raises:
            RunError: They cannot be read.
        """
        with naming_damage(self.path / TERMS, _ANEW):
            terms = (self.path / TERMS).read_text("utf-8")
        return terms

    def record(self, context: Context, data: bytes) -> None:
        """Put a release and its entry in the ledger on the disk: then it may leave.

        Raises:
            PrivacyError: The budget is spent.
            RunError: The ledger is damaged.
        """
        if self._ledger is None:
            self._ledger = Ledger(self.path / "ledger.json", mechanism_of(self.config()))
            self._ledger.reopen()
        with self._on_disk():
            self.releases.sync()
            self._ledger.record(context.round, context.sender, context.kind, data)

    def state(self) -> ClientCheckpoint:
        """Checkpoint kept last, or that of a client that has done nothing yet.

        Raises:
            RunError: The file is damaged.
        """
        path = self.path / _STATE
        if not path.is_file():
            return ClientCheckpoint()
        with naming_damage(path, _ANEW):
            kept, published, tensors = decode(path)
            state = ClientCheckpoint(**kept, published=published, tensors=tensors)
        return state

    def keep(self, state: ClientCheckpoint) -> None:
        """Write the state: all of it or, after a crash, the one before."""
        kept = {
            name: getattr(state, name)
            for name in ("round", "step", "answered", "seconds", "samples")
        }
        self._write(_STATE, encode(kept, state.published, state.tensors), mode=0o600)

    def answered(self) -> str:
        """Digest of the request that the kept state answers; read without torch."""
        return str(read_metadata(self.path / _STATE).get("answered", ""))

    def kept_answer(self, request: str) -> bytes | None:
        """The envelope that answers a request of this digest, if it was made before."""
        try:
            head, _, envelope = (self.path / _ANSWER).read_bytes().partition(b"\n")
        except OSError:
            return None
        return envelope if head == request.encode() else None

    def keep_answer(self, request: str, envelope: bytes) -> None:
        """Keep an envelope, so that a request that comes twice is answered by the same bytes."""
        self._write(_ANSWER, request.encode() + b"\n" + envelope, mode=0o600)

    def notes(self, name: str) -> Mapping[str, Any]:
        """A small JSON document that was kept under a name; empty where there is none.

        Raises:
            RunError: It is damaged.
        """
        path = self.path / f"{name}.json"
        if not path.is_file():
            return {}
        with naming_damage(path, _ANEW):
            document = dict(parse_json(path.read_text("utf-8")))
        return document

    def note(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep a small JSON document under a name."""
        self._write(f"{name}.json", (json.dumps(document) + "\n").encode())

    def _write(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        with self._on_disk():
            # Whoever was killed while writing left its file: models pile up otherwise.
            for torn in self.path.glob(f".{glob.escape(name)}.*"):
                torn.unlink(missing_ok=True)
            write_atomic(self.path / name, data, mode=mode)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror or error}",
                hint="make room, or give yourself permission to write there",
            ) from None
