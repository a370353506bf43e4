"""The three phases: what each one changes, what it leaves alone, and what it repeats."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvtc_edge.config import EngineSettings, TrainingSettings
from fedvtc_edge.models import Classifier, ImageShape, build, vtc
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.training import decoder_training, distillation, finetuning, steps, supervised
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.training.decoder_training import matching, train_decoder
from fedvtc_edge.training.finetuning import finetune, last_steps, steps_in
from fedvtc_edge.training.knowledge import GlobalKnowledge, from_anchor, from_features
from fedvtc_edge.training.losses import ClassMoments
from fedvtc_edge.training.steps import Adam, Gradients, noisy, normal_of, random_batch, step
from fedvtc_edge.training.supervised import epochs, random_batches, steps_per_round, train

SHAPE, LATENT, CLASSES, WIDTH = ImageShape(8, 1), 8, 4, 12
SETTINGS = TrainingSettings(epochs=2, batch=4, pixel_noise=0.1, decoder_steps=2)
COMPUTE = Compute.of(EngineSettings(device="cpu", precision="float32"))
LABELS = torch.tensor([0, 1, 1, 3, 0, 3, 3, 0, 1, 1])
PRESENT = torch.tensor([True, True, False, True])

State = dict[str, torch.Tensor]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = len(LABELS)) -> torch.Tensor:
    return torch.rand((count, 1, 8, 8), generator=stream(99))


def classifier() -> Classifier:
    return build("lenet", SHAPE, latent=LATENT, classes=CLASSES, seed=0)


def decoder() -> vtc.VTC:
    return vtc.build(SHAPE, latent=LATENT, seed=0)


def knowledge(kind: str = "anchored", *, teach: bool = True) -> GlobalKnowledge:
    rng, anchor = np.random.default_rng(0), Anchor(SHAPE, WIDTH, seed=0)
    y = np.arange(40) % CLASSES
    width = WIDTH if kind == "anchored" else LATENT
    z = rng.standard_normal((40, width)) + y[:, None]
    published = GlobalStatistics.from_sum(ClassStatistics.of(z, y, classes=CLASSES), floor=0.2)
    device = torch.device("cpu")
    if kind == "anchored":
        return from_anchor(published, anchor, latent=LATENT, device=device, teach=teach)
    return from_features(published, device=device)


def state(network: nn.Module) -> State:
    return {key: value.clone() for key, value in network.state_dict().items()}


def changed(before: State, network: nn.Module) -> set[str]:
    return {key for key, value in network.state_dict().items() if not before[key].equal(value)}


def all_trainable(network: nn.Module) -> bool:
    return all(p.requires_grad for p in network.parameters())


# ---------------------------------------------------------------- the phases, made short


def phase_a(model: Classifier, seed: int = 0, size: int = len(LABELS), **keys: Any) -> int:
    present = keys.pop("present", PRESENT)
    draw = stream(seed)
    x, y, batches = images()[:size], LABELS[:size], epochs(size, SETTINGS, draw)
    return train(model, x, y, present, SETTINGS, COMPUTE, Gradients(draw), batches, **keys)


def plain_steps(model: Classifier, seed: int = 0, size: int = len(LABELS)) -> int:
    draw = stream(seed)
    x, y, batches = images()[:size], LABELS[:size], random_batches(size, 3, SETTINGS, draw)
    return train(model, x, y, PRESENT, SETTINGS, COMPUTE, Gradients(draw), batches)


def phase_b(
    model: Classifier,
    psi: vtc.VTC,
    known: GlobalKnowledge,
    seed: int = 0,
    size: int = len(LABELS),
    *,
    match: bool = True,
) -> int:
    x, y, draw = images()[:size], LABELS[:size], stream(seed)
    gradients = Gradients(draw)
    return train_decoder(model, psi, x, y, known, SETTINGS, COMPUTE, gradients, draw, match=match)


def phase_c(
    model: Classifier,
    psi: vtc.VTC,
    known: GlobalKnowledge,
    seed: int = 0,
    size: int = len(LABELS),
    *,
    head_only: bool = False,
    steps: int = 2,
    decay: bool = False,
) -> int:
    return finetune(
        model,
        psi,
        images()[:size],
        LABELS[:size],
        PRESENT,
        known,
        SETTINGS,
        COMPUTE,
        stream(seed),
        steps=steps,
        kl=0.1,
        head_only=head_only,
        decay=decay,
    )


# ---------------------------------------------------------------- phase A


def test_an_epoch_shows_every_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(supervised, "noisy", lambda x, scale, _: shown.append(x) or x)
    assert phase_a(classifier()) == SETTINGS.epochs * len(LABELS)
    assert [len(x) for x in shown] == [4, 4, 2] * SETTINGS.epochs
    assert len(shown) == steps_per_round(len(LABELS), SETTINGS)
    for epoch in (shown[:3], shown[3:]):
        seen = sorted(x.flatten().tolist() for x in torch.cat(epoch))
        assert seen == sorted(x.flatten().tolist() for x in images())
    assert not torch.equal(shown[0], shown[3])  # another order


@pytest.mark.parametrize(("samples", "steps"), [(1, 2), (4, 2), (5, 4), (8, 4), (9, 6)])
def test_steps_per_round(samples: int, steps: int) -> None:
    assert steps_per_round(samples, SETTINGS) == steps


def test_training_learns() -> None:
    model, x, y = classifier(), images(12), torch.arange(12) % 2
    x = 0.3 * x + 0.6 * y[:, None, None, None]
    settings = TrainingSettings(epochs=15, batch=4, pixel_noise=0.1, rate=3e-3)
    present = torch.tensor([True, True, False, False])
    draw = stream()
    batches = epochs(len(x), settings, draw)
    train(model, x, y, present, settings, COMPUTE, Gradients(draw), batches)
    assert model.eval()(x)[:, :2].argmax(1).equal(y)


def test_the_head_learns_nothing_about_absent_classes() -> None:
    model = classifier()
    before = state(model)
    phase_a(model)
    assert changed(before, model) == set(before)
    for key in ("head.weight", "head.bias"):
        assert before[key][~PRESENT].equal(model.state_dict()[key][~PRESENT])
        assert not before[key][PRESENT].equal(model.state_dict()[key][PRESENT])


def test_the_prior_pulls_features_to_their_prototypes() -> None:
    target = torch.randn((CLASSES, LATENT), generator=stream(1))
    prior = ClassMoments(target, torch.full((CLASSES, LATENT), 0.5))

    def distance(**keys: Any) -> float:
        model = classifier()
        for seed in range(5):
            phase_a(model, seed, **keys)
        return (model.features(images()) - target[LABELS]).square().mean().item()

    assert distance(prior=prior, kl=1.0) < 0.9 * distance()
    assert distance(prior=prior, kl=0.0) == distance()


def test_plain_steps_see_what_they_say() -> None:
    assert plain_steps(classifier()) == 3 * 4
    assert plain_steps(classifier(), size=2) == 3 * 2


# ---------------------------------------------------------------- phase B


@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize("kind", ["anchored", "features"])
def test_painting_leaves_the_classifier_bit_for_bit(kind: str, match: bool) -> None:
    model, psi = classifier(), decoder()
    f, painter = state(model), state(psi)
    seen = phase_b(model, psi, knowledge(kind), match=match)
    assert changed(f, model) == set()
    assert changed(painter, psi) == set(painter)
    assert all_trainable(model)
    assert all(p.grad is None for p in model.parameters())
    assert seen == 2 * (4 + (4 * 12 if match else 0))


def test_painting_has_an_optimiser_for_the_decoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, psi, held = classifier(), decoder(), []

    def spy(parameters: Any, rate: float) -> Adam:
        assert rate == SETTINGS.decoder_rate
        assert not any(p.requires_grad for p in model.parameters())
        held.extend(parameters)
        return Adam(held, rate)

    monkeypatch.setattr(steps, "Adam", spy)
    phase_b(model, psi, knowledge())
    assert {id(p) for p in held} == {id(p) for p in psi.parameters()}


@pytest.mark.parametrize("kind", ["anchored", "features"])
def test_gradients_flow_through_the_frozen_networks(kind: str) -> None:
    model = classifier().eval().requires_grad_(False)
    known = knowledge(kind)
    painted = images(6).requires_grad_()
    loss = matching(painted, torch.tensor([2, 0]), model, known)
    torch.autograd.backward(loss)
    assert painted.grad is not None
    assert (painted.grad.flatten(1).abs().sum(1) > 0).all()


def test_an_anchor_is_matched_in_place_of_the_clients_own_view() -> None:
    model, known, x = classifier(), knowledge().anchored, images(6)
    assert known is not None
    expected, seen = torch.zeros(()), known.anchor(x)
    for place, label in enumerate((2, 0)):
        group = seen[3 * place : 3 * place + 3]
        centre = (group.mean(0) - known.moments.mean[label]) / known.scale
        spread = (group.std(0) - known.moments.std[label]) / known.scale
        expected += (centre.square().mean() + decoder_training.SPREAD * spread.square().mean()) / 2
    found = matching(x, torch.tensor([2, 0]), model, knowledge())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_features_of_real_images_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passed = classifier(), []
    features = model.features

    def spy(x: torch.Tensor) -> torch.Tensor:
        passed.append(len(x))
        return features(x)

    monkeypatch.setattr(model, "features", spy)
    phase_b(model, decoder(), knowledge())
    assert passed == [SETTINGS.batch] * -(-len(LABELS) // SETTINGS.batch)


# ---------------------------------------------------------------- phase C


@pytest.mark.parametrize("head_only", [True, False])
def test_head_only_leaves_the_extractor_alone(head_only: bool) -> None:
    model, psi = classifier(), decoder()
    f, painter = state(model), state(psi)
    phase_c(model, psi, knowledge(), head_only=head_only)
    heads = {"head.weight", "head.bias"}
    assert changed(f, model) == (heads if head_only else set(f))
    assert changed(painter, psi) == set()
    assert all_trainable(model)
    assert all(p.grad is None for p in psi.parameters())


@pytest.mark.parametrize(
    ("kind", "teach", "seen"),
    # With a teacher: pictures of its pool, and late own images beside them.
    [("anchored", True, 16 + 4), ("anchored", False, 16), ("features", True, 16)],
)
def test_the_teacher_teaches_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, kind: str, teach: bool, seen: int
) -> None:
    lessons: list[torch.Size] = []
    distill = distillation.distill

    def counted(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        lessons.append(teacher.shape)
        assert not teacher.requires_grad
        torch.testing.assert_close(teacher.exp().sum(1), torch.ones(len(teacher)))
        return distill(logits, teacher)

    monkeypatch.setattr(distillation, "distill", counted)
    assert phase_c(classifier(), decoder(), knowledge(kind, teach=teach)) == seen
    taught = kind == "anchored" and teach
    assert lessons == ([torch.Size((8, CLASSES))] * 2 if taught else [])


@pytest.mark.parametrize("decay", [False, True])
def test_the_rate_falls_to_zero_where_asked(monkeypatch: pytest.MonkeyPatch, decay: bool) -> None:
    rates: list[float] = []

    def noted(loss: torch.Tensor, adam: Adam) -> None:
        rates.append(adam.rate)
        step(loss, adam)

    monkeypatch.setattr(finetuning, "step", noted)
    phase_c(classifier(), decoder(), knowledge(teach=False), steps=4, decay=decay)
    shares = [1.0, 0.75, 0.5, 0.25] if decay else [1.0] * 4
    assert rates == pytest.approx([SETTINGS.rate * share for share in shares])


def test_fine_tuning_teaches_the_head_absent_classes() -> None:
    model = classifier()
    before = state(model)
    phase_c(model, decoder(), knowledge(teach=False))
    assert not before["head.weight"][2].equal(model.head.weight[2])


ROUNDS = TrainingSettings(finetune_steps=20, finetune_from=3, finetune_last=200)


@pytest.mark.parametrize(
    ("rounds", "steps"),
    [
        (1, [200]),  # shorter than finetune_from: still ends fine-tuned
        (2, [0, 200]),
        (3, [0, 0, 220]),
        (5, [0, 0, 20, 20, 220]),
    ],
)
def test_steps_of_each_round(rounds: int, steps: list[int]) -> None:
    found = [steps_in(number, rounds, CLASSES, ROUNDS) for number in range(1, rounds + 1)]
    assert found == steps


def test_nothing_more_in_the_last_round() -> None:
    settings = TrainingSettings(finetune_steps=7, finetune_from=2, finetune_last=0)
    assert [steps_in(number, 3, CLASSES, settings) for number in (1, 2, 3)] == [0, 7, 7]
    assert steps_in(1, 1, CLASSES, settings) == 0


def test_effort_and_classes_decide_where_no_number_is_set() -> None:
    for classes in (2, 10, 43, 200):
        quick, normal, thorough = (
            last_steps(classes, TrainingSettings(effort=effort))
            for effort in ("quick", "normal", "thorough")
        )
        assert 0 < quick < normal < thorough
        assert normal >= last_steps(classes - 1, TrainingSettings())
    assert last_steps(10**6, TrainingSettings()) == 5000
    assert last_steps(43, TrainingSettings()) > 2 * last_steps(10, TrainingSettings())
    assert last_steps(43, TrainingSettings(effort="thorough", finetune_last=7)) == 7


# ---------------------------------------------------------------- all phases

PHASES: dict[str, Callable[[Classifier, vtc.VTC, int, int], int]] = {
    "epochs": lambda f, psi, seed, size: phase_a(f, seed, size),
    "steps": lambda f, psi, seed, size: plain_steps(f, seed, size),
    "decoder": lambda f, psi, seed, size: phase_b(f, psi, knowledge(), seed, size),
    "decoder-features": lambda f, psi, seed, size: phase_b(
        f, psi, knowledge("features"), seed, size
    ),
    "finetune": lambda f, psi, seed, size: phase_c(f, psi, knowledge(), seed, size),
    "finetune-labels": lambda f, psi, seed, size: phase_c(
        f, psi, knowledge("features"), seed, size
    ),
}


@pytest.mark.parametrize("phase", PHASES)
def test_one_stream_one_result(phase: str) -> None:
    results = []
    for seed, hidden in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(hidden)  # the global stream must not matter
        f, psi = classifier(), decoder()
        PHASES[phase](f, psi, seed, len(LABELS))
        results.append(state(f) | {f"psi.{key}": value for key, value in state(psi).items()})
    one, same, other = results
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_with_one_sample_trains_too(phase: str) -> None:
    f, psi = classifier(), decoder()
    assert PHASES[phase](f, psi, 0, 1) > 0
    for network in (f, psi):
        assert all(torch.isfinite(p).all() for p in network.parameters())
    assert all_trainable(f)


def test_noise_has_the_scale_that_was_asked_for() -> None:
    x = images(200)
    assert noisy(x, 0.0, normal_of(stream())) is x
    gap = noisy(x, 0.3, normal_of(stream())) - x
    assert gap.std().item() == pytest.approx(0.3, rel=0.05)
    assert gap.mean().item() == pytest.approx(0.0, abs=0.01)


def test_random_batches_stay_in_range() -> None:
    batch = random_batch(3, 200, stream(), torch.device("cpu"))
    assert batch.shape == (200,)
    assert set(batch.tolist()) == {0, 1, 2}


def test_a_step_forgets_the_gradients_before_it() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    adam = Adam([weight], 0.1)
    weight.grad = torch.tensor(-100.0)
    step(2 * weight, adam)
    assert weight.item() == pytest.approx(0.9)  # Adam's first step is the rate, downhill


def test_adam_is_torchs_to_the_bit() -> None:
    draw = stream()
    ours = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((7, 5), (5,), (), (3,))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    adam, torchs = Adam(ours, 0.01), torch.optim.Adam(theirs, lr=0.01, fused=True)
    for index in range(20):
        adam.rate = torchs.param_groups[0]["lr"] = 0.01 * (1 - index / 20)
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            # One that comes late, and one that is left out for a while.
            here = (number, index) not in {(1, 0), (1, 1), (2, 9), (2, 10)}
            mine.grad = torch.randn(mine.shape, generator=draw) if here else None
            other.grad = None if mine.grad is None else mine.grad.clone()
        adam.step()
        torchs.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.detach().numpy().tobytes() == other.detach().numpy().tobytes()


TRAINS = """
import sys
import torch
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.steps import Adam, step

