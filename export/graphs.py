"""Trained networks as the ONNX graphs that a device runs, uint8 at every end; fp32 and int8.

int8 variants are calibrated with synthesised images only, never with a client's: the
ranges end up in the graph, and the graph on devices.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from fedvtc_edge.errors import ParityError
from fedvtc_edge.models import Classifier
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.vtc import VTC
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.statistics.discriminant import ABSENT
from fedvtc_edge.statistics.gaussian import Coefficients

from .runtime import Arrays

OPSET = 20
"""Has Gelu, GridSample and the reductions of today's exporters; onnxruntime ≥ 1.17 runs it."""

EXTERNAL_BYTES = 1_000_000
"""Larger models keep their weights in a file beside the graph, which is mapped and not copied:
a ResNet-18 of 45 MB then loads in 144 MB instead of 247."""

PRODUCER = "fedvtc-edge"

Model = Union["Classifier", "Nearest", "CommonHead"]
"""Classifiers: a network of the client's own, or what stands on published statistics."""

_WEIGHTED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


class ClassifierGraph(nn.Module):
    """images uint8 [N, H, W, channels] → logits [N, C]; scaled as in training."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits of scaled images."""
        return cast(Tensor, self.model(_scaled(images)))


class Nearest(nn.Module):
    """FedProto's classifier: minus the squared distance to each published prototype.

    The head of the model is not used; a class that nobody had is farther than any can be.
    """

    mean: Tensor
    known: Tensor

    def __init__(self, model: Classifier, knowledge: GlobalStatistics) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.from_numpy(knowledge.mean).float())
        self.register_buffer("known", torch.from_numpy(knowledge.present))
        # Features and prototypes have a norm of √p at most.
        self._beyond = -4.0 * knowledge.mean.shape[1] - 1

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] in [0, 1] → [N, C]."""
        apart = self.model.features(x)[:, None] - self.mean
        return torch.where(self.known, -apart.square().sum(2), self._beyond)


class CommonHead(nn.Module):
    """A head that all clients have on the frozen extractor: log-posteriors of images.

    Args:
        head: Its coefficients; what all known classes share of them is taken off, for float32
            keeps more digits of the differences.
        known: Classes [C] that anyone has.
    """

    quadratic: Tensor
    linear: Tensor
    offset: Tensor
    known: Tensor

    def __init__(self, anchor: Anchor, head: Coefficients, known: NDArray[np.bool_]) -> None:
        super().__init__()
        # Not among its modules: copies share it, as those of a client's own head do.
        self._anchor: Callable[[], Anchor] = lambda: anchor
        for name, part in zip(("quadratic", "linear", "offset"), head, strict=True):
            own = part - part[..., known].mean(-1, keepdims=True)
            self.register_buffer(name, torch.from_numpy(own).float())
        self.register_buffer("known", torch.from_numpy(known))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] in [0, 1] → [N, C]."""
        features = self._anchor()(x)
        scores = features @ self.linear + features.square() @ self.quadratic + self.offset
        rivals = torch.where(self.known, scores, _NEVER)
        return torch.where(self.known, torch.log_softmax(rivals, 1), ABSENT)


_NEVER = -1e30
"""Score of a class that nobody has: below all others, and finite, as graphs must be."""


class AnchorGraph(nn.Module):
    """images uint8 [N, H, W, channels] → features of the frozen anchor [N, m]."""

    def __init__(self, anchor: Anchor) -> None:
        super().__init__()
        self.anchor = anchor

    def forward(self, images: Tensor) -> Tensor:
        """Features of scaled images."""
        return cast(Tensor, self.anchor(_scaled(images)))


class SynthesizerGraph(nn.Module):
    """labels [N], means and stds [C, p], noise [N, p] → images uint8 [N, H, W, channels]."""

    def __init__(self, decoder: VTC) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, labels: Tensor, means: Tensor, stds: Tensor, noise: Tensor) -> Tensor:
        """Images ψ(v) of the latents v = c^y + σ^y ⊙ ε."""
        levels = self.levels(labels, means, stds, noise)
        return levels.round().to(torch.uint8)

    def levels(self, labels: Tensor, means: Tensor, stds: Tensor, noise: Tensor) -> Tensor:
        """The pixels before rounding, [N, H, W, channels] in 0…255."""
        # Not means[labels]: its graph would allow negative labels and cost a node more.
        mean, std = torch.index_select(means, 0, labels), torch.index_select(stds, 0, labels)
        images = cast(Tensor, self.decoder(mean + std * noise))
        return images.permute(0, 2, 3, 1) * 255.0


