"""Whether an order may be followed by a client that is where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.privacy.plan import design_of

from .home import State
from .orders import Lacking, Order, digest_of
from .records import OrderError

if TYPE_CHECKING:
    from fedvtc_edge.methods import Method


def check_turn(order: Order, state: State, rounds: int) -> None:
    """Refuse work that was done already, that skips some, or that nobody agreed on.

    Raises:
        OrderError: It is.
    """
    number, before = order.context.round, (state.round, state.step)
    if number > rounds:
        raise OrderError(
            f"round {number} of {rounds} is asked for", hint="do not trust this server"
        )
    follows = (number, order.step - 1) == before if order.step else number > state.round
    opening = (number, order.step) == (0, 0) and before == (0, -1)
    if not (follows or opening):
        raise OrderError(
            f"round {number}, step {order.step} is asked for after round {before[0]}, "
            f"step {before[1]}",
            hint="the client did that already, or missed what comes before; the next round counts",
        )


def known_to(order: Order, state: State, kind: str) -> bytes:
    """What was published as ``kind``: from the order, or kept from an earlier one.

    Raises:
        Lacking: Neither.
    """
    if kind in order.published:
        return order.published[kind]
    kept = state.published.get(kind)
    if kept is None or digest_of(kept) != order.digests[kind]:
        raise Lacking(f"the client lacks {kind}", hint="the server sends it again")
    return kept


def check_shapes(published: Mapping[str, bytes], config: Config, classes: int) -> None:
    """Refuse statistics of other shapes than were agreed on, before anything is made of them.

    Args:
        published: What the server says that it published, by kind.
        config: The settings that were agreed to.
        classes: Number C of classes that were agreed to.

    Raises:
        OrderError: Other classes, or another width.
        WireError: Bytes that are no statistics.
    """
    design, method = design_of(config, classes), config.method
    widths = dict.fromkeys(("features", "prototypes"), method.latent)
    widths["anchor"] = method.anchor if design is None else design.width
    for kind in sorted(set(published) & set(widths)):
        shape, expected = wire.published(published[kind]).mean.shape, (classes, widths[kind])
        if shape != expected:
            raise OrderError(
                f"{kind} was published for {shape} classes and features, agreed are {expected}",
                hint="do not trust this server",
            )


def check_known(order: Order, method: Method) -> None:
    """Refuse work on what was not published yet.

    Args:
        order: Asks for a step that has work.
        method: Restored from what was published.

    Raises:
        OrderError: The opening, or an earlier step of the round, publishes something that
            is not there.
    """
    earlier = [*method.steps(0), *method.steps(order.context.round)[: order.step]]
    for exchange in (step.exchange for step in earlier):
        if exchange is not None and exchange.for_all and exchange.kind not in method.published:
            raise OrderError(
                f"round {order.context.round}, step {order.step} is asked for, and "
                f"{exchange.kind} was never published",
                hint="do not trust this server",
            )
