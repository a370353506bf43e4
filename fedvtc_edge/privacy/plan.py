"""From settings to what a run may claim: the design of its release, or none."""

from __future__ import annotations

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.ledger import Claim
from fedvtc_edge.masking import threshold_of
from fedvtc_edge.releases import SERVER

from .accountant import epsilon_spent
from .client_level import ClientDesign, designed_for_clients, unit_of
from .design import Design, designed
from .grid import LARGEST_SIGMA, LEAST_SIGMA
from .schedule import Schedule, schedule_of
from .shared_noise import honest_of

UNIT = "one training example of one client, added or removed"
CLIENT_UNIT = "one client with all of its data, added or removed"

UNITS = {"anchored": UNIT, "example": UNIT, "client": CLIENT_UNIT}
"""What the ε of a mode protects, and the neighbouring relation."""

_COVERS = {
    "anchored": "each client's upload, not the models that stay with it",
    "example": "each client's uploads, models and bundle",
    "client": "what the server publishes, not what it sees (it is trusted) nor the models "
    "that stay with the clients",
}


def covers(config: Config) -> str:
    """What the ε of a mode is about, in words."""
    if shares_of(config) == 1:
        return _COVERS[config.privacy.mode]
    league = f"with up to {config.colluders} of {config.group} clients in league with it"
    return (
        f"the masked sum, which is all that the server sees, also {league}; not the models that "
        "stay with the clients"
    )


def shares_of(config: Config) -> int:
    """Honest clients that share the noise of a masked sum; 1 where each adds all of it.

    Counted are those that are surely in a sum that comes out, less those that may collude.
    """
    if not config.transport.masking or config.privacy.mode not in ("anchored", "client"):
        return 1
    dropouts = config.group - threshold_of(config.group)
    return honest_of(config.group, dropouts=dropouts, colluders=config.colluders)


def design_of(config: Config, classes: int) -> Design | None:
    """One noised release of the run; None where nothing is claimed."""
    privacy = config.privacy
    if privacy.mode == "none":
        return None
    if privacy.mode == "client":
        return client_design_of(config, classes)
    example = schedule_of(config) if privacy.mode == "example" else None
    if example is not None and config.method.share != "anchored":
        return Design(
            classes=classes,
            width=config.method.latent,
            second=False,
            clip=privacy.clip,
            epsilon=example.release_epsilon,
            delta=privacy.delta,
            releases=example.releases,
        )
    return designed(
        classes=classes,
        clients=config.clients.count,
        population=privacy.population,
        epsilon=example.release_epsilon if example is not None else privacy.epsilon,
        delta=privacy.delta,
        clip=privacy.clip,
        widest=config.method.anchor,
        second=config.method.moments == "covariance",
        shares=shares_of(config),
    )


def client_design_of(config: Config, classes: int) -> ClientDesign:
    """The server's releases: one before the first round, or one in each."""
    privacy, method, clients = config.privacy, config.method, config.clients.count
    if method.share == "anchored":
        return designed_for_clients(
            classes=classes,
            clients=clients,
            population=privacy.population,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            clip=privacy.clip,
            widest=method.anchor,
            second=method.moments == "covariance",
            shares=shares_of(config),
        )
    return ClientDesign(
        classes=classes,
        width=method.latent,
        second=False,
        clip=privacy.clip,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        releases=method.rounds,
        unit=unit_of(clients, privacy.population),
        shares=shares_of(config),
    )


def check_claim(config: Config) -> None:
    """Refuse settings under which no honest ε exists.

    Raises:
        ConfigError: A privacy mode together with something that it does not cover.
        PrivacyError: An ε that no noise keeps.
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
        _claim_of_schedule(schedule_of(config))  # calibrated here, or refused
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
    if privacy.mode == "none":
        return None
    if privacy.mode == "example":
        return _claim_of_schedule(schedule_of(config))
    design = design_of(config, 2)  # neither noise nor clip depend on the classes
    assert design is not None
    if isinstance(design, ClientDesign):
        return _claim_of_clients(design)
    among = "" if design.shares == 1 else f"in shares of {design.shares} honest clients, "
    return Claim(
        mechanism=f"discrete Gaussian, {among}noise multiplier {design.noise_multiplier:.6g}, "
        f"L2 sensitivity {privacy.clip:g}, delta {privacy.delta:g}",
        epsilon=privacy.epsilon,
        releases=1,
    )


def _claim_of_clients(design: ClientDesign) -> Claim:
    """Of the server, which noises the sum; under masking of each client, which adds a share."""
    noise, delta, several = design.noise_multiplier, design.delta, design.releases > 1

    def after(round_: int, kind: str) -> float:
        return min(epsilon_spent([(noise, 1.0, max(round_, 1))], delta), design.epsilon)

    by = "drawn by a trusted server"
    if design.shares > 1:
        by = f"in shares of {design.shares} honest clients"
    return Claim(
        mechanism=f"discrete Gaussian on the sum over the clients, noise multiplier "
        f"{noise:.6g}, {design.releases} times, {by}; L2 sensitivity {design.clip:g} per "
        f"client, delta {delta:g}",
        epsilon=design.epsilon,
        releases=design.releases,
        at=after if several else None,
        rounds=design.releases if several else 0,
        by=SERVER if design.shares == 1 else None,
        upload=f"clipped to an L2 norm of {design.clip:g}, no noise: for the trusted server",
    )


def _claim_of_schedule(schedule: Schedule) -> Claim:
    steps = schedule.rounds * (schedule.train_steps + schedule.decoder_steps)
    return Claim(
        mechanism=f"DP-SGD, noise multiplier {schedule.noise_multiplier:.6g}, sampling rate "
        f"{schedule.rate:.6g}, {steps} steps; discrete Gaussian, noise multiplier "
        f"{schedule.release_noise:.6g}, {schedule.releases} times; L2 sensitivity "
        f"{schedule.clip:g}, delta {schedule.delta:g}",
        epsilon=schedule.spent(schedule.rounds, schedule.rounds, schedule.releases),
        releases=schedule.releases,
        at=schedule.at_upload,
        rounds=schedule.rounds if schedule.repeated else 0,
    )
