"""A client as Flower runs it: one message, one process, all else in the client's home."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvtc_edge.distributed.messages import TaskReply, TaskRequest
from fedvtc_edge.errors import FedVTCError

from .grid_mailbox import ANSWER, ORDER, record_of

if TYPE_CHECKING:
    from fedvtc_edge.distributed.client.participant import Participant

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who is here, if this client takes part."""
    return _replied(message, context)


@app.train("step")
def step(message: Message, context: Context) -> Message:
    """Whatever a phase of a round asks for."""
    return _replied(message, context)


def _replied(message: Message, context: Context) -> Message:
    home = context.node_config.get("home")
    try:
        request = TaskRequest.from_record(record_of(message, ORDER))
        if home is None:
            reply = _simulated(
                Path(str(context.run_config["directory"])),
                int(str(context.node_config["partition-id"])),
            ).reply(request)
        else:
            reply = _at(Path(str(home)), request)
    except FedVTCError as error:
        reply = TaskReply.refusal("", error)  # keys' paths are nobody else's business
    content = RecordDict({ANSWER: ConfigRecord(dict(reply.to_record()))})
    return Message(content=content, reply_to=message)


def _at(home: Path, request: TaskRequest) -> TaskReply:
    """Of the node's own client; its terminal is told."""
    from .joining import member_at, told

    reply = member_at(home).reply(request)
    told(home, request, reply)
    return reply


@functools.lru_cache(maxsize=256)  # a process of a simulation plays many clients, many times
def _simulated(path: Path, index: int) -> Participant:
    from fedvtc_edge.config import client_ids, load_config
    from fedvtc_edge.distributed.client.keys import ClientKeys, DisclosurePolicy
    from fedvtc_edge.distributed.client.local_data import from_partition
    from fedvtc_edge.distributed.client.participant import Participant
    from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList
    from fedvtc_edge.transport.keyring import FOLDER, TRUST

    from .server_app import home_of

    config = load_config(path / "config.toml")
    name, keys = client_ids(config)[index], path / FOLDER
    party = ClientKeys(
        name,
        Identity.load(keys / f"{name}.key"),
        PublicIdentity.load(keys / "server.key.pub"),
        TrustList.load(keys / TRUST),
    )
    return Participant(
        home_of(path, name),
        party,
        from_partition(index),
        index=index,
        policy=DisclosurePolicy(share_metrics=True),  # it is the simulator's own data
    )
