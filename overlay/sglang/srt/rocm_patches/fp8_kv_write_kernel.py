"""Cast and store K and V in one launch."""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.e4m3 import E4M3_MAX
from sglang.srt.rocm_patches.kv_cache import (
    LayerCache,
    kernel_scale,
    load_scale,
    load_slots,
    store_columns,
)
from sglang.srt.rocm_patches.launch_parameters import choose, warps


def launch(n: int, k_width: int, v_width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and compile-time parameters for n rows of k_width and v_width elements."""
    choice = choose("fp8-kv-write", n)
    block_w = triton.next_power_of_2(max(k_width, v_width))
    block_t = max(choice.size // block_w, 1)
    parameters = {
        "K_WIDTH": k_width,
        "V_WIDTH": v_width,
        "BLOCK_T": block_t,
        "BLOCK_W": block_w,
        "num_warps": warps(min(choice.threads, block_t * block_w)),
    }
    return (triton.cdiv(n, block_t),), parameters


@triton.jit(do_not_specialize=["n"])
def _write_kv_kernel(
    k,
    v,
    k_cache,
    v_cache,
    slots,
    full_to_swa,
    k_scale,
    v_scale,
    n,
    k_stride,
    v_stride,
    k_cache_stride,
    v_cache_stride,
    slots_stride,
    K_WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]).to(tl.int64)
    column = tl.arange(0, BLOCK_W)[None, :]
    # Do all loads before the first store. Only the store's address depends on the slot.
    slot = load_slots(slots, slots_stride, full_to_swa, t, n)
    k_tile = tl.load(k + t * k_stride + column, mask=(t < n) & (column < K_WIDTH), other=0.0)
    v_tile = tl.load(v + t * v_stride + column, mask=(t < n) & (column < V_WIDTH), other=0.0)
    if k_scale is not None:
        k_scale = load_scale(k_scale)
    if v_scale is not None:
        v_scale = load_scale(v_scale)
    live = slot >= 0
    k_rows, v_rows = k_cache + slot * k_cache_stride, v_cache + slot * v_cache_stride
    store_columns(k_rows, k_tile, live & (column < K_WIDTH), column, k_scale, MAX)
    store_columns(v_rows, v_tile, live & (column < V_WIDTH), column, v_scale, MAX)


def write_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    cache: LayerCache,
    slots: torch.Tensor,
    k_scale: torch.Tensor | float | None,
    v_scale: torch.Tensor | float | None,
) -> None:
    """Store token i at ``slots[i]``, for the first ``min(T, len(slots))`` tokens.

    k ``[T, KV heads, head size]`` or ``[T, KV heads * head size]``, v likewise with its own sizes:
    bf16, fp16 or fp32, any strides (heads that are not contiguous are copied first). cache: e4m3.
    slots: integer ``[n]``. Scales: one fp32. Raises KeyError if the cache is not e4m3.
    """
    n = min(k.shape[0], slots.shape[0])
    if n == 0:
        return
    k_width, v_width = cache.k[0].numel(), cache.v[0].numel()
    k, v = _rows(k, k_width), _rows(v, v_width)
    grid, parameters = launch(n, k_width, v_width)
    _write_kv_kernel[grid](
        k,
        v,
        cache.k,
        cache.v,
        slots,
        cache.full_to_swa,
        kernel_scale(k_scale),
        kernel_scale(v_scale),
        n,
        k.stride(0),
        v.stride(0),
        cache.k.stride(0),
        cache.v.stride(0),
        slots.stride(0),
        MAX=E4M3_MAX[cache.k.dtype],
        **parameters,
    )


def _rows(x: torch.Tensor, width: int) -> torch.Tensor:
    rows = x.reshape(x.shape[0], width)
    return rows if rows.stride(1) == 1 else rows.contiguous()
