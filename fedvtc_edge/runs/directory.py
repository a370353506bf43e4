"""The run directory: what a run leaves behind, and how it survives being killed.

A checkpoint is one small file, renamed into place after each round. It holds what the round
changed, and how long the journal of the rounds before it is: one line for each client that one of
them changed. Clients' weights lie in files of their own, which those lines name. Random draws come
from named streams, so no generator state is needed: a resumed run continues bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import ConfigError, RunError
from fedvtc_edge.privacy.ledger import Ledger, Release
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.storage.atomic import OWNER_ONLY, OWNER_ONLY_FOLDER, sync_files, write_atomic
from fedvtc_edge.storage.lock import LOCK, alone

from .checkpoint import decode, encode, naming_damage
from .journal import Journal
from .records import SCHEMA, RoundRecord
from .weights import WeightStore

AT_UPLOAD = "uploaded"
"""Name of a client's classifier as it was when the features of its last upload were measured."""

REFUSALS = "refusals.jsonl"
"""Log of refused uploads, in the server's folder."""

_TORN = re.compile(r"\..+\.(safetensors|upload|release|jsonl?|npz|html|key|pub|toml)\.[a-z0-9_]{8}")
"""Temporary files of :func:`write_atomic`, which a killed process leaves behind."""

NUMBER = re.compile(r"[0-9a-f]{32}")
"""Form of a run's random number."""


@dataclass
class Checkpoint:
    """All that a round depends on besides the configuration, the data and clients' weights.

    Args:
        record: Its line of metrics.jsonl; None of what happens before the first round.
        published: What the method has published, by kind.
        clients: What is known of each client, as a JSON object: of all, where it was read; of
            those that changed since the checkpoint before, where it is to be written.
        totals: Running totals that are not of one client.
    """

    round: int
    record: RoundRecord | None
    published: dict[str, bytes]
    clients: dict[str, dict[str, Any]]
    totals: dict[str, Any]


