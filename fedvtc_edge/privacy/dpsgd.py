"""DP-SGD (Abadi et al. 2016): clipped per-example gradients by Opacus, noise of our own.

The noise comes from secret streams, which a client can repeat after a crash, as it must,
and nobody else can.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvtc_edge.errors import ConfigError, MissingExtra

from .schedule import Schedule

Losses = Callable[[Tensor], Tensor]
"""Indices of examples to the *sum* of their losses, each of one example alone."""

_SHRINK = 1.0 - 1e-4
"""More than float32 can be off in the norm of a gradient."""

_AGREE = 1e-3
_EXAMPLES = 3

KEY_BYTES = 32


class SecretStream:
    """Draws that nobody can repeat without a secret key, by ChaCha20 (RFC 8439).

    A round that is repeated after a crash repeats its noise: two draws of noise over
    one sum would average to a better look at it. Torch's own generator on the CPU
    keeps 32 bits of its seed, which anybody can try out; this one keeps all 256.
    What remains is that normals are float32 numbers: Opacus' ``secure_mode`` is not
    claimed, nor anything like it.

    Args:
        key: 32 secret bytes.
        names: What the stream is for; other names are another stream.
    """

    def __init__(self, key: bytes, *names: str | int) -> None:
        text = "\x1f".join(["fedvtc-edge", *map(str, names)])
        own = hmac.digest(key, text.encode(), "sha256")
        # A nonce of zeros is used once: every stream has a key of its own.
        self._cipher = Cipher(ChaCha20(own, bytes(16)), mode=None).encryptor()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """``size`` numbers in [0, 1), multiples of 2⁻⁵³."""
        words = np.frombuffer(self._cipher.update(bytes(8 * size)), "<u8")
        return np.ldexp((words >> np.uint64(11)).astype(np.float64), -53)

    def normal(self, shape: torch.Size) -> Tensor:
        """Standard normal float32 draws on the CPU, by Box and Muller; none beyond 8.6."""
        size = shape.numel()
        half = -(-size // 2)
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
        return torch.from_numpy(both.astype(np.float32)).view(shape)

    def sample(self, size: int, rate: float) -> Tensor:
        """Poisson sampling: indices below ``size``, each with probability ``rate`` by itself."""
        return torch.from_numpy(np.flatnonzero(self.uniform(size) < rate))


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """Names a client's data, so that other data never meet the same noise."""
    digest = hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes())
    digest.update(labels.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class PrivateGradients:
    """Gradients of one network that one example moves by no more than clip / E.

    Guarantee: see :class:`~fedvtc_edge.privacy.schedule.Schedule`; one call of
    :meth:`compute` on a Poisson sample is one step of it.

    Args:
        module: Trained; all that requires gradients is protected.
        noise: Secret stream of the noise.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        noise: SecretStream,
    ) -> None:
        self._hooks, make = _opacus(module)
        self._piece = schedule.batch
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        # Opacus clips what an optimiser of torch holds; nobody steps with this one.
        self._private = make(torch.optim.SGD(self._parameters, lr=1.0), schedule, noise)

    def compute(self, batch: Tensor, losses: Losses) -> None:
        """Leave (Σ clipped gradients + noise) / E in ``p.grad``; an empty batch is noise.

        Args:
            batch: Indices, a Poisson sample; taken in pieces, so that memory is bounded.
            losses: Sum of losses of some of them.
        """
        for piece in torch.split(batch, self._piece):
            if len(piece):
                self._backward(losses(piece), len(piece))
                self._private.clip_and_accumulate()
        for parameter in self._parameters:  # the end of the batch is a piece of no examples
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
        self._private.pre_step()
        for parameter in self._parameters:
            parameter.grad_sample = parameter.summed_grad = None  # type: ignore[attr-defined]

    @contextmanager
    def public(self) -> Iterator[None]:
        """Within it gradients are ordinary ones: of what no example entered."""
        self._hooks.disable_hooks()
        try:
            yield
        finally:
            self._hooks.enable_hooks()

    def close(self) -> None:
        """Give the module back without hooks, and without anybody's gradients."""
        for parameter in self._parameters:
            parameter.grad = None
        self._hooks.to_standard_module()

    def _backward(self, loss: Tensor, count: int) -> None:
        for parameter in self._parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
        torch.autograd.backward(loss)
        for parameter in self._parameters:
            if parameter.grad_sample is None:  # type: ignore[attr-defined]
                parameter.grad_sample = parameter.new_zeros((count, *parameter.shape))  # type: ignore[attr-defined]


def check_private(name: str, module: nn.Module, example: Tensor) -> None:
    """Refuse a network whose per-example gradients cannot be had, or mix examples.

    Beside Opacus' own list, gradients of three random images are compared with those
    of each image alone: that finds weights used behind Opacus' back, batch statistics
    by whatever name, and layers that draw random numbers.

    Args:
        name: What the user calls the network.
        example: Shapes [1, …] of its input.

    Raises:
        ConfigError: It cannot be trained under DP-SGD.
    """
    for inner in module.modules():
        if isinstance(inner, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"privacy.mode = 'example' with {type(inner).__name__} in architecture {name!r}: "
                "statistics of a batch mix the examples that DP-SGD must tell apart",
                hint="use GroupNorm instead",
            )
        if isinstance(inner, nn.modules.dropout._DropoutNd) and inner.p:
            raise ConfigError(
                f"privacy.mode = 'example' with {type(inner).__name__} in architecture {name!r}: "
                "its masks come from a public seed, and one example fewer moves all that follow",
                hint="leave it out: DP-SGD's noise regularises already",
            )
    try:
        together, alone = _both_gradients(module, example)
    except MissingExtra:
        raise
    except Exception as error:  # whatever a registered body or Opacus raises is a refusal
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"privacy.mode = 'example': Opacus takes no per-example gradients of architecture "
            f"{name!r}: {type(error).__name__}: {reason}",
            hint="plain layers only: no in-place changes of a layer's output, no buffers",
        ) from None
    for label, ours in together.items():
        scale = float(alone[label].norm())
        if not float((ours - alone[label]).norm()) <= _AGREE * scale + 1e-6:
            raise ConfigError(
                f"privacy.mode = 'example': the per-example gradients of {label!r} in "
                f"architecture {name!r} are not those of the examples alone",
                hint="every weight must be used by one plain layer, and no layer may be random "
                "or look at the whole batch",
            )


