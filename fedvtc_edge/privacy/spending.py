"""Memory of what was released of whose data on this machine, across runs and folders.

A ledger belongs to one run, and the ε of a run is not that of the data: a second run on the same
records spends again. So each release under a privacy mode is noted in the user's state folder,
before anything leaves, with marks by which the records are known again::

    $XDG_STATE_HOME/fedvtc-edge/spending.json    releases, and marks of the records (0600)
    $XDG_STATE_HOME/fedvtc-edge/spending.key     the key of the marks (0600)

A mark is a keyed hash of one image: without the key it tells nothing, not even of data so few
that all could be tried. What was resized or encoded anew is not known again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import FedVTCError, PrivacyError, RunError
from fedvtc_edge.storage.atomic import OWNER_ONLY, OWNER_ONLY_FOLDER, write_atomic

from .accountant import ComposedStep, epsilon_spent
from .claim import UNITS
from .mechanism import Mechanism

SCHEMA = 1
MARKS = 64
"""Marks that are kept of a release: those of the least hashes, a fair sample of its records."""

SHARE = 20
"""Of so many kept marks one must come back for the data to be the same; single images, such as
blank ones, are in many data sets."""

MOST_RELEASES, LARGEST = 10_000, 32 * 2**20
_KEY_BYTES, _MARK_BYTES, _WAIT_S = 32, 8, 60.0
_FILE, _KEY, _LOCK = "spending.json", "spending.key", "spending.lock"


class SpentError(FedVTCError):
    """A second release of the same data, which nobody has agreed to."""


def state_folder() -> Path:
    """Folder of this user's state, as the platform has it; not made."""
    given = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(given):  # the specification has relative ones ignored
        return Path(given) / "fedvtc-edge"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "fedvtc-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "fedvtc-edge"
    return Path.home() / ".local" / "state" / "fedvtc-edge"


@dataclass(frozen=True)
class Spent:
    """Releases of one run of one data set.

    Args:
        run: Public name of the run, or words for one that has none.
        token: Of the folder that keeps the releases: from there the same bytes leave again.
        unit: ``example`` or ``client``.
        steps: Noise multiplier, sampling rate and number of all that a unit goes through.
    """

    run: str
    token: str
    unit: str
    delta: float
    steps: tuple[ComposedStep, ...]

    @classmethod
    def of(cls, mechanism: Mechanism, run: str, token: str) -> Spent:
        """All that a run may release under its mechanism, counted before it does."""
        delta = mechanism.config.privacy.delta
        return cls(run, token, mechanism.unit, delta, tuple(mechanism.steps()))


def total_epsilon(releases: Sequence[Spent], delta: float) -> float:
    """ε at δ of one unit of data that all of these releases are of; infinite beyond 1000.

    Composed exactly, or bounded from above where steps are sampled. Where an example and a
    client are the units, it is one example's: that changes a clipped upload of a whole client by
    twice the bound at most.
    """
    mixed = len({each.unit for each in releases}) > 1
    steps = [
        (noise / 2 if mixed and each.unit == "client" else noise, rate, number)
        for each in releases
        for noise, rate, number in each.steps
    ]
    try:
        return epsilon_spent(steps, delta)
    except PrivacyError:
        return math.inf


