"""One client's bundle on a device: verified, then synthesising and classifying."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvtc_edge.errors import BundleError, ParityError, VerificationError

from . import inputs
from .codes import Codes, StatisticsClassifier, combined, log_softmax
from .manifest import INT8_AGREEMENT, STATISTICS, GraphName, Manifest, Variant
from .runtime import Arrays, Session, is_faster
from .verification import Verified, verify

if TYPE_CHECKING:
    from fedvtc_edge.sealing.signing import PublicKey

Choice = Literal["auto", "fp32", "int8"]
Prior = Literal["uniform", "own"]
Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

CHUNK = 32
"""Images per inference: what bounds a device's memory, whatever is asked for."""

_TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float32": "tensor(float)"}


class Bundle:
    """A client's bundle in use; needs neither torch nor onnx.

    Made by :meth:`open`. Graphs are loaded when first used, from bytes that are
    hashed again.
    """

    def __init__(self, verified: Verified, variant: Choice, threads: int) -> None:
        self._verified = verified
        self._variant: Choice = variant
        self._threads = threads

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        public_key: PublicKey | None = None,
        *,
        variant: Choice = "auto",
        threads: int = 1,
        extractor: str | os.PathLike[str] | None = None,
    ) -> Bundle:
        """Verify a bundle and make it ready.

        Args:
            path: The bundle's folder.
            public_key: The exporter's Ed25519 key, its PEM, or the path of a file of
                it; None checks hashes alone.
            variant: ``fp32``, ``int8``, or ``auto``: int8 for the classifier where it
                is measured to be faster on this machine and agrees with fp32 on
                synthesised images; the synthesiser stays fp32, which is no slower.
            extractor: The extractor's file, where the bundle names it and does not hold it:
                the combined prediction needs it.

        Raises:
            BundleError: No such folder or variant, or an extractor that is not needed.
            KeyFileError: The key cannot be used.
            VerificationError: A byte is not what was exported or signed.
        """
        if variant not in ("auto", "fp32", "int8"):
            raise BundleError(f"variant {variant!r}", hint="expected auto, fp32 or int8")
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise BundleError(f"threads {threads!r}, expected 1 to 1024", hint="one is the default")
        bundle = cls(verify(path, public_key, extractor=extractor), variant, threads)
        if variant == "int8" and "int8" not in bundle.manifest.graphs["classifier"].variants:
            raise BundleError("this bundle has no int8 variant", hint="export with --int8")
        return bundle

    @property
    def manifest(self) -> Manifest:
        """Description of the bundle, as it was verified."""
        return self._verified.manifest

    @property
    def signer(self) -> str | None:
        """Fingerprint of the key that the signature was checked with, or None."""
        return self._verified.signer

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.manifest.classes

    @cached_property
    def codes(self) -> Codes:
        """The statistics that the graphs take as inputs."""
        manifest = self.manifest
        if STATISTICS not in manifest.files:
            raise BundleError(
                f"the method {manifest.method!r} published no statistics",
                hint="export a run of method.name = fedvtc",
            )
        return Codes.read(self._verified)

    def noise(self, count: int, seed: int) -> Floats:
        """Noise [count, p] of a seed: the same everywhere, fewer rows a prefix of more.

        Raises:
            BundleError: An impossible count or seed, or a NumPy that draws otherwise.
        """
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise BundleError(f"count {count!r}, expected 1 or more", hint="one row per image")
        promised = self.manifest.noise
        if promised is None:
            raise self._no_decoder()
        inputs.check(promised, self.manifest.latent)
        return inputs.draw(seed, int(count), self.manifest.latent)

    def synthesize(self, labels: ArrayLike, seed: int) -> Images:
        """Synthesise one image per label.

        Args:
            labels: [N] whole numbers in 0…C-1, of classes that some client had.
            seed: 0…2^63-1; the same seed and labels give the same images.

        Returns:
            uint8 [N, H, W, channels].

        Raises:
            BundleError: Labels or a seed that do not fit.
        """
        wanted = self._labels(labels)
        return self.decode(wanted, self.noise(len(wanted), seed))

    def decode(self, labels: ArrayLike, noise: Floats) -> Images:
        """Synthesise with noise of your own: [N, p] float32, finite; see :meth:`synthesize`."""
        wanted = self._labels(labels)
        inputs.check_noise(noise, len(wanted), self.manifest.latent)
        codes, session = self.codes, self._synthesizer
        parts = [
            session(
                {
                    "labels": wanted[start : start + CHUNK],
                    "means": codes.mean,
                    "stds": codes.std,
                    "noise": noise[start : start + CHUNK],
                }
            )
            for start in range(0, len(wanted), CHUNK)
        ]
        return np.concatenate(parts)

    def classify(
        self, images: Images, *, calibrated: bool = False, prior: Prior = "uniform"
    ) -> Floats:
        """Scores of every class for images.

        Args:
            images: uint8 [N, H, W, channels] of the bundle's size.
            calibrated: Combine the own model with classification by the published
                statistics: more accurate, above all on classes that the client never
                saw, for one more graph per image.
            prior: How often each class is expected: ``uniform`` where any may come, ``own``
                at the client's home, where they come as often as in its own data.

        Returns:
            float32 [N, C]: logits of the own model, or combined log-probabilities; with the
            own prior the same plus its logarithm.

        Raises:
            BundleError: Images of another type or shape, a bundle without statistics, or
                one without the client's prior.
        """
        inputs.check_images(images, self.manifest.image)
        shift = self._log_prior(prior)
        scores = _in_chunks(self._classifier, images)
        if calibrated:
            features = _in_chunks(self._anchor, images)  # first: it refuses where there is none
            known = self._by_statistics(features)
            scores = combined(log_softmax(scores), known)
        return scores if shift is None else scores + shift

    def _log_prior(self, prior: Prior) -> Floats | None:
        if prior == "uniform":
            return None
        if prior != "own":
            raise BundleError(f"prior {prior!r}", hint="expected uniform or own")
        if self.manifest.prior is None:
            raise BundleError(
                "this bundle does not hold its client's prior",
                hint="leave --prior own out, or have the client export with --with-prior",
            )
        shift: Floats = np.log(np.array(self.manifest.prior)).astype(np.float32)
        return shift

    @property
    def classifier_variant(self) -> Variant:
        """Variant that classifies; with ``auto`` this measures, once."""
        return self._chosen[0]

    @cached_property
    def _chosen(self) -> tuple[Variant, Session]:
        graph = self.manifest.graphs["classifier"]
        if self._variant != "auto":
            return self._variant, self._load("classifier", self._variant)
        reference = self._load("classifier", "fp32")
        agreement = self.manifest.int8.get("classifier", {}).get("agreement") or 0.0
        if "int8" not in graph.variants or agreement < INT8_AGREEMENT:
            return "fp32", reference
        image = self.manifest.image
        blank = np.full((1, image.size, image.size, image.channels), 127, np.uint8)
        candidate = self._load("classifier", "int8")
        if is_faster(candidate, reference, {"images": blank}):
            return "int8", candidate
        return "fp32", reference

    @property
    def _classifier(self) -> Session:
        return self._chosen[1]

    @cached_property
    def _synthesizer(self) -> Session:
        graph = self.manifest.graphs.get("synthesizer")
        if graph is None:
            raise self._no_decoder()
        smaller = self._variant == "int8" and "int8" in graph.variants
        return self._load("synthesizer", "int8" if smaller else "fp32")

    @cached_property
    def _anchor(self) -> Session:
        if "anchor" not in self.manifest.graphs:
            raise BundleError(
                "this bundle holds no anchor statistics to calibrate with",
                hint="leave calibrated out, or export a run of method.share = anchored",
            )
        return self._load("anchor", "fp32")

    @cached_property
    def _by_statistics(self) -> StatisticsClassifier:
        knowledge = self.codes.knowledge
        assert knowledge is not None  # the manifest has an anchor: the statistics were read with it
        return StatisticsClassifier(knowledge)

    def _load(self, name: GraphName, variant: Variant) -> Session:
        graph = self.manifest.graphs[name]
        file = graph.variants[variant]
        external = f"{file}.data" in self.manifest.files
        session = Session(
            self._verified.read(file),
            name=file,
            folder=self._verified.folder if external else None,
            threads=self._threads,
        )
        if external:  # onnxruntime read it by its name, not from bytes that were hashed
            self._verified.check(f"{file}.data")
        for promised, actual in ((graph.inputs, session.inputs), (graph.outputs, session.outputs)):
            if {key: (_TYPES[port.dtype], port.shape) for key, port in promised.items()} != {
                key: (kind, tuple(size if isinstance(size, int) else "N" for size in shape))
                for key, (kind, shape) in actual.items()
            }:
                raise VerificationError(
                    f"{file}: inputs and outputs are not those of the manifest",
                    hint="export the bundle again",
                )
        return session

    def _labels(self, labels: ArrayLike) -> NDArray[np.int64]:
        if self.manifest.noise is None:
            raise self._no_decoder()
        return inputs.as_labels(labels, self.classes, self.codes.known)

    def _no_decoder(self) -> BundleError:
        return BundleError(
            f"this bundle holds no synthesiser: the method {self.manifest.method!r} has none",
            hint="export a run of method.name = fedvtc",
        )


