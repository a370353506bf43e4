"""Client over a network: one task request in, one envelope out, all else on disk."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedvtc_edge import wire
from fedvtc_edge.config import MAX_CONFIG_BYTES, Config, load_config
from fedvtc_edge.data import hold_out
from fedvtc_edge.data.own import DataTerms
from fedvtc_edge.distributed.messages import (
    DISMISSAL,
    HELLO,
    REPORT,
    SHUTDOWN,
    MissingInput,
    RequestError,
    Status,
    TaskReply,
    TaskRequest,
    digest_of,
)
from fedvtc_edge.documents import DocumentError, parse_toml
from fedvtc_edge.errors import ConfigError, FedVTCError
from fedvtc_edge.masking import MaskingStep
from fedvtc_edge.privacy.mechanism import anchor_width, mechanism_of
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.privacy.spending import Spending, Spent
from fedvtc_edge.sealing import seal
from fedvtc_edge.storage.lock import Busy, alone
from fedvtc_edge.transport.masked_sum import mask_step

from .consent import agreement
from .keys import ClientKeys, DisclosurePolicy
from .masked_sum import advertise, next_step, vault_of
from .state import ClientCheckpoint, ClientState

if TYPE_CHECKING:
    from .local_data import LocalData, Source
    from .session import ClientSession


_LONGEST_REASON = 300
_SPENT = "spent"


class Participant:
    """One client between two messages.

    An order that comes twice is answered by the same bytes, an order that is older than
    what was done is refused: whoever carries the messages may lose or repeat any of them.

    Args:
        home: Its folder.
        architecture: Of its network; None takes the one that the settings give it.
        index: Its number among the clients, by which they give it.
        extractor: Its own file of the run's extractor, or empty. None where the settings are
            its own, and so are the paths in them.
        say: Told on joining, before anything is measured, what is agreed to.
        run: Run directory of a simulation, which keeps networks as they were at uploads.
    """

    def __init__(
        self,
        home: ClientState,
        keys: ClientKeys,
        source: Source,
        *,
        architecture: str | None = None,
        index: int = 0,
        policy: DisclosurePolicy | None = None,
        extractor: str | None = None,
        say: Callable[[str], None] = lambda _: None,
        run: Path | None = None,
    ) -> None:
        self.home = home
        self.keys = keys
        self._source = source
        self._architecture = architecture
        self._index = index
        self._policy = policy or DisclosurePolicy()
        self._extractor = extractor
        self._say = say
        self._run = run

    def reply(self, request: TaskRequest) -> TaskReply:
        """Do what is asked, and say so; or say why not. Never raises a FedVTCError."""
        me, asked = self.home.client, request.context
        try:
            if asked.sender != (SERVER if asked.kind in (HELLO, DISMISSAL) else me):
                raise RequestError(
                    f"an order for {asked.sender}, this is {me}",
                    hint="two clients with one node key?",
                )
            if asked.kind == DISMISSAL:
                raise _dismissed(request)
            with alone(self.home.path):
                return TaskReply(me, self._envelope(request))
        except Busy:
            return TaskReply(me, problem="still at work", status=Status.BUSY)
        except MissingInput as error:
            return TaskReply(me, problem=str(error), status=Status.MISSING_INPUT)
        except FedVTCError as error:
            return TaskReply.refusal(me, error, openly=self._policy.share_metrics is True)

    def _envelope(self, request: TaskRequest) -> bytes:
        if request.context.kind == HELLO:
            return self._sealed(request, self._hello(request))
        self.home.check(request.context.run)
        if request.context.kind == SHUTDOWN:
            self._finalize_late()
            return self._sealed(request, b"")
        envelope = self._answered(request)
        if request.last and request.context.kind == REPORT:
            # Also when it was answered before: a killed process may have left them.
            self.home.releases.forget_secrets()
            vault_of(self.home).drop()
        return envelope

    def _answered(self, request: TaskRequest) -> bytes:
        step = mask_step(request.context.kind)
        light = step is not None and step[1] is not MaskingStep.ADVERTISE
        kept = self.home.kept_answer(request.digest)
        if kept is not None and (light or self.home.answered() == request.digest):
            return kept
        if step is not None and light:
            envelope = self._sealed(request, next_step(self.home, self.keys, request, *step))
            self.home.keep_answer(request.digest, envelope)
            return envelope
        return self._worked(request)

    def _hello(self, request: TaskRequest) -> bytes:
        # They need torch; the later messages of a masked sum are answered without.
        from fedvtc_edge.federation.preflight import check
        from fedvtc_edge.models import find
        from fedvtc_edge.runs.directory import as_toml

        config = _settings(request)
        self._check_policy(request, config, request.number)
        if config.transport.masking:
            self.keys.roster(config)
        sent, config = config, self._with_extractor(config)
        settings = request.settings if sent == config else as_toml(config).decode()
        check(config, "client")
        find(self._name(config))
        terms = DataTerms.from_json(request.terms)
        for line in agreement(config):
            self._say(line)
        has = self._source(config, terms)
        self._spend(config, has, request.context.run, dry=True)
        self.home.join(request.context.run, settings, request.terms, request.number)
        if self._extractor and self.home.config() != config:
            self.home.relocate(settings)
        document: dict[str, object] = {
            "nonce": request.nonce,
            "architecture": self._name(config),
            "wants_test": has.test is None and self._policy.shares_metrics(config),
        }
        if self._policy.shares_metrics(config):
            kept, _ = hold_out(has.own.labels, config, self.home.client)
            counts = np.bincount(has.own.labels[kept], minlength=len(terms.class_names))
            document |= {"samples": int(counts.sum()), "class_counts": counts.tolist()}
        return json.dumps(document).encode()

    def _worked(self, request: TaskRequest) -> bytes:
        """The work of a step and what follows it, kept before anything leaves."""
        # Only work needs torch: the later messages of a masked sum are answered without.
        from fedvtc_edge.federation.federation import measure_untold
        from fedvtc_edge.federation.methods import method_of
        from fedvtc_edge.federation.summary import kept_at_upload
        from fedvtc_edge.training.compute import deterministic

        from .session import ClientSession, finalize

        home, context = self.home, request.context
        config, terms = self._with_extractor(home.config()), DataTerms.from_json(home.terms())
        # A home may have got stricter since it joined.
        self._check_policy(request, config, home.number)
        state = home.state()
        check_sequence(request, state, config.method.rounds)
        known = {kind: known_to(request, state, kind) for kind in request.digests}
        check_shapes(known, config, len(terms.class_names))
        once = {kind: known.pop(kind) for kind in method_of(config).for_senders & set(known)}
        state.published = known
        with deterministic():
            has = self._source(config, terms)
            self._spend(config, has, context.run)
            keep = measure_untold if self._run is None else kept_at_upload(self._run)
            session = ClientSession.gather(
                config, home, state, self._name(config), terms, has, measuring=keep
            )
            for kind, data in once.items():
                session.method.learn(kind, data, [session.client])
            payload = self._done(request, config, session)
        envelope = self._sealed(request, payload)
        home.keep_answer(request.digest, envelope)
        if request.last and (context.kind, context.round) == (REPORT, config.method.rounds):
            # Before the state, without which all of this is done again.
            finalize(home, config, terms, session, has, payload)
        state.round, state.step, state.answered = context.round, request.step, request.digest
        session.save_to(state)
        home.keep(state)
        return envelope

    def _finalize_late(self) -> None:
        """Finalize a client that missed the last round, with what it has."""
        if self.home.ready:
            return
        from .session import finalize_late

        finalize_late(self.home, self._name(self.home.config()), self._source)

    def _done(self, request: TaskRequest, config: Config, session: ClientSession) -> bytes:
        """Work, and the payload of what then leaves."""
        from fedvtc_edge.federation.exchange import SecureAggregatable

        context = request.context
        steps = session.method.steps(context.round)
        step = steps[request.step] if request.step < len(steps) else None
        if step is not None and step.work is not None:
            check_known(request, session.method)
            step.work(session.client)
        if context.kind == REPORT:
            report = session.report(
                context.round, share_metrics=self._policy.shares_metrics(config)
            )
            return json.dumps(report).encode()
        exchange, masked = step.exchange if step is not None else None, mask_step(context.kind)
        if exchange is None or exchange.kind != (masked[0] if masked else context.kind):
            raise RequestError(
                f"step {request.step} of round {context.round} uploads no {context.kind}",
                hint="install the same version of fedvtc-edge on both sides",
            )
        under = isinstance(exchange, SecureAggregatable) and config.transport.masking
        if under is (masked is None):
            raise RequestError(
                f"{context.kind} is asked for {'without' if under else 'under'} masks, "
                f"agreed is transport.masking = {str(config.transport.masking).lower()}",
                hint="do not trust this server",
            )
        if isinstance(exchange, SecureAggregatable) and under:
            own = replace(context, kind=exchange.kind)
            return advertise(self.home, self.keys, config, session.client, exchange, own)
        payload = exchange.encode(session.client, context)
        self.home.record(context, payload)
        return payload

    def _check_policy(self, request: TaskRequest, config: Config, number: str) -> None:
        from fedvtc_edge.runs.directory import public_name

        expected = self._policy.settings
        if expected is not None and not expected.method.extractor_sha256:
            # A server fills the hash in; that our extractor has it is checked by itself.
            expected = expected.replace(method={"extractor_sha256": config.method.extractor_sha256})
        if expected is not None and public_name(expected, number) != request.context.run:
            raise ConfigError(
                "the server's settings are not those that this client takes part in",
                hint="compare them with the file that was given as --config",
            )
        self._policy.conditions.check(config)

    def _spend(self, config: Config, has: LocalData, run: str, *, dry: bool = False) -> None:
        """Note what the run releases of this client's data, once and before anything leaves.

        Raises:
            SpentError: The same data were released before, and nobody agreed to do it again.
            RunError: It cannot be noted.
        """
        mechanism, noted = mechanism_of(config), dict(self.home.notes(_SPENT))
        if mechanism is None or has.public or noted.get("noted") is True:
            return
        if "token" not in noted and not dry:
            # First into the home: whoever has its releases sends them again, and draws no others.
            noted["token"] = secrets.token_hex(16)
            self.home.note(_SPENT, noted)
        spent = Spent.of(mechanism, run, str(noted.get("token", "")))
        again = self._policy.conditions.spend_again
        before = Spending().enter(spent, has.own.images, again=again, dry=dry)
        if not dry:
            self.home.note(_SPENT, noted | {"noted": True})
        elif before:
            self._say(f"warning: {before}")

    def _with_extractor(self, config: Config) -> Config:
        """The settings with the client's own file of the extractor, whose hash was checked."""
        if self._extractor is None:
            return config
        from .own_extractor import with_own_extractor

        return with_own_extractor(config, self._extractor)

    def _name(self, config: Config) -> str:
        """The client's architecture."""
        given = config.clients.architectures
        return self._architecture or given[self._index % len(given)]

    def _sealed(self, request: TaskRequest, payload: bytes) -> bytes:
        keys, context = self.keys, replace(request.context, sender=self.home.client)
        return seal(payload, recipient=keys.server, sender=keys.identity, context=context)