class RunDirectory:
    """One run on disk; made by :meth:`create`, :meth:`vacant` or :meth:`reopen`.

    Args:
        files: What else the run cannot do without, by name.
        number: Of the run, as it was drawn when it began; None draws one.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        files: Mapping[str, bytes] | None = None,
        number: str | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.number = number or new_number()
        self._files = files or {}
        self._ledger = Ledger(path / "ledger.json", mechanism_of(config))
        self._seen: list[Path] = []  # of the server's folder, since the last checkpoint
        self.weights = WeightStore(path / "checkpoint" / "weights")
        self._metrics = Journal(path / "metrics.jsonl")
        self._clients = Journal(self._journal(0))
        self._known: set[str] = set()
        self.begun = False

    @classmethod
    def vacant(
        cls, path: Path, config: Config, files: Mapping[str, bytes] | None = None
    ) -> RunDirectory:
        """A new or empty folder; nothing is written before :meth:`begin`.

        Args:
            path: The folder.
            files: What else the run cannot do without, by name.

        Raises:
            RunError: The folder holds something already.
        """
        if (path / "config.toml").exists():
            done = (path / "summary.json").exists()
            raise RunError(
                f"{path} holds {'a finished' if done else 'an unfinished'} run already",
                hint="choose another --out" if done else f"go on with it: --resume {path}",
            )
        check_empty(path)
        return cls(path, config, files)

    @classmethod
    def create(cls, path: Path, config: Config) -> RunDirectory:
        """:meth:`vacant` and :meth:`begin` in one."""
        run = cls.vacant(path, config)
        run.begin()
        return run

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """Open an existing run to go on with it.

        Raises:
            RunError: No run there, one that cannot be written, one of another version,
                or one whose settings or ledger are not what they were.
        """
        config, _ = settings_of(path)
        number = number_of(path)
        if not os.access(path, os.W_OK):
            raise RunError(f"cannot write {path}", hint="give yourself permission to write there")
        run = cls(path, config, number=number)
        run._ledger.reopen()
        run.begun = True
        return run

    @classmethod
    @contextmanager
    def resumed(cls, path: Path) -> Iterator[RunDirectory]:
        """Open an unfinished run for this process alone, to go on after its last checkpoint.

        Raises:
            RunError: As :meth:`reopen`; the run is finished, or another process works on it.
        """
        cls.reopen(path)  # is it one? A lock would make a file there
        with alone(path):
            run = cls.reopen(path)  # as it is now that nobody else writes there
            if run.finished:
                raise RunError(
                    f"{path} is finished already", hint=f"see it: fedvtc-edge report {path}"
                )
            yield run

    def begin(self) -> None:
        """Lay out the folder; a reopened one has been, and only loses what a kill left torn.

        Raises:
            RunError: The folder cannot be written.
        """
        if self.begun:
            for leftover in self.path.rglob(".*"):
                if _TORN.fullmatch(leftover.name):
                    leftover.unlink()
            return
        path = self.path
        self.vacant(path, self.config)  # still? somebody else may have come first
        try:
            for folder in ("checkpoint", "server", "clients"):
                (path / folder).mkdir(parents=True, exist_ok=True)
            os.chmod(path / "server", OWNER_ONLY_FOLDER)  # every client's statistics lie there
            self._ledger.begin()
            self.label()
            for name, content in self._files.items():
                write_atomic(path / name, content)
            write_atomic(path / "config.toml", as_toml(self.config))
        except OSError as error:
            raise _unwritable(path, error) from None
        self.begun = True

    def label(self) -> None:
        """Write which version, which settings and which run the folder is of."""
        made = {
            "schema": SCHEMA,
            "version": version(),
            "config": digest(self.config),
            "number": self.number,
        }
        write_atomic(self.path / "run.json", as_json(made))

    @property
    def name(self) -> str:
        """Public name of the run."""
        return public_name(self.config, self.number)

    @property
    def finished(self) -> bool:
        """True if the run has its summary."""
        return (self.path / "summary.json").is_file()

    def record(self, releases: Sequence[Release]) -> None:
        """Enter what is about to be released in the ledger."""
        self._ledger.enter(releases)

    def record_upload(self, round_: int, sender: str, kind: str, data: bytes) -> None:
        """Keep an upload exactly as the server sees it; on disk when its round is.

        A round that a crash takes back is repeated, and receives the same bytes.
        """
        folder = self.path / "server" / f"round-{round_:04d}"
        folder.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
        path = folder / f"{sender}.{kind}.upload"
        write_atomic(path, data, durable=False, mode=OWNER_ONLY)
        self._seen.append(path)

    def save(self, state: Checkpoint) -> None:
        """Write the checkpoint, then the round's line of metrics.jsonl, then drop the old one.

        What the server saw is on disk before, and the log of what it refused.
        """
        files = [self.path / "server" / REFUSALS, self._metrics.path, self._clients.path]
        files += [*self._seen, *self.weights.loose]
        sync_files([file for file in files if file.is_file()])
        self._seen, self.weights.loose = [], []
        self._known |= state.clients.keys()
        if self._clients.lines > 2 * len(self._known) + _SPARE_LINES:
            self._compact(state.round)
        metadata = {
            "schema": SCHEMA,
            "version": version(),
            "config": digest(self.config),
            "round": state.round,
            "record": state.record and state.record.document(),
            "totals": state.totals,
            "clients": state.clients,
            "journal": [self._clients.path.name, self._clients.size],
            "metrics": self._metrics.size,
            "ledger": self._ledger.head,
        }
        write_atomic(self._checkpoint(state.round), encode(metadata, state.published, {}))
        self._append(state)
        kept = {self._checkpoint(state.round), self._clients.path}
        for pattern in ("round-*.safetensors", "clients-*.jsonl"):
            for old in (self.path / "checkpoint").glob(pattern):
                if old not in kept:
                    old.unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None where no round was finished.

        Raises:
            RunError: It is damaged.
        """
        found = sorted((self.path / "checkpoint").glob("round-*.safetensors"))
        if not found:
            self._metrics.restore(0)  # a line may be of a round that must be done again
            return None
        with naming_damage(found[-1], "start the run again in a new folder"):
            kept, published, _ = decode(found[-1])
            record = kept["record"] and RoundRecord.model_validate(kept["record"])
            state = Checkpoint(kept["round"], record, published, kept["clients"], kept["totals"])
            if kept["config"] != digest(self.config):
                raise ValueError("it is of another run")
            (name, size), lines = kept["journal"], int(kept["metrics"])
            number, check = int(kept["ledger"][0]), str(kept["ledger"][1])
            if not _JOURNAL.fullmatch(name):
                raise ValueError(f"its journal is called {name!r:.80}")
        self._ledger.expect(number, check)  # one that was cut off looks like a torn one
        self._clients = Journal(self.path / "checkpoint" / name)
        self._metrics.check(lines)
        self._clients.restore(int(size))
        self._metrics.restore(lines)
        with naming_damage(self._clients.path, "start the run again in a new folder"):
            earlier = {line["id"]: line for line in map(parse_json, self._clients)}
        self._append(state)
        state.clients = {
            name: {key: value for key, value in line.items() if key != "id"}
            for name, line in (earlier | state.clients).items()
        }
        self._known = set(state.clients)
        return state

    def close(self) -> None:
        """Drop what nobody needs of a finished run: its weights lie in ``clients/`` too."""
        # Not the last checkpoint nor what it names: a server that is killed now finishes again.
        shutil.rmtree(self.path / "checkpoint" / "weights", ignore_errors=True)

    def sync(self) -> None:
        """Have all lines of metrics.jsonl on the disk: no resume will mend it."""
        if self._metrics.path.is_file():
            sync_files([self._metrics.path])

    def _append(self, state: Checkpoint) -> None:
        """Add a checkpoint's lines to the journals; it holds them until the next one."""
        self._clients.append([_line({"id": name, **kept}) for name, kept in state.clients.items()])
        if state.record is not None:
            self._metrics.append([_line(state.record.document())])

    def _compact(self, number: int) -> None:
        """Begin a journal of each client's last line; the old one counts until it is named."""
        last = {parse_json(line)["id"]: line for line in self._clients}
        self._clients = Journal(self._journal(number))
        self._clients.replace(list(last.values()))

    def _checkpoint(self, number: int) -> Path:
        return self.path / "checkpoint" / f"round-{number:06d}.safetensors"

    def _journal(self, number: int) -> Path:
        return self.path / "checkpoint" / f"clients-{number:06d}.jsonl"


