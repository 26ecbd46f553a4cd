"""Rotate q and k in place and store K and V, in one launch."""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.e4m3 import E4M3_MAX
from sglang.srt.rocm_patches.kv_cache import (
    LayerCache,
    cached,
    kernel_scale,
    load_scale,
    load_slots,
    store_columns,
)
from sglang.srt.rocm_patches.launch_parameters import choose, warps
from sglang.srt.rocm_patches.rotary import load_angles, load_pairs, rotate, store_pairs


def launch(
    tokens: int, q_heads: int, kv_heads: int, head: int, v_head: int, rotary: int
) -> tuple[tuple[int], dict[str, int]]:
    """Grid and compile-time parameters. A program takes one KV group of BLOCK_T tokens."""
    half, group = rotary // 2, q_heads // kv_heads
    block_g, block_half = triton.next_power_of_2(group), triton.next_power_of_2(half)
    q_tile = block_g * 2 * block_half
    choice = choose("rope-kv-store", tokens * kv_heads)
    block_t = max(choice.size // q_tile, 1)
    threads = choice.threads or min(q_tile // 4, 256)
    threads = max(threads, min(block_t * q_tile // 32, 512))  # a very wide group
    parameters = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HALF": half,
        "HEAD": head,
        "V_HEAD": v_head,
        "BLOCK_T": block_t,
        "BLOCK_G": block_g,
        "BLOCK_HALF": block_half,
        "BLOCK_REST": triton.next_power_of_2(max(head - rotary, 1)),
        "BLOCK_V": triton.next_power_of_2(v_head),
        "num_warps": warps(threads),
    }
    return (triton.cdiv(tokens, block_t) * kv_heads,), parameters


@triton.jit(do_not_specialize=["tokens", "n"])
def _rotate_and_store_kernel(
    q,
    k,
    v,
    positions,
    cos_sin,
    k_cache,
    v_cache,
    slots,
    full_to_swa,
    k_scale,
    v_scale,
    tokens,
    n,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    k_cache_stride,
    v_cache_stride,
    positions_stride,
    cos_sin_stride,
    slots_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    HEAD: tl.constexpr,
    V_HEAD: tl.constexpr,
    NEOX: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # The KV groups of one token are adjacent in the grid, as they are in memory.
    head = tl.program_id(0) % KV_HEADS
    first = (tl.program_id(0) // KV_HEADS).to(tl.int64) * BLOCK_T
    t = first + tl.arange(0, BLOCK_T)[:, None]
    q_row = tl.arange(0, BLOCK_T * BLOCK_G)[:, None]
    q_t = first + q_row // BLOCK_G
    live = t < tokens
    q_live = (q_t < tokens) & (q_row % BLOCK_G < GROUP)

    # Do all loads before the first store: the compiler moves no load across a store.
    slot = load_slots(slots, slots_stride, full_to_swa, t, n)
    angles = _angles(cos_sin, cos_sin_stride, positions, positions_stride, t, live)
    q_angles = _angles(cos_sin, cos_sin_stride, positions, positions_stride, q_t, q_live)
    q_rows = q + q_t * q_stride + (head * GROUP + q_row % BLOCK_G) * q_head_stride
    k_rows = k + t * k_stride + head * k_head_stride
    q1, q2 = load_pairs(q_rows, q_live, HALF, BLOCK_HALF, NEOX)
    k1, k2 = load_pairs(k_rows, live, HALF, BLOCK_HALF, NEOX)
    v_column = tl.arange(0, BLOCK_V)[None, :]
    v_mask = live & (v_column < V_HEAD)
    v_tile = tl.load(v + t * v_stride + head * v_head_stride + v_column, mask=v_mask, other=0.0)
    q_cos, q_sin = load_angles(q_angles, q_angles + HALF, q_live, HALF, BLOCK_HALF)
    cos, sin = load_angles(angles, angles + HALF, live, HALF, BLOCK_HALF)

    if k_scale is not None:
        k_scale = load_scale(k_scale)
    if v_scale is not None:
        v_scale = load_scale(v_scale)

    q1, q2 = rotate(q1, q2, q_cos, q_sin)
    store_pairs(q_rows, q1, q2, q_live, HALF, BLOCK_HALF, NEOX)
    # Write K back for every slot, negative ones too: attention over the new tokens reads it
    # (https://github.com/sgl-project/sglang/pull/19636).
    k1, k2 = rotate(k1, k2, cos, sin)
    store_pairs(k_rows, k1, k2, live, HALF, BLOCK_HALF, NEOX)

    stored = live & (slot >= 0)
    k_cache_rows = k_cache + slot * k_cache_stride + head * HEAD
    v_cache_rows = v_cache + slot * v_cache_stride + head * V_HEAD
    # Round K to its own dtype before quantizing, so that the cache holds the same bytes as
    # rotate-then-store.
    k1 = cached(k1.to(k.dtype.element_ty), k_scale, MAX)
    k2 = cached(k2.to(k.dtype.element_ty), k_scale, MAX)
    store_pairs(k_cache_rows, k1, k2, stored, HALF, BLOCK_HALF, NEOX)
    if HEAD > 2 * HALF:
        column = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        mask = stored & (column < HEAD)
        rest = tl.load(k_rows + column, mask=mask, other=0.0)
        store_columns(k_cache_rows, rest, mask, column, k_scale, MAX)
    store_columns(v_cache_rows, v_tile, stored & v_mask, v_column, v_scale, MAX)


@triton.jit
def _angles(cos_sin, cos_sin_stride, positions, positions_stride, t, live):
    """Pointers to the cosines of each row's position; the sines follow the cosines."""
    position = tl.load(positions + t * positions_stride, mask=live, other=0)
    return cos_sin + position.to(tl.int64) * cos_sin_stride


def rotate_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    neox: bool,
    cache: LayerCache,
    slots: torch.Tensor,
    k_scale: torch.Tensor | float | None,
    v_scale: torch.Tensor | float | None,
) -> None:
    """Rotate q and k in place; store the rotated k, and v, at ``slots``.

    q ``[T, q heads, D]``, k ``[T, KV heads, D]``, v ``[T, KV heads, DV]``: one 16-bit type, the
    last dimension contiguous; q heads a multiple of KV heads. positions: integer ``[T]``. cos_sin
    ``[positions, R]``: R/2 cosines, then R/2 sines, fp32 or 16-bit; ``R <= D`` leads each head.
    cache: in the dtype of k, or e4m3 with k and v divided by the scales. slots: integer ``[n]``.
    Tokens past n, or with a negative slot, are rotated but not stored.
    """
    tokens, q_heads, head = q.shape
    kv_heads, v_head = v.shape[1:]
    if tokens == 0:
        return
    grid, parameters = launch(tokens, q_heads, kv_heads, head, v_head, cos_sin.shape[1])
    _rotate_and_store_kernel[grid](
        q,
        k,
        v,
        positions,
        cos_sin,
        cache.k,
        cache.v,
        slots,
        cache.full_to_swa,
        kernel_scale(k_scale),
        kernel_scale(v_scale),
        tokens,
        slots.shape[0],
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        cache.k.stride(0),
        cache.v.stride(0),
        positions.stride(0),
        cos_sin.stride(0),
        slots.stride(0),
        NEOX=neox,
        MAX=E4M3_MAX.get(cache.k.dtype, 0.0),
        **parameters,
    )
