"""``manifest.json``: the description of a bundle, and what of it is believed.

docs/bundle-format.md describes every key. Unknown keys are left alone, so that a
later version may add some; a change of meaning changes ``schema``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fedvtc_edge.documents import DocumentError, parse_json
from fedvtc_edge.errors import VerificationError
from fedvtc_edge.fields import FieldError, Record, between, inside, matching, sized

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMA = 1
KIND = "fedvtc-edge bundle"
MANIFEST, SIGNATURE, STATISTICS = "manifest.json", "manifest.sig", "statistics.safetensors"
MAX_MANIFEST_BYTES = 4_000_000
MAX_FILE_BYTES = 2**33

# A closed set of names, so that no path can be smuggled in: what is not of it is refused.
_FILE = re.compile(r"(classifier|synthesizer|anchor)(\.int8)?\.onnx(\.data)?")

GraphName = Literal["classifier", "synthesizer", "anchor"]
ANCHOR = "anchor.onnx"
Variant = Literal["fp32", "int8"]

INT8_AGREEMENT = 0.98
"""Least share of synthesised images on which int8 and fp32 agree, for ``auto`` to consider int8."""

NOT_COVERED = "NOT covered: classifier and decoder, which were trained without noise"
"""Words of what a claim about releases leaves out."""

LONGEST_TEXT = 1000
"""Characters of any text in a manifest."""

_HINT = "the bundle is damaged or was changed: fetch it again, or export it again"

Hash = Annotated[str, matching("[0-9a-f]{64}")]
Word = Annotated[str, sized(0, 200)]
Words = Annotated[str, sized(0, 500)]
Positive = Annotated[int, between(1)]
Width = Annotated[int, between(1, 65_536)]


@dataclass(frozen=True, kw_only=True)
class File(Record):
    """Hash and size that a file must have."""

    sha256: Hash
    size: Annotated[int, between(0, MAX_FILE_BYTES)]

    @classmethod
    def of(cls, path: Path) -> File:
        """Hash and size of a file as it is."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(sha256=digest, size=path.stat().st_size)

    @classmethod
    def of_bytes(cls, data: bytes) -> File:
        """Hash and size of a content."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


@dataclass(frozen=True, kw_only=True)
class Port(Record):
    """One input or output of a graph: ``N`` is the batch, any number from 1."""

    dtype: Literal["uint8", "int64", "float32"]
    shape: tuple[Literal["N"] | int, ...]
    range: str


@dataclass(frozen=True, kw_only=True)
class Graph(Record):
    """One ONNX graph, in one file per variant."""

    variants: dict[Variant, str]
    opset: Positive
    ir: Positive
    inputs: dict[str, Port]
    outputs: dict[str, Port]


@dataclass(frozen=True, kw_only=True)
class Image(Record):
    """The images, and how a picture of any other form is brought into theirs."""

    size: Annotated[int, between(8, 224)]
    channels: Literal[1, 3]
    colour: Literal["grey", "rgb"]
    resize: Literal["bilinear, antialiased, stretched to the square"]
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    scale: Literal["x / 255, inside the graph"] = "x / 255, inside the graph"


@dataclass(frozen=True, kw_only=True)
class Golden(Record):
    """A sample of the noise, so that another generator of the same name is noticed."""

    seed: Annotated[int, between(0)]
    count: Annotated[int, between(1, 1024)]
    sha256: Hash


@dataclass(frozen=True, kw_only=True)
class Noise(Record):
    """Generator of the synthesiser's noise."""

    algorithm: Literal["numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)"]
    golden: Golden


@dataclass(frozen=True, kw_only=True)
class Extractor(Record):
    """The frozen extractor behind the ``anchor`` graph, and where its graph is.

    Args:
        name: As in ``method.extractor``; of a file, its name without folders.
        sha256: Of its weights; null for random filters, which a seed stands for.
        licence: Of the weights, in a few words.
        origin: Where they are from, in a few words.
        file: What the file must be that a device is given beside the bundle; null where
            the bundle holds the graph.
    """

    name: Word
    sha256: Hash | None
    licence: Words | None
    origin: Words | None
    file: File | None = None