def _dismissed(request: TaskRequest) -> RequestError:
    """The server's own words, which are a stranger's bytes."""
    why = request.message[:_LONGEST_REASON].decode("utf-8", "replace")
    words = "".join(char if char.isprintable() else " " for char in why)
    return RequestError(
        f"the server does not take this client: {words}",
        hint="compare trust.json and server.pub with the server's operator",
    )


def _settings(request: TaskRequest) -> Config:
    """The server's settings, which are a stranger's bytes so far.

    Raises:
        OrderError: No TOML, or not of the run that the order names.
        ConfigError: Settings that this version does not know.
    """
    from fedvtc_edge.runs.directory import NUMBER, public_name

    if len(request.settings) > MAX_CONFIG_BYTES:
        raise RequestError("the server's settings are too long", hint="do not trust it")
    try:
        document = parse_toml(request.settings)
    except DocumentError:
        raise RequestError("the server's settings are no TOML", hint="do not trust it") from None
    config = load_config(document)
    number = request.number
    if not NUMBER.fullmatch(number) or public_name(config, number) != request.context.run:
        raise RequestError(
            f"the server's settings are not of run {request.context.run}",
            hint="install the same version of fedvtc-edge on both sides",
        )
    return config


# ---------------------------------------------------------------- section
# Whether an order may be followed by a client that is where it is.

