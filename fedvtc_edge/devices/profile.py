"""One TOML file per device; every number in it says where it comes from.

The shipped profiles lie in ``profiles/``; a user's own file has the same shape.
Nothing here imports torch, numpy or onnxruntime: a device can list the profiles.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedvtc_edge.config import read_toml
from fedvtc_edge.errors import ConfigError

Text = Annotated[str, Field(min_length=1, max_length=400)]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Figure(_Frozen):
    """One positive number and its provenance.

    ``published`` is what a source says, ``measured`` what was measured on the
    device itself, ``assumed`` our own guess; ``source`` names the one or gives
    the reason for the other, with a date where one is known.
    """

    value: float = Field(gt=0, le=1e9)
    kind: Literal["published", "measured", "assumed"]
    source: Text


class Share(Figure):
    """A figure between 0 and 1, both included."""

    value: float = Field(ge=0, le=1)


class ReferenceLatency(_Frozen):
    """One latency that somebody measured on this device, to hold a model against.

    ``threads`` is None where the source does not say.
    """

    model: Text
    runtime: Text
    threads: int | None = Field(default=None, ge=1, le=1024)
    ms: float = Field(gt=0, le=1e7)
    kind: Literal["published", "measured", "assumed"]
    source: Text


class DeviceProfile(_Frozen):
    """Profile of one kind of device. A figure that nobody knows is None, never a guess at zero.

    Units are in the names: ``mb`` is 2^20 bytes, as memory is sold; ``gbps`` of
    memory 10^9 bytes per second; ``mbps`` of a network 10^6 bits per second.
    ``fp32_gflops`` is the peak of all cores together; ``efficiency`` the share of it
    that a well-written kernel reaches; ``availability`` the share of rounds in which
    the device can be reached; ``dropout`` the share of started rounds it does not
    finish; ``deadline_s`` the seconds after a round's start by which its upload must
    have arrived, None waits for ever.
    """

    name: str = Field(pattern=rf"^{_NAME.pattern}$")
    title: Text
    arch: Text
    runtime: Literal["onnxruntime", "none"]
    note: str = Field(default="", max_length=1000)

    cores: Figure
    memory_total_mb: Figure
    memory_usable_mb: Figure | None = None
    fp32_gflops: Figure | None = None
    efficiency: Share | None = None
    memory_gbps: Figure | None = None
    node_overhead_us: Figure | None = None
    torch_overhead_us: Figure | None = None
    network_up_mbps: Figure | None = None
    network_down_mbps: Figure | None = None
    availability: Share | None = None
    dropout: Share | None = None
    deadline_s: Figure | None = None
    anchors: Annotated[tuple[ReferenceLatency, ...], Field(strict=False, max_length=100)] = ()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if not self.cores.value.is_integer():
            raise ValueError("cores: expected a whole number")
        usable = self.memory_usable_mb
        if usable is not None and usable.value > self.memory_total_mb.value:
            raise ValueError("memory_usable_mb: expected at most memory_total_mb")
        return self

    @property
    def figures(self) -> dict[str, Figure]:
        """Every number that is known, by its key, in the order of the file format."""
        known = ((key, getattr(self, key)) for key in type(self).model_fields)
        return {key: value for key, value in known if isinstance(value, Figure)}

    @classmethod
    def load(cls, name: str | Path) -> DeviceProfile:
        """Read a shipped profile by its name, or a user's own file by its path.

        Args:
            name: A ``Path``, or a string with a folder in it or ending in ``.toml``,
                is a path; any other string is the name of a shipped profile.

        Raises:
            ConfigError: No such profile, or a file that is not one.
        """
        if isinstance(name, Path) or name.endswith(".toml") or os.path.basename(name) != name:
            return cls._read(Path(name))
        known = profile_names()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"profiles: {', '.join(known)};"
            raise ConfigError(
                f"unknown device {name!r}", hint=f"{hint} or give the path of your own .toml file"
            )
        with resources.as_file(_folder() / f"{name}.toml") as path:
            return cls._read(path)

    def to_toml(self) -> str:
        """The profile as a file that :meth:`load` reads back; what is None is left out."""
        kept = self.model_dump(exclude_none=True, exclude={"anchors"})
        lines = [f"{key} = {_toml(value)}" for key, value in kept.items() if value != ""]
        for anchor in self.anchors:
            lines += ["", "[[anchors]]"]
            fields = anchor.model_dump(exclude_none=True)
            lines += [f"{key} = {_toml(value)}" for key, value in fields.items()]
        return "\n".join([*lines, ""])

    @classmethod
    def _read(cls, path: Path) -> DeviceProfile:
        document = read_toml(path)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise _explain(path, error) from None


def profile_names() -> tuple[str, ...]:
    """The names of the shipped profiles, sorted."""
    files = (Path(file.name) for file in _folder().iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".toml"))


def check_name(name: str) -> None:
    """Refuse what no profile can be called.

    Raises:
        ConfigError: Something else than small letters, digits and hyphens.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {name!r:.80}: expected small letters, digits and hyphens, 63 at most",
            hint="for example: my-gateway-2",
        )


def _toml(value: Any) -> str:
    """One value of a profile. tomli_w is not installed on devices, and JSON is nearly TOML."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, str):
        # ASCII escapes would split what lies beyond U+FFFF in two, which TOML forbids, as it
        # does the one control character that JSON lets stand.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _folder() -> Traversable:
    return resources.files(__package__) / "profiles"


def _explain(path: Path, error: ValidationError) -> ConfigError:
    errors = error.errors()
    # A misspelt key is also a missing one: the misspelling is what the user can see.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        inner = ReferenceLatency if location[0] == "anchors" else Figure
        valid = list((DeviceProfile if len(location) == 1 else inner).model_fields)
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"
        return ConfigError(f"{path}: unknown key {key}", hint=hint)
    if first["type"] == "missing":
        problem = f"{key} is missing"
    elif first["type"] == "value_error":
        problem = first["msg"].removeprefix("Value error, ")
    else:
        expected = first["msg"].removeprefix("Input should be ")
        expected = "a table" if first["type"].startswith("model_") else expected
        problem = f"{key} = {first['input']!r:.80}: expected {expected}"
    return ConfigError(
        f"{path}: {problem}",
        hint='a number is written { value = 4, kind = "published", source = "where from" }',
    )
