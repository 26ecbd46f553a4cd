"""The FP8 KV write, in plain torch."""

import torch

from tests.references.kv_cache import E4M3_MAX, store


def write_kv(k, v, k_cache, v_cache, slots, full_to_swa=None, k_scale=None, v_scale=None) -> None:
    """Store k ``[T, heads, size]`` and v at ``slots``, divided by their scales, saturated, e4m3."""
    for cache in (k_cache, v_cache):
        if cache.dtype not in E4M3_MAX:
            raise TypeError(f"the cache is {cache.dtype}, not e4m3")
    if k.dtype != v.dtype or k.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"k is {k.dtype}, v is {v.dtype}")
    store(k, k_cache, slots, full_to_swa, k_scale)
    store(v, v_cache, slots, full_to_swa, v_scale)


def widen(cache, slots, dtype, scale=None) -> torch.Tensor:
    """The cache's rows at ``slots`` in ``dtype``, times the scale; a NaN in every other."""
    if cache.dtype not in E4M3_MAX:
        raise TypeError(f"the cache is {cache.dtype}, not e4m3")
    wide = torch.full(cache.shape, torch.nan, dtype=dtype, device=cache.device)
    for slot in slots.tolist():
        row = cache.view(torch.uint8)[slot].view(cache.dtype).float()
        wide[slot] = row * (1.0 if scale is None else float(scale))
    return wide
