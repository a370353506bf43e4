"""EfficientNet-Lite0 against its slow twin: convolutions and normalisations one after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedvtc_edge.models.efficientnet import EfficientNetLite0

# Kernel, stride, expansion, channels in, channels out, repeats: Tan and Le's table for Lite0.
TABLE = [
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
]


def layers() -> Iterator[tuple[int, int, int, int, int, bool]]:
    """Kernel, stride, channels in and out, groups, and whether ReLU6 follows, of each layer."""
    yield 3, 2, 3, 32, 1, True
    for kernel, stride, expansion, inner, out, repeats in TABLE:
        for index in range(repeats):
            here = out if index else inner
            wide = here * expansion
            if expansion > 1:
                yield 1, 1, here, wide, 1, True
            yield kernel, 1 if index else stride, wide, wide, wide, True
            yield 1, 1, wide, out, 1, False
    yield 1, 1, 320, 1280, 1, True


def weights() -> dict[str, Tensor]:
    """Random arrays in the order of the file, 296 of them."""
    draw = torch.Generator().manual_seed(0)
    arrays: list[Tensor] = []
    for kernel, _, inner, out, groups, _ in layers():
        fan = kernel**2 * inner / groups
        arrays.append(torch.randn(out, inner // groups, kernel, kernel, generator=draw) * fan**-0.5)
        arrays.append(1 + 0.2 * torch.rand(out, generator=draw))
        arrays.append(0.5 * torch.rand(out, generator=draw))
        arrays.append(0.1 * torch.randn(out, generator=draw))
        arrays.append(0.5 + torch.rand(out, generator=draw))
        arrays.append(torch.tensor(7))
    arrays += [torch.randn(1000, 1280, generator=draw), torch.zeros(1000)]
    return {f"array {index}": array for index, array in enumerate(arrays)}


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's padding "same", by its own formula: the odd pixel after."""
    size = x.shape[-1]
    needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return F.pad(x, (needed // 2, needed - needed // 2) * 2)


def slowly(arrays: list[Tensor], x: Tensor) -> Tensor:
    """The forward pass with nothing folded, in float64."""
    taken, x = iter(arrays), x.double()
    plan = iter(layers())

    def layer(x: Tensor) -> Tensor:
        kernel, stride, _, _, groups, active = next(plan)
        weight, scale, shift, mean, variance, _ = (next(taken).double() for _ in range(6))
        x = F.conv2d(same(x, kernel, stride), weight, stride=stride, groups=groups)
        x = F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
        return F.relu6(x) if active else x

    x = layer(x)
    for _, stride, expansion, inner, out, repeats in TABLE:
        for index in range(repeats):
            h = x
            for _ in range(3 if expansion > 1 else 2):
                h = layer(h)
            fits = index > 0 or (stride == 1 and inner == out)
            x = h + x if fits else h
    return layer(x).mean((2, 3))


@pytest.mark.parametrize("size", [32, 64])
@torch.no_grad()
def test_it_is_what_the_slow_twin_says(size: int) -> None:
    arrays = weights()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = slowly(list(arrays.values()), x)
    assert expected.std() > 0.01  # or anything would do
    found = EfficientNetLite0(arrays).eval()(x)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-3)


def test_its_matrix_is_the_classifier_of_the_file() -> None:
    arrays = weights()
    assert len(arrays) == 296
    assert torch.equal(EfficientNetLite0(arrays).classifier, arrays["array 294"])


@pytest.mark.parametrize("wrong", ["few", "many", "shapes", "matrix"])
def test_other_arrays_are_refused(wrong: str) -> None:
    arrays = weights()
    if wrong == "few":
        arrays.popitem()
    elif wrong == "many":
        arrays["more"] = torch.zeros(1)
    elif wrong == "shapes":
        arrays["array 0"] = torch.zeros(32, 3, 5, 5)
    else:
        arrays["array 294"] = torch.zeros(10, 1280)
    with pytest.raises(ValueError, match="not its weights"):
        EfficientNetLite0(arrays)
