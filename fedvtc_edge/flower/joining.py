"""``join``: one client on its own machine, with its own data, keys and state folder."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.distributed.client.consent import Conditions
from fedvtc_edge.distributed.client.keys import DisclosurePolicy
from fedvtc_edge.distributed.client.participant import Participant
from fedvtc_edge.distributed.client.state import ClientState
from fedvtc_edge.distributed.events import Reader, Writer
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    HELLO,
    SHUTDOWN,
    Status,
    TaskReply,
    TaskRequest,
)
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import DeploymentError, RunError
from fedvtc_edge.progress import Progress
from fedvtc_edge.sealing import signing
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.storage.lock import alone

from .access.checks import check_node_key
from .access.keys import ClientKeyBundle
from .access.reachability import check_reachable
from .error_patterns import explain
from .process.app_bundle import write_app
from .process.supernode import SuperNode

if TYPE_CHECKING:
    from fedvtc_edge.distributed.client.local_data import LocalData

EVENTS, MEMBERSHIP, NODE = "events.jsonl", "join.json", "flower"

_MEND = "mend that, and give the same command again"
_LOOK_S = 0.2
_SILENT_S = 10.0
_SENDING_S = 30.0
_COUNTS_S, _AGAIN_S = 75.0, 5.0
_NOT_LET_IN = "Failed to activate SuperNode"  # flower-supernode 1.42
_SENT = "Sent successfully"  # flower-supernode 1.42, of the last answer


@dataclass(frozen=True)
class JoinSettings:
    """Settings for the processes that Flower starts for a client; paths, and no secrets.

    Args:
        authority: Certificate that must have signed the server's.
        identity: Private identity.
        server: The server's public identity.
        trust: Trust list of all clients.
        data: The client's own images, or empty for its share of the built-in data that the
            server names.
        architecture: Of its network, or empty for the one that the settings give it.
        settings: File of the only settings that it accepts, or empty for any.
        extractor: The client's own file of the run's extractor, or empty.
        exact: Whether it takes part without a privacy mode.
        private: Whether what leaves it must carry its noise already.
        most_epsilon: The largest ε that it accepts, or None.
        spend_again: Whether data may be released that were released before.
    """

    authority: str
    node_key: str
    identity: str
    server: str
    trust: str
    data: str = ""
    architecture: str = ""
    settings: str = ""
    telling: bool | None = None
    extractor: str = ""
    exact: bool = False
    private: bool = False
    most_epsilon: float | None = None
    spend_again: bool = False

    @property
    def kit(self) -> ClientKeyBundle:
        """Its keys' paths.

        Raises:
            DeploymentError: One is missing.
        """
        return ClientKeyBundle(
            *(
                Path(path)
                for path in (self.authority, self.node_key, self.identity, self.server, self.trust)
            )
        )

    def save(self, home: Path) -> None:
        """Write it into a home."""
        home.mkdir(parents=True, exist_ok=True)
        write_atomic(home / MEMBERSHIP, (json.dumps(asdict(self)) + "\n").encode())

    @classmethod
    def load(cls, home: Path) -> JoinSettings:
        """Read what :meth:`save` wrote.

        Raises:
            RunError: It is missing or damaged.
        """
        try:
            return cls(**parse_json((home / MEMBERSHIP).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            raise RunError(
                f"{home / MEMBERSHIP} is missing or damaged", hint="give the join command again"
            ) from None


def participant_at(home: Path) -> Participant:
    """The client whose state lies in a folder.

    Raises:
        FedVTCError: Keys or settings that cannot be used.
    """
    own = JoinSettings.load(home)
    party = own.kit.open(os.environ.get(signing.PASSPHRASE))
    assert party.trusted is not None  # a kit has a list
    index = party.trusted.clients.index(party.client)

    def source(config: Config, terms: DataTerms) -> LocalData:
        # Most messages of a masked sum need no data, and so no torch, which takes seconds.
        from fedvtc_edge.distributed.client.local_data import from_builtin, from_path

        read = from_path(Path(own.data)) if own.data else from_builtin(index)
        return read(config, terms)

    return Participant(
        ClientState(home, party.client),
        party,
        source,
        architecture=own.architecture or None,
        index=index,
        policy=DisclosurePolicy(
            # As serve does with the same file; the run's name hashes every setting.
            load_config(own.settings, overrides=["engine.name=flower"]) if own.settings else None,
            own.telling,
            Conditions(own.exact, own.private, own.most_epsilon, own.spend_again),
        ),
        extractor=own.extractor,
        say=Writer(home / EVENTS).say,
    )


def told(home: Path, request: TaskRequest, reply: TaskReply) -> None:
    """Tell the client's terminal what was asked and answered."""
    events = Writer(home / EVENTS)
    joining = request.context.kind in (HELLO, DISMISSAL)
    where = f"run {request.context.run}" if joining else request.words
    if reply.status is Status.REFUSED and joining:
        # What is not agreed on now will not be by waiting: the command ends with the reason.
        problem = DeploymentError(f"{where}: no part taken: {reply.problem}", hint=_MEND)
        events.failed(problem)
    elif reply.status is Status.REFUSED:
        events.say(f"{where}: no part taken: {reply.problem}")
    elif reply.status is Status.NONE:
        what = "joined" if request.context.kind == HELLO else "answered"
        events.say(f"{where}: {what}, {len(reply.envelope) / 1000:.1f} kB sealed")
        if request.context.kind == SHUTDOWN:
            events.done()


