"""What a piece of training really does: each operation's arithmetic and memory traffic.

Recorded as torch dispatches them, forward, backward and optimiser alike, so that no
formula per architecture has to be kept true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .speed import Speed


@dataclass(frozen=True, eq=False)
class Work:
    """Operations one after another.

    Args:
        flops: Floating-point operations of each, [K]; a multiplication and an addition are two.
        traffic: Bytes of each one's inputs and outputs, [K].
    """

    flops: NDArray[np.float64]
    traffic: NDArray[np.float64]

    def seconds(self, speed: Speed) -> float:
        """How long a device of that speed takes."""
        return speed.seconds(self.flops, self.traffic)


def record_work(function: Callable[[], object]) -> Work:
    """Run ``function`` and note what it does; views and the profiler's marks cost nothing."""
    with _WorkRecorder() as recorder:
        function()
    return Work(np.array(recorder.flops), np.array(recorder.traffic))


class _WorkRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: list[float] = []
        self.traffic: list[float] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        if func.is_view:
            return result
        tensors = [leaf for leaf in tree_leaves((args, named, result)) if isinstance(leaf, Tensor)]
        if tensors:
            self.flops.append(_flops(func, args, named, result))
            self.traffic.append(float(sum(t.numel() * t.element_size() for t in tensors)))
        return result


def _flops(func: Any, args: tuple[Any, ...], named: dict[str, Any], result: Any) -> float:
    """Of products what torch counts; of anything else one per number that comes out."""
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        return _convolution_backward(*args)
    count = flop_registry.get(packet)
    if count is not None:
        return float(count(*args, **named, out_val=result))
    return float(sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)))


def _convolution_backward(gradient: Tensor, images: Tensor, weight: Tensor, *rest: Any) -> float:
    """As much as the forward pass for each gradient that is asked for.

    Torch counts a grouped convolution's weight gradient as if it were not grouped: for a
    depthwise one that is as many times too much as it has channels.
    """
    transposed, wanted = rest[4], rest[7]
    places = images if transposed else gradient
    forward = 2 * weight.numel() * places.shape[0] * math.prod(places.shape[2:])
    return float(forward * (wanted[0] + wanted[1]))
