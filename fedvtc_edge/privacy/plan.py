"""From settings to what a run may claim: the design of its release, or none."""

from __future__ import annotations

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.ledger import Claim

from .design import LARGEST_SIGMA, LEAST_SIGMA, Design, designed

UNIT = "one training example of one client, added or removed"


def design_of(config: Config, classes: int) -> Design | None:
    """The release of ``privacy.mode = anchored``; None where nothing is claimed."""
    privacy = config.privacy
    if privacy.mode != "anchored":
        return None
    return designed(
        classes=classes,
        clients=config.clients.count,
        population=privacy.population,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        clip=privacy.clip,
        widest=config.method.anchor,
        second=config.method.moments == "covariance",
    )


def check_claim(config: Config) -> None:
    """Refuse settings under which no honest ε exists.

    Raises:
        ConfigError: A privacy mode together with something that it does not cover.
    """
    privacy, method = config.privacy, config.method
    if privacy.mode == "none":
        return
    if method.name != "fedvtc":
        raise ConfigError(
            f"privacy.mode = {privacy.mode!r} with method.name = {method.name!r}: what that "
            "method uploads is not noised",
            hint='use method.name = "fedvtc", or privacy.mode = "none"',
        )
    if method.share != "anchored":
        raise ConfigError(
            f"privacy.mode = {privacy.mode!r} with method.share = {method.share!r}: those features "
            "were trained on the very samples, so their sensitivity is not bounded by a clip",
            hint='use method.share = "anchored", whose extractor saw no data',
        )
    if privacy.delta > 1 / privacy.population:
        raise ConfigError(
            f"privacy.delta = {privacy.delta:g} is above 1/{privacy.population}, one over "
            "privacy.population: it would allow to publish somebody's sample outright",
            hint="lower privacy.delta",
        )
    design = design_of(config, 2)  # neither noise nor clip depend on the classes
    assert design is not None
    if not LEAST_SIGMA <= design.sigma <= LARGEST_SIGMA:
        small = design.sigma < LEAST_SIGMA
        raise ConfigError(
            f"privacy.clip = {privacy.clip:g} with privacy.epsilon = {privacy.epsilon:g}: "
            f"the noise would be too {'fine' if small else 'coarse'} for the integer grid",
            hint=f"{'raise' if small else 'lower'} privacy.clip; 1 is a good value",
        )


def claim_of(config: Config) -> Claim | None:
    """What each release costs, for the ledger; None where nothing is claimed."""
    privacy = config.privacy
    if privacy.mode != "anchored":
        return None
    design = design_of(config, 2)  # neither noise nor clip depend on the classes
    assert design is not None
    return Claim(
        mechanism=f"discrete Gaussian, noise multiplier {design.noise_multiplier:.6g}, "
        f"L2 sensitivity {privacy.clip:g}, delta {privacy.delta:g}",
        epsilon=privacy.epsilon,
        releases=1,
    )
