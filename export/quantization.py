"""int8 variants: static quantisation, calibrated with synthesised images only.

Never with a client's: the ranges end up in the graph, and the graph on devices.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from .graphs import Converted, write
from .runtime import Arrays

_WEIGHTED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def quantize(source: Path, target: Path, calibration: Sequence[Arrays]) -> Converted:
    """Write the int8 variant of a graph: QDQ, per tensor, ranges by minimum and maximum.

    Unsigned activations and one scale per tensor: on CPUs the fastest of the
    combinations tried, and as close to fp32 on synthesised images as any
    (docs/decisions/0009). Weights have 7 bits: CPUs with AVX2 but without VNNI add products of
    8 by 8 bits in 16, where two of them saturate and the result is garbage without an
    error. Normalisations stay float32.

    Args:
        source: The fp32 graph.
        target: Where the int8 one goes; a large one gets ``.data`` too.
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