class Spending:
    """Releases under a privacy mode that were made on this machine, by this user.

    Guarantee: a release is on the disk when :meth:`enter` returns, whoever is killed afterwards,
    and two processes do not pass each other.

    Args:
        folder: Of the files; None is the user's state folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = state_folder() if folder is None else folder

    def enter(
        self, spent: Spent, images: NDArray[np.uint8], *, again: bool, dry: bool = False
    ) -> str:
        """Note a release of these images; the same one a second time changes nothing.

        Args:
            images: uint8 [N, H, W, C], as they lie on the disk.
            again: Whether a second release of the same data is agreed to.
            dry: Whether it is looked up and not noted.

        Returns:
            What was released of them before, in words; empty where nothing was.

        Raises:
            SpentError: The same data were released before, and ``again`` is not given.
            RunError: The folder cannot be written, or its files are damaged.
        """
        with self._locked():
            entries = self._read()
            marks = self._marks(images)
            if any(entry["token"] == spent.token for entry, _ in entries):
                return ""  # a resumed run: its kept releases are sent again
            known = set(marks)
            earlier = [
                each
                for entry, each in entries
                if sum(mark in known for mark in entry["marks"]) * SHARE >= len(entry["marks"]) > 0
            ]
            words = _in_words(earlier, spent) if earlier else ""
            if earlier and not again:
                raise SpentError(words, hint="join with --spend-again if that is meant")
            if not dry:
                self._append(entries, spent, sorted(marks)[:MARKS])
        return words

    def _append(
        self, entries: list[tuple[dict[str, Any], Spent]], spent: Spent, marks: list[str]
    ) -> None:
        if len(entries) >= MOST_RELEASES:
            raise RunError(
                f"{self.folder / _FILE} holds {len(entries)} releases, as many as it may",
                hint="put it away under another name, and remember what it says",
            )
        made = {
            "run": spent.run,
            "token": spent.token,
            "unit": spent.unit,
            "delta": spent.delta,
            "steps": [list(step) for step in spent.steps],
            "marks": marks,
        }
        lines = ",\n  ".join(json.dumps(entry) for entry in [*(e for e, _ in entries), made])
        document = f'{{"schema": {SCHEMA}, "releases": [\n  {lines}\n]}}\n'
        write_atomic(self.folder / _FILE, document.encode(), mode=OWNER_ONLY)

    def _read(self) -> list[tuple[dict[str, Any], Spent]]:
        path = self.folder / _FILE
        if not path.exists():
            return []
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
            document = parse_json(data) if len(data) <= LARGEST else {}
            if document["schema"] != SCHEMA:
                raise ValueError("another schema")
            return [(entry, _spent_of(entry)) for entry in document["releases"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RunError(
                f"{path} does not say what was released of your data before",
                hint="restore it from a copy; without it nobody knows what is spent",
            ) from None

    def _marks(self, images: NDArray[np.uint8]) -> list[str]:
        key = self._secret()
        return [
            hashlib.blake2b(
                np.ascontiguousarray(image).tobytes(), digest_size=_MARK_BYTES, key=key
            ).hexdigest()
            for image in images
        ]

    def _secret(self) -> bytes:
        path = self.folder / _KEY
        if not path.exists():
            if (self.folder / _FILE).exists():
                raise RunError(
                    f"{path} is gone: data that were released before are not known again",
                    hint="restore it from a copy",
                )
            write_atomic(path, secrets.token_bytes(_KEY_BYTES), mode=OWNER_ONLY)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise RunError(f"{path} is damaged", hint="restore it from a copy")
        return key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
            with FileLock(self.folder / _LOCK, timeout=_WAIT_S, mode=OWNER_ONLY):
                yield
        except Timeout:
            raise RunError(
                f"another process holds {self.folder / _LOCK}", hint="wait until it is done"
            ) from None
        except OSError as error:
            raise RunError(
                f"cannot keep in {self.folder} what is released: {error.strerror or error}",
                hint="make it writable, or set XDG_STATE_HOME to a folder that is",
            ) from None


def _spent_of(entry: dict[str, Any]) -> Spent:
    """A release as the file has it.

    Raises what :meth:`Spending._read` catches.
    """
    steps = tuple(
        (float(noise), float(rate), int(number)) for noise, rate, number in entry["steps"]
    )
    texts = [entry["run"], entry["token"], entry["unit"], *entry["marks"]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("texts")
    return Spent(entry["run"], entry["token"], entry["unit"], float(entry["delta"]), steps)


def _in_words(earlier: list[Spent], spent: Spent) -> str:
    """Sentence on what all together would spend."""
    alone = total_epsilon([spent], spent.delta)
    unit = UNITS["example" if "example" in {each.unit for each in [*earlier, spent]} else "client"]
    together = total_epsilon([*earlier, spent], spent.delta)
    total = f"epsilon {together:.3g}" if together < math.inf else "an epsilon above 1000"
    times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
    return (
        f"these data were released {times} before, last in run {earlier[-1].run:.40}: with this "
        f"run they would spend {total} at delta {spent.delta:g} in all, not {alone:.3g}, per {unit}"
    )
