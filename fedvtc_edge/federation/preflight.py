"""The one door to every run: may these settings run at all?"""

from __future__ import annotations

from typing import Literal

from fedvtc_edge.config import Config
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.masking.plan import LEAST_CLIENTS, MOST_CLIENTS, threshold_of
from fedvtc_edge.models import check_architecture, find
from fedvtc_edge.models.pretrained import source_of
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.plugins import EXTRACTORS, METHODS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.training.compute import Compute

from .choosing import CHOOSE, check_choice
from .methods import Knob, method_of

LEAST_GROUP = 10
"""Fewest clients of a group: at least seven of them are in its sum, which the server sees."""


def check(config: Config, engine: Literal["local", "flower", "client"] | None = None) -> None:
    """Refuse settings that cannot be carried out, before any data are read.

    Args:
        engine: What carries them out: ``local``, ``flower``, or ``client`` for one client of
            a served run, which need not have the other clients' architectures and devices.
            None is the engine that the settings name.

    Raises:
        ConfigError: An unknown method, architecture or device, a privacy claim that cannot be
            made, a server that is asked for what it cannot do, or work that no messages
            between machines are enough for.
        PrivacyError: An ε that no noise keeps.
    """
    engine = engine or config.engine.name
    kind = method_of(config)
    _check_knob(config, kind.knob)
    if kind.needs_public and not config.data.public:
        raise ConfigError(
            f"method.name = {config.method.name!r} teaches by public images, and data.public is "
            "empty",
            hint='set data.public to a data set, or with a data.limit to "rest"',
        )
    _check_ablation(config)
    if config.method.extractor == CHOOSE:
        check_choice(config, engine)
    elif source_of(config.method.extractor, config.method.extractor_weights) is None:
        EXTRACTORS.find(config.method.extractor)
    mechanism = mechanism_of(config)
    if mechanism is not None:
        mechanism.check()
    _check_server(config, private=mechanism is not None)
    if engine == "flower":
        _check_distributed(config)
    if engine != "client":
        for name in config.clients.architectures:
            find(name)
            check_architecture(name, config)
        for name in config.clients.devices:
            DeviceProfile.load(name)
        Compute.of(config.engine)


def _check_ablation(config: Config) -> None:
    """Refuse to leave synthesis out where nothing would be left to fine-tune on."""
    method = config.method
    if method.name != "fedvtc" or "synthesis" not in method.ablate:
        return
    for wrong, why in (
        (method.share != "anchored", f"method.share = {method.share!r}, which has no teacher"),
        ("teacher" in method.ablate, "'teacher' beside it"),
        (config.privacy.mode != "none", f"privacy.mode = {config.privacy.mode!r}"),
        (
            bool(set(config.clients.architectures) & set(ON_EXTRACTOR)),
            "a head on the extractor, which learns from synthetic features",
        ),
    ):
        if wrong:
            raise ConfigError(
                f"'synthesis' in method.ablate with {why}: own images labelled by the teacher "
                "would be all that is fine-tuned on",
                hint="take 'synthesis' out of method.ablate",
            )


def _check_knob(config: Config, knob: Knob | None) -> None:
    chosen, name = config.method.knob, config.method.name
    if chosen is None:
        return
    if knob is None:
        raise ConfigError(
            f"method.knob = {chosen:g} with method.name = {name!r}, which has nothing to set",
            hint="leave method.knob out",
        )
    if not knob.least <= chosen <= knob.most:
        raise ConfigError(
            f"method.knob = {chosen:g} with method.name = {name!r}: {knob.meaning}, expected "
            f"{knob.least:g} to {knob.most:g}",
            hint=f"its default is {knob.default:g}",
        )


