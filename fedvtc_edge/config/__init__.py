"""One TOML file, or none, to frozen and validated settings.

Every key is optional and its default is the value that the README's numbers
were measured with. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from fedvtc_edge.documents import DEEPEST, DocumentError, parse_toml
from fedvtc_edge.errors import ConfigError

from .messages import explain, refuse

Names = Annotated[tuple[Annotated[str, Strict()], ...], Field(strict=False)]

Seeds = Annotated[tuple[Annotated[int, Strict(), Field(ge=0, lt=2**63)], ...], Field(strict=False)]

Alphas = Annotated[tuple[Annotated[float, Strict(), Field(gt=0, le=1e6)], ...], Field(strict=False)]

MAX_CONFIG_BYTES = 64_000
"""Bytes of a file of settings, of a claim or of a device profile; the longest here has 3 kB."""

SHARING_ROUNDS, SHARING_DECODER_STEPS = 10, 30
"""Rounds, and decoder steps in each, by default where something is shared in every round."""

LITE0 = "efficientnet-lite0"
"""Name of the extractor whose weights come with the extra ``pretrained``."""


ONE_UPLOAD = ("statistics", "afl", "fishermix", "fedcof")
"""Methods that train nothing: all clients upload once, whatever the cohorts are."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    later: ClassVar[tuple[str, ...]] = ()
    """Keys that came after the first release, which a document leaves out where they are the
    default: a run's name is a digest of its settings, and must not change with the version."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = dump(self)
        for key in self.later:
            if getattr(self, key) == type(self).model_fields[key].default:
                document.pop(key, None)
        return document


class DataSettings(_Table):
    """Data set, and its partition over the clients."""

    name: str = "digits"
    root: str = ""
    partition: Literal["dirichlet", "shards", "iid"] = "dirichlet"
    alpha: float = Field(default=0.1, gt=0, le=1e6)
    shards: int = Field(default=2, ge=1, description="shards per client")
    min_samples: int = Field(default=8, ge=1)
    limit: int = Field(default=0, ge=0, description="training images at most; 0 is all")
    test_limit: int = Field(default=2000, ge=0, description="test images at most; 0 is all")
    image_size: int = Field(default=0, description="resize to so many pixels; 0 keeps the size")
    evaluate: Literal["test", "validation"] = "test"
    holdout: float = Field(default=0.0, ge=0, le=0.5, description="share of own data to hold out")
    public: str = Field(default="", description="images without labels that all parties have")

    later = ("holdout", "public")

    @field_validator("image_size")
    @classmethod
    def _size_of_images(cls, value: int) -> int:
        if value and (value % 4 or not 8 <= value <= 224):
            raise refuse(
                f"no network here takes images of {value} pixels",
                "use a multiple of 4 from 8 to 224, or 0 to keep the images' own size",
            )
        return value


class ClientSettings(_Table):
    """Clients, their architectures and devices."""

    count: int = Field(default=6, ge=1, le=10_000)
    cohort: float = Field(default=1.0, gt=0, le=1, description="share of clients per round")
    architectures: Names = ("lenet", "resnet8", "mobilenet", "shufflenet", "mlp")
    devices: Names = ()

    @property
    def per_round(self) -> int:
        """Clients in each round; at least one."""
        return max(1, round(self.cohort * self.count))

    @field_validator("architectures")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise refuse("an empty list", "name at least one architecture")
        return value


class MethodSettings(_Table):
    """Method, rounds and sharing mode."""

    name: str = "fedvtc"
    rounds: int = Field(default=3, ge=1, le=100_000)
    share: Literal["anchored", "features", "features+decoder"] = "anchored"
    moments: Literal["covariance", "diagonal"] = "covariance"
    latent: int = Field(default=64, ge=2, le=4096)
    anchor: int = Field(default=128, ge=2, le=4096)
    ablate: Annotated[
        tuple[Literal["dm", "kl", "head-only", "teacher", "synthesis"], ...], Field(strict=False)
    ] = ()
    extractor: str = "random"
    extractor_weights: str = ""
    extractor_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    baseline: bool = Field(default=True, description="train each client alone too, to compare")
    knob: float | None = Field(
        default=None, description="main number of the method; unset is its own default"
    )

    later = ("extractor", "extractor_weights", "extractor_sha256", "baseline", "knob")

    @property
    def pretrained(self) -> bool:
        """True if ``extractor`` names a pretrained network, by its name alone."""
        library, _, inner = self.extractor.partition(":")
        fetched = library in ("torchvision", "timm") and bool(inner)
        lite = self.extractor.partition("@")[0] == LITE0
        return fetched or lite or self.extractor.endswith(".onnx")


class TrainingSettings(_Table):
    """The recipe: steps, rates and batch sizes, the same for every method."""

    epochs: int = Field(default=2, ge=1, description="local epochs per round")
    batch: int = Field(default=32, ge=2)
    rate: float = Field(default=1e-3, gt=0)
    pixel_noise: float = Field(default=0.2, ge=0)
    decoder_steps: int = Field(default=100, ge=1, description="per round")
    decoder_rate: float = Field(default=4e-3, gt=0)
    finetune_steps: int = Field(default=20, ge=1, description="per round")
    finetune_from: int = Field(default=7, ge=1, description="first round that fine-tunes")
    effort: Literal["quick", "normal", "thorough"] = "normal"
    finetune_last: int | None = Field(
        default=None, ge=0, description="more in the last round; unset is by effort and classes"
    )
    matched_rounds: int | None = Field(
        default=None, ge=1, le=100_000, description="of FedVTC, whose steps other methods take"
    )

    later = ("matched_rounds",)


class PrivacySettings(_Table):
    """Differential privacy of the upload."""

    mode: Literal["none", "anchored", "example", "client"] = "none"
    epsilon: float = Field(default=4.0, ge=1e-6, le=1000)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, ge=1e-3, le=1e3)
    population: int = Field(default=1000, ge=1, description="public guess of all samples")
    collusion: float = Field(default=0.1, ge=0, lt=1, description="share of dishonest clients")

    @field_validator("clip", mode="before")
    @classmethod
    def _fixed(cls, value: Any) -> Any:
        if isinstance(value, str):  # "auto", "median", "adaptive": habits of other tools
            raise refuse(
                "a bound taken from the data tells of the data", "give a number; 1 is a good one"
            )
        return value


class TransportSettings(_Table):
    """Precision, sealing and masking of uploads."""

    seal: bool = True
    masking: bool = False
    masking_group: int = Field(
        default=0, ge=0, le=1000, description="least clients of a masked sum; 0 is one sum of all"
    )
    precision: Literal["float32", "float16"] = "float32"


class ServerSettings(_Table):
    """Conditions of the server on uploads before it publishes."""

    minimum_contributors: int = Field(default=1, ge=1, le=10_000)
    trim: float = Field(default=0.0, ge=0, lt=0.5)
    most_samples: int | None = Field(
        default=None,
        ge=1,
        le=2**48,
        description="what one client may weigh; unset, privacy.population under a privacy mode",
    )
    cross_check: bool = True
    quorum: float | None = Field(
        default=None, gt=0, le=1, description="share of the cohort; unset is all that take part"
    )
    deadline_s: float = Field(
        default=600.0, gt=0, le=1e6, description="for one phase of a round on engine flower"
    )


class ComparedData(_Table):
    """One data set of a comparison; what is not set is as in ``[data]``."""

    name: str
    root: str | None = None
    limit: int | None = Field(default=None, ge=0)
    test_limit: int | None = Field(default=None, ge=0)
    image_size: int | None = None
    public: str | None = None
    alphas: Alphas = Field(default=(), description="in place of those of the comparison")


class CompareSettings(_Table):
    """Methods, data sets, splits and seeds of ``fedvtc-edge compare``; no run depends on it."""

    methods: Names = Field(default=(), description="none named is every method")
    seeds: Seeds = Field(default=(0, 1, 2), min_length=1)
    alphas: Alphas = Field(default=(), description="none named is data.alpha")
    datasets: Annotated[tuple[ComparedData, ...], Field(strict=False)] = ()
    rounds: int = Field(default=10, ge=1, le=100_000, description="of methods that share in each")
    tune: bool = Field(default=False, description="choose each method's knob on validation data")
    ablations: bool = Field(default=False, description="FedVTC without its parts, as rows")
    audit: bool = Field(default=False, description="audit one seed of each row")

    @field_validator("methods", "seeds", "alphas")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise refuse("one stands there twice", "name each only once")
        return value

    @field_validator("datasets", mode="before")
    @classmethod
    def _names_as_tables(cls, value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value  # refused by its type
        return tuple({"name": one} if isinstance(one, str) else one for one in value)


class EngineSettings(_Table):
    """Engine, hardware and precision. Nothing here can change a result's meaning."""

    name: Literal["local", "flower"] = "local"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    workers: int = Field(default=1, ge=1, le=256)
    memory_mb: int = Field(
        default=0, ge=0, le=2**24, description="for live clients; 0 is chosen by cohort and machine"
    )
    evaluate_every: int = Field(default=1, ge=1, le=100_000, description="rounds; the last always")

    later = ("memory_mb", "evaluate_every")


