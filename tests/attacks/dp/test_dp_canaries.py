"""Many canaries in one upload: as many independent trials, of a claim that is true or false."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedvtc_edge.attacks.dp.bounds import mu_lower_bound, mu_upper_bound
from fedvtc_edge.attacks.dp.canaries import ManyCanaries
from fedvtc_edge.attacks.dp.game import audit_scores, trials_for
from fedvtc_edge.attacks.dp.releases import ClientRelease, ExampleRelease, canary_client
from fedvtc_edge.errors import PrivacyError, ScoreError
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec, ReleaseSpec

Array = NDArray[Any]
WIDTH, CLASSES = 16, 10
CENTRE = np.random.default_rng(2).normal(0, 0.2, WIDTH)


def records(size: int, seed: int) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(size, WIDTH))
    return 4 * z / np.linalg.norm(z, axis=1, keepdims=True), draw.integers(0, CLASSES, size)


def example(epsilon: float, *, second: bool = True, shares: int = 1) -> ExampleRelease:
    spec = ReleaseSpec(CLASSES, WIDTH, second, 1.0, epsilon, 1e-5, shares=shares)
    few = records(20, 0)
    return ExampleRelease(spec, (few, few), CENTRE, shares)


def clients(epsilon: float) -> ClientRelease:
    spec = ClientReleaseSpec(CLASSES, WIDTH, True, 1.0, epsilon, 1e-5, unit=3.0)
    few = [records(6, seed) for seed in range(3)]
    return ClientRelease(
        spec, (few, [*few, canary_client(spec, CENTRE, np.ones(WIDTH), 0)]), CENTRE
    )


def lone(
    draw: Any, *, size: int = 30, many: int = 5, gap: float = 2.0, seed: int = 0
) -> ManyCanaries:
    """Canaries of length ``gap`` that overlap, on a base of its own."""
    stream = np.random.default_rng(7)
    moves = stream.normal(size=(many, size)) + 0.5
    moves *= gap / np.linalg.norm(moves, axis=1, keepdims=True)
    base = stream.normal(size=size)
    return ManyCanaries(lambda bits: draw(base, moves, bits), base, moves, seed)


@pytest.mark.parametrize("make", [example, clients])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_a_true_claim_passes_and_half_of_its_noise_leaks(make: Any, epsilon: float) -> None:
    """At ε = 1 and with second moments too, where single units are inconclusive."""
    mechanism = make(epsilon)
    trials = trials_for(mechanism.claim, confidence=1 - 1e-5)
    halved = mechanism.halved()
    for played, verdict in ((mechanism, "pass"), (halved, "leak")):
        result = audit_scores(
            played.many_canaries().scores,
            halved.many_canaries().scores,
            mechanism.claim,
            trials=trials,
            confidence=1 - 1e-5,
        )
        assert result.verdict == verdict, result


def test_under_masks_the_other_clients_noise_counts() -> None:
    mechanism = example(4.0, second=False, shares=4)
    found = mechanism.many_canaries().scores(150)
    spread = np.concatenate([found[0] - found[0].mean(), found[1] - found[1].mean()]).std()
    assert spread == pytest.approx(float(mechanism.spec.sigma), rel=0.15)


def test_scores_are_independent_and_far_apart_as_the_canaries_are_long() -> None:
    noise = np.random.default_rng(3)
    game = lone(lambda base, moves, bits: base + bits @ moves + noise.normal(size=len(base)))
    zeros, ones = game.scores(3000)
    assert zeros.mean() == pytest.approx(0, abs=0.08)
    assert zeros.std() == pytest.approx(1, abs=0.05)
    assert ones.std() == pytest.approx(1, abs=0.05)
    # The overlap costs a little: what is its own in each canary is less than all of it.
    assert 1.3 < ones.mean() - zeros.mean() <= 2.0
    assert mu_lower_bound(zeros, ones, 1e-3) < 2.0 < mu_upper_bound(zeros, ones, 1e-3) + 0.6
    scores = [game._score(game.draw(bits), bits) for bits in (game._coins() for _ in range(2000))]
    correlation = np.corrcoef(np.array(scores) - np.array(scores).mean(0), rowvar=False)
    coins = np.abs(correlation[~np.eye(5, dtype=bool)]).max()
    assert coins < 0.1


def test_what_is_believed_of_the_canaries_proves_nothing() -> None:
    """Where the mechanism ignores them, scores of absent and present ones are alike."""
    noise = np.random.default_rng(4)
    game = lone(lambda base, moves, bits: base + noise.normal(size=len(base)), gap=50.0)
    zeros, ones = game.scores(400)
    assert abs(mu_lower_bound(zeros, ones, 1e-3)) < 0.2


def test_a_clip_that_is_skipped_is_seen() -> None:
    """Each canary moves three times as much as the auditor, who believes the clip, has it."""
    noise = np.random.default_rng(5)
    game = lone(lambda base, moves, bits: base + 3 * (bits @ moves) + noise.normal(size=len(base)))
    zeros, ones = game.scores(400)
    assert mu_lower_bound(zeros, ones, 1e-3) > 3


@pytest.mark.parametrize(
    ("draw", "kind", "names"),
    [
        (lambda base, moves, bits: base[:-1], PrivacyError, r"shape \[29\], expected \[30\]"),
        (lambda base, moves, bits: base * np.nan, ScoreError, "not finite"),
    ],
)
def test_wrong_uploads_are_named(draw: Any, kind: type[Exception], names: str) -> None:
    with pytest.raises(kind, match=names):
        lone(draw).scores(3)


def test_canaries_that_depend_on_each_other_are_refused() -> None:
    game = ManyCanaries(lambda bits: np.zeros(4), np.zeros(4), np.ones((2, 4)))
    with pytest.raises(ScoreError, match="depend on each other"):
        game.scores(1)
