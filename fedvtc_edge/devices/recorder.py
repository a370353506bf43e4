"""Recorder of a piece of training: memory held, arithmetic and traffic per operation.

Recorded as torch dispatches them, forward, backward and optimiser alike, so that no formula
per architecture or phase has to be kept true.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedvtc_edge.training.client import Client

from .clock import Speed

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Work:
    """K operations one after another, J of which compute and are no views.

    Args:
        held: Bytes that live after each operation, [K], of what the work itself allocates:
            saved activations, optimiser state, temporaries. Tensors that were there before
            do not count, and neither does what a kernel allocates inside, which differs from
            machine to machine.
        flops: Floating-point operations, [J]; a multiplication and an addition are two.
        traffic: Bytes of inputs and outputs, [J].
    """

    held: Numbers
    flops: Numbers
    traffic: Numbers

    def seconds(self, speed: Speed) -> float:
        """Seconds that a device of that speed takes."""
        return speed.seconds(self.flops, self.traffic)


def record(
    function: Callable[[], object],
    weights: Iterable[nn.Parameter] = (),
    *,
    arithmetic: bool = True,
) -> Work:
    """Run ``function`` and note what it does.

    Args:
        weights: Their gradients are not held, once they are accumulated.
        arithmetic: Whether operations and traffic are noted too, for which torch loads triton
            (80 MB).
    """
    recorder = _Recorder(arithmetic)
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
    return Work(
        *(np.array(x, np.float64) for x in (recorder.held, recorder.flops, recorder.traffic))
    )


def probe_copy(client: Client, images: int, steps: int, *, batch: int | None = None) -> Client:
    """A copy to try phases on: few of the client's images, networks of its own.

    Args:
        client: Nothing of it changes.
        images: How many; its own, again and again where it has fewer.
        steps: Of each phase: epochs, and steps of the decoder.
        batch: Images in a batch; the client's own setting if None.
    """
    picked = torch.arange(images) % len(client.images)
    settings = {"epochs": steps, "decoder_steps": steps}
    return replace(
        client,
        images=client.images[picked],
        labels=client.labels[picked],
        model=copy.deepcopy(client.model),
        decoder=copy.deepcopy(client.decoder),
        companion=copy.deepcopy(client.companion),
        settings=client.settings.model_copy(
            update=settings | ({} if batch is None else {"batch": batch})
        ),
        seconds=0.0,
        samples_seen=0,
    )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, arithmetic: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arithmetic = arithmetic
        self.held: list[int] = []
        self.flops: list[float] = []
        self.traffic: list[int] = []
        self._live = 0
        # By address, and forgotten when the storage dies: addresses are used again.
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do without torch's compiler, whose import costs a process 1.2 s and 150 MB."""
        return False

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
        read = list(_tensors((args, tuple(named.values()))))
        self._meet(read, new=False)
        result = func(*args, **named)
        made = list(_tensors(result))
        self._meet(made, new=True)
        self.held.append(self._live)
        if self._arithmetic and (read or made) and not func.is_view:
            self.flops.append(_flops(func, args, named, result, made))
            self.traffic.append(sum(t.numel() * t.element_size() for t in (*read, *made)))
        return result

    def _meet(self, tensors: Iterable[Tensor], *, new: bool) -> None:
        for tensor in tensors:
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


def _flops(
    func: Any, args: tuple[Any, ...], named: dict[str, Any], result: Any, made: list[Tensor]
) -> float:
    """Of products what torch counts; of anything else one per number that comes out."""
    from torch.utils.flop_counter import flop_registry

    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        return _convolution_backward(*args)
    count = flop_registry.get(packet)
    if count is not None:
        return float(count(*args, **named, out_val=result))
    return float(sum(t.numel() for t in made))


def _convolution_backward(gradient: Tensor, images: Tensor, weight: Tensor, *rest: Any) -> float:
    """As much as the forward pass for each gradient that is asked for.

    Torch counts a grouped convolution's weight gradient as if it were not grouped: for a
    depthwise one that is as many times too much as it has channels.
    """
    transposed, wanted = rest[4], rest[7]
    places = images if transposed else gradient
    forward = 2 * weight.numel() * places.shape[0] * math.prod(places.shape[2:])
    return float(forward * (wanted[0] + wanted[1]))