def _both_gradients(
    module: nn.Module, example: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients per parameter [3, …] of three random inputs: by Opacus, and one by one."""
    draw = torch.Generator().manual_seed(2508_01671)
    shape = (_EXAMPLES, *example.shape[1:])
    x = torch.rand(shape, generator=draw).to(example).requires_grad_()
    training = module.training
    module.train()
    named = {label: p for label, p in module.named_parameters() if p.requires_grad}
    alone: dict[str, list[Tensor]] = {label: [] for label in named}
    for index in range(_EXAMPLES):
        grads = torch.autograd.grad(
            _probe(module(x[index : index + 1])), list(named.values()), allow_unused=True
        )
        for (label, parameter), grad in zip(named.items(), grads, strict=True):
            alone[label].append(torch.zeros_like(parameter) if grad is None else grad)
    hooks, _ = _opacus(module)
    try:
        torch.autograd.backward(_probe(module(x)))
        together = {
            label: torch.zeros((_EXAMPLES, *p.shape), device=p.device)
            if p.grad_sample is None  # type: ignore[attr-defined]
            else p.grad_sample.detach()  # type: ignore[attr-defined]
            for label, p in named.items()
        }
    finally:
        hooks.to_standard_module()
        for parameter in named.values():
            parameter.grad = None
        module.train(training)
    return together, {label: torch.stack(parts) for label, parts in alone.items()}


def _probe(output: Tensor) -> Tensor:
    """A loss that no symmetry of an output hides from."""
    flat = output.flatten(1)
    return (flat * torch.linspace(-1.0, 2.0, flat.shape[1], device=flat.device)).sin().sum()


def _opacus(module: nn.Module) -> tuple[Any, Callable[..., Any]]:
    """Opacus' hooks on a module, and what makes an optimiser private."""
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer
    except ImportError as error:
        raise MissingExtra(
            f"privacy.mode = 'example' needs Opacus: {error}",
            hint="pip install 'fedvtc-edge[train]'",
        ) from None

    class Private(DPOptimizer):  # type: ignore[misc]
        """Opacus' clipping; what is no number is left out, and noise is secret."""

        secret: SecretStream
        scale: float

        def clip_and_accumulate(self) -> None:
            samples = self.grad_samples
            norm = torch.stack([s.flatten(1).square().sum(1) for s in samples]).sum(0)
            sound = norm.isfinite()
            if not sound.all():  # 0 · ∞ is no number: clipping alone would let it pass
                for sample in samples:
                    sample[~sound] = 0.0
            super().clip_and_accumulate()

        def add_noise(self) -> None:
            for parameter in self.params:
                drawn = self.secret.normal(parameter.shape).to(parameter.device)
                parameter.grad = parameter.summed_grad.view_as(parameter) + self.scale * drawn

    def make(optimiser: torch.optim.Optimizer, schedule: Schedule, noise: SecretStream) -> Any:
        private = Private(
            optimiser,
            noise_multiplier=schedule.noise_multiplier,
            max_grad_norm=schedule.clip * _SHRINK,
            expected_batch_size=schedule.batch,
            loss_reduction="mean",
        )
        private.secret = noise
        private.scale = schedule.noise_multiplier * schedule.clip
        return private

    return GradSampleModule(module, loss_reduction="sum"), make
