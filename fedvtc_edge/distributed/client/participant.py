"""The client's side beyond one process: one order in, one envelope out, all else on disk."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedvtc_edge import wire
from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    FAREWELL,
    HELLO,
    REPORT,
    Answer,
    Lacking,
    Order,
    OrderError,
    Trouble,
    digest_of,
)
from fedvtc_edge.errors import ConfigError, FedVTCError
from fedvtc_edge.federation.preflight import check_claim, check_settings
from fedvtc_edge.masking import Step
from fedvtc_edge.privacy.mechanism import design_of
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.sealing import seal
from fedvtc_edge.storage.lock import Busy, alone
from fedvtc_edge.transport.masked_sum import mask_step

from .keys import Consent, Party
from .masked_sum import advertise, go_on, vault_of
from .state import Home, State

if TYPE_CHECKING:
    from .local_data import Source
    from .session import Crew


_LONGEST_REASON = 300


class Member:
    """One client between two messages.

    An order that comes twice is answered by the same bytes, an order that is older than
    what was done is refused: whoever carries the messages may lose or repeat any of them.

    Args:
        home: Its folder.
        party: Keys.
        source: Reads its data.
        architecture: Of its network; None takes the one that the settings give it.
        index: Its number among the clients, by which they give it.
        consent: Its conditions.
    """

    def __init__(
        self,
        home: Home,
        party: Party,
        source: Source,
        *,
        architecture: str | None = None,
        index: int = 0,
        consent: Consent | None = None,
    ) -> None:
        self.home = home
        self.party = party
        self._source = source
        self._architecture = architecture
        self._index = index
        self._consent = consent or Consent()

    def answer(self, order: Order) -> Answer:
        """Do what is asked, and say so; or say why not. Never raises a FedVTCError."""
        me, asked = self.home.client, order.context
        try:
            if asked.sender != (SERVER if asked.kind in (HELLO, DISMISSAL) else me):
                raise OrderError(
                    f"an order for {asked.sender}, this is {me}",
                    hint="two clients with one node key?",
                )
            if asked.kind == DISMISSAL:
                raise _dismissed(order)
            with alone(self.home.path):
                return Answer(me, self._envelope(order))
        except Busy:
            return Answer(me, problem="still at work", trouble=Trouble.BUSY)
        except Lacking as error:
            return Answer(me, problem=str(error), trouble=Trouble.LACKING)
        except FedVTCError as error:
            return Answer.refusal(me, error, openly=self._consent.telling is True)

    def _envelope(self, order: Order) -> bytes:
        if order.context.kind == HELLO:
            return self._sealed(order, self._hello(order))
        self.home.check(order.context.run)
        if order.context.kind == FAREWELL:
            self._leave_late()
            return self._sealed(order, b"")
        envelope = self._answered(order)
        if order.last and order.context.kind == REPORT:
            # Also when it was answered before: a killed process may have left them.
            self.home.releases.forget_secrets()
            vault_of(self.home).drop()
        return envelope

    def _answered(self, order: Order) -> bytes:
        step = mask_step(order.context.kind)
        light = step is not None and step[1] is not Step.ADVERTISE
        kept = self.home.kept_answer(order.digest)
        if kept is not None and (light or self.home.answered() == order.digest):
            return kept
        if step is not None and light:
            envelope = self._sealed(order, go_on(self.home, self.party, order, *step))
            self.home.keep_answer(order.digest, envelope)
            return envelope
        return self._worked(order)

    def _hello(self, order: Order) -> bytes:
        config = _settings(order)
        self._check_consent(order)
        if config.transport.masking:
            self.party.fellows(config)
        check_claim(config)
        check_settings(config)
        terms = DataTerms.from_json(order.terms)
        has = self._source(config, terms)
        self.home.join(order.context.run, order.settings, order.terms)
        document: dict[str, object] = {
            "nonce": order.nonce,
            "architecture": self._name(config),
            "wants_test": has.test is None and self._consent.tells(config),
        }
        if self._consent.tells(config):
            counts = np.bincount(has.own.labels, minlength=len(terms.class_names))
            document |= {"samples": int(counts.sum()), "class_counts": counts.tolist()}
        return json.dumps(document).encode()

    def _worked(self, order: Order) -> bytes:
        """The work of a step and what follows it, kept before anything leaves."""
        # Only work needs torch: the later messages of a masked sum are answered without.
        from fedvtc_edge.federation.exchange import Decoders
        from fedvtc_edge.training.compute import deterministic

        from .session import Crew, leave

        home, context = self.home, order.context
        self._check_consent(order)  # a home that joined long ago may have got stricter since
        config, terms = home.config(), DataTerms.from_json(home.terms())
        state = home.state()
        check_turn(order, state, config.method.rounds)
        known = {kind: known_to(order, state, kind) for kind in order.digests}
        check_shapes(known, config, len(terms.class_names))
        averaged = known.pop(Decoders.kind, None)
        state.published = known
        with deterministic():
            has = self._source(config, terms)
            crew = Crew.gather(config, home, state, self._name(config), terms, has)
            if averaged is not None:
                crew.method.learn(Decoders.kind, averaged, [crew.client])
            payload = self._done(order, config, crew)
        envelope = self._sealed(order, payload)
        home.keep_answer(order.digest, envelope)
        if order.last and (context.kind, context.round) == (REPORT, config.method.rounds):
            # Before the state, without which all of this is done again.
            leave(home, config, terms, crew, has, payload)
        state.round, state.step, state.answered = context.round, order.step, order.digest
        crew.save_to(state)
        home.keep(state)
        return envelope

    def _leave_late(self) -> None:
        """Who was away in the last round leaves with what it has; all others have left."""
        if self.home.ready:
            return
        from .session import leave_late

        leave_late(self.home, self._name(self.home.config()), self._source)

    def _done(self, order: Order, config: Config, crew: Crew) -> bytes:
        """Work, and the payload of what then leaves."""
        from fedvtc_edge.federation.exchange import Summable

        context, federation = order.context, crew.method.federation
        steps = crew.method.steps(context.round)
        step = steps[order.step] if order.step < len(steps) else None
        if step is not None and step.work is not None:
            check_known(order, crew.method)
            step.work(crew.client)
        if context.kind == REPORT:
            report = crew.report(context.round, telling=self._consent.tells(config))
            return json.dumps(report).encode()
        exchange, masked = step.exchange if step is not None else None, mask_step(context.kind)
        if exchange is None or exchange.kind != (masked[0] if masked else context.kind):
            raise OrderError(
                f"step {order.step} of round {context.round} uploads no {context.kind}",
                hint="install the same version of fedvtc-edge on both sides",
            )
        under = isinstance(exchange, Summable) and config.transport.masking
        if under is (masked is None):
            raise OrderError(
                f"{context.kind} is asked for {'without' if under else 'under'} masks, "
                f"agreed is transport.masking = {str(config.transport.masking).lower()}",
                hint="do not trust this server",
            )
        if isinstance(exchange, Summable) and under:
            return advertise(
                self.home, self.party, config, federation, crew.client, exchange, context.round
            )
        payload = exchange.payload(federation, crew.client, context)
        self.home.record(context, payload)
        return payload

    def _check_consent(self, order: Order) -> None:
        from fedvtc_edge.runs.directory import public_name

        expected = self._consent.settings
        if expected is not None and public_name(expected) != order.context.run:
            raise ConfigError(
                "the server's settings are not those that this client takes part in",
                hint="compare them with the file that was given as --config",
            )

    def _name(self, config: Config) -> str:
        """The client's architecture."""
        given = config.clients.architectures
        return self._architecture or given[self._index % len(given)]

    def _sealed(self, order: Order, payload: bytes) -> bytes:
        party, context = self.party, replace(order.context, sender=self.home.client)
        return seal(payload, recipient=party.server, sender=party.identity, context=context)


def _dismissed(order: Order) -> OrderError:
    """The server's own words, which are a stranger's bytes."""
    why = order.letter[:_LONGEST_REASON].decode("utf-8", "replace")
    words = "".join(char if char.isprintable() else " " for char in why)
    return OrderError(
        f"the server does not take this client: {words}",
        hint="compare trust.json and server.pub with the server's operator",
    )


def _settings(order: Order) -> Config:
    """The server's settings, which are a stranger's bytes so far.

    Raises:
        OrderError: No TOML, or not of the run that the order names.
        ConfigError: Settings that this version does not know.
    """
    from fedvtc_edge.runs.directory import public_name

    try:
        document = tomllib.loads(order.settings)
    except (ValueError, RecursionError):
        raise OrderError("the server's settings are no TOML", hint="do not trust it") from None
    config = load_config(document)
    if public_name(config) != order.context.run:
        raise OrderError(
            f"the server's settings are not of run {order.context.run}",
            hint="install the same version of fedvtc-edge on both sides",
        )
    return config


# ---------------------------------------------------------------- section
# Whether an order may be followed by a client that is where it is.

if TYPE_CHECKING:
    from fedvtc_edge.federation.methods import Method


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