def _scaled(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255.0


@dataclass(frozen=True)
class Converted:
    """Files of a written graph, its own first; opset and ONNX format version, read back."""

    files: tuple[str, ...]
    opset: int
    ir: int


def convert(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    *,
    output: str,
    fixed: Collection[str] = (),
    beside: bool = True,
) -> Converted:
    """Write ``module`` to ``path``, with a dynamic batch.

    Args:
        module: Takes ``inputs`` in their order.
        inputs: An example of each, in batches of more than one (an exporter may take
            a one for a constant).
        path: Of the ONNX file; large models get ``path`` + ``.data`` too.
        output: Name of the one output.
        fixed: Inputs whose first axis is no batch.
        beside: Put large weights into a file beside the graph.

    Raises:
        ParityError: The exporter wrote another opset than it was asked for.
    """
    return write(to_model(module, inputs, output=output, fixed=fixed), path, beside=beside)


def to_model(
    module: nn.Module, inputs: Mapping[str, Tensor], *, output: str, fixed: Collection[str] = ()
) -> onnx.ModelProto:
    """ONNX graph of ``module``, in memory; see :func:`convert`."""
    batch = torch.export.Dim("N", min=1)
    dynamic = tuple(None if name in fixed else {0: batch} for name in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's remarks to its own developers
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            external_data=False,
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
        )
    assert program is not None  # only the old exporter, writing to a file, returns nothing
    return program.model_proto


def write(model: onnx.ModelProto, path: Path, *, beside: bool = True) -> Converted:
    """Strip, check and write a graph; the same graph gives the same bytes.

    Args:
        beside: Put large weights into a file beside the graph.

    Raises:
        ParityError: Its opset is not the one asked for.
    """
    strip(model)
    used = {node.domain for node in model.graph.node} | {""}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)  # the quantiser names domains that no node is of
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset != OPSET:
        raise ParityError(
            f"the exporter wrote opset {opset}, expected {OPSET}",
            hint="install the torch and onnxscript that pyproject.toml asks for",
        )
    onnx.checker.check_model(model, full_check=True)
    files = [path.name]
    if beside and model.ByteSize() > EXTERNAL_BYTES:
        files.append(f"{path.name}.data")
        onnx.external_data_helper.convert_model_to_external_data(
            model, location=files[1], size_threshold=1024, convert_attribute=False
        )
        onnx.external_data_helper.write_external_data_tensors(model, str(path.parent))
        os.chmod(path.with_name(files[1]), 0o644)  # onnx's 0600 would lock out a device's user
    path.write_bytes(model.SerializeToString(deterministic=True))
    return Converted(tuple(files), opset, model.ir_version)


def strip(model: onnx.ModelProto) -> None:
    """Remove what tells of the machine and the source: stack traces, folders, module names."""
    model.producer_name, model.producer_version = PRODUCER, ""
    model.doc_string = model.domain = ""
    del model.metadata_props[:]
    _strip_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.name = PRODUCER
    del graph.value_info[:]  # shapes of inner values: any runtime infers them again
    for item in (graph, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[Any]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    _strip_graph(graph)


def quantize(source: Path, target: Path, calibration: Sequence[Arrays]) -> Converted:
    """Write the int8 variant of a graph: QDQ, per tensor, ranges by minimum and maximum.

    Unsigned activations and one scale per tensor: on CPUs the fastest of the
    combinations tried, and as close to fp32 on synthesised images as any
    (docs/decisions/0009). Weights have 7 bits: CPUs with AVX2 but without VNNI add products of
    8 by 8 bits in 16, where two of them saturate and the result is garbage without an
    error. Normalisations stay float32.

    Args:
        source: The fp32 graph.
        target: Path of the int8 one; a large one gets ``.data`` too.
        calibration: Inputs to measure ranges on.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, _quiet():
        whole, prepared, raw = (Path(scratch) / f"{n}.onnx" for n in ("whole", "prepared", "raw"))
        onnx.save(onnx.load(source), whole)  # copies lose sight of weights beside the graph
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            raw,
            _Feeds(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_WEIGHTED,
            reduce_range=True,
        )
        return write(onnx.load(raw), target)


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, calibration: Sequence[Arrays]) -> None:
        self._feeds: Iterator[Arrays] = iter(calibration)

    def get_next(self) -> Any:
        """The next inputs, or None at the end."""
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser's advice goes to the root logger, and so to the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
