"""The privacy mechanism of a run: what is clipped, who adds the noise, and what may be claimed.

Only this module knows what ``privacy.mode`` means. Everything follows from the settings
alone: it is public before any data are read.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import ClassVar, Literal

from numpy.typing import ArrayLike

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError, PrivacyError

from .accountant import MIN_DELTA, ComposedStep, epsilon_spent
from .claim import NEIGHBOURS, Claim
from .release import Integers, clipped_upload, noised, release
from .release_spec import (
    Array,
    ClientReleaseSpec,
    ReleaseSpec,
    spec_for_clients,
    spec_for_examples,
    unit_of,
)
from .release_store import SERVER
from .sampler import LARGEST_SIGMA, LEAST_SIGMA, min_honest
from .schedule import Schedule


def mechanism_of(config: Config, classes: int = 2) -> Mechanism | None:
    """The mechanism that the settings ask for; None where nothing is claimed.

    Args:
        classes: Number C of classes. Only the length and the width of a release depend on
            it, neither noise nor clip nor claim: before the classes are known any number does.
    """
    kind = _MECHANISMS.get(config.privacy.mode)
    return None if kind is None else kind(config, classes)


def anchor_width(config: Config, classes: int) -> int:
    """Number m of anchor features: fewer than ``method.anchor`` where noise would drown them."""
    mechanism = mechanism_of(config, classes)
    return config.method.anchor if mechanism is None else mechanism.spec.width


def coverages() -> list[str]:
    """Patterns of all that :attr:`Mechanism.covers` may say."""
    masked = [
        re.sub(r"\\{[a-z]+\\}", "[0-9]+", re.escape(said)) for said in (_MASKED, _MASKED_GROUPS)
    ]
    return [*masked, *(re.escape(kind._covers) for kind in _MECHANISMS.values())]


_MASKED = (
    "the masked sum, which is all that the server sees, also with up to {colluders} of {group} "
    "clients in league with it; not the models that stay with the clients"
)
_MASKED_GROUPS = (
    "each of the masked sums of {sums} groups, which are all that the server sees, also with up to "
    "{colluders} of {group} clients in league with it, all in one group; not the models that stay "
    "with the clients"
)


@dataclass(frozen=True)
class Mechanism(ABC):
    """Mechanism by which a run keeps its (ε, δ).

    Guarantee: that of the mechanism's class, for ``claim``.

    Args:
        classes: Number C of classes.
    """

    config: Config
    classes: int

    unit: ClassVar[Literal["example", "client"]] = "example"
    accountant: ClassVar[str] = "exact"
    _covers: ClassVar[str]
    protects_models: ClassVar[bool] = False
    """Whether what stays with a client is covered too: its models, and which classes it has."""

    @property
    @abstractmethod
    def spec(self) -> ReleaseSpec:
        """One noised release of the run."""

    @property
    @abstractmethod
    def _mechanism(self) -> str:
        """The mechanism in words, with its parameters."""

    @property
    @abstractmethod
    def upload(self) -> str:
        """Treatment of an upload before it leaves, in words."""

    @abstractmethod
    def _check_mode(self) -> None:
        """Refuse settings that this mechanism does not cover."""

    @property
    def shares(self) -> int:
        """Honest clients that share the noise of a masked sum; 1 where each adds all of it.

        Counted are those that are surely in a sum that comes out, less those that may collude.
        """
        config = self.config
        if not config.transport.masking:
            return 1
        least = config.smallest_sum
        return min_honest(least, dropouts=config.dropouts, colluders=config.colluders)

    @property
    def covers(self) -> str:
        """Coverage of the ε, in words."""
        if self.shares == 1:
            return self._covers
        said = _MASKED if self.config.sums == 1 else _MASKED_GROUPS
        config = self.config
        return said.format(colluders=config.colluders, group=config.group, sums=config.sums)

    @property
    def noised_by_server(self) -> bool:
        """True if clients send exact uploads to a server that is trusted to noise their sum."""
        return False

    @property
    def every_round(self) -> bool:
        """True if each round makes a release, and not only the opening."""
        return self.config.method.share != "anchored"

    @cached_property
    def claim(self) -> Claim:
        """Claim of the whole run.

        Raises:
            PrivacyError: An ε that no noise keeps.
        """
        return Claim(
            epsilon=self._epsilon,
            delta=self.config.privacy.delta,
            unit=self.unit,
            neighbouring="add/remove",
            mechanism=self._mechanism,
            accountant=self.accountant,
        )

    @property
    def _epsilon(self) -> float:
        return self.config.privacy.epsilon

    def is_release_of(self, sender: str) -> bool:
        """True if what ``sender`` sends is a release, and not an upload to whoever releases."""
        return not self.noised_by_server or sender == SERVER

    def sensitivity(self, neighbouring: str = "add/remove") -> Fraction:
        """Largest change of a release by one unit, in L2 and grid steps.

        Args:
            neighbouring: ``add/remove``, or ``replace``, which moves sums by twice the bound.
        """
        return self.spec.sensitivity * NEIGHBOURS[neighbouring]

    def protect(self, features: ArrayLike, labels: ArrayLike, centre: Array) -> Integers:
        """Noised sums of a client's examples, which leave it.

        Two calls are two releases, and cost twice: keep what was drawn and send it again.

        Args:
            features: [N, m], each of norm √m.
            labels: Their classes [N].
            centre: Public centre of the features' directions, [m].

        Returns:
            int64 [spec.size]: counts, class sums, second moments.

        Raises:
            PrivacyError: Shapes or labels that do not fit the spec.
        """
        return release(self.spec, features, labels, centre)

    def aggregate(self, total: Integers) -> Integers:
        """Release of a sum of uploads, int64 [spec.size]."""
        return total

    def epsilon_after(self, number: int) -> float:
        """ε of one unit when round ``number`` is over; 0 is what came before the first."""
        return self._epsilon

    def epsilon_at(self, number: int, kind: str) -> float:
        """ε that an upload of a round and a kind brings its unit to, for the ledger."""
        return self._epsilon

    def steps(self) -> list[ComposedStep]:
        """Noise multiplier, sampling rate and number of all that one unit goes through."""
        return [(self.spec.noise_multiplier, 1.0, self.spec.releases)]

    def least_epsilon(self, delta: float, neighbouring: str) -> float:
        """The least ε that may be said of the run; its accountant's.

        What was released in full is accounted with the noise that the relation's
        sensitivity leaves of it. Of sampled steps that would be too much, so that they
        count as if nothing were replaced: the result is never more than what must be claimed.

        Args:
            delta: δ; infinity comes of one below 1e-300.
            neighbouring: ``add/remove`` or ``replace``.
        """
        if delta < MIN_DELTA:
            return math.inf
        steps, times = self.steps(), self.sensitivity(neighbouring) / self.sensitivity()
        moved = [(noise / float(times), rate, number) for noise, rate, number in steps if rate == 1]
        histories = [steps] if times == 1 else [steps, moved]
        try:
            return max(epsilon_spent(history, delta) for history in histories)
        except PrivacyError:  # no ε up to 1000
            return math.inf

    def check(self) -> None:
        """Refuse settings under which no honest ε exists.

        Raises:
            ConfigError: Something that the mechanism does not cover.
            PrivacyError: An ε that no noise keeps.
        """
        privacy = self.config.privacy
        self._check_mode()
        units, key = privacy.population, "privacy.population"
        if self.unit == "client":
            units, key = self.config.clients.count, "clients.count"
        if privacy.delta > 1 / units:
            raise ConfigError(
                f"privacy.delta = {privacy.delta:g} is above 1/{units}, one over {key}: it would "
                "allow to publish somebody's data outright",
                hint="lower privacy.delta",
            )
        assert self.claim  # calibrated here, or refused
        if not LEAST_SIGMA <= self.spec.sigma <= LARGEST_SIGMA:
            small = self.spec.sigma < LEAST_SIGMA
            raise ConfigError(
                f"privacy.clip = {privacy.clip:g} with privacy.epsilon = {privacy.epsilon:g}: "
                f"the noise would be too {'fine' if small else 'coarse'} for the integer grid",
                hint=f"{'raise' if small else 'lower'} privacy.clip; 1 is a good value",
            )

    def _anchored_spec(self, epsilon: float) -> ReleaseSpec:
        config = self.config
        return spec_for_examples(
            classes=self.classes,
            clients=config.clients.count,
            population=config.privacy.population,
            epsilon=epsilon,
            delta=config.privacy.delta,
            clip=config.privacy.clip,
            widest=config.method.anchor,
            second=config.method.moments == "covariance",
            shares=self.shares,
            pretrained=config.method.pretrained,
        )


class LocalMechanism(Mechanism):
    """``privacy.mode = anchored``: each client noises its one upload.

    Guarantee: see :class:`~fedvtc_edge.privacy.release_spec.ReleaseSpec`.
    """

    _covers = "each client's upload, not the models that stay with it"
    upload = "noised"

    @cached_property
    def spec(self) -> ReleaseSpec:
        """The release of one client."""
        return self._anchored_spec(self._epsilon)

    @property
    def _mechanism(self) -> str:
        spec = self.spec
        among = "" if spec.shares == 1 else f"in shares of {spec.shares} honest clients, "
        return (
            f"discrete Gaussian, {among}noise multiplier {spec.noise_multiplier:.6g}, "
            f"L2 sensitivity {spec.clip:g}, delta {spec.delta:g}"
        )

    def _check_mode(self) -> None:
        if self.config.method.share != "anchored":
            raise ConfigError(
                f"privacy.mode = 'anchored' with method.share = {self.config.method.share!r}: "
                "those features were trained on the very samples, so their sensitivity is not "
                "bounded by a clip",
                hint='use method.share = "anchored", whose extractor saw no data, or '
                'privacy.mode = "example"',
            )


class CentralMechanism(Mechanism):
    """``privacy.mode = client``: whole uploads are clipped, and their sum is noised.

    By a trusted server, once; under masking by the clients, in shares.

    Guarantee: see :class:`~fedvtc_edge.privacy.release_spec.ClientReleaseSpec`. A client that
    sits out a round is charged for it all the same: who takes part is drawn from the
    public seed, so that no sampling amplifies anything.
    """

    unit = "client"
    _covers = (
        "what the server publishes, not what it sees (it is trusted) nor the models that stay "
        "with the clients"
    )

    @cached_property
    def spec(self) -> ClientReleaseSpec:
        """The release of the sum: one before the first round, or one in each."""
        privacy, method, clients = self.config.privacy, self.config.method, self.config.clients
        if not self.every_round:
            return spec_for_clients(
                classes=self.classes,
                clients=clients.count,
                population=privacy.population,
                epsilon=privacy.epsilon,
                delta=privacy.delta,
                clip=privacy.clip,
                widest=method.anchor,
                second=method.moments == "covariance",
                shares=self.shares,
                pretrained=method.pretrained,
            )
        return ClientReleaseSpec(
            classes=self.classes,
            width=method.latent,
            second=False,
            clip=privacy.clip,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            releases=method.rounds,
            unit=unit_of(clients.count, privacy.population),
            shares=self.shares,
        )

    @property
    def noised_by_server(self) -> bool:
        """Unless masks hide the uploads from it."""
        return not self.config.transport.masking

    @property
    def _mechanism(self) -> str:
        spec, by = self.spec, "drawn by a trusted server"
        if not self.noised_by_server:
            by = f"in shares of {spec.shares} honest clients"
        return (
            f"discrete Gaussian on the sum over the clients, noise multiplier "
            f"{spec.noise_multiplier:.6g}, {spec.releases} times, {by}; L2 sensitivity "
            f"{spec.clip:g} per client, delta {spec.delta:g}"
        )

    @property
    def upload(self) -> str:
        """Clipped, and without noise where the server is trusted."""
        if self.noised_by_server:
            return "clipped as a whole, without noise, to a trusted server"
        return "clipped as a whole, with a share of the noise"

    def _check_mode(self) -> None:
        if self.config.method.share == "features+decoder":
            raise ConfigError(
                "privacy.mode = 'client' with method.share = 'features+decoder': the decoder's "
                "weights are not in the vector that is clipped and noised, and noise on so many "
                "would be all of them",
                hint='use method.share = "anchored" or "features"',
            )

    def protect(self, features: ArrayLike, labels: ArrayLike, centre: Array) -> Integers:
        """A clipped upload: exact for a trusted server, else with its share of the noise."""
        upload = clipped_upload(self.spec, features, labels, centre)
        return upload if self.noised_by_server else noised(self.spec, upload)

    def aggregate(self, total: Integers) -> Integers:
        """The sum with its noise: drawn here by a trusted server, else in it already."""
        return noised(self.spec, total) if self.noised_by_server else total

    def epsilon_after(self, number: int) -> float:
        """ε of one client when round ``number`` is over."""
        if not self.every_round:
            return self._epsilon
        steps = [(self.spec.noise_multiplier, 1.0, number)]
        return min(epsilon_spent(steps, self.spec.delta), self._epsilon)

    def epsilon_at(self, number: int, kind: str) -> float:
        """ε that the release of a round brings every client to."""
        return self.epsilon_after(max(number, 1))


class ExampleMechanism(Mechanism):
    """``privacy.mode = example``: DP-SGD, and noised releases; see :class:`Schedule`."""

    accountant = "PRV or RDP"
    protects_models = True
    shares = 1
    _covers = "each client's uploads, models and bundle"
    upload = "noised"

    @cached_property
    def schedule(self) -> Schedule:
        """Steps, rates and noise; nothing but the settings enters."""
        privacy, training = self.config.privacy, self.config.training
        rate = min(1.0, training.batch * self.config.clients.count / privacy.population)
        return Schedule(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            clip=privacy.clip,
            batch=training.batch,
            rate=rate,
            train_steps=math.ceil(training.epochs / rate),
            decoder_steps=training.decoder_steps,
            rounds=self.config.method.rounds,
            opening=int(not self.every_round),
            repeated=int(self.every_round),
        )

    @cached_property
    def spec(self) -> ReleaseSpec:
        """One release of a client: of the anchor's features, or of its own in each round."""
        schedule = self.schedule
        if not self.every_round:
            return self._anchored_spec(schedule.release_epsilon)
        return ReleaseSpec(
            classes=self.classes,
            width=self.config.method.latent,
            second=False,
            clip=schedule.clip,
            epsilon=schedule.release_epsilon,
            delta=schedule.delta,
            releases=schedule.releases,
        )

    @property
    def _mechanism(self) -> str:
        schedule = self.schedule
        steps = schedule.rounds * (schedule.train_steps + schedule.decoder_steps)
        return (
            f"DP-SGD, noise multiplier {schedule.noise_multiplier:.6g}, sampling rate "
            f"{schedule.rate:.6g}, {steps} steps; discrete Gaussian, noise multiplier "
            f"{schedule.release_noise:.6g}, {schedule.releases} times; L2 sensitivity "
            f"{schedule.clip:g}, delta {schedule.delta:g}"
        )

    @property
    def _epsilon(self) -> float:
        return self.schedule.after_round(self.schedule.rounds)

    def _check_mode(self) -> None:
        if self.config.engine.precision == "bfloat16":
            raise ConfigError(
                "privacy.mode = 'example' with engine.precision = 'bfloat16': clipped gradients "
                "would be rounded to three digits, beyond the bound that the noise is made for",
                hint='use engine.precision = "float32"',
            )

    def epsilon_after(self, number: int) -> float:
        """ε of one example: all steps and releases until round ``number`` is over."""
        return self.schedule.after_round(number)

    def epsilon_at(self, number: int, kind: str) -> float:
        """ε that an upload brings an example to, all that was done before it included."""
        return self.schedule.at_upload(number, kind)

    def steps(self) -> list[ComposedStep]:
        """Sampled gradient steps, and releases in full."""
        schedule = self.schedule
        return schedule.steps(
            schedule.noise_multiplier,
            trained=schedule.rounds,
            synthesised=schedule.rounds,
            released=schedule.releases,
        )


_MECHANISMS: dict[str, type[Mechanism]] = {
    "anchored": LocalMechanism,
    "example": ExampleMechanism,
    "client": CentralMechanism,
}
