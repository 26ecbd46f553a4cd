"""Dequantize only the cached rows that a batch reads, in one launch."""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.kv_cache import kernel_scale, load_scale
from sglang.srt.rocm_patches.launch_parameters import (
    PROGRAMS_OF_UNKNOWN_BATCH,
    choose,
    warps,
)


def launch(n: int, k_width: int, v_width: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and compile-time parameters for up to n rows of k_width and v_width elements."""
    choice = choose("fp8-kv-write widen", n)
    width = max(k_width, v_width)
    block_w = min(triton.next_power_of_2(width), choice.size // 4)
    block_t = choice.size // block_w
    columns = triton.cdiv(width, block_w)
    parameters = {
        "K_WIDTH": k_width,
        "V_WIDTH": v_width,
        "BLOCK_T": block_t,
        "BLOCK_W": block_w,
        "num_warps": warps(choice.threads),
    }
    return (min(triton.cdiv(n, block_t), PROGRAMS_OF_UNKNOWN_BATCH), columns), parameters


@triton.jit
def _scaled(x, scale):
    y = x.to(tl.float32)
    if scale is not None:
        y *= load_scale(scale)
    return y


# `end` points into a longer tensor; its alignment depends on the batch size.
@triton.jit(do_not_specialize_on_alignment=["end"])
def _widen_kernel(
    k_cache,
    v_cache,
    k_out,
    v_out,
    slots,
    end,
    k_scale,
    v_scale,
    k_cache_stride,
    v_cache_stride,
    K_WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    begin = tl.program_id(0).to(tl.int64) * BLOCK_T
    n = tl.load(end).to(tl.int64)
    for first in range(begin, n, tl.num_programs(0) * BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)[:, None]
        slot = tl.load(slots + t, mask=t < n, other=-1).to(tl.int64)
        k_live = (slot >= 0) & (column < K_WIDTH)
        v_live = (slot >= 0) & (column < V_WIDTH)
        k = tl.load(k_cache + slot * k_cache_stride + column, mask=k_live)
        v = tl.load(v_cache + slot * v_cache_stride + column, mask=v_live)
        k = _scaled(k, k_scale).to(k_out.dtype.element_ty)
        v = _scaled(v, v_scale).to(v_out.dtype.element_ty)
        tl.store(k_out + slot * K_WIDTH + column, k, mask=k_live)
        tl.store(v_out + slot * V_WIDTH + column, v, mask=v_live)


def widen(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    end: torch.Tensor,
    k_scale: torch.Tensor | float | None,
    v_scale: torch.Tensor | float | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantize the rows ``slots[:end]`` of both caches to ``dtype``, at the same slots.

    k_cache ``[slots, KV heads, head size]``, e4m3, rows contiguous; v_cache likewise with its own
    sizes. slots: integer ``[n]``, contiguous, may repeat a slot. end: integer ``[1]``, at most n,
    on the GPU. Scales: one fp32, multiplied; None and 1 convert exactly. Returns tensors of the
    caches' shapes; their other rows are not initialized.
    """
    k_out, v_out = (torch.empty(x.shape, dtype=dtype, device=x.device) for x in (k_cache, v_cache))
    if slots.numel() == 0:
        return k_out, v_out
    grid, parameters = launch(slots.numel(), k_out[0].numel(), v_out[0].numel())
    _widen_kernel[grid](
        k_cache,
        v_cache,
        k_out,
        v_out,
        slots,
        end,
        kernel_scale(k_scale),
        kernel_scale(v_scale),
        k_cache.stride(0),
        v_cache.stride(0),
        **parameters,
    )
    return k_out, v_out
