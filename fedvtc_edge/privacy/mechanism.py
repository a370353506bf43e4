"""From settings to what a run may claim: the design of its release, or none."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from fedvtc_edge.config import Config
from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.masking import threshold_of

from .accountant import ComposedStep, epsilon_spent, noise_for
from .distributed_noise import min_honest
from .ledger import ReleaseClaim
from .release_spec import (
    ClientReleaseSpec,
    ReleaseSpec,
    spec_for_clients,
    spec_for_examples,
    unit_of,
)
from .release_store import SERVER

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
    return min_honest(config.group, dropouts=dropouts, colluders=config.colluders)


def release_spec_of(config: Config, classes: int) -> ReleaseSpec | None:
    """One noised release of the run; None where nothing is claimed."""
    privacy = config.privacy
    if privacy.mode == "none":
        return None
    if privacy.mode == "client":
        return client_release_spec_of(config, classes)
    example = schedule_of(config) if privacy.mode == "example" else None
    if example is not None and config.method.share != "anchored":
        return ReleaseSpec(
            classes=classes,
            width=config.method.latent,
            second=False,
            clip=privacy.clip,
            epsilon=example.release_epsilon,
            delta=privacy.delta,
            releases=example.releases,
        )
    return spec_for_examples(
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


def client_release_spec_of(config: Config, classes: int) -> ClientReleaseSpec:
    """The server's releases: one before the first round, or one in each."""
    privacy, method, clients = config.privacy, config.method, config.clients.count
    if method.share == "anchored":
        return spec_for_clients(
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
    return ClientReleaseSpec(
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


def claim_of(config: Config) -> ReleaseClaim | None:
    """What each release costs, for the ledger; None where nothing is claimed."""
    privacy = config.privacy
    if privacy.mode == "none":
        return None
    if privacy.mode == "example":
        return _claim_of_schedule(schedule_of(config))
    spec = release_spec_of(config, 2)  # neither noise nor clip depend on the classes
    assert spec is not None
    if isinstance(spec, ClientReleaseSpec):
        return _claim_of_clients(spec)
    among = "" if spec.shares == 1 else f"in shares of {spec.shares} honest clients, "
    return ReleaseClaim(
        mechanism=f"discrete Gaussian, {among}noise multiplier {spec.noise_multiplier:.6g}, "
        f"L2 sensitivity {privacy.clip:g}, delta {privacy.delta:g}",
        epsilon=privacy.epsilon,
        releases=1,
    )


def _claim_of_clients(spec: ClientReleaseSpec) -> ReleaseClaim:
    """Of the server, which noises the sum; under masking of each client, which adds a share."""
    noise, delta, several = spec.noise_multiplier, spec.delta, spec.releases > 1

    def after(round_: int, kind: str) -> float:
        return min(epsilon_spent([(noise, 1.0, max(round_, 1))], delta), spec.epsilon)

    by = "drawn by a trusted server"
    if spec.shares > 1:
        by = f"in shares of {spec.shares} honest clients"
    return ReleaseClaim(
        mechanism=f"discrete Gaussian on the sum over the clients, noise multiplier "
        f"{noise:.6g}, {spec.releases} times, {by}; L2 sensitivity {spec.clip:g} per "
        f"client, delta {delta:g}",
        epsilon=spec.epsilon,
        releases=spec.releases,
        at=after if several else None,
        rounds=spec.releases if several else 0,
        by=SERVER if spec.shares == 1 else None,
        upload=f"clipped to an L2 norm of {spec.clip:g}, no noise: for the trusted server",
    )


def _claim_of_schedule(schedule: Schedule) -> ReleaseClaim:
    steps = schedule.rounds * (schedule.train_steps + schedule.decoder_steps)
    return ReleaseClaim(
        mechanism=f"DP-SGD, noise multiplier {schedule.noise_multiplier:.6g}, sampling rate "
        f"{schedule.rate:.6g}, {steps} steps; discrete Gaussian, noise multiplier "
        f"{schedule.release_noise:.6g}, {schedule.releases} times; L2 sensitivity "
        f"{schedule.clip:g}, delta {schedule.delta:g}",
        epsilon=schedule.spent(schedule.rounds, schedule.rounds, schedule.releases),
        releases=schedule.releases,
        at=schedule.at_upload,
        rounds=schedule.rounds if schedule.repeated else 0,
    )


# ---------------------------------------------------------------- section
# What ``privacy.mode = example`` spends: every noised step and release, in one accountant.

RELEASE_SHARE = 0.5
"""Part of ε that all releases of a client would spend if there were no training. Multipliers
add up by squares, so that about three quarters of what matters is left to the training."""

_PRECISION = 1e-3
_LEAST_NOISE, _MOST_NOISE = 0.4, 2.0**20


@dataclass(frozen=True)
class Schedule:
    """Numbers of steps and releases, sampling rate and noise: public before data are read.

    Guarantee: (ε, δ)-differential privacy of everything that a client sends, and of its
    classifier, its decoder and the bundle exported from them. *Unit*: one training
    example of one client. *Neighbouring relation*: data sets that differ in one example,
    added or removed. *Mechanism*: each gradient step on real data is a Poisson-sampled
    Gaussian mechanism, of per-example gradients clipped to ``clip``; each release a
    discrete Gaussian one. Rate, expected batch and number of steps follow from the
    settings alone, never from how many examples a client has. All of it is composed in
    one accountant. A client that sits out a round is charged for it all the same.
    *Not covered*: the local-only double, which is trained without noise as a control;
    the simulator's own files (counts, timings, keys) and how long a step takes;
    replacing an example costs about twice as much; several examples of one person are
    several units. The noise of training steps is float32, which attacks on its low bits
    could exploit; that of releases is exact.

    Args:
        epsilon: Budget of the whole run.
        delta: Its δ.
        clip: Bound on one example's gradient, and on its part of a release.
        batch: Expected batch size E, which the noised sum of gradients is divided by.
        rate: Probability q that a step sees an example.
        train_steps: Steps on f per round.
        decoder_steps: Steps on ψ per round that see real images.
        rounds: Rounds of the run.
        opening: Releases before the first round.
        repeated: Releases in each round.
    """

    epsilon: float
    delta: float
    clip: float
    batch: int
    rate: float
    train_steps: int
    decoder_steps: int
    rounds: int
    opening: int
    repeated: int

    @property
    def releases(self) -> int:
        """Noised releases of one client in the whole run."""
        return self.opening + self.repeated * self.rounds

    @property
    def release_epsilon(self) -> float:
        """What the releases would spend by themselves."""
        return RELEASE_SHARE * self.epsilon

    @property
    def release_noise(self) -> float:
        """Noise multiplier of a release."""
        return noise_for(self.release_epsilon, self.delta, self.releases)

    @property
    def noise_multiplier(self) -> float:
        """Noise per clip bound of a training step, z; calibrated, never typed.

        Raises:
            PrivacyError: No noise is enough.
        """
        return _calibrated(self)

    def steps(
        self, noise: float, *, trained: int, painted: int, released: int
    ) -> list[ComposedStep]:
        """What the accountant is told after so many phases and releases."""
        number = trained * self.train_steps + painted * self.decoder_steps
        return [(noise, self.rate, number), (self.release_noise, 1.0, released)]

    def spent(self, trained: int, painted: int, released: int) -> float:
        """ε of one client after so many phases A, phases B and releases; at most the budget."""
        return _spent(self, self.noise_multiplier, trained, painted, released)

    def after_round(self, number: int) -> float:
        """ε of one client when round ``number`` is over; 0 is before the first."""
        return self.spent(number, number, self.opening + self.repeated * number)

    def at_upload(self, number: int, kind: str) -> float:
        """ε that an upload brings the client to, all that was done before it included."""
        if not number:
            return self.spent(0, 0, self.opening)
        painted = number if kind == "decoder" else number - 1
        return self.spent(number, painted, self.opening + self.repeated * number)


def schedule_of(config: Config) -> Schedule:
    """The schedule that the settings amount to; nothing else enters it."""
    privacy, training, method = config.privacy, config.training, config.method
    rate = min(1.0, training.batch * config.clients.count / privacy.population)
    anchored = method.share == "anchored"
    return Schedule(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        clip=privacy.clip,
        batch=training.batch,
        rate=rate,
        train_steps=math.ceil(training.epochs / rate),
        decoder_steps=training.decoder_steps,
        rounds=method.rounds,
        opening=int(anchored),
        repeated=int(not anchored),
    )


@functools.lru_cache(maxsize=1024)
def _spent(schedule: Schedule, noise: float, trained: int, painted: int, released: int) -> float:
    steps = schedule.steps(noise, trained=trained, painted=painted, released=released)
    return epsilon_spent([step for step in steps if step[2]], schedule.delta)


@functools.lru_cache(maxsize=64)
def _calibrated(schedule: Schedule) -> float:
    """The least z, to a thousandth, with which the whole run stays within the budget.

    Searched from above: what the accountant is asked for is then never far beyond the
    budget, where its tables would grow without bound.
    """
    whole = (schedule.rounds, schedule.rounds, schedule.releases)

    def fits(noise: float) -> bool:
        return _spent(schedule, noise, *whole) <= schedule.epsilon

    high = 32.0
    while not fits(high):
        high *= 2
        if high > _MOST_NOISE:
            raise PrivacyError(
                f"privacy.epsilon = {schedule.epsilon:g}: no noise keeps {schedule.rounds} rounds "
                "of DP-SGD within it, as far as the accountant can tell",
                hint='raise privacy.epsilon, or use privacy.mode = "anchored"',
            )
    low = high / 2
    while low > _LEAST_NOISE and fits(low):
        low, high = low / 2, low
    low = max(low, _LEAST_NOISE)
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
