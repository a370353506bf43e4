"""ONNX graphs as frozen extractors: checked before they run, on one thread, without gradients."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvtc_edge.errors import ConfigError
from fedvtc_edge.graph_rules import GraphError, check_graph

MAX_SIDE = 512
"""Greatest side of the images that a graph may ask for."""

MAX_FEATURES = 65_536
"""Greatest number d of features; a projection to m has d · m numbers."""


class OnnxNetwork(nn.Module):
    """A graph that onnxruntime runs, on one thread of the CPU and without gradients.

    One thread, since several add in an order of their own: features are the same bits each time.

    Args:
        data: The model, with all of its weights inside.
        name: For messages.

    Attributes:
        resolution: Side of the images that the graph asks for; None where it takes any.
        batch: Images of one pass that it asks for; None where it takes any number.
        size: Bytes of the model.

    Raises:
        ConfigError: No graph of one image input [N, 3, H, W] and one output [N, d]; one that
            breaks :mod:`fedvtc_edge.graph_rules`, such as one whose weights lie in other files,
            which no hash of this one would cover.
    """

    def __init__(self, data: bytes, name: str) -> None:
        import onnxruntime  # other extractors do without

        super().__init__()
        _check_rules(data, name)
        self.size = len(data)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        try:
            self.session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigError(
                f"{name} is no graph that onnxruntime can run: {_first_line(error)}",
                hint="give one ONNX file of standard operators",
            ) from None
        images, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.label, self.input, self.output = name, images[0].name, outputs[0].name
        self.resolution, self.batch = _check_ports(images, outputs, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        """Itself: a session holds no tensor that anyone moves or changes."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] → [N, d].

        Raises:
            ConfigError: The graph fails, or gives what is no finite [N, d].
        """
        array = np.ascontiguousarray(x.detach().float().cpu().numpy())
        size = self.batch or max(len(array), 1)
        pieces = [self._run(array[at : at + size], size) for at in range(0, len(array), size)]
        return torch.from_numpy(np.concatenate(pieces)).to(x.device)

    def _run(self, images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """Features of up to ``size`` images; a graph of a fixed batch is filled up with black."""
        count = len(images)
        if self.batch is not None:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), "f4")])
        try:
            features = self.session.run([self.output], {self.input: images})[0]
        except Exception as error:  # onnxruntime's errors have no common class
            raise ConfigError(
                f"{self.label} fails on images {list(images.shape)}: {_first_line(error)}",
                hint="expected a graph [N, 3, H, W] → [N, d]",
            ) from None
        if features.ndim != 2 or len(features) != len(images) or features.shape[1] > MAX_FEATURES:
            raise ConfigError(
                f"{self.label} gives {list(features.shape)} for images {list(images.shape)}",
                hint=f"expected a graph [N, 3, H, W] → [N, d], d up to {MAX_FEATURES}",
            )
        features = features[:count]
        if not np.isfinite(features).all():
            raise ConfigError(
                f"{self.label} gives features that are not finite",
                hint="check its normalisation: pixels are given in [0, 1]",
            )
        return cast(NDArray[np.float32], features)


def _check_ports(images: Any, outputs: Any, name: str) -> tuple[int | None, int | None]:
    """Side and batch that a graph fixes, each None where it takes any."""
    if len(images) != 1 or images[0].type != "tensor(float)" or len(images[0].shape) != 4:
        raise ConfigError(
            f"{name} takes {[(port.type, port.shape) for port in images]!r:.200}",
            hint="expected one input of float32 images [N, 3, H, W] in [0, 1]",
        )
    batch, channels, height, width = (
        side if isinstance(side, int) and side > 0 else None for side in images[0].shape
    )
    if channels not in (None, 3):
        raise ConfigError(
            f"{name} takes images of {channels} channels",
            hint="expected [N, 3, H, W]; grey images are given to it as colour ones",
        )
    if height != width or (height or 0) > MAX_SIDE:
        raise ConfigError(
            f"{name} takes images of {height} × {width} px",
            hint=f"expected square images of up to {MAX_SIDE} px",
        )
    if outputs[0].type != "tensor(float)":
        raise ConfigError(
            f"{name} gives {outputs[0].type}", hint="expected float32 features [N, d]"
        )
    return height, batch


def _check_rules(data: bytes, name: str) -> None:
    """Refuse a graph that could do more than compute features.

    onnxruntime would read weights in other files from the working directory, whatever they hold.
    """
    try:
        check_graph(data)
    except GraphError as error:
        raise ConfigError(
            f"{name} is refused: {error}",
            hint="export the network again, of standard operators, without branches, loops or "
            "functions, and with its weights inside: "
            "onnx.save(onnx.load(FILE), NEW, save_as_external_data=False)",
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
