"""Flower's ClientApp: one message per process; all else lies in the client's state folder."""

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
    """Reply to the server's hello: this client's id and architecture."""
    return _replied(message, context)


@app.train("step")
def step(message: Message, context: Context) -> Message:
    """Reply to a task request of a round."""
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
    """Reply of the node's own client, shown on its terminal."""
    from .joining import participant_at, told

    reply = participant_at(home).reply(request)
    told(home, request, reply)
    return reply


@functools.lru_cache(maxsize=256)  # a process of a simulation plays many clients, many times
def _simulated(path: Path, index: int) -> Participant:
    from fedvtc_edge.config import load_config
    from fedvtc_edge.distributed.client.keys import ClientKeys, DisclosurePolicy
    from fedvtc_edge.distributed.client.local_data import from_partition
    from fedvtc_edge.distributed.client.participant import Participant
    from fedvtc_edge.transport.keyring import FOLDER, KeyRing

    from .server_main import home_of

    config = load_config(path / "config.toml")
    name, keys = config.client_ids[index], KeyRing(config.client_ids, path / FOLDER)
    own = ClientKeys(name, keys.clients[name], keys.server.public, keys.trusted)
    return Participant(
        home_of(path, name),
        own,
        from_partition(index),
        index=index,
        policy=DisclosurePolicy(share_metrics=True),  # it is the simulator's own data
        run=path,
    )
