"""The ledger: every release of a client's data, on disk before it leaves.

The file is one JSON document at any time. Its closing bracket is overwritten by the entries of
an exchange and a new closing bracket, in one write: what a release costs does not grow with
those before it. Each entry carries a check over itself and the one before, and the end
says how many there are, so that a changed, removed or exchanged entry is seen. The checks are
against damage: who can write here can write anything.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import PrivacyError, RunError
from fedvtc_edge.storage.atomic import replace_tail, write_atomic

from .mechanism import Mechanism

SCHEMA = 2

_HEAD = f'{{"schema": {SCHEMA}, "releases": ['.encode()
_FIRST, _NEXT = b"\n  ", b"\n, "
"""In front of an entry: one that is durable ends before anything that is written after it."""
_FIELDS = {"round", "client", "kind", "bytes", "sha256", "mechanism", "epsilon", "check"}
_CHECK = 32
"""Hexadecimal digits of a check."""
_END = re.compile(rb'\n\], "entries": [0-9]+, "check": "[0-9a-f]*"\}\n\Z')


class Release(NamedTuple):
    """Bytes that are about to leave, and whose they are.

    Args:
        client: Who releases; the server where it noises a sum.
    """

    round: int
    client: str
    kind: str
    data: bytes


class Ledger:
    """``ledger.json`` of one run.

    Entries are written before the bytes are handed over, so that a crash can leave
    releases too many in it, never one too few. A resumed run repeats a round bit
    for bit: the same bytes again are the same release, other bytes are another.

    Where nothing is claimed, ``mechanism`` and ``epsilon`` are null: what is released
    is exact. Under a claim an entry beyond the budget is refused before it is written,
    and so before a byte leaves.

    Args:
        path: Of the file; nothing is read or written before :meth:`begin` or :meth:`reopen`.
        mechanism: Of the run, which says what releases cost and how many the budget
            allows; None where nothing is claimed.
    """

    def __init__(self, path: Path, mechanism: Mechanism | None = None) -> None:
        self.path = path
        self.mechanism = mechanism
        # Of a round and a kind it is the same for all clients, and an accountant's to find.
        self._epsilon_at = functools.cache(mechanism.epsilon_at if mechanism else _no_epsilon)
        self._forget()

    def begin(self) -> None:
        """Start the file: nothing was released."""
        self._forget()
        write_atomic(self.path, _HEAD + _closing(0, ""))

    def reopen(self) -> None:
        """Read back what an earlier process released.

        Entries that were being written when the machine stopped are cut off: nothing of them
        had left.

        Raises:
            RunError: The file is missing or damaged; it says at which entry.
        """
        self._forget()
        data, entries = self._read()
        for body, check in entries:
            self._take(body, check)
        self._size = len(_joined(entries))
        if data[self._size :] != self._closing:
            replace_tail(self.path, self._size, self._closing)

    @property
    def head(self) -> tuple[int, str]:
        """Number of entries, and the check of the last: what an earlier state can be held to."""
        return self._number, self._check

    def expect(self, number: int, check: str) -> None:
        """Refuse a file that lost what it held once.

        Args:
            number: An earlier :attr:`head`'s.
            check: Likewise.

        Raises:
            RunError: Its entry of that number is not there, or is another one.
        """
        checks = ["", *(entry[1] for entry in self._read()[1])]
        if number >= len(checks) or checks[number] != check:
            raise self._damaged(f"of {number} entries there are {len(checks) - 1}, or others")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Releases in order, from the file; their fields without the checks."""
        return [json.loads(body) for body, _ in self._read()[1]]

    def record(self, round_: int, client: str, kind: str, data: bytes) -> None:
        """Note that ``client`` is about to release ``data``; see :meth:`enter`."""
        self.enter([Release(round_, client, kind, data)])

    def enter(self, releases: Iterable[Release]) -> None:
        """Note what is about to be released: all of it is on disk when this returns, or none.

        Args:
            releases: Of one exchange; bytes that were released before cost nothing.

        Raises:
            PrivacyError: A budget is spent, and these are not the bytes it was spent on.
            RunError: The file was damaged meanwhile.
            OSError: The disk does not take them.
        """
        if not self._is_current():  # another process has entered something, or damaged it
            self.reopen()
        new: dict[bytes, str] = {}
        spent: Counter[tuple[str, str]] = Counter()
        for release in releases:
            body = self._body(release)
            name = _digest(body)
            if name not in self._known and name not in new:
                self._check_budget(release.client, release.kind, spent)
                spent[release.client, release.kind] += 1
                new[name] = body
        if new:
            self._append(list(new.values()))

    def _is_current(self) -> bool:
        """True while the file ends as this object left it."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._size)
                return file.read(len(self._closing) + 1) == self._closing
        except OSError:
            return False

    def _body(self, release: Release) -> str:
        mechanism, said, epsilon = self.mechanism, None, None
        if mechanism is not None and mechanism.is_release_of(release.client):
            said, epsilon = mechanism.claim.mechanism, self._epsilon_at(release.round, release.kind)
        elif mechanism is not None:
            bound = mechanism.spec.clip
            said = f"clipped to an L2 norm of {bound:g}, no noise: for the trusted server"
        return json.dumps(
            {
                "round": release.round,
                "client": release.client,
                "kind": release.kind,
                "bytes": len(release.data),
                "sha256": hashlib.sha256(release.data).hexdigest(),
                "mechanism": said,
                "epsilon": epsilon,
            }
        )

    def _check_budget(self, client: str, kind: str, more: Counter[tuple[str, str]]) -> None:
        mechanism = self.mechanism
        if mechanism is None or not mechanism.is_release_of(client):
            return
        allowed, by_kind = mechanism.spec.releases, mechanism.every_round
        kinds = {kind} if by_kind else {*self._kinds, *(known for _, known in more)}
        spent = sum(self._spent[client, each] + more[client, each] for each in kinds)
        if spent >= allowed:
            fits = f"{allowed} rounds fit" if by_kind else f"{allowed} release fits"
            raise PrivacyError(
                f"{client} has released {spent} times, epsilon {mechanism.claim.epsilon:g} is "
                "spent",
                hint=f"{fits} the budget; a retry sends the same bytes",
            )

    def _append(self, bodies: Sequence[str]) -> None:
        entries, check = [], self._check
        for body in bodies:
            check = _link(check, body)
            entries.append((body, check))
        added = _lines(entries, self._number)
        closing = _closing(self._number + len(entries), check)
        replace_tail(self.path, self._size, added + closing, before=self._closing)
        self._size += len(added)
        for body, check in entries:
            self._take(body, check)

    def _take(self, body: str, check: str) -> None:
        """Count an entry that is in the file."""
        fields = json.loads(body)
        self._known.add(_digest(body))
        self._spent[fields["client"], fields["kind"]] += 1
        self._kinds.add(fields["kind"])
        self._number += 1
        self._check = check

    def _forget(self) -> None:
        self._known: set[bytes] = set()
        self._spent: Counter[tuple[str, str]] = Counter()
        self._kinds: set[str] = set()
        self._number = 0
        self._check = ""
        self._size = len(_HEAD)  # up to the closing bracket

    @property
    def _closing(self) -> bytes:
        return _closing(self._number, self._check)

    def _read(self) -> tuple[bytes, list[tuple[str, str]]]:
        """The file, and its entries with their checks, as far as they are sound."""
        try:
            data = self.path.read_bytes()
        except OSError:
            data = b""
        if not data.startswith(_HEAD):
            other = data[: len(_HEAD)].startswith(b'{"schema": ')
            raise self._damaged("it is of another version" if other else "it is missing or cut")
        lines = data[len(_HEAD) :].split(b"\n")[1:]
        entries: list[tuple[str, str]] = []
        for line in lines:
            found = _parsed(line, entries[-1][1] if entries else "")
            if found is None:
                break
            entries.append(found)
        rest = data[len(_joined(entries)) :]
        closing = _closing(len(entries), entries[-1][1] if entries else "")
        begun = rest[:1] in (b"", b"\n") and (entries or len(rest) >= len(closing))
        torn = begun and not (_END.search(data) or _sound(lines[len(entries) :]))
        if not (data.startswith(_joined(entries)) and (rest.startswith(closing) or torn)):
            raise self._damaged(f"entry {len(entries) + 1} is damaged, missing or out of place")
        return data, entries

    def _damaged(self, why: str) -> RunError:
        return RunError(
            f"{self.path} does not say what was released: {why}",
            hint="the run cannot account for its releases any more: start a new one",
        )


def _no_epsilon(number: int, kind: str) -> float:
    raise AssertionError("nothing is claimed")


def _digest(body: str) -> bytes:
    return hashlib.sha256(body.encode()).digest()[:16]


def _link(before: str, body: str) -> str:
    """Check of an entry that follows one of the check ``before``."""
    return hashlib.sha256(f"{before}{body}".encode()).hexdigest()[:_CHECK]


def _line(body: str, check: str) -> bytes:
    return f'{body[:-1]}, "check": "{check}"}}'.encode()


def _joined(entries: Sequence[tuple[str, str]]) -> bytes:
    """The file up to its closing bracket."""
    return _HEAD + _lines(entries, 0)


def _lines(entries: Sequence[tuple[str, str]], before: int) -> bytes:
    """Entries as they follow so many others."""
    return b"".join(
        (_NEXT if number else _FIRST) + _line(body, check)
        for number, (body, check) in enumerate(entries, before)
    )


def _closing(number: int, check: str) -> bytes:
    return f'\n], "entries": {number}, "check": "{check}"}}\n'.encode()


def _fields(line: bytes) -> tuple[str, str] | None:
    """Body and check of a line that is an entry, whatever came before it."""
    text = line[len(_NEXT) - 1 :]
    try:
        entry = parse_json(text)
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            return None
        check = str(entry.pop("check"))
        body = json.dumps(entry)
    except ValueError:
        return None
    return (body, check) if _line(body, check) == text else None


def _parsed(line: bytes, before: str) -> tuple[str, str] | None:
    found = _fields(line)
    return found if found is not None and found[1] == _link(before, found[0]) else None


def _sound(lines: Sequence[bytes]) -> bool:
    """True where an entry follows another one as it was written: those before are not torn."""
    before: tuple[str, str] | None = None
    for line in lines:
        found = _fields(line)
        if found and before and found[1] == _link(before[1], found[0]):
            return True
        before = found
    return False
