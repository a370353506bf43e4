"""Files of weights: read within bounds, as nothing but arrays, and only what the user named.

What torch wrote is read after its hash was checked; safetensors can hold nothing else.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedvtc_edge.errors import ConfigError

MAX_BYTES = 2_000_000_000
"""Largest file of weights that is read."""

_AT_HAND = "set method.extractor_weights to a .safetensors file of its weights"

_downloads: ContextVar[bool] = ContextVar("downloads", default=True)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Let no library fetch weights for the time of a block: who asks for them is not the user."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


def stamp_of(path: Path) -> tuple[int, int]:
    """Time of change and size of a file: while they stay, so does what was read of it.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return found.st_mtime_ns, found.st_size


def read(path: Path) -> bytes:
    """Bytes of a file of at most :data:`MAX_BYTES`.

    Raises:
        ConfigError: It is larger, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes", hint="use a smaller network")
    return data


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read {path}: {error.strerror}", hint="give the path of a file of weights"
    )


def arrays_of(data: bytes) -> dict[str, Tensor]:
    """Arrays of a file of torch's whose hash was checked; even so, nothing else is let in."""
    arrays: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return arrays


def read_safetensors(path: str) -> dict[str, Tensor]:
    """Arrays of a safetensors file, which can hold nothing else.

    Raises:
        ConfigError: It is none, is too large, or cannot be read.
    """
    if not path.endswith(".safetensors"):
        raise ConfigError(
            f"method.extractor_weights = {path!r}: expected a .safetensors file",
            hint="safetensors.torch.save_file(network.state_dict(), FILE) writes one",
        )
    if not Path(path).is_file() or Path(path).stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"method.extractor_weights = {path!r}: no such file, or one above {MAX_BYTES} bytes",
            hint="give the path of a file of weights",
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path} is no safetensors file: {error}", hint="fetch it again"
        ) from None


@contextmanager
def _fetching(name: str, *, cached: bool = False) -> Iterator[None]:
    """Errors of a fetch, if the user allows one.

    Args:
        cached: Whether the block looks into a cache first and knows itself what is allowed.
    """
    refused = ConfigError(
        f"extractor {name!r}: its weights are not in the cache here, and nobody asked for them",
        hint="fedvtc-edge extractors NAME fetches them; or give a .safetensors file of them",
    )
    if not _downloads.get() and not cached:
        raise refused
    try:
        yield
    except Exception as error:  # the libraries' errors have no common class
        if not _downloads.get():
            raise refused from None
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"method.extractor = {name!r}: its weights cannot be fetched ({first})",
            hint=f"fetch them where there is a network, and {_AT_HAND}",
        ) from None


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Errors of weights that do not fit a network."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ConfigError(
            f"these weights are not those of {name}: {lines[min(1, len(lines) - 1)][:200]}",
            hint="give the weights of this very network",
        ) from None


def load_weights(network: nn.Module, arrays: Mapping[str, Tensor], name: str) -> None:
    """Fill a network.

    Raises:
        ConfigError: Arrays of other names or shapes, or not finite.
    """
    with fitting(name):
        network.load_state_dict(dict(arrays))
    check_finite(network, name)


def check_finite(network: nn.Module, name: str) -> None:
    """Refuse weights that are no finite numbers.

    Raises:
        ConfigError: One is not.
    """
    if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
        raise ConfigError(f"the weights of {name} are not finite", hint="fetch them again")


def fetched(name: str, url: str) -> bytes:
    """A file of torchvision's from its cache, fetched into it before if the user allows that.

    Args:
        name: For messages.
        url: Whose last part names the first digits of the file's hash.

    Raises:
        ConfigError: It cannot be fetched, or is not of that hash.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    start = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if start is None:
        raise ConfigError(
            f"{url} does not name its hash, so that nothing of it is read", hint=_AT_HAND
        )
    if not path.exists():
        with _fetching(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), start[1], progress=False)
    data = read(path)
    if not hashlib.sha256(data).hexdigest().startswith(start[1]):
        raise ConfigError(f"{path} is not what its name says", hint="remove it and try again")
    return data


def from_hub(name: str, repository: str) -> str:
    """Path of a repository's safetensors file in the cache of Hugging Face's library.

    Raises:
        ConfigError: It is not there and cannot or may not be fetched.
    """
    import huggingface_hub

    with _fetching(name, cached=True):
        return str(
            huggingface_hub.hf_hub_download(
                repository, "model.safetensors", local_files_only=not _downloads.get()
            )
        )


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of all arrays, by name: the same wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous()
        about = f"{name}\0{array.dtype}\0{list(array.shape)}\0".encode()
        digest.update(struct.pack("<I", len(about)) + about)
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
