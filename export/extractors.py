"""The frozen extractor of a run as one graph, which all bundles of an export share.

It is converted once, held against torch once, and then copied into each bundle, or kept as
one file beside them that each of them names by its hash.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import MethodSettings
from fedvtc_edge.errors import RunError
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.models.onnx_network import OnnxNetwork
from fedvtc_edge.models.pretrained import Pretrained, Source, graph_bytes, source_of
from fedvtc_edge.models.registry import ImageShape

from .graphs import OPSET, AnchorGraph, convert, to_model, write
from .manifest import ANCHOR, Extractor, File, Graph, Image, ports
from .runtime import Session

REFERENCE = "extractor.onnx"
"""File beside the bundles which they name where they do not hold their extractor."""


@dataclass(frozen=True, eq=False)
class AnchorFiles:
    """The anchor graph, written to ``folder``.

    Args:
        anchor: The network that it was made of.
        described: Its name, hash and licence, for manifests; None for the random filters, if
            bundles hold them.
        graph: Its ports and its file, for manifests.
        files: Names in the folder.
        by_reference: Bundles name the file and do not hold it.
    """

    folder: Path
    anchor: Anchor
    described: Extractor | None
    graph: Graph
    files: tuple[str, ...]
    by_reference: bool

    @cached_property
    def module(self) -> nn.Module:
        """Reference in torch that the graph is compared with."""
        return AnchorGraph(self.anchor).eval()

    @cached_property
    def session(self) -> Session:
        """The graph in onnxruntime."""
        return Session((self.folder / ANCHOR).read_bytes(), name=ANCHOR, folder=self.folder)

    @cached_property
    def remembered(self) -> dict[str, Any]:
        """Parity and features on images that all bundles share, by their kind."""
        return {}

    def copy_into(self, folder: Path) -> tuple[str, ...]:
        """Put the files into a bundle; their names there, none where they are only named."""
        if self.by_reference:
            return ()
        for name in self.files:
            shutil.copyfile(self.folder / name, folder / name)
        return self.files

    def keep(self, target: Path) -> None:
        """Put the one file beside the bundles, or find it there.

        Raises:
            RunError: Another file has its name.
        """
        wanted = self.described and self.described.file
        assert wanted is not None
        if target.exists():
            if File.of(target) != wanted:
                raise RunError(
                    f"{target} is another extractor than this run's",
                    hint="choose a new folder for --out",
                )
            return
        scratch = target.with_name(f".{target.name}.new")
        shutil.copyfile(self.folder / ANCHOR, scratch)
        os.replace(scratch, target)


def write_anchor(
    folder: Path,
    anchor: Anchor,
    settings: MethodSettings,
    form: Image,
    example: Mapping[str, Tensor],
    *,
    by_reference: bool,
) -> AnchorFiles:
    """Write ``anchor.onnx`` into ``folder``: uint8 images to features of norm √m.

    Args:
        anchor: Of the run.
        settings: Of the run: name and weights of the extractor.
        form: The images.
        example: ``images`` [2, H, W, channels].
        by_reference: Keep the weights in the graph's file, so that there is one file to name.

    Raises:
        ConfigError: An ONNX file that is no longer the run's.
        RunError: One of a fixed batch, or of an opset that cannot be brought to this
            format's.
        ParityError: The exporter wrote another opset than it was asked for.
    """
    source = source_of(settings.extractor, settings.extractor_weights)
    inner = anchor.body.network if isinstance(anchor.body, Pretrained) else None
    if isinstance(inner, OnnxNetwork):
        model = _composed(anchor, inner, settings.extractor, form, example)
        written = write(model, folder / ANCHOR, beside=not by_reference)
    else:
        graph = AnchorGraph(anchor)
        path, beside = folder / ANCHOR, not by_reference
        written = convert(graph, example, path, output="features", beside=beside)
    inputs, outputs = ports("anchor", form, classes=2, latent=1, anchor=anchor.width)
    described = Graph(
        variants={"fp32": ANCHOR},
        opset=written.opset,
        ir=written.ir,
        inputs=inputs,
        outputs=outputs,
    )
    file = File.of(folder / ANCHOR) if by_reference else None
    about = _described(settings.extractor, source, file)
    return AnchorFiles(folder, anchor, about, described, written.files, by_reference)


def _described(name: str, source: Source | None, file: File | None) -> Extractor | None:
    if name == "random" and file is None:
        return None
    if source is None:
        return Extractor(name=name[:200], sha256=None, licence=None, origin=None, file=file)
    origin = source.origin
    if os.sep in name or name.endswith(".onnx"):  # a path of this machine is nobody's business
        name = origin = Path(name).name
    elif os.path.exists(origin):
        origin = Path(origin).name
    return Extractor(
        name=name[:200],
        sha256=source.sha256,
        licence=source.licence[:500],
        origin=origin[:500],
        file=file,
    )


class _After(nn.Module):
    """Features of a body [N, d] → features of the anchor [N, m]."""

    def __init__(self, anchor: Anchor) -> None:
        super().__init__()
        self.width = anchor.width
        self.register_buffer("project", anchor.get_buffer("project"))

    def forward(self, h: Tensor) -> Tensor:
        return F.normalize(h @ self.get_buffer("project"), dim=1).mul(self.width**0.5)


def _composed(
    anchor: Anchor, network: OnnxNetwork, path: str, form: Image, example: Mapping[str, Tensor]
) -> onnx.ModelProto:
    """The user's own graph between what brings images to it and the projection."""
    if network.batch is not None:
        raise RunError(
            f"{network.label} takes {network.batch} images at once, and a bundle any number",
            hint="write the graph with a dynamic first axis, and run again",
        )
    body = anchor.body
    assert isinstance(body, Pretrained)
    shape = ImageShape(form.size, form.channels)
    before = Pretrained(nn.Identity(), shape, (0.0,) * 3, (1.0,) * 3, None, body.resolution)
    first = to_model(AnchorInput(before), example, output="pixels")
    inner = anchor.get_buffer("project").shape[0]
    last = to_model(_After(anchor), {"h": torch.zeros(2, inner)}, output="features")
    middle = _at_opset(onnx.load_from_string(graph_bytes(path, anchor.sha256)), network.label)
    middle.ir_version = last.ir_version = first.ir_version
    first, middle, last = (
        onnx.compose.add_prefix(one, f"{name}.", rename_inputs=False, rename_outputs=False)
        for name, one in (("before", first), ("body", middle), ("after", last))
    )
    front = onnx.compose.merge_models(
        first, middle, io_map=[("pixels", network.input)], outputs=[network.output]
    )
    return onnx.compose.merge_models(front, last, io_map=[(network.output, "h")])


def _at_opset(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """The graph in this format's opset."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", versions.get("ai.onnx")) == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's errors have no common class
        raise RunError(
            f"{label} cannot be brought to opset {OPSET}: {str(error).splitlines()[0][:200]}",
            hint=f"write it with opset {OPSET}, for example torch.onnx.export(…, "
            f"opset_version={OPSET})",
        ) from None


class AnchorInput(nn.Module):
    """images uint8 [N, H, W, channels] → the pixels that a pretrained network is given."""

    def __init__(self, before: Pretrained) -> None:
        super().__init__()
        self.before = before

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, R, R] in [0, 1]."""
        pixels: Tensor = self.before(images.permute(0, 3, 1, 2).to(torch.float32) / 255.0)
        return pixels
