"""onnxruntime on a device: one thread that sleeps when idle, silent, and no telemetry.

The only module that imports onnxruntime where images are classified or synthesised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Importing fedvtc_edge, and so this module, has set ORT_DISABLE_TELEMETRY by now.
import onnxruntime
from numpy.typing import NDArray

from fedvtc_edge.errors import BundleError, VerificationError
from fedvtc_edge.graph_rules import GraphError, check_graph

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], NDArray[Any]]

onnxruntime.disable_telemetry_events()  # whoever imported onnxruntime before us left it on

_ERRORS_ONLY = 3
_FASTER = 0.9
"""int8 must take at most this share of fp32's time; closer than that, noise would choose."""


class Session:
    """One graph, loaded from bytes that were verified.

    Args:
        model: Content of the ONNX file.
        folder: Folder of its external data, which is ``NAME.data``; None: it has none.
        name: File's name.

    Raises:
        VerificationError: The graph breaks :mod:`fedvtc_edge.graph_rules`.
        BundleError: onnxruntime cannot load the graph, or later not run it.
    """

    def __init__(
        self, model: bytes, *, name: str, folder: Path | None = None, threads: int = 1
    ) -> None:
        try:
            check_graph(model, beside=() if folder is None else (f"{name}.data",))
        except GraphError as error:
            raise VerificationError(
                f"{name} is refused: {error}",
                hint="a bundle's graphs are standard operators in one pass, with weights in the "
                "bundle's own files: do not use this one",
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Spinning threads burn a battery while they wait for the next image.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of its own for each status
            raise _failed("load", name, error) from error
        self._name = name
        self.inputs = {
            port.name: (port.type, tuple(port.shape)) for port in self._session.get_inputs()
        }
        self.outputs = {
            port.name: (port.type, tuple(port.shape)) for port in self._session.get_outputs()
        }

    def __call__(self, arrays: Arrays) -> NDArray[Any]:
        """The graph's one output."""
        try:
            result: NDArray[Any] = self._session.run(None, dict(arrays))[0]
        except Exception as error:
            raise _failed("run", self._name, error) from error
        return result


def _failed(what: str, name: str, error: Exception) -> BundleError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return BundleError(
        f"onnxruntime {onnxruntime.__version__} cannot {what} {name}: {reason}",
        hint="install the onnxruntime that the manifest names under tools, or a later one",
    )


def is_faster(candidate: Run, reference: Run, arrays: Arrays, *, repeats: int = 15) -> bool:
    """True if ``candidate`` is clearly faster here, by alternating medians of wall time."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 2):
        for run, list_ in zip((candidate, reference), times, strict=True):
            begin = time.perf_counter()
            run(arrays)
            list_.append(time.perf_counter() - begin)
    fast, slow = (sorted(list_[2:])[repeats // 2] for list_ in times)  # two runs to warm up
    return fast <= _FASTER * slow
