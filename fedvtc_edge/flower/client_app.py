"""A client as Flower runs it: one message, one process, all else in the client's home."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvtc_edge.distributed.orders import Answer, Order, Trouble
from fedvtc_edge.errors import FedVTCError

from .post import ANSWER, ORDER, record_of

if TYPE_CHECKING:
    from fedvtc_edge.distributed.member import Member

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
    try:
        order = Order.from_record(record_of(message, ORDER))
        answer = _member(context).answer(order)
    except FedVTCError as error:
        answer = Answer("", problem=f"{error} ({error.hint})", trouble=Trouble.REFUSED)
    content = RecordDict({ANSWER: ConfigRecord(dict(answer.to_record()))})
    return Message(content=content, reply_to=message)


def _member(context: Context) -> Member:
    """The node's own client; of a simulation, the one of its number."""
    home = context.node_config.get("home")
    if home is not None:
        from .joining import member_at

        return member_at(Path(str(home)))
    directory = Path(str(context.run_config["directory"]))
    return _simulated(directory, int(str(context.node_config["partition-id"])))


@functools.lru_cache(maxsize=256)  # a process of a simulation plays many clients, many times
def _simulated(path: Path, index: int) -> Member:
    from fedvtc_edge.assembly import client_ids
    from fedvtc_edge.config import load_config
    from fedvtc_edge.distributed.belongings import dealt
    from fedvtc_edge.distributed.member import Member
    from fedvtc_edge.distributed.party import Consent, Party
    from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList
    from fedvtc_edge.transport import FOLDER, TRUST

    from .directing import home_of

    config = load_config(path / "config.toml")
    name, keys = client_ids(config)[index], path / FOLDER
    party = Party(
        name,
        Identity.load(keys / f"{name}.key"),
        PublicIdentity.load(keys / "server.key.pub"),
        TrustList.load(keys / TRUST),
    )
    architectures = config.clients.architectures
    return Member(
        home_of(path, name),
        party,
        dealt(index),
        architecture=architectures[index % len(architectures)],
        consent=Consent(telling=True),  # it is the simulator's own data
    )