def _check_server(config: Config, *, private: bool) -> None:
    """Refuse what the server cannot do with what it is sent."""
    hidden = "transport.masking" if config.transport.masking else ""
    if private:
        hidden = f"privacy.mode = {config.privacy.mode!r}"
    if config.server.trim > 0 and hidden:
        raise ConfigError(
            f"server.trim = {config.server.trim:g} with {hidden}: outliers show only in exact "
            "uploads, one by one",
            hint="set server.trim to 0",
        )
    if config.server.trim > 0 and not method_of(config).trimmable:
        raise ConfigError(
            f"server.trim = {config.server.trim:g} with method.name = {config.method.name!r}, "
            "whose server uses each upload by itself: there is no sum to leave outliers out of",
            hint="set server.trim to 0",
        )
    if config.transport.precision == "float16" and hidden:
        raise ConfigError(
            f"transport.precision = 'float16' with {hidden}: what travels are whole numbers",
            hint='use transport.precision = "float32"',
        )
    if config.transport.masking:
        _check_masking(config)
    if config.server.minimum_contributors > config.clients.count:
        raise ConfigError(
            f"server.minimum_contributors = {config.server.minimum_contributors} with "
            f"clients.count = {config.clients.count}: no class could be published",
            hint="lower server.minimum_contributors",
        )


def _check_masking(config: Config) -> None:
    group = config.group
    if not method_of(config).maskable(config):
        if config.method.name == "fedvtc":
            raise ConfigError(
                "transport.masking with method.share = 'features+decoder': decoders are not masked",
                hint='use method.share = "anchored" or "features"',
            )
        raise ConfigError(
            f"transport.masking with method.name = {config.method.name!r}: its server needs more "
            "than a sum of uploads",
            hint='use method.name = "fedvtc" or "statistics", or set transport.masking to false',
        )
    least = config.transport.masking_group
    if 0 < least < LEAST_GROUP or least > group:
        raise ConfigError(
            f"transport.masking_group = {least} with {group} clients, expected 0 or from "
            f"{LEAST_GROUP} to so many",
            hint="the server sees each group's sum: small ones hide little; 0 is one sum of all",
        )
    if not LEAST_CLIENTS <= config.smallest_sum < MOST_CLIENTS:
        raise ConfigError(
            f"transport.masking with {config.smallest_sum} clients in a sum, expected "
            f"{LEAST_CLIENTS} to {MOST_CLIENTS - 1}",
            hint="with two clients a sum tells each the other's statistics; see clients.count, "
            "and of many transport.masking_group",
        )
    if group != config.clients.count:
        raise ConfigError(
            f"transport.masking with clients.cohort = {config.clients.cohort:g}: the share of "
            f"dishonest clients that is counted on, privacy.collusion = "
            f"{config.privacy.collusion:g}, is one of all clients; in a cohort that is drawn by a "
            "seed of the server's there may be any",
            hint="set clients.cohort to 1",
        )
    bearable = 2 * threshold_of(config.smallest_sum) - config.smallest_sum
    if config.colluders >= bearable:
        among = "" if config.sums == 1 else f", all in one of {config.sums} groups,"
        raise ConfigError(
            f"privacy.collusion = {config.privacy.collusion:g}: {config.colluders} of {group} "
            f"clients in league with the server{among} would see through the masks, which bear "
            f"{bearable - 1}",
            hint="lower privacy.collusion, or take more clients"
            + ("" if config.sums == 1 else " into a group: transport.masking_group"),
        )


def _check_distributed(config: Config) -> None:
    """Refuse settings under which no messages between machines are enough."""
    for wrong, what, hint in (
        (
            METHODS.find(config.method.name).shared(config) == "data",
            f"method.name = {config.method.name!r} pools all data in one process",
            'use engine.name = "local"',
        ),
        (
            bool(config.clients.devices),
            "clients.devices are simulated by the local engine's clock",
            "leave clients.devices out: on engine flower time is real",
        ),
        (
            not config.transport.seal,
            "transport.seal = false on engine flower: who uploads would be anybody's guess",
            "set transport.seal to true",
        ),
    ):
        if wrong:
            raise ConfigError(what, hint=hint)
