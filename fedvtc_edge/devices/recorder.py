"""How many bytes of tensors a piece of work holds, after every operation that it does.

Read from the work itself as torch dispatches it, so that no formula per architecture or
phase has to be kept true.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .speed import Speed

Bytes = NDArray[np.float64]


def record(function: Callable[[], object], weights: Iterable[nn.Parameter] = ()) -> Bytes:
    """Run ``function`` and note what lives after each of its K operations, [K].

    Only what the work itself allocates counts: saved activations, optimiser state,
    temporaries. Tensors that were there before do not, and neither does what a kernel
    allocates inside, which differs from machine to machine.

    Args:
        function: The work.
        weights: Their gradients do not count either, once they are accumulated.
    """
    recorder = _Recorder()
    hooks = [
        weight.register_post_accumulate_grad_hook(recorder.pardon)  # type: ignore[no-untyped-call]
        for weight in weights
    ]
    try:
        with recorder:
            function()
    finally:
        for hook in hooks:
            hook.remove()
    return np.array(recorder.held, np.float64)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: list[int] = []
        self._live = 0
        # By address, and forgotten when the storage dies: addresses are used again.
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}

    def pardon(self, weight: Tensor) -> None:
        """Count a weight's gradient no longer."""
        if weight.grad is not None:
            self._live -= self._sizes.pop(weight.grad.untyped_storage()._cdata, 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        self._meet((args, tuple(named.values())), new=False)
        result = func(*args, **named)
        self._meet(result, new=True)
        self.held.append(self._live)
        return result

    def _meet(self, tree: Any, *, new: bool) -> None:
        for tensor in _tensors(tree):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._forget, key))
                if new:
                    self._sizes[key] = storage.nbytes()
                    self._live += storage.nbytes()

    def _forget(self, key: int, _: object) -> None:
        del self._known[key]
        self._live -= self._sizes.pop(key, 0)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Tensors among an operation's arguments or results, which are lists at most."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _tensors(branch)


# ---------------------------------------------------------------- section
# What a piece of training really does: each operation's arithmetic and memory traffic.
#
# Recorded as torch dispatches them, forward, backward and optimiser alike, so that no
# formula per architecture has to be kept true.


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
    assignments = images if transposed else gradient
    forward = 2 * weight.numel() * assignments.shape[0] * math.prod(assignments.shape[2:])
    return float(forward * (wanted[0] + wanted[1]))
