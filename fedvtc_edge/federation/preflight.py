"""Checks of settings before any data are read: may this run?"""

from __future__ import annotations

from fedvtc_edge.config import Config
from fedvtc_edge.devices import DeviceProfile
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.masking.plan import LEAST_CLIENTS, MOST_CLIENTS, threshold_of
from fedvtc_edge.models import find
from fedvtc_edge.plugins import EXTRACTORS, METHODS
from fedvtc_edge.privacy.mechanism import claim_of, release_spec_of
from fedvtc_edge.privacy.sampler import LARGEST_SIGMA, LEAST_SIGMA
from fedvtc_edge.training.compute import Compute

from .methods import method_of


def check_settings(config: Config) -> None:
    """Refuse what the server cannot do with what it is sent.

    Raises:
        ConfigError: Trimming or float16 together with a privacy mode or masking, or more
            contributors than there are clients.
    """
    hidden = "transport.masking" if config.transport.masking else ""
    if config.privacy.mode != "none":
        hidden = f"privacy.mode = {config.privacy.mode!r}"
    if config.server.trim > 0 and hidden:
        raise ConfigError(
            f"server.trim = {config.server.trim:g} with {hidden}: outliers show only in exact "
            "uploads, one by one",
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
    if METHODS.find(config.method.name).shared(config) == "features+decoder":
        raise ConfigError(
            "transport.masking with method.share = 'features+decoder': decoders are not masked",
            hint='use method.share = "anchored" or "features"',
        )
    if not LEAST_CLIENTS <= group <= MOST_CLIENTS:
        raise ConfigError(
            f"transport.masking with {group} clients in a sum, expected {LEAST_CLIENTS} to "
            f"{MOST_CLIENTS}",
            hint="with two clients a sum tells each the other's statistics; see clients.count",
        )
    once = METHODS.find(config.method.name).shared(config) == "anchored"
    if once and group != config.clients.count:  # a method of somebody's own
        raise ConfigError(
            f"transport.masking with clients.cohort = {config.clients.cohort:g}: all clients of "
            f"method.name = {config.method.name!r} upload at once, and masks are made for {group}",
            hint="set clients.cohort to 1",
        )
    bearable = 2 * threshold_of(group) - group
    if config.colluders >= bearable:
        raise ConfigError(
            f"privacy.collusion = {config.privacy.collusion:g}: {config.colluders} of {group} "
            "clients in league with the server would see through the masks, which bear "
            f"{bearable - 1}",
            hint="lower privacy.collusion, or take more clients",
        )


def check_claim(config: Config) -> None:
    """Refuse settings under which no honest ε exists.

    Raises:
        ConfigError: An unknown method or extractor, or a privacy mode together with something
            that it does not cover.
        PrivacyError: An ε that no noise keeps.
    """
    privacy, method = config.privacy, config.method
    method_of(config)
    EXTRACTORS.find(config.method.extractor)
    if privacy.mode == "none":
        return
    if privacy.mode == "example" and config.engine.precision == "bfloat16":
        raise ConfigError(
            "privacy.mode = 'example' with engine.precision = 'bfloat16': clipped gradients "
            "would be rounded to three digits, beyond the bound that the noise is made for",
            hint='use engine.precision = "float32"',
        )
    if privacy.mode == "anchored" and method.share != "anchored":
        raise ConfigError(
            f"privacy.mode = {privacy.mode!r} with method.share = {method.share!r}: those features "
            "were trained on the very samples, so their sensitivity is not bounded by a clip",
            hint='use method.share = "anchored", whose extractor saw no data, or '
            'privacy.mode = "example"',
        )
    if privacy.mode == "client" and method.share == "features+decoder":
        raise ConfigError(
            f"privacy.mode = 'client' with method.share = {method.share!r}: the decoder's weights "
            "are not in the vector that is clipped and noised, and noise on so many would be all "
            "of them",
            hint='use method.share = "anchored" or "features"',
        )
    units, key = privacy.population, "privacy.population"
    if privacy.mode == "client":
        units, key = config.clients.count, "clients.count"
    if privacy.delta > 1 / units:
        raise ConfigError(
            f"privacy.delta = {privacy.delta:g} is above 1/{units}, one over {key}: it would "
            "allow to publish somebody's data outright",
            hint="lower privacy.delta",
        )
    if privacy.mode == "example":
        claim_of(config)  # calibrated here, or refused
    spec = release_spec_of(config, 2)  # neither noise nor clip depend on the classes
    assert spec is not None
    if not LEAST_SIGMA <= spec.sigma <= LARGEST_SIGMA:
        small = spec.sigma < LEAST_SIGMA
        raise ConfigError(
            f"privacy.clip = {privacy.clip:g} with privacy.epsilon = {privacy.epsilon:g}: "
            f"the noise would be too {'fine' if small else 'coarse'} for the integer grid",
            hint=f"{'raise' if small else 'lower'} privacy.clip; 1 is a good value",
        )


def check_names(config: Config) -> None:
    """What only the registries, the machine and the privacy plan know, before data are read.

    Raises:
        ConfigError: An unknown method, architecture or device, a claim that cannot be made, or a
            server that asks for what it cannot have.
    """
    check_claim(config)
    check_settings(config)
    if config.engine.name == "flower":
        check_distributed(config)
    for name in config.clients.architectures:
        find(name)
    for name in config.clients.devices:
        DeviceProfile.load(name)
    Compute.of(config.engine)


def check_distributed(config: Config) -> None:
    """Refuse settings under which no messages between machines are enough.

    Raises:
        ConfigError: Pooled data, simulated devices, or uploads that are not sealed.
    """
    check_claim(config)
    check_settings(config)
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
