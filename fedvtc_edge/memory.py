"""How much memory a client's training needs, from its networks rather than from the process.

All simulated clients share one process, whose peak says nothing of any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .models.classifier import Classifier
from .vtc import VTC

_ADAM_SLOTS = 2
_ALLOCATOR = 1.7
"""Peak over saved activations: measured on ten networks (gradients, workspace, slack)."""


def training_megabytes(model: Classifier, decoder: VTC | None, images: Tensor) -> float:
    """Modelled peak of f and ψ trained in turn on one batch, in MB of 10⁶ bytes.

    Both networks' weights stay; gradients, Adam's two moments and activations of
    only one are held at a time. The runtime itself (torch, the interpreter) is not
    in it.

    Args:
        model: f.
        decoder: ψ, or None.
        images: One batch [N, channels, size, size].
    """
    resident, peak = 4 * _parameters(model), _phase(model, images)
    if decoder is not None:
        resident += 4 * _parameters(decoder)
        latents = torch.zeros(len(images), model.projection.out_features, device=images.device)
        peak = max(peak, _phase(decoder, latents))
    return (resident + peak) / 1e6


def _phase(network: nn.Module, batch: Tensor) -> float:
    """Gradients, optimiser state and activations of one network, in bytes."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(batch)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    del output
    return 4 * _parameters(network) * (1 + _ADAM_SLOTS) + _ALLOCATOR * activations


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
