"""Networks as one flat table of tensors, as checkpoints and homes keep them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fedvtc_edge.errors import RunError


def to_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights on the CPU, by ``module/parameter``."""
    return {
        f"{prefix}/{name}": value.detach().cpu().contiguous()
        for prefix, module in modules.items()
        for name, value in module.state_dict().items()
    }


def from_tensors(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], *, whose: str, hint: str
) -> None:
    """Fill networks with what :func:`to_tensors` made of such networks.

    Args:
        tensors: May hold more than these networks' weights.
        whose: Where the weights lay, for the error.

    Raises:
        RunError: They are of other networks.
    """
    for prefix, module in modules.items():
        own = {
            name.removeprefix(f"{prefix}/"): value
            for name, value in tensors.items()
            if name.startswith(f"{prefix}/")
        }
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise RunError(
                f"{whose} does not fit {prefix}: {str(error).splitlines()[0]}", hint=hint
            ) from None
