"""The labelled image sets that torchvision knows, read from disk and never downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedvtc_edge.errors import DataError, MissingExtra

from .dataset import Labels, Pixels, as_labels
from .splits import Part, Source, Split

_Arguments = Mapping[Part, Mapping[str, Any]]


def _flag(**fixed: str) -> _Arguments:
    return {"train": {**fixed, "train": True}, "test": {**fixed, "train": False}}


def _split(train: str = "train", test: str = "test") -> _Arguments:
    return {"train": {"split": train}, "test": {"split": test}}


# torchvision has no common way to ask for a part, so each set says how. Its sets for
# detection, segmentation, video, captions and flow have no one label per image.
SETS: Mapping[str, _Arguments] = {
    "CIFAR10": _flag(),
    "CIFAR100": _flag(),
    "EMNIST": _flag(split="balanced"),
    "FashionMNIST": _flag(),
    "KMNIST": _flag(),
    "MNIST": _flag(),
    "QMNIST": _flag(),
    "USPS": _flag(),
    "Country211": _split(),
    "DTD": _split(),
    "FER2013": _split(),
    "FGVCAircraft": _split("trainval"),
    "Flowers102": _split(),
    "Food101": _split(),
    "GTSRB": _split(),
    "Imagenette": _split(test="val"),
    "OxfordIIITPet": _split("trainval"),
    "PCAM": _split(),
    "RenderedSST2": _split(),
    "STL10": _split(),
    "StanfordCars": _split(),
    "SVHN": _split(),
}

_BY_HAND = frozenset({"FER2013", "StanfordCars"})  # torchvision cannot download these


def canonical(name: str) -> str | None:
    """The name of a set as torchvision spells it, or None; `name` may be in any case."""
    return next((known for known in SETS if known.lower() == name.lower()), None)


def open_torchvision(name: str, root: Path) -> Source:
    """Open a set by torchvision's spelling of its name.

    Raises:
        MissingExtra: torchvision, or what it needs for this set, cannot be imported.
        DataError: The files are not under `root`, or are damaged.
    """
    library = _library()
    parts: dict[Part, Any] = {"train": _construct(library, name, "train", root)}

    def open_part(part: Part) -> Split:
        if part not in parts:
            parts[part] = _construct(library, name, part, root)
        data = parts[part]
        origin = f"torchvision {name} in {root}"

        def fetch(indices: Labels) -> Iterator[tuple[str, Pixels]]:
            for index in indices:
                image, _ = _item(data, int(index), origin)
                # EMNIST's are stored lying down.
                yield origin, image.swapaxes(0, 1) if name == "EMNIST" else image

        return Split(origin, part, _labels(data, f"{origin}: y_{part}"), fetch)

    return Source(name.lower(), _class_names(parts["train"]), open_part)


def _library() -> Any:
    try:
        return importlib.import_module("torchvision.datasets")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"torchvision's data sets need torch and torchvision: {error}",
            hint="pip install 'fedvtc-edge[train]', or use an .npz file or an image folder",
        ) from None
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # torchvision's compiled operators fit one build of torch only: a torch from the
        # CPU index beside a torchvision from the registry fails here, in several ways.
        raise MissingExtra(
            f"torchvision does not fit the installed torch: {error}; "
            "expected both from the same package index",
            hint="pip install --force-reinstall torch torchvision "
            "--index-url https://download.pytorch.org/whl/cpu",
        ) from None


def _construct(library: Any, name: str, part: Part, root: Path) -> Any:
    arguments = dict(SETS[name][part])
    if name not in _BY_HAND:
        arguments["download"] = False  # a download happens when the user asks for it, not before
    try:
        return getattr(library, name)(str(root), **arguments)
    except ImportError as error:
        raise MissingExtra(
            f"torchvision's {name} needs another package: {error}", hint="pip install it"
        ) from None
    except Exception as error:  # absent, damaged or half-extracted files: each set its own way
        reason = " ".join((str(error) or type(error).__name__).split())
        raise DataError(
            f"torchvision {name}: cannot be read from {root}: {reason}", hint=_hint(name, root)
        ) from None


def _hint(name: str, root: Path) -> str:
    if name in _BY_HAND:
        return f"torchvision cannot download it: see its documentation of datasets.{name}"
    calls = "; ".join(
        f"D({str(root)!r}, {', '.join(f'{k}={v!r}' for k, v in arguments.items())}, download=True)"
        for arguments in SETS[name].values()
    )
    return f'download it: python -c "from torchvision.datasets import {name} as D; {calls}"'


def _labels(data: Any, where: str) -> Labels:
    # Where torchvision keeps the labels; asking for the items would decode every image.
    for attribute in ("targets", "labels", "_labels"):
        labels = getattr(data, attribute, None)
        if labels is not None and np.ndim(labels) == 1 and len(labels) == len(data):
            return as_labels(np.asarray(labels), where)
    samples = getattr(data, "_samples", None)
    if isinstance(samples, list) and len(samples) == len(data):
        return as_labels(np.asarray([label for _, label in samples]), where)
    return as_labels(np.asarray([_item(data, i, where)[1] for i in range(len(data))]), where)


def _item(data: Any, index: int, where: str) -> tuple[Pixels, Any]:
    from .images import to_pixels

    try:
        image, label = data[index]
        return to_pixels(image), label
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise DataError(
            f"{where}: image {index} cannot be read: {error}",
            hint="delete the set's files and download them again",
        ) from None


def _class_names(data: Any) -> tuple[str, ...]:
    names = getattr(data, "classes", None) or ()
    # Imagenette gives every class a tuple of synonyms.
    return tuple(name if isinstance(name, str) else str(name[0]) for name in names)
