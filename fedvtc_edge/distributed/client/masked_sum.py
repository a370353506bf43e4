"""A client's part in a masked sum, one message at a time, between which it lies on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedvtc_edge.config import Config
from fedvtc_edge.distributed.messages import RequestError, TaskRequest
from fedvtc_edge.masking import MaskingPlan, MaskingStep, Vault, in_groups, take_step
from fedvtc_edge.wire.context import Context

from .keys import ClientKeys
from .state import ClientState

if TYPE_CHECKING:
    from fedvtc_edge.federation.exchange import SecureAggregatable
    from fedvtc_edge.training.client import Client

_SUM = "sum"


def vault_of(home: ClientState) -> Vault:
    """File of a client's part in the open masked sum."""
    return Vault(home.path / "sum.part")


def advertise(
    home: ClientState,
    keys: ClientKeys,
    config: Config,
    client: Client,
    exchange: SecureAggregatable[Any],
    context: Context,
) -> bytes:
    """Take a client's vector, enter it in the ledger, and begin its part in the sum.

    Args:
        keys: Keys of all.

    Raises:
        MaskingError: A vector of this round and kind has left already, or does not fit.
        PrivacyError: The budget is spent.
    """
    from fedvtc_edge.federation.participation import drawn

    vector, noted = exchange.vector(client, context)
    home.record(context, noted)
    invited = drawn(config, keys.roster(config), context.round)
    names = list(next(group for group in in_groups(invited, config.sums) if keys.client in group))
    home.note(_SUM, {"clients": names, "size": exchange.size, "bound": exchange.bound})
    plan = plan_of(keys, context, names, exchange.size, exchange.bound)
    key = keys.identity.signing_key
    return take_step(vault_of(home), plan, keys.client, key, MaskingStep.ADVERTISE, vector=vector)


def next_step(
    home: ClientState, keys: ClientKeys, request: TaskRequest, base: str, step: MaskingStep
) -> bytes:
    """The message of a later step; torch is not needed for it.

    Raises:
        OrderError: No sum is open.
        MaskingError: What the server sent is refused, or the client's part is over.
    """
    noted = home.notes(_SUM)
    if not noted:
        raise RequestError("no masked sum is open", hint="wait for the next round")
    context = replace(request.context, kind=base)
    plan = plan_of(keys, context, noted["clients"], noted["size"], noted["bound"])
    key = keys.identity.signing_key
    return take_step(vault_of(home), plan, keys.client, key, step, request.message)


def plan_of(
    keys: ClientKeys, context: Context, names: list[str], size: int, bound: int
) -> MaskingPlan:
    """The sum as this client sees it: with the keys of its own list.

    Raises:
        TrustError: No list, or a client that is not trusted.
    """
    assert keys.trusted is not None  # its list named the clients
    return MaskingPlan(
        context, {name: keys.trusted.lookup(name).key for name in names}, size, bound
    )
