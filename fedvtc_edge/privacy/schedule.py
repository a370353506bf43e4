"""Budget of DP-SGD and its releases: every noised step of a run, in one accountant."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fedvtc_edge.errors import PrivacyError

from .accountant import ComposedStep, epsilon_spent, noise_for

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
    *Not covered*: the local baseline, which is trained without noise as a control;
    the simulator's own files (counts, timings, keys) and how long a step takes;
    replacing an example costs about twice as much; several examples of one person are
    several units. The noise of training steps is float32, which attacks on its low bits
    could exploit; that of releases is exact.

    Args:
        clip: Bound on one example's gradient, and on its part of a release.
        batch: Expected batch size E, which the noised sum of gradients is divided by.
        rate: Probability q that a step sees an example.
        decoder_steps: Steps on ψ per round that see real images.
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
        """ε that the releases would spend by themselves."""
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
        self, noise: float, *, trained: int, synthesised: int, released: int
    ) -> list[ComposedStep]:
        """Steps for the accountant after so many phases and releases."""
        number = trained * self.train_steps + synthesised * self.decoder_steps
        made = [(noise, self.rate, number), (self.release_noise, 1.0, released)]
        return [step for step in made if step[2]]

    def spent(self, trained: int, synthesised: int, released: int) -> float:
        """ε of one client after so many phases A, phases B and releases; at most the budget."""
        return _spent(self, self.noise_multiplier, trained, synthesised, released)

    def after_round(self, number: int) -> float:
        """ε of one client when round ``number`` is over; 0 is before the first."""
        return self.spent(number, number, self.opening + self.repeated * number)

    def at_upload(self, number: int, kind: str) -> float:
        """ε that an upload brings the client to, all that was done before it included."""
        if not number:
            return self.spent(0, 0, self.opening)
        synthesised = number if kind == "decoder" else number - 1
        return self.spent(number, synthesised, self.opening + self.repeated * number)


@functools.lru_cache(maxsize=1024)
def _spent(
    schedule: Schedule, noise: float, trained: int, synthesised: int, released: int
) -> float:
    steps = schedule.steps(noise, trained=trained, synthesised=synthesised, released=released)
    return epsilon_spent(steps, schedule.delta)


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
