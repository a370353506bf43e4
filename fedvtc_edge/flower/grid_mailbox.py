"""Flower's grid as a mailbox: task requests and replies as records of messages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedvtc_edge.distributed.mailbox import NodeReply
from fedvtc_edge.distributed.messages import (
    HELLO,
    Record,
    RequestError,
    Status,
    TaskReply,
    TaskRequest,
)
from fedvtc_edge.errors import FedVTCError

ORDER, ANSWER = "order", "answer"
QUERY, TRAIN = "query.hello", "train.step"
"""Message types; Flower's own mods, none of which is used, know others."""

_UNREACHED = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
_ASK_AGAIN_S = 0.2
_NODES_S = 1.0


class GridMailbox:
    """A :class:`~fedvtc_edge.distributed.mailbox.Mailbox` over a grid.

    Args:
        grid: Flower's, of the run that goes on.
        ttl_s: How long Flower keeps a message for a node that does not fetch it.
    """

    def __init__(self, grid: Grid, ttl_s: float) -> None:
        self._grid = grid
        self._ttl_s = ttl_s
        self._open: dict[str, tuple[int, TaskRequest]] = {}
        self._nodes: frozenset[int] = frozenset()
        self._asked = float("-inf")

    def nodes(self) -> frozenset[int]:
        """Nodes whose heartbeat Flower has heard; asked once a second at most."""
        if time.monotonic() - self._asked > _NODES_S:
            self._nodes = frozenset(self._grid.get_node_ids())
            self._asked = time.monotonic()
        return self._nodes

    def send(self, requests: Mapping[int, TaskRequest]) -> None:
        """One message per task request."""
        messages = {
            node: Message(
                content=RecordDict({ORDER: ConfigRecord(dict(request.to_record()))}),
                dst_node_id=node,
                message_type=QUERY if request.context.kind == HELLO else TRAIN,
                ttl=self._ttl_s,
            )
            for node, request in requests.items()
        }
        if messages:
            self._grid.push_messages(list(messages.values()))
        for node, message in messages.items():
            self._open[message.metadata.message_id] = (node, requests[node])

    def receive(self, wait_s: float) -> Iterator[NodeReply]:
        """Answers that have come, and errors of nodes as answers that say so."""
        until = time.monotonic() + wait_s
        while True:
            replies = list(self._grid.pull_messages(list(self._open))) if self._open else []
            for message in replies:
                node, request = self._open.pop(message.metadata.reply_to_message_id)
                yield NodeReply(node, request, _answer(message))
            if replies or time.monotonic() >= until:
                return
            time.sleep(min(_ASK_AGAIN_S, wait_s))


def record_of(message: Message, name: str) -> Record:
    """The record that a message carries under a name; what is in it is checked by its reader.

    Raises:
        OrderError: There is none.
    """
    record = message.content.config_records.get(name)
    if record is None:
        raise RequestError(f"a message without {name}", hint="is the other side fedvtc-edge?")
    return cast(Record, dict(record.items()))


def _answer(message: Message) -> TaskReply:
    if message.has_error():
        reason = message.error.reason or f"Flower's error {message.error.code}"
        status = Status.UNREACHABLE if message.error.code in _UNREACHED else Status.REFUSED
        return TaskReply("", problem=reason[:300], status=status)
    try:
        return TaskReply.from_record(record_of(message, ANSWER))
    except FedVTCError as error:
        return TaskReply("", problem=str(error)[:300], status=Status.REFUSED)
