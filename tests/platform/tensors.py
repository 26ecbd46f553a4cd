"""Inputs that reveal bugs: poison, gaps between rows, odd sizes, extreme values of a format."""

import torch

ODD_SIZES = (1, 2, 3, 7, 63, 64, 65, 129, 257)


def poisoned(shape, dtype, device="cpu") -> torch.Tensor:
    """What an operator that leaves an output alone leaves in it: NaN, or the lowest integer."""
    if dtype.is_floating_point:
        return torch.full(shape, torch.nan, dtype=torch.float32, device=device).to(dtype)
    if dtype == torch.bool:
        raise TypeError("no boolean is poison")
    lowest = 0xA5 if dtype == torch.uint8 else torch.iinfo(dtype).min
    return torch.full(shape, lowest, dtype=dtype, device=device)


def strided(tensor: torch.Tensor, gap: int = 3) -> torch.Tensor:
    """The same values, with `gap` poisoned elements after every row of the last dimension."""
    *rows, last = tensor.shape
    wide = poisoned((*rows, last + gap), tensor.dtype, tensor.device)
    view = wide[..., :last]
    view.copy_(tensor)
    return view


def boundaries(fp8: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    """All values of an fp8 type, the ties between them and the neighbours of both, in `dtype`,
    with signed zeros, values past the largest and infinities."""
    values = torch.arange(256, dtype=torch.uint8).view(fp8).double()
    values = values[values.isfinite()].sort().values
    largest = values[-1]
    points = torch.cat(
        [
            values,
            (values[1:] + values[:-1]) / 2,
            largest * torch.tensor([1.01, 1.04, 1.07, 1.5, 100, -1.01, -1.04, -1.07, -1.5, -100]),
        ]
    ).to(dtype)
    infinity = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    edges = torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=dtype)
    return torch.cat(
        [points, points.nextafter(infinity[:1]), points.nextafter(infinity[1:]), edges]
    )