layer = torch.nn.Conv2d(1, 2, 3)
with deterministic():
    step(layer(torch.ones(1, 1, 4, 4)).sum(), Adam(layer.parameters(), 0.1))
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""


def test_training_does_not_import_the_compiler() -> None:
    """It would take a process 150 MB and more than a second."""
    done = subprocess.run([sys.executable, "-c", TRAINS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---------------------------------------------------------------- what a phase holds


def test_no_gradient_outlives_its_phase() -> None:
    """Modelled memory counts the gradients of one network at a time."""
    model, psi, known = classifier(), decoder(), knowledge()
    phase_a(model)
    assert all(p.grad is None for p in model.parameters())
    phase_b(model, psi, known)
    assert all(p.grad is None for p in psi.parameters())
    phase_c(model, psi, known)
    assert all(p.grad is None for p in (*model.parameters(), *psi.parameters()))


def test_half_precision_never_reaches_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bfloat16 the anchor still sees and answers in float32."""
    half = Compute.of(EngineSettings(device="cpu", precision="bfloat16"))
    seen: list[torch.dtype] = []
    plain = Anchor.forward

    def watched(self: Anchor, x: torch.Tensor) -> torch.Tensor:
        answer = plain(self, x)
        seen.extend((x.dtype, answer.dtype))
        return answer

    monkeypatch.setattr(Anchor, "forward", watched)
    networks, draw = (classifier(), decoder()), stream()
    gradients = Gradients(draw)
    train_decoder(
        *networks, images(), LABELS, knowledge(), SETTINGS, half, gradients, draw, match=True
    )
    assert seen
    assert set(seen) == {torch.float32}
