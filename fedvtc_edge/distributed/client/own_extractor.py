"""The extractor of a served run, from the client's own files and proven by its hash.

A server's word opens no path of the client's machine and fetches nothing over its network.
"""

from __future__ import annotations

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models.extractor import pinned
from fedvtc_edge.models.weight_files import without_downloads

ONNX, WEIGHTS = ".onnx", ".safetensors"


def with_own_extractor(config: Config, file: str) -> Config:
    """Settings of a run with the client's file in place of whatever file the server named.

    Args:
        config: As the server sent it.
        file: An ONNX file, a safetensors file with the weights of a ``torchvision:`` or ``timm:``
            network, or empty.

    Raises:
        ConfigError: The run's extractor needs a file and none is given, takes none, is not
            in this machine's cache, or has another hash here than at the server.
    """
    method, hint = config.method, ""
    named = method.extractor.startswith(("torchvision:", "timm:"))
    graph = method.extractor.endswith(ONNX)
    words = f"the run's extractor is {method.extractor!r:.80}"
    if graph:
        words = f"the run's extractor is an ONNX file of sha256 {method.extractor_sha256[:16]}…"
    if graph and not file.endswith(ONNX):
        hint = "get that file and give it: join --extractor FILE.onnx"
    elif named and file and not file.endswith(WEIGHTS):
        hint = "give a .safetensors file of its weights: join --extractor FILE.safetensors"
    elif file and not (graph or named):
        hint = "it takes no file: leave --extractor out"
    elif (graph or named) and not method.extractor_sha256:
        hint = "without its hash nobody knows which one: the server has another version"
    if hint:
        raise ConfigError(words, hint=hint)
    if graph:
        config = config.replace(method={"extractor": file, "extractor_weights": ""})
    elif named:
        config = config.replace(method={"extractor_weights": file})
    with without_downloads():
        return pinned(config)
