"""What an attention pool holds of a token, in plain torch: the bytes, and the rows they go to."""

import torch

E4M3_MAX = {torch.float8_e4m3fnuz: 240.0, torch.float8_e4m3fn: 448.0}


def cached(x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | float | None = None):
    """``x`` as a cache of ``dtype`` holds it: itself, or the saturated quotient in e4m3."""
    if dtype == x.dtype:
        return x
    if dtype not in E4M3_MAX:
        raise TypeError(f"a cache of {dtype} for {x.dtype}")
    x = x.float()
    if scale is not None:
        x = x / torch.as_tensor(scale, dtype=torch.float32, device=x.device).reshape(())
    return x.clamp(-E4M3_MAX[dtype], E4M3_MAX[dtype]).to(dtype)


def store(
    rows: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    full_to_swa: torch.Tensor | None = None,
    scale: torch.Tensor | float | None = None,
) -> None:
    """Put rows ``[T, heads, size]`` into cache ``[slots, heads, size]`` at slots ``[n]``.

    Slots below 0, tokens without a slot and slots without a token are left out.
    """
    if rows.shape[1:] != cache.shape[1:] or slots.dim() != 1:
        raise ValueError(
            f"rows {list(rows.shape)}, cache {list(cache.shape)}, {slots.dim()}-D slots"
        )
    for row, slot in zip(rows, slots.tolist(), strict=False):
        if slot >= 0 and full_to_swa is not None:
            slot = int(full_to_swa[slot])
        if slot >= 0:
            # Not every type of fp8 can be assigned to; its bytes can.
            cache.view(_bits(cache))[slot] = cached(row, cache.dtype, scale).view(_bits(cache))


def _bits(tensor: torch.Tensor) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
