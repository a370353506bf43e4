"""A client as Flower runs it: one message, one process, all else in the client's home."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvtc_edge.distributed.messages import Answer, Order
from fedvtc_edge.errors import FedVTCError

from .grid_mailbox import ANSWER, ORDER, record_of

if TYPE_CHECKING:
    from fedvtc_edge.distributed.client.participant import Member

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
        order = Order.from_record(record_of(message, ORDER))
        if home is None:
            answer = _simulated(
                Path(str(context.run_config["directory"])),
                int(str(context.node_config["partition-id"])),
            ).answer(order)
        else:
            answer = _at(Path(str(home)), order)
    except FedVTCError as error:
        answer = Answer.refusal("", error)  # keys' paths are nobody else's business
    content = RecordDict({ANSWER: ConfigRecord(dict(answer.to_record()))})
    return Message(content=content, reply_to=message)


def _at(home: Path, order: Order) -> Answer:
    """Of the node's own client; its terminal is told."""
    from .joining import member_at, told

    answer = member_at(home).answer(order)
    told(home, order, answer)
    return answer


@functools.lru_cache(maxsize=256)  # a process of a simulation plays many clients, many times
def _simulated(path: Path, index: int) -> Member:
    from fedvtc_edge.config import client_ids, load_config
    from fedvtc_edge.distributed.client.keys import Consent, Party
    from fedvtc_edge.distributed.client.local_data import dealt
    from fedvtc_edge.distributed.client.participant import Member
    from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList
    from fedvtc_edge.transport.keyring import FOLDER, TRUST

    from .server_app import home_of

    config = load_config(path / "config.toml")
    name, keys = client_ids(config)[index], path / FOLDER
    party = Party(
        name,
        Identity.load(keys / f"{name}.key"),
        PublicIdentity.load(keys / "server.key.pub"),
        TrustList.load(keys / TRUST),
    )
    return Member(
        home_of(path, name),
        party,
        dealt(index),
        index=index,
        consent=Consent(telling=True),  # it is the simulator's own data
    )
