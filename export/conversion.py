"""From a torch module to an ONNX file that says nothing of where it was made."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from fedvtc_edge.errors import ParityError

OPSET = 20
"""Has Gelu, GridSample and the reductions of today's exporters; onnxruntime ≥ 1.17 runs it."""

EXTERNAL_BYTES = 1_000_000
"""Larger models keep their weights in a file beside the graph, which is mapped and not copied:
a ResNet-18 of 45 MB then loads in 144 MB instead of 247."""

PRODUCER = "fedvtc-edge"


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        files: Names, the graph's first.
        opset: Of the graph, read back from it.
        ir: ONNX format version, read back.
    """

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
) -> Converted:
    """Write ``module`` to ``path``, with a dynamic batch.

    Args:
        module: Takes ``inputs`` in their order.
        inputs: An example of each, in batches of more than one (an exporter may take
            a one for a constant).
        path: Of the ONNX file; large models get ``path`` + ``.data`` too.
        output: Name of the one output.
        fixed: Inputs whose first axis is no batch.

    Raises:
        ParityError: The exporter wrote another opset than it was asked for.
    """
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
    return write(program.model_proto, path)


def write(model: onnx.ModelProto, path: Path) -> Converted:
    """Strip, check and write a graph; the same graph gives the same bytes.

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
    if model.ByteSize() > EXTERNAL_BYTES:
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
