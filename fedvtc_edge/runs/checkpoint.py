"""Checkpoint files: JSON metadata, published bytes and weights in one safetensors file.

The header's ``state`` holds the metadata, tensors named ``published/KIND`` hold bytes, all others
are weights. Written with :func:`~fedvtc_edge.storage.atomic.write_atomic` a checkpoint is whole
or that of before. Both a run and a client's state folder keep theirs in this form; a run keeps
its clients' weights in files of their own (:mod:`fedvtc_edge.runs.weights`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

_PUBLISHED = "published/"


def encode(
    metadata: Mapping[str, Any], published: Mapping[str, bytes], tensors: Mapping[str, Tensor]
) -> bytes:
    """The content of a checkpoint file.

    Args:
        metadata: A JSON object.
        published: What the server has published, by kind.
        tensors: Weights by name.
    """
    import numpy as np
    from safetensors.torch import save
    from torch import from_numpy

    packed = dict(tensors)
    for kind, data in published.items():
        packed[f"{_PUBLISHED}{kind}"] = from_numpy(np.frombuffer(data, np.uint8).copy())
    return save(packed, {"state": json.dumps(metadata)})


def decode(path: Path) -> tuple[dict[str, Any], dict[str, bytes], dict[str, Tensor]]:
    """Metadata, published bytes and weights of a file that :func:`encode` made.

    Raises what :func:`naming_damage` catches.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = parse_json((file.metadata() or {})["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    published = {
        name.removeprefix(_PUBLISHED): tensors.pop(name).numpy().tobytes()
        for name in sorted(tensors)
        if name.startswith(_PUBLISHED)
    }
    return metadata, published, tensors


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone, read without torch; empty where there is no sound file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(parse_json((file.metadata() or {})["state"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return {}


@contextmanager
def naming_damage(path: Path, hint: str) -> Iterator[None]:
    """Turn what a damaged file raises into a RunError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error!s:.200}", hint=hint) from None