@dataclass(frozen=True, kw_only=True)
class Privacy(Record):
    """The run's claim, as far as it goes; null: nothing is claimed.

    Args:
        unit: What ε protects, in words.
        relation: Neighbouring relation, ``add/remove`` or ``replace``; None in older bundles.
        covers: What it covers, in words; None in older bundles.
        covers_models: Whether the graphs of this bundle are covered too; if not, ε says
            nothing about what they tell of the client's data. None in older bundles, which
            are taken as if it were not.
    """

    mode: str
    epsilon: float | None
    delta: float | None
    unit: str | None
    relation: str | None = None
    covers: str | None = None
    covers_models: bool | None = None

    @property
    def warning(self) -> str | None:
        """Warning of what the claim leaves out; None where there is no claim or it covers all."""
        if self.epsilon is None or self.covers_models:
            return None
        return f"{NOT_COVERED}: treat them as the client's data"

    def words(self) -> list[str]:
        """Lines for whoever holds the bundle: what is claimed, and what is not."""
        if self.epsilon is None:
            return ["privacy: nothing is claimed: treat the bundle as the client's data"]
        delta = "" if self.delta is None else f", delta {self.delta:g}"
        about = f" about {self.covers}" if self.covers else ""
        unit = self.unit or "not said"
        lines = [f"privacy: epsilon {self.epsilon:g}{delta}{about}; unit: {unit}"]
        return lines if self.warning is None else [*lines, self.warning]


def ports(
    name: GraphName, image: Image, *, classes: int, latent: int, anchor: int | None
) -> tuple[dict[str, Port], dict[str, Port]]:
    """Inputs and outputs of a graph: they follow from the rest of the manifest."""
    pixels = Port(
        dtype="uint8", shape=("N", image.size, image.size, image.channels), range="0 to 255"
    )
    if name == "classifier":
        logits = Port(dtype="float32", shape=("N", classes), range="logits")
        return {"images": pixels}, {"logits": logits}
    if name == "anchor":
        features = Port(dtype="float32", shape=("N", anchor or 0), range="of norm √m")
        return {"images": pixels}, {"features": features}
    inputs = {
        "labels": Port(dtype="int64", shape=("N",), range=f"0 to {classes - 1}"),
        "means": Port(dtype="float32", shape=(classes, latent), range="finite"),
        "stds": Port(dtype="float32", shape=(classes, latent), range="finite, not negative"),
        "noise": Port(dtype="float32", shape=("N", latent), range="finite, standard normal"),
    }
    return inputs, {"images": pixels}


def _file_name(name: str) -> str:
    if name != STATISTICS and not _FILE.fullmatch(name):
        raise FieldError(f"{name[:80]!r} is no file of a bundle")
    return name


