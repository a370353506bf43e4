"""How many bytes of tensors a piece of work holds, after every operation that it does.

Read from the work itself as torch dispatches it, so that no formula per architecture or
phase has to be kept true.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

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
