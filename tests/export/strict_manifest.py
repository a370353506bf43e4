"""A manifest's types in pydantic: the slow twin of what a device checks without it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Numbers = dict[str, dict[str, int | float | None]]


class Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class File(Strict):
    sha256: Hash
    size: int = Field(ge=0, le=2**33)


class Port(Strict):
    dtype: Literal["uint8", "int64", "float32"]
    shape: Annotated[tuple[Literal["N"] | int, ...], Field(strict=False)]
    range: str


class Graph(Strict):
    variants: dict[Literal["fp32", "int8"], str]
    opset: int = Field(ge=1)
    ir: int = Field(ge=1)
    inputs: dict[str, Port]
    outputs: dict[str, Port]


class Image(Strict):
    size: int = Field(ge=8, le=224)
    channels: Literal[1, 3]
    colour: Literal["grey", "rgb"]
    resize: Literal["bilinear, antialiased, stretched to the square"]
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    scale: Literal["x / 255, inside the graph"] = "x / 255, inside the graph"


class Golden(Strict):
    seed: int = Field(ge=0)
    count: int = Field(ge=1, le=1024)
    sha256: Hash


class Noise(Strict):
    algorithm: Literal["numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)"]
    golden: Golden


class Extractor(Strict):
    name: str = Field(max_length=200)
    sha256: Hash | None
    licence: str | None = Field(max_length=500)
    origin: str | None = Field(max_length=500)
    file: File | None = None


class Privacy(Strict):
    mode: str
    epsilon: float | None
    delta: float | None
    unit: str | None
    relation: str | None = None
    covers: str | None = None
    covers_models: bool | None = None


class Types(Strict):
    model_config = ConfigDict(extra="allow")

    schema_: Literal[1] = Field(alias="schema", default=1)
    kind: Literal["fedvtc-edge bundle"]
    client: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    architecture: str = Field(max_length=200)
    device: str | None = None
    run: Hash
    source: dict[str, str]
    method: str
    share: str | None
    revision: int = Field(ge=0, default=0)
    classes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
        Field(strict=False, min_length=2, max_length=10_000),
    ]
    latent: int = Field(ge=1, le=65_536)
    anchor: int | None = Field(ge=1, le=65_536, default=None)
    extractor: Extractor | None = None
    image: Image
    noise: Noise | None
    files: dict[str, File]
    graphs: dict[Literal["classifier", "synthesizer", "anchor"], Graph]
    privacy: Privacy
    prior: (
        Annotated[
            tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, max_length=10_000)
        ]
        | None
    ) = None
    accuracy: dict[str, Any]
    parity: dict[str, Any]
    int8: Numbers
    tools: dict[str, str]