def _class_name(name: str) -> str:
    if not name or not name.isprintable():  # they are printed on terminals
        raise FieldError(f"{name[:40]!r} is no class name")
    return name


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The whole document; see docs/bundle-format.md.

    Args:
        later: Keys that are not known here: a later version's must survive a refresh.
    """

    schema: Literal[1] = 1
    kind: Literal["fedvtc-edge bundle"]
    client: Annotated[str, matching("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")]
    architecture: Word
    device: str | None = None
    run: Hash
    source: dict[str, str]
    method: str
    share: str | None
    revision: Annotated[int, between(0)] = 0
    classes: Annotated[tuple[Annotated[Word, _class_name], ...], sized(2, 10_000)]
    latent: Width
    anchor: Width | None = None
    extractor: Extractor | None = None
    image: Image
    noise: Noise | None
    files: dict[Annotated[str, _file_name], File]
    graphs: dict[GraphName, Graph]
    privacy: Privacy
    prior: tuple[Annotated[float, inside(0, 1)], ...] | None = None
    accuracy: dict[str, Any]
    parity: dict[str, Any]
    int8: dict[str, dict[str, int | float | None]]
    tools: dict[str, str]
    later: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_parts()

    def _check_parts(self) -> None:
        """Check what must hold between the parts."""
        if "classifier" not in self.graphs:
            raise ValueError("graphs: no classifier")
        elsewhere = () if self.referenced is None else (ANCHOR,)
        if elsewhere and ("anchor" not in self.graphs or ANCHOR in self.files):
            raise ValueError("extractor: named by a bundle that holds or needs none")
        for name, graph in self.graphs.items():
            wanted = {"fp32": f"{name}.onnx", "int8": f"{name}.int8.onnx"}
            if "fp32" not in graph.variants:
                raise ValueError(f"graphs: {name} has no fp32 variant")
            for variant, file in graph.variants.items():
                if file != wanted[variant] or file not in (*self.files, *elsewhere):
                    raise ValueError(f"graphs: {name} {variant} is {file[:80]!r}, expected a file")
        needs = {"synthesizer", "anchor"} & set(self.graphs)
        if needs and STATISTICS not in self.files:
            raise ValueError(f"files: {STATISTICS} is missing")
        if "synthesizer" in self.graphs and self.noise is None:
            raise ValueError("noise is missing")
        if "anchor" in self.graphs and self.anchor is None:
            raise ValueError("anchor: its width is missing")
        if self.prior is not None:
            if len(self.prior) != len(self.classes):
                raise ValueError(f"prior: {len(self.prior)} classes, expected {len(self.classes)}")
            if abs(sum(self.prior) - 1.0) > 1e-6:
                raise ValueError(f"prior: it adds up to {sum(self.prior):.6g}, expected 1")
        for name, graph in self.graphs.items():
            expected = ports(
                name,
                self.image,
                classes=len(self.classes),
                latent=self.latent,
                anchor=self.anchor,
            )
            if (graph.inputs, graph.outputs) != expected:
                raise ValueError(f"graphs: {name} has other inputs or outputs than it must")

    @property
    def referenced(self) -> File | None:
        """File that ``anchor.onnx`` must be where the bundle names it and does not hold it."""
        return self.extractor.file if self.extractor else None

    def file(self, name: str) -> File:
        """Hash and size of a file of the bundle, or of the one that it names."""
        if name == ANCHOR and self.referenced is not None:
            return self.referenced
        return self.files[name]

    def size_of(self, name: str) -> int:
        """Bytes of a graph's file and of weights that lie beside it."""
        beside = f"{name}.data"
        return self.file(name).size + (self.files[beside].size if beside in self.files else 0)

    @classmethod
    def read(cls, document: Any) -> Self:
        """A manifest from a JSON object; what it does not know becomes ``later``.

        Raises:
            ValueError: A key is missing, or a value cannot be.
        """
        known = {one.name for one in fields(cls)} - {"later"}
        if isinstance(document, Mapping):
            later = {key: value for key, value in document.items() if key not in known}
            document = {key: document[key] for key in known & set(document)} | {"later": later}
        return super().read(document)

    def document(self) -> dict[str, Any]:
        """The manifest as JSON values; keys of a later version come last."""
        document = super().document()
        later: dict[str, Any] = document.pop("later")
        return document | later

    def to_bytes(self) -> bytes:
        """The exact bytes that are written, hashed and signed; the same input gives the same."""
        document = self.document()
        for key in ("prior", "extractor"):  # most bundles: byte for byte what they were before
            if document[key] is None:
                del document[key]
        for key in ("relation", "covers", "covers_models"):
            if document["privacy"][key] is None:
                del document["privacy"][key]
        return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read untrusted bytes.

        Raises:
            VerificationError: Not JSON, an unknown schema, or a key that is off.
        """
        try:
            document = parse_json(data)
        except DocumentError as error:
            raise VerificationError(f"{MANIFEST} is {error}", hint=_HINT) from None
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise VerificationError(f"{MANIFEST} is not one of a {KIND}", hint=_HINT)
        schema = document.get("schema")
        if schema != SCHEMA or type(schema) is not int:  # True and 1.0 are equal to 1
            raise VerificationError(
                f"{MANIFEST}: schema {str(schema)[:40]}, expected {SCHEMA}",
                hint="the bundle is of another version of fedvtc-edge: install that one",
            )
        try:
            manifest = cls.read(document)
            _check_texts(document)
        except ValueError as error:
            raise VerificationError(f"{MANIFEST}: {error}", hint=_HINT) from None
        return manifest


def write_manifest(folder: Path, manifest: Manifest, key: Ed25519PrivateKey | None) -> None:
    """Write the manifest, and its signature where there is a key."""
    from fedvtc_edge.storage.atomic import write_atomic  # whoever reads writes nothing

    data = manifest.to_bytes()
    write_atomic(folder / MANIFEST, data)
    if key is not None:
        from fedvtc_edge.sealing.signing import sign

        write_atomic(folder / SIGNATURE, sign(key, data))


def _check_texts(document: Any) -> None:
    """Refuse a text anywhere that no terminal should show, or that is too long to be one."""
    pending = [document]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += [*one, *one.values()]
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, str) and not (one.isprintable() and len(one) <= LONGEST_TEXT):
            raise ValueError(f"{one[:40]!r} is no text that can be shown")