if TYPE_CHECKING:
    from fedvtc_edge.federation.methods import Method


def check_sequence(request: TaskRequest, state: ClientCheckpoint, rounds: int) -> None:
    """Refuse work that was done already, that skips some, or that nobody agreed on.

    Raises:
        OrderError: It is.
    """
    number, before = request.context.round, (state.round, state.step)
    if number > rounds:
        raise RequestError(
            f"round {number} of {rounds} is asked for", hint="do not trust this server"
        )
    follows = (number, request.step - 1) == before if request.step else number > state.round
    opening = (number, request.step) == (0, 0) and before == (0, -1)
    if not (follows or opening):
        raise RequestError(
            f"round {number}, step {request.step} is asked for after round {before[0]}, "
            f"step {before[1]}",
            hint="the client did that already, or missed what comes before; the next round counts",
        )


def known_to(request: TaskRequest, state: ClientCheckpoint, kind: str) -> bytes:
    """Bytes published as ``kind``: from the request, or kept from an earlier one.

    Raises:
        Lacking: Neither.
    """
    if kind in request.published:
        return request.published[kind]
    kept = state.published.get(kind)
    if kept is None or digest_of(kept) != request.digests[kind]:
        raise MissingInput(f"the client lacks {kind}", hint="the server sends it again")
    return kept


def check_shapes(published: Mapping[str, bytes], config: Config, classes: int) -> None:
    """Refuse statistics of other shapes than were agreed on, before anything is made of them.

    Args:
        published: What the server says that it published, by kind.
        classes: Number C of classes that were agreed to.

    Raises:
        OrderError: Other classes, or another width.
        WireError: Bytes that are no statistics.
    """
    widths = dict.fromkeys(("features", "prototypes"), config.method.latent)
    widths["anchor"] = anchor_width(config, classes)
    for kind in sorted(set(published) & set(widths)):
        shape, expected = wire.published(published[kind]).mean.shape, (classes, widths[kind])
        if shape != expected:
            raise RequestError(
                f"{kind} was published for {shape} classes and features, agreed are {expected}",
                hint="do not trust this server",
            )


def check_known(request: TaskRequest, method: Method) -> None:
    """Refuse work on what was not published yet.

    Args:
        request: Asks for a step that has work.

    Raises:
        OrderError: The opening, or an earlier step of the round, publishes something that
            is not there.
    """
    earlier = [*method.steps(0), *method.steps(request.context.round)[: request.step]]
    for exchange in (step.exchange for step in earlier):
        if exchange is not None and exchange.for_all:
            if exchange.publication in method.published:
                continue
            raise RequestError(
                f"round {request.context.round}, step {request.step} is asked for, and "
                f"{exchange.publication} was never published",
                hint="do not trust this server",
            )
