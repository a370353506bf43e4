"""Randomness that nobody else can repeat, and that a client can: after a crash it must."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from torch import Tensor

KEY_BYTES = 32


class SecretStream:
    """Draws that follow from a secret key and names, by ChaCha20 (RFC 8439).

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
