"""Inputs of a graph, checked before it runs.

A graph does not complain: label -1 wraps to the last class, noise that is not a
number gives black images. Noise is one public stream per seed, the same in every process and
split into batches; onnxruntime's own random operators repeat one stream in every new
session and are no source of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import BundleError

from .codes import LARGEST
from .manifest import Golden, Image, Noise


def as_labels(
    labels: ArrayLike, names: Sequence[str], known: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Labels as int64 [N].

    Args:
        labels: Whole numbers [N], N at least 1.
        names: Names of the C classes.
        known: Mask [C] of the classes that can be synthesised.

    Raises:
        BundleError: Another type or shape, a label outside 0…C-1 or of an unknown class.
    """
    try:
        given = np.asarray(labels)
    except (TypeError, ValueError) as error:  # rows of unequal length
        raise BundleError(f"labels: {error}", hint="for example [0, 1, 2]") from None
    if given.ndim != 1 or given.dtype.kind not in "iu" or not given.size:
        raise BundleError(
            f"labels: {given.dtype} of shape {list(given.shape)}, expected whole numbers [N], "
            "at least one",
            hint="for example [0, 1, 2]",
        )
    # Compared before the cast, by which a large uint64 would turn negative.
    if given.min() < 0 or given.max() >= len(names):
        off = given.min() if given.min() < 0 else given.max()
        raise BundleError(
            f"label {off}, expected 0 to {len(names) - 1}",
            hint="labels are positions in the manifest's classes",
        )
    wanted = given.astype(np.int64)
    unknown = np.unique(wanted[~known[wanted]])
    if unknown.size:
        raise BundleError(
            f"label {unknown[0]} ({names[unknown[0]]}): no client had a sample of it, "
            "so nobody can synthesise it",
            hint="leave that class out",
        )
    return wanted


def check_noise(noise: Any, count: int, latent: int) -> None:
    """Refuse noise that is not float32 [count, latent] and finite.

    Raises:
        BundleError: It is not.
    """
    if not isinstance(noise, np.ndarray) or noise.dtype != np.float32:
        got = noise.dtype if isinstance(noise, np.ndarray) else type(noise).__name__
        raise BundleError(f"noise: {got}, expected float32", hint="noise.astype('float32')")
    if noise.shape != (count, latent):
        raise BundleError(
            f"noise of shape {list(noise.shape)}, expected [{count}, {latent}]",
            hint="one row of the bundle's latent width per label",
        )
    if not (np.abs(noise) <= LARGEST).all():  # NaN compares false
        raise BundleError(
            f"noise holds NaN or infinity, or a value beyond {LARGEST:g}",
            hint="draw it with Bundle.noise",
        )


def check_images(images: Any, form: Image) -> None:
    """Refuse images that are not uint8 [N, H, W, channels] of the bundle's size.

    Raises:
        BundleError: They are not.
    """
    expected = (form.size, form.size, form.channels)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise BundleError(f"images: {got}, expected uint8", hint="pixels from 0 to 255")
    if images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise BundleError(
            f"images of shape {list(images.shape)}, expected [N, "
            f"{', '.join(map(str, expected))}] with N at least 1",
            hint="fedvtc-edge classify brings files into this form",
        )


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


def describe_noise(latent: int) -> Noise:
    """Algorithm and sample of this noise, for the manifest."""
    golden = Golden(seed=_GOLDEN_SEED, count=_GOLDEN_ROWS, sha256=_digest(latent))
    return Noise(
        algorithm="numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)",
        golden=golden,
    )


def check(promised: Noise, latent: int) -> None:
    """Refuse to synthesise from other noise than the exporter's.

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