def _in_chunks(session: Session, images: Images) -> Floats:
    parts: list[Arrays] = [
        {"images": images[start : start + CHUNK]} for start in range(0, len(images), CHUNK)
    ]
    return np.concatenate([session(part) for part in parts])


def use_all(path: str, extractor: str | None = None) -> None:
    """Classify and synthesise with every variant, as a device would.

    The exporter runs it in a fresh process before a bundle gets its name.

    Args:
        extractor: The file that the bundle names, if it does.

    Raises:
        ParityError: A result cannot be, or torch or onnx was imported.
        BundleError, VerificationError: Something does not work.
    """
    first = Bundle.open(path, extractor=extractor)
    form = first.manifest.image
    shape = (2, form.size, form.size, form.channels)
    images = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    variants: list[Choice] = ["fp32", "int8"]
    for variant in variants[: len(first.manifest.graphs["classifier"].variants)]:
        bundle = Bundle.open(path, variant=variant, extractor=extractor)
        _must(np.isfinite(bundle.classify(images)).all(), f"{variant}: scores are not finite")
        if "anchor" in bundle.manifest.graphs:
            scores = bundle.classify(images, calibrated=True)
            _must(np.isfinite(scores).all(), f"{variant}: combined scores are not finite")
        if bundle.manifest.prior is not None:
            scores = bundle.classify(images, prior="own")
            _must(np.isfinite(scores).all(), f"{variant}: scores at home are not finite")
        if "synthesizer" in bundle.manifest.graphs:
            labels = np.flatnonzero(bundle.codes.known)
            drawn = bundle.synthesize(labels, 0)
            _must(drawn.shape == (len(labels), *shape[1:]), f"{variant}: images {drawn.shape}")
    heavy = {"torch", "onnx"} & set(sys.modules)
    _must(not heavy, f"{', '.join(sorted(heavy))} imported")


def _must(holds: bool | np.bool_, problem: str) -> None:
    if not holds:  # not assert: PYTHONOPTIMIZE would take the gate away
        raise ParityError(problem, hint="report this")
