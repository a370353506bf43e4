"""Consent of a client: what it agrees to release, and what it says before it measures anything."""

from __future__ import annotations

from dataclasses import dataclass

from fedvtc_edge.config import Config
from fedvtc_edge.errors import PrivacyError
from fedvtc_edge.privacy.claim import UNITS
from fedvtc_edge.privacy.mechanism import Mechanism, mechanism_of

DELTA = 1e-5
"""δ at which the ε of settings is compared with the most that a client accepts, where theirs is
larger: a large δ would make any ε small."""


@dataclass(frozen=True)
class Conditions:
    """Conditions on the privacy of a run, under which a client takes part.

    Args:
        exact: Whether exact statistics may leave it, of which no ε says what they tell.
        required: Whether what leaves it must carry its noise already: no server is trusted.
        most_epsilon: The largest ε of the whole run, at δ = 10⁻⁵ or the run's own if that is
            smaller; None for any.
        spend_again: Whether data may be released that were released before.
    """

    exact: bool = True
    required: bool = False
    most_epsilon: float | None = None
    spend_again: bool = False

    def check(self, config: Config) -> None:
        """Refuse settings that this client does not agree to.

        Raises:
            PrivacyError: It does not.
        """
        mechanism = mechanism_of(config)
        if mechanism is None:
            if self.required or self.most_epsilon is not None:
                raise PrivacyError(
                    "the run has privacy.mode = 'none', and this client takes part under a "
                    "privacy mode only",
                    hint="ask the server's operator for one, or leave out --require-privacy and "
                    "--at-most-epsilon",
                )
            if not self.exact:
                raise PrivacyError(
                    "the run has privacy.mode = 'none': statistics would leave this client "
                    "without noise, and no epsilon says what they tell",
                    hint="join with --no-privacy if that is meant",
                )
            return
        if self.required and mechanism.noised_by_server:
            raise PrivacyError(
                f"privacy.mode = {config.privacy.mode!r} without masks: the upload is clipped, and "
                "the noise is left to the server",
                hint="ask for transport.masking = true, or leave out --require-privacy",
            )
        if self.most_epsilon is not None:
            delta = min(config.privacy.delta, DELTA)
            found = max(mechanism.claim.epsilon, mechanism.least_epsilon(delta, "add/remove"))
            if found > self.most_epsilon:
                raise PrivacyError(
                    f"the run spends epsilon {found:.4g} at delta {delta:g} per "
                    f"{UNITS[mechanism.unit]}; this client accepts {self.most_epsilon:g}",
                    hint="ask for a smaller privacy.epsilon, or raise --at-most-epsilon",
                )


def agreement(config: Config) -> list[str]:
    """Terms of a client's part in a run, as lines for its terminal before it measures anything."""
    method, mechanism = config.method, mechanism_of(config)
    rounds = f"{method.rounds} round{'s' if method.rounds > 1 else ''}"
    masks = "no masks"
    if config.transport.masking and config.sums == 1:
        masks = "under masks: the server sees the sum alone"
    elif config.transport.masking:
        masks = f"under masks: the server sees sums of {config.smallest_sum} clients or one more"
    shared = f"shares {method.share!r}" if method.name == "fedvtc" else f"method {method.name!r}"
    what = f"agreed: {shared}, {rounds}, extractor {method.extractor!r:.80}, {masks}"
    return [what, f"agreed: {_privacy(config, mechanism)}"]


def _privacy(config: Config, mechanism: Mechanism | None) -> str:
    if mechanism is None:
        return (
            "privacy mode 'none': exact statistics leave this machine, and no epsilon says what "
            "they tell"
        )
    return (
        f"privacy mode {config.privacy.mode!r}: epsilon {mechanism.claim.epsilon:.4g} at delta "
        f"{config.privacy.delta:g} per {UNITS[mechanism.unit]}; it covers {mechanism.covers}"
    )