class Config(_Table):
    """Everything that decides a run, resolved and immutable."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataSettings = DataSettings()
    clients: ClientSettings = ClientSettings()
    method: MethodSettings = MethodSettings()
    training: TrainingSettings = TrainingSettings()
    privacy: PrivacySettings = PrivacySettings()
    transport: TransportSettings = TransportSettings()
    server: ServerSettings = ServerSettings()
    compare: CompareSettings = CompareSettings()
    engine: EngineSettings = EngineSettings()

    later = ("compare",)

    @model_validator(mode="before")
    @classmethod
    def _other_defaults_where_rounds_share(cls, given: Any) -> Any:
        """More rounds, with as many decoder steps in all of them; a number that is set stays."""
        tables = given if isinstance(given, Mapping) else {}
        method, training = tables.get("method", {}), tables.get("training", {})
        if not isinstance(method, Mapping) or not isinstance(training, Mapping):
            return given  # refused by its own table, or complete
        if method.get("share") not in ("features", "features+decoder"):
            return given
        return {
            **given,
            "method": {"rounds": SHARING_ROUNDS, **method},
            "training": {"decoder_steps": SHARING_DECODER_STEPS, **training},
        }

    @property
    def most_samples(self) -> int | None:
        """Examples that one client may have or weigh; None where no number is agreed on."""
        if self.server.most_samples is None and self.privacy.mode != "none":
            return self.privacy.population
        return self.server.most_samples

    @property
    def group(self) -> int:
        """Clients whose uploads are added up together: all, once, or those of a round."""
        clients, method = self.clients, self.method
        anchored = method.name == "fedvtc" and method.share == "anchored"
        if anchored or method.name in ONE_UPLOAD:
            return clients.count
        return clients.per_round

    @property
    def sums(self) -> int:
        """Masked sums of which an exchange is made: one, or one for each group of clients."""
        least = self.transport.masking_group
        return max(1, self.group // least) if least else 1

    @property
    def smallest_sum(self) -> int:
        """Clients of the smallest masked sum; no other has more than one more."""
        return self.group // self.sums

    @property
    def colluders(self) -> int:
        """Clients that may be in league with the server, rounded up; all may be in one sum."""
        return math.ceil(self.privacy.collusion * self.group - 1e-9)  # 0.07 · 100 is 7.000…01

    @property
    def dropouts(self) -> int:
        """Clients that the smallest masked sum can do without: a third, rounded down."""
        return self.smallest_sum // 3

    @property
    def client_ids(self) -> list[str]:
        """Ids of all clients, in order."""
        return [f"client-{index:02d}" for index in range(self.clients.count)]

    def replace(self, **tables: Mapping[str, Any] | int) -> Config:
        """A copy with some keys changed, validated again.

        Example: ``config.replace(seed=1, method={"share": "features"})``.
        """
        document = self.model_dump()
        _merge(document, tables)
        return load_config(document)


def load_config(
    source: str | Path | Mapping[str, Any] | None = None, *, overrides: Sequence[str] = ()
) -> Config:
    """Read, override and validate the settings of a run.

    Args:
        source: Path of a TOML file, a mapping of the same shape, or None for the defaults.
        overrides: ``table.key=value`` strings; values are TOML, bare words are strings.

    Raises:
        ConfigError: Unreadable file, unknown key, wrong type or value out of range.
    """
    if source is None:
        document: dict[str, Any] = {}
    elif isinstance(source, Mapping):
        document = {k: dict(v) if isinstance(v, Mapping) else v for k, v in source.items()}
    else:
        document = read_toml(Path(source))
    for override in overrides:
        _merge(document, _parse_override(override))
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise explain(error.errors()[0], Config) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a small TOML file that may have been written by anyone.

    Raises:
        ConfigError: Unreadable, larger than ``MAX_CONFIG_BYTES``, not TOML, or a value that no
            setting has (see :mod:`fedvtc_edge.documents`).
    """
    try:
        with path.open("rb") as file:  # never trust st_size: it is 0 for a pipe or a device
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="give the path of a TOML file"
        ) from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_CONFIG_BYTES} bytes",
            hint="a configuration is a small TOML file",
        )
    try:
        return parse_toml(content)
    except DocumentError as error:
        raise ConfigError(f"{path} is {error}", hint="see https://toml.io") from None


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r} has no value", hint="write it as --set method.rounds=5")
    parts = key.strip().split(".")
    if len(text) > MAX_CONFIG_BYTES or len(parts) > DEEPEST:
        raise ConfigError(
            f"--set {text[:60]!r}… is too long", hint="write it as --set method.rounds=5"
        )
    try:
        document = parse_toml(f"value = {value}")
    except DocumentError:
        document = {}
    # Anything but one TOML value is a bare word, as a shell user types it.
    nested: Any = document["value"] if list(document) == ["value"] else value.strip()
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _merge(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), dict):
            _merge(document[key], value)
        else:
            document[key] = value