def join(
    membership: JoinSettings,
    home: Path,
    host: str,
    port: int,
    progress: Progress,
    *,
    wait_s: float = 0.0,
) -> str:
    """Take part in a run until its last round; a home that was cut off goes on.

    Args:
        home: The client's folder; made when there is none.
        host: Name of the server, as its certificate has it.
        wait_s: How long to wait for a server that is not there yet.

    Returns:
        The client's id.

    Raises:
        DeploymentError: The server cannot be reached or is not the right one, or does not
            know this node; or this client cannot take part in its run.
        Busy: Another process lives in the home.
    """
    kit = membership.kit
    party = kit.open(os.environ.get(signing.PASSPHRASE))
    check_node_key(kit.node_key)
    _reach(host, port, kit.authority, wait_s, progress)
    membership.save(home)
    app = home / NODE / "app"
    app.parent.mkdir(exist_ok=True)
    with alone(home / NODE):
        write_app(app, config={"directory": ""})
        reader = Reader(home / EVENTS, progress)
        # A node that was killed counts as connected for a minute, and is not let in twice.
        known = (home / EVENTS).exists()
        until = time.monotonic() + (_COUNTS_S if known else 0.0)
        while True:
            node = SuperNode(
                home / NODE,
                superlink=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                authority=kit.authority,
                node_key=kit.node_key,
                node_config={"home": str(home.resolve())},
                app=app,
            )
            progress.say(f"{party.client} is waiting for orders of {host}:{port}")
            with node:
                if _lived(node, reader, progress):
                    return party.client
                tail = node.tail()
            error = explain(tail) or DeploymentError(
                f"Flower's node ended. It said:\n{tail}", hint=f"see {node.log}"
            )
            if _NOT_LET_IN not in tail or time.monotonic() >= until:
                raise error
            progress.say("not let in: the server counts this node as connected; trying again")
            time.sleep(_AGAIN_S)


def _lived(node: SuperNode, reader: Reader, progress: Progress) -> bool:
    """Show what happens until the run is done; False if the node ended before."""
    heard, told_so = time.monotonic(), False
    while reader.relay() >= 0:
        if not node.alive():
            return False
        if not node.cut_off():
            heard = time.monotonic()
            if told_so:
                progress.say("the server is back")
                told_so = False
        elif not told_so and time.monotonic() - heard >= _SILENT_S:
            # It may be back in a minute, or its run may be over without a farewell.
            progress.say("the server does not answer; it is called until it does, or Ctrl-C")
            told_so = True
        time.sleep(_LOOK_S)
    # The last answer was made; it has left when Flower says so.
    until = time.monotonic() + _SENDING_S
    while node.alive() and _SENT not in node.tail(3) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    return True


def _reach(host: str, port: int, authority: Path, wait_s: float, progress: Progress) -> None:
    until, told_so = time.monotonic() + wait_s, False
    while True:
        try:
            check_reachable(host, port, authority)
        except DeploymentError:
            if time.monotonic() >= until:
                raise
            if not told_so:
                progress.say(f"waiting for a server at {host}:{port}")
                told_so = True
            time.sleep(1.0)
        else:
            return
