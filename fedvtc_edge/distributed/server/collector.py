"""One phase: requests out, one envelope per client in, closed when all or enough replied.

A journal says which phases of the open round are closed, and with whom, before anybody is told:
what a phase published follows from the envelopes in the inbox and from who was in when it
closed. A server that is killed closes the same phases again with the same clients, so that no
client is asked to take part in a second, other sum.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedvtc_edge.distributed.mailbox import Mailbox, NodeReply
from fedvtc_edge.distributed.messages import HELLO, RequestError, Status, TaskRequest
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import EnvelopeError, FedVTCError, RunError, ServerError
from fedvtc_edge.federation.server import Refuse
from fedvtc_edge.sealing import Inbox
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.wire.context import Context

from .registry import ClientRegistry, some

_WAIT_S = 0.5
_TELL_S = 10.0
_AWAY_S = 3.0
_FEW = 20


@dataclass
class Collector:
    """Collects the answers of one phase after the other.

    Guarantee: each client counts once in each phase, whatever is lost or sent again and
    whoever is killed: an envelope counts when it is in the inbox, and a phase is closed
    in the journal before anything that follows from it is sent.

    Args:
        mailbox: Carries orders.
        registry: Knows which client is where.
        deadline_s: How long a phase waits for those that do not answer.
    """

    mailbox: Mailbox
    registry: ClientRegistry
    inbox: Inbox
    journal: Journal
    deadline_s: float
    refuse: Refuse
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._sent: dict[str, set[str]] = {}

    def collect(
        self,
        phase: int,
        requests: Mapping[str, TaskRequest],
        *,
        least: int,
        enough: int | None = None,
        calls: int = 1,
    ) -> dict[str, int]:
        """Ask clients, and wait for their envelopes, which lie in the inbox then.

        Args:
            phase: Its number in its round.
            requests: By client; all of one round and kind.
            least: So many must be heard, or the phase is not closed.
            enough: With so many, nobody is waited for who is not connected; None is
                ``least``. Of those who are asked more than once, all are waited for.
            calls: How often those that are silent are asked, each for :attr:`deadline_s`.

        Returns:
            Bytes of the envelopes of those that were heard, in the order of the requests.

        Raises:
            ServerError: Too few were heard. What was heard is kept: asked again, the
                phase goes on.
            RunError: An envelope that counted is not there any more.
        """
        first = next(iter(requests.values()), None)
        if first is None:
            return {}
        number = first.context.round
        closed = self.journal.closed(number, phase)
        names = closed if closed is not None else tuple(requests)
        heard = self._kept(names, requests, counted=closed is not None)
        if closed is not None:
            lost = [name for name in closed if name not in heard]
            if lost:
                raise _lost(some(lost), number)
            return heard
        waiting = {name: request for name, request in requests.items() if name not in heard}
        for call in range(calls):
            if waiting:
                known = least if enough is None else enough
                contented = max(known, 1) if calls == 1 else len(requests)
                self._call(first, waiting, heard, len(requests), contented, again=call > 0)
        if len(heard) < least:
            raise ServerError(
                f"{first.words}: {len(heard)} of {len(requests)} clients answered, "
                f"the quorum is {least}; silent: {some(sorted(waiting)) or 'none'}",
                hint="start the clients that are missing and resume, or lower server.quorum",
            )
        answered = {name: heard[name] for name in requests if name in heard}
        self.journal.close(number, phase, tuple(answered))
        return answered

    def received(self, context: Context) -> tuple[bytes, int]:
        """The payload of an envelope that counted, and the envelope's size.

        Raises:
            RunError: It is damaged, or not there any more.
        """
        found = self.inbox.find(context, counted=True)
        if found is None:
            raise _lost(context.sender, context.round)
        return found

    def _kept(
        self, names: Sequence[str], requests: Mapping[str, TaskRequest], *, counted: bool
    ) -> dict[str, int]:
        heard = {}
        for name in names:
            if name in requests:
                found = self.inbox.find(requests[name].context, counted=counted)
                if found is not None:
                    heard[name] = found[1]
        return heard

    def _call(
        self,
        first: TaskRequest,
        waiting: dict[str, TaskRequest],
        heard: dict[str, int],
        total: int,
        contented: int,
        *,
        again: bool,
    ) -> None:
        """Ask those in ``waiting`` and move them to ``heard`` until all are, or time is up."""
        where, number = first.words, first.context.round
        if again:
            self.say(f"{where}: asking {some(sorted(waiting))} again")
        asked, away = set(waiting), dict.fromkeys(waiting, float("-inf"))
        busy: dict[str, float] = {}
        lacked: set[str] = set()
        until, told = time.monotonic() + self.deadline_s, time.monotonic()
        while (late := asked & waiting.keys()) and time.monotonic() < until:
            self.registry.identify_nodes(number)
            self._send_to_those_back(waiting, away)
            self._send_to_those_back(waiting, busy)
            # With enough of them, nobody is waited for who cannot even be asked.
            enough = len(heard) >= contented
            if enough and late <= away.keys() and self.registry.are_gone(late):
                self.say(f"{where}: closed without {some(sorted(late))}, not connected")
                return
            replied: dict[str, bytes] = {}
            for arrived in self.mailbox.receive(min(_WAIT_S, self.deadline_s)):
                self._sort_in(arrived, waiting, replied, asked, away, busy, lacked)
            for name in self._received(replied, waiting, asked):
                heard[name] = len(replied[name])
                del waiting[name]
                late.discard(name)
                left = f", waiting for {_named(late)}" if late else ""
                self.say(f"{where}: {name} answered ({len(heard)} of {total}){left}")
            if late and time.monotonic() - told >= _TELL_S:
                told = time.monotonic()
                left_s = max(until - told, 0.0)
                self.say(f"{where}: waiting for {_named(late)}, {left_s:.0f} s to the deadline")

    def _send_to_those_back(
        self, waiting: Mapping[str, TaskRequest], away: dict[str, float]
    ) -> None:
        """Orders to those that are connected: not sent before, or a while ago in vain."""
        now = time.monotonic()
        back = {
            name: waiting[name]
            for name, since in away.items()
            if name in waiting and now - since >= _AWAY_S and self.registry.node(name) is not None
        }
        if back:
            self._send(back)
        for name in back:
            del away[name]

    def _sort_in(
        self,
        arrived: NodeReply,
        waiting: Mapping[str, TaskRequest],
        replied: dict[str, bytes],
        asked: set[str],
        away: dict[str, float],
        busy: dict[str, float],
        lacked: set[str],
    ) -> None:
        """Take one reply; an envelope is put beside the others that came with it."""
        if arrived.request.context.kind == HELLO:
            self.registry.handle_reply(arrived)
            return
        name, request = arrived.request.context.sender, waiting.get(arrived.request.context.sender)
        if request is None or name in replied or arrived.request.digest != request.digest:
            return  # late, or a second time: what counts is in the inbox
        reply = arrived.reply
        if reply.status is Status.BUSY:
            busy[name] = time.monotonic()  # asked again when it may be done
            return
        if reply.status is Status.UNREACHABLE:
            away[name] = time.monotonic()  # asked again when it is back
            return
        if reply.status is Status.MISSING_INPUT and name not in lacked:
            lacked.add(name)  # once: who lacks what it was just sent would be sent it for ever
            self._sent.pop(name, None)
            self._send({name: request})
            return
        if reply.status is Status.NONE:
            replied[name] = reply.envelope
        else:
            error = RequestError(reply.problem, hint="see the client's terminal")
            self._give_up(name, request, error, asked)

    def _received(
        self, replied: Mapping[str, bytes], waiting: Mapping[str, TaskRequest], asked: set[str]
    ) -> list[str]:
        """Put envelopes that came together into the inbox; whose of them count."""
        sent = [(waiting[name].context, envelope) for name, envelope in replied.items()]
        counted = []
        for name, receipt in zip(replied, self.inbox.receive_all(sent), strict=True):
            if isinstance(receipt, EnvelopeError):
                self._give_up(name, waiting[name], receipt, asked)
            else:
                counted.append(name)
        return counted

    def _give_up(
        self, name: str, request: TaskRequest, error: FedVTCError, asked: set[str]
    ) -> None:
        """Wait no more for a client; asked again, it may say something else."""
        self.refuse(request.context, error, None)
        self.say(f"{request.words}: {name} takes no part: {error}")
        asked.discard(name)

    def _send(self, requests: Mapping[str, TaskRequest]) -> None:
        """Send what each client may lack along, and nothing that it was sent before."""
        addressed = {}
        for name, request in requests.items():
            node = self.registry.node(name)
            if node is not None:
                sent = self._sent.get(name, set())
                lacking = {
                    kind: data
                    for kind, data in request.published.items()
                    if request.digests[kind] not in sent
                }
                self._sent[name] = set(request.digests.values())
                addressed[node] = replace(request, published=lacking)
        self.mailbox.send(addressed)


def _named(names: set[str]) -> str:
    """The names of a few, or how many they are: said after each that answers."""
    return some(sorted(names)) if len(names) <= _FEW else f"{len(names)} more"


def _lost(names: str, number: int) -> RunError:
    return RunError(
        f"what {names} uploaded in round {number} is not there any more",
        hint="restore the inbox from a copy, or start a new run",
    )


SCHEMA = 1


class Journal:
    """The closings of one round.

    Args:
        path: The file; made with the first closing.
        run: Public name of the run.

    Raises:
        RunError: The file is damaged, or another run's.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self._run = run
        self._round = -1
        self._closings: list[tuple[str, ...]] = []
        if path.is_file():
            self._read()

    def closed(self, number: int, phase: int) -> tuple[str, ...] | None:
        """Clients counted in a closed phase of a round; None for an open one."""
        if number != self._round or phase >= len(self._closings):
            return None
        return self._closings[phase]

    def close(self, number: int, phase: int, heard: Sequence[str]) -> None:
        """Close a phase; with the first one of a round the round before is forgotten.

        Raises:
            RunError: The disk does not take it.
            ValueError: A phase out of order.
        """
        before = self._closings if number == self._round else []
        if phase != len(before):
            raise ValueError(f"phase {phase} of round {number} after {len(before)}")
        closings = [*before, tuple(heard)]
        document = {"schema": SCHEMA, "run": self._run, "round": number, "closed": closings}
        try:
            write_atomic(self.path, (json.dumps(document) + "\n").encode())
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}", hint="make room, then resume"
            ) from None
        self._round, self._closings = number, closings

    def _read(self) -> None:
        try:
            found = parse_json(self.path.read_text("utf-8"))
            if (found["schema"], found["run"]) != (SCHEMA, self._run):
                raise ValueError("another run")
            self._round = int(found["round"])
            self._closings = [tuple(map(str, heard)) for heard in found["closed"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(
                f"{self.path} does not say which phases of run {self._run} are closed",
                hint="restore it from a copy, or start a new run",
            ) from None