_JOURNAL = re.compile(r"clients-[0-9]{6,}\.jsonl")

_SPARE_LINES = 1000
"""A journal may have so many lines more than two for each client before it is written anew."""


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, allow_nan=False)


@functools.cache  # reads the installed metadata, and every checkpoint asks
def version() -> str:
    """The installed version of fedvtc-edge."""
    return metadata.version("fedvtc-edge")


def check_empty(path: Path) -> None:
    """Refuse a folder for results that is not new or empty.

    Raises:
        RunError: It holds something, is a file, or cannot be read.
    """
    try:
        occupied = path.exists() and any(entry.name != LOCK for entry in path.iterdir())
    except NotADirectoryError:
        raise RunError(f"{path} is a file", hint="choose a new folder for --out") from None
    except OSError as error:
        raise _unwritable(path, error) from None
    if occupied:
        raise RunError(f"{path} is not empty", hint="choose a new folder for --out")


def settings_of(path: Path) -> tuple[Config, str]:
    """The settings that a run of this version was begun with, and their digest.

    A run goes on with the version that began it, or its statistics would change silently.

    Raises:
        RunError: No run there, one of another version, or one whose settings were changed.
    """
    if not (path / "config.toml").is_file():
        raise RunError(
            f"{path} holds no run (no config.toml)", hint="start one: fedvtc-edge run --out DIR"
        )
    try:
        made = parse_json((path / "run.json").read_text("utf-8"))
        schema, maker, begun_with = made["schema"], made["version"], made["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{path / 'run.json'} does not say which version made the run",
            hint="start a new run; this one is damaged or not of fedvtc-edge",
        ) from None
    if schema != SCHEMA or maker != version():
        raise RunError(
            f"{path} was made by fedvtc-edge {maker} (schema {schema}), this is {version()}",
            hint=f"pip install fedvtc-edge=={maker}, or start a new run",
        )
    try:
        config = load_config(path / "config.toml")
    except ConfigError as error:
        raise RunError(
            f"{path / 'config.toml'} is not one of this version: {error}", hint=error.hint
        ) from None
    if digest(config) != begun_with:
        raise RunError(
            f"{path / 'config.toml'} was changed since the run began",
            hint="restore it, or start a new run with the changed file",
        )
    return config, str(begun_with)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {path}: {error.strerror}", hint="choose another --out")


def digest(config: Config) -> str:
    """Digest of the run's settings."""
    return hashlib.sha256(as_toml(config)).hexdigest()


def new_number() -> str:
    """A random number for a run: 32 hexadecimal digits. No result depends on it."""
    return secrets.token_hex(16)


def number_of(path: Path) -> str:
    """The number of the run in a folder.

    Raises:
        RunError: ``run.json`` is damaged.
    """
    try:
        number = parse_json((path / "run.json").read_bytes())["number"]
    except (OSError, ValueError, KeyError, TypeError):
        number = None
    if not isinstance(number, str) or not NUMBER.fullmatch(number):
        raise RunError(f"{path / 'run.json'} does not say which run it is", hint="start a new run")
    return number


def public_name(config: Config, number: str) -> str:
    """Name of a run in what its clients upload: 32 digits of a digest of settings and number.

    Two runs with equal settings are two runs: what is uploaded to one counts in no other. An
    extractor's file goes into it by its hash, not by where a machine keeps it.

    Args:
        number: 32 hexadecimal digits, drawn when the run began.
    """
    if config.method.extractor_sha256:
        kind = "onnx" if config.method.extractor.endswith(".onnx") else config.method.extractor
        config = config.replace(method={"extractor": kind, "extractor_weights": ""})
    return hashlib.sha256(f"{digest(config)} {number}".encode()).hexdigest()[:32]


def as_toml(config: Config) -> bytes:
    """All settings as a file; the same bytes for the same run."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode()


def as_json(document: Mapping[str, Any]) -> bytes:
    """A document as a run's files hold it; NaN is not JSON and raises ValueError."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
