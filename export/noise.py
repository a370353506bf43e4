"""Synthesis noise: one public stream per seed, the same in every process and batch split.

Noise is an input of the graph. onnxruntime's own random operators repeat one
stream in every new session and are no source of it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge.errors import BundleError

from .manifest import Golden, Noise

MAX_SEED = 2**63 - 1
_GOLDEN_SEED, _GOLDEN_ROWS = 2508_01669, 64


def draw(seed: int, count: int, latent: int) -> NDArray[np.float32]:
    """Standard normal noise [count, latent]; fewer rows are a prefix of more.

    Raises:
        BundleError: A seed outside 0…2^63-1.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise BundleError(f"seed {seed!r}, expected a whole number", hint="for example 0")
    if not 0 <= seed <= MAX_SEED:
        raise BundleError(f"seed {seed}, expected 0 to 2^63 - 1", hint="for example 0")
    generator = np.random.Generator(np.random.Philox(key=int(seed)))
    return generator.standard_normal((count, latent), dtype=np.float32)


def described(latent: int) -> Noise:
    """What the manifest says of this noise."""
    golden = Golden(seed=_GOLDEN_SEED, count=_GOLDEN_ROWS, sha256=_digest(latent))
    return Noise(
        algorithm="numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)",
        golden=golden,
    )


def check(promised: Noise, latent: int) -> None:
    """Refuse to paint from other noise than the exporter's.

    NumPy keeps ``Philox`` stable but reserves the right to change how normals are
    made of it.

    Raises:
        BundleError: This NumPy draws differently.
    """
    golden = promised.golden
    if _digest(latent, golden.seed, golden.count) != golden.sha256:
        raise BundleError(
            f"numpy {np.__version__} draws other noise than the one that exported this bundle",
            hint="install the numpy that the manifest names under tools",
        )


def _digest(latent: int, seed: int = _GOLDEN_SEED, count: int = _GOLDEN_ROWS) -> str:
    little_endian = draw(seed, count, latent).astype("<f4")
    return hashlib.sha256(little_endian.tobytes()).hexdigest()
