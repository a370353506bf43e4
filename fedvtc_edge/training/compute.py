"""Device of tensors, and precision of training steps."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from fedvtc_edge.config import EngineSettings
from fedvtc_edge.errors import ConfigError


@dataclass(frozen=True)
class Compute:
    """A device and the precision of forward passes in training.

    Weights, losses and everything that is measured or published stay float32.

    Args:
        half: Whether forward passes of training are in bfloat16.
        tf32: Whether a GPU multiplies matrices of training with ten bits of mantissa.
    """

    device: torch.device
    half: bool
    tf32: bool = False

    @classmethod
    def of(cls, settings: EngineSettings) -> Compute:
        """Resolve ``auto``: the first GPU if there is one, else the CPU; float32.

        Raises:
            ConfigError: A device that this machine does not have.
        """
        name = settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        available = {"cpu": True, "cuda": torch.cuda.is_available()}
        available["mps"] = torch.backends.mps.is_available()
        device = torch.device(name)
        missing = not available[device.type] or (
            device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
        )
        if missing:
            raise ConfigError(
                f"engine.device = {name!r}: this machine has no such device",
                hint='use "auto" or "cpu"',
            )
        return cls(device, settings.precision == "bfloat16", settings.precision == "tf32")

    @property
    def stacks(self) -> bool:
        """True on a GPU, where networks of one architecture train as one stack."""
        return self.device.type == "cuda"

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Context of a phase of training, in which TF32 may be allowed; never of a measurement."""
        convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
        before = convolutions.allow_tf32, products.allow_tf32
        convolutions.allow_tf32 = products.allow_tf32 = self.tf32
        try:
            yield
        finally:
            convolutions.allow_tf32, products.allow_tf32 = before

    def autocast(self) -> AbstractContextManager[object]:
        """Context of a training step's forward pass."""
        if not self.half:  # a disabled autocast is not free: 1 % of a small network's step
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


_TRIM, _MMAP = -1, -3
"""mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in glibc's malloc.h."""

_DEFAULT, _LARGE, _FREE = 128 * 1024, 32 * 2**20, 128 * 2**20


@contextmanager
def reused_memory() -> Iterator[None]:
    """Freed memory stays with the process, up to 128 MB, for the time of the context.

    By default glibc returns what a step frees to the system and fetches it again, page by
    page, in the next: a quarter of the CPU of a small network's step. Elsewhere nothing changes.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(library, "mallopt", None)
    if library is None or mallopt is None:
        yield
        return
    mallopt(_MMAP, _LARGE)
    mallopt(_TRIM, _FREE)
    try:
        yield
    finally:
        mallopt(_MMAP, _DEFAULT)
        mallopt(_TRIM, _DEFAULT)
        library.malloc_trim(0)


@contextmanager
def deterministic() -> Iterator[None]:
    """One thread and deterministic kernels for the time of a run, then as before.

    The networks are so small that a second thread costs more than it brings,
    and the sum over threads would tie a result's bits to the number of cores.
    """
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    cudnn, benchmark = torch.backends.cudnn, torch.backends.cudnn.benchmark
    tf32 = cudnn.allow_tf32
    filling: Any = torch.utils.deterministic  # its one switch is a property that types miss
    fill = filling.fill_uninitialized_memory
    torch.set_num_threads(1)
    cudnn.benchmark = False
    cudnn.allow_tf32 = False  # torch allows it by default; what is published has float32's bits
    # Not use_deterministic_algorithms, which imports the compiler first: 1.5 s of each process.
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    # Writing NaN into every fresh tensor costs 3 % of a run and serves only code that
    # reads memory before writing it; nothing here does.
    filling.fill_uninitialized_memory = False
    try:
        with (
            reused_memory(),
            # numpy's library, too: of matrices so small its threads wait for each other.
            threadpool_limits(limits=1, user_api="blas"),
            torch.random.fork_rng(),  # phases seed the global generator; the caller's goes on
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strict)
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
        filling.fill_uninitialized_memory = fill


@contextmanager
def channels_last(*networks: nn.Module) -> Iterator[None]:
    """Convolutions' weights with their channels last in memory, and then as before.

    Kernels on the CPU read them so: a step takes 5 to 45 % less. Elsewhere weights have
    torch's usual order, whatever was done with them.
    """
    _order(networks, torch.channels_last)
    try:
        yield
    finally:
        _order(networks, torch.contiguous_format)


@torch.no_grad()
def _order(networks: Iterable[nn.Module], order: torch.memory_format) -> None:
    for network in networks:
        for weight in network.parameters():
            if weight.ndim == 4:  # a clone: kernels of one pixel have either order already
                weight.data = weight.data.clone(memory_format=order)


def as_images(pixels: Any, device: torch.device) -> Tensor:
    """uint8 [N, H, W, C] to float32 [N, C, H, W] in [0, 1]."""
    images = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()
    return images.to(device, torch.float32).div_(255.0)
