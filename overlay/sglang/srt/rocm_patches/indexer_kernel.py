"""Kernels of the indexer: quantize and store K, and scale the head gates, in one launch each.

**K cache.** A page of ``N`` slots holds ``N * 128`` bytes of e4m3 values, then ``N`` fp32 scales. A
page of one slot is a row of 132 bytes. In the row-major layout, element ``d`` of slot ``o`` of the
page is at byte ``o * 128 + d``. In the preshuffled layout (tiles of 16 slots by 16 elements; ``N``
is a multiple of 16) it is at byte ``o // 16 * 2048 + d // 16 * 256 + o % 16 * 16 + d % 16``. In
both layouts the scale of slot ``o`` is the fp32 value number ``32 * N + o`` of the page.

**Quantization** has the bits of sglang's ``act_quant(k, 128, "ue8m0")`` for finite k::

    scale = 2 ** ceil(log2(max(amax, 1e-4) * fp32(1 / QUANT_MAX)))
    value = e4m3(clamp(k / scale, -QUANT_MAX, QUANT_MAX))

A NaN element is stored as NaN. amax ignores NaN elements.
"""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.launch_parameters import choose, warps

HEAD_DIM = 128
PAGE_BYTES_PER_SLOT = HEAD_DIM + 4

# act_quant scales amax to this value. For e4m3fnuz it is 224, not the format's maximum of 240.
# aiter's indexer_k_quant_and_cache uses 240, so its scale is half of act_quant's for rows with amax
# in (224, 240] * 2^n.
QUANT_MAX = {torch.float8_e4m3fnuz: 224.0, torch.float8_e4m3fn: 448.0}
AMAX_FLOOR = tl.constexpr(1e-4)


@triton.jit
def _power_of_two_at_least(x):
    """The least power of two >= x, exactly, and its inverse.

    x is a positive normal fp32 below 2^126, or infinity, whose inverse is 0.
    """
    bits = (x.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    inverse = tl.maximum(0x7F000000 - bits, 0)  # the biased exponents of 2^e and 2^-e add up to 254
    return bits.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def _store_half(rows, d, value, written, PRESHUFFLED: tl.constexpr):
    column = d // 16 * 256 + d % 16 if PRESHUFFLED else d
    tl.store(rows + column, value.to(rows.dtype.element_ty), mask=written)


# Do not specialize on num_tokens: Triton would compile three variants (1, a multiple of 16, any
# other) of identical code.
@triton.jit(do_not_specialize=["num_tokens"])
def _store_index_k_kernel(
    k_ptr,
    slot_ptr,
    value_ptr,
    scale_ptr,
    num_tokens,
    k_token_stride,
    k_element_stride,
    slot_stride,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    PRESHUFFLED: tl.constexpr,
    QUANT_MAX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    VECTOR: tl.constexpr,
):
    token = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    inside = token < num_tokens
    # Load a row in halves: two loads are in flight, and the maximum is reduced over half the lanes.
    HALF: tl.constexpr = HEAD_DIM // 2
    d = tl.arange(0, HALF)[None, :]
    # From 8 on no hint is needed, and the hint would make Triton 3.5 lose the contiguity it found.
    if VECTOR < 8:
        d = tl.max_contiguous(d, (1, VECTOR))
    half = k_ptr + token[:, None] * k_token_stride + d * k_element_stride
    k1 = tl.load(half, mask=inside[:, None], other=0.0).to(tl.float32)
    half += HALF * k_element_stride
    k2 = tl.load(half, mask=inside[:, None], other=0.0).to(tl.float32)
    slot = tl.load(slot_ptr + token * slot_stride, mask=inside, other=-1).to(tl.int64)

    amax = tl.max(tl.maximum(tl.abs(k1), tl.abs(k2)), axis=1)  # ignores NaN
    scale, inverse = _power_of_two_at_least(tl.maximum(amax, AMAX_FLOOR) * (1.0 / QUANT_MAX))
    # scale is a power of two, so k * (1 / scale) equals k / scale exactly. No clamp: |k| / scale <=
    # QUANT_MAX up to one fp32 rounding, and that excess rounds to QUANT_MAX in e4m3.
    inverse = inverse[:, None]

    written = slot >= 0
    page = slot // PAGE_SIZE * PAGE_STRIDE
    o = slot % PAGE_SIZE
    first = o // 16 * (16 * HEAD_DIM) + o % 16 * 16 if PRESHUFFLED else o * HEAD_DIM
    rows = value_ptr + (page + first)[:, None]
    _store_half(rows, d, k1 * inverse, written[:, None], PRESHUFFLED)
    _store_half(rows, d + HALF, k2 * inverse, written[:, None], PRESHUFFLED)
    # Lane 0 of the row stores its scale: in any other layout the compiler would move the scale
    # through LDS.
    lane = tl.arange(0, HALF // VECTOR)[None, :]
    scales = scale_ptr + page // 4 + PAGE_SIZE * HEAD_DIM // 4 + o
    tl.store(scales[:, None] + lane, scale[:, None], mask=written[:, None] & (lane == 0))


def store_launch_parameters(num_tokens: int) -> dict[str, int]:
    """Compile-time parameters for a write of ``num_tokens`` tokens."""
    _, block_t, threads = choose("indexer store", num_tokens)
    vector = block_t * HEAD_DIM // 2 // threads  # elements of a half row per thread
    return {"BLOCK_T": block_t, "VECTOR": vector, "num_warps": warps(threads)}


def store_index_k(
    k: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    page_size: int,
    fp8_dtype: torch.dtype,
    preshuffled: bool = False,
) -> None:
    """Quantize the indexer's keys and write them, with their scales, to their slots.

    k ``[T, 128]``, float, any strides; cache ``[pages, page_size * 132]``, uint8, contiguous;
    slots ``[S]``, int32 or int64, any stride. The first ``min(T, S)`` tokens are written, except
    those with a negative slot. The module's docstring defines the layout and the arithmetic.

    Raises ValueError if a shape or dtype is not as above, or if page_size does not fit the cache or
    the layout.
    """
    if k.dim() != 2 or k.shape[1] != HEAD_DIM:
        raise ValueError(f"store_index_k: k must be [T, {HEAD_DIM}], not {list(k.shape)}")
    if slots.dim() != 1 or slots.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"store_index_k: slots must be a 1-D int32 or int64, not {slots.dtype}")
    if cache.dtype != torch.uint8 or cache.dim() != 2 or not cache.is_contiguous():
        raise ValueError("store_index_k: cache must be a contiguous 2-D uint8")
    if cache.shape[1] != page_size * PAGE_BYTES_PER_SLOT:
        raise ValueError(
            f"store_index_k: page_size {page_size} needs pages of "
            f"{page_size * PAGE_BYTES_PER_SLOT} bytes, the cache has {cache.shape[1]}"
        )
    if preshuffled and page_size % 16:
        raise ValueError(f"store_index_k: page_size {page_size} is no multiple of 16: preshuffled")
    num_tokens = min(k.shape[0], slots.shape[0])
    if num_tokens == 0:
        return
    parameters = store_launch_parameters(num_tokens)
    _store_index_k_kernel[(triton.cdiv(num_tokens, parameters["BLOCK_T"]),)](
        k,
        slots,
        cache.view(fp8_dtype),
        cache.view(torch.float32),
        num_tokens,
        k.stride(0),
        k.stride(1),
        slots.stride(0),
        HEAD_DIM=HEAD_DIM,
        PAGE_SIZE=page_size,
        PAGE_STRIDE=cache.stride(0),
        PRESHUFFLED=preshuffled,
        QUANT_MAX=QUANT_MAX[fp8_dtype],
        **parameters,
    )


GATE_BLOCK = 512  # one warp; 8 gates per lane, which are 16 bytes of bf16


@triton.jit
def _scale_head_gates_kernel(
    gate_ptr, q_scale_ptr, out_ptr, num_gates, head_scale, softmax_scale, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < num_gates
    gate = tl.load(gate_ptr + i, mask=inside, other=0.0).to(tl.float32)
    q_scale = tl.load(q_scale_ptr + i, mask=inside, other=0.0)
    tl.store(out_ptr + i, gate * head_scale * q_scale * softmax_scale, mask=inside)


def scale_head_gates(
    gates: torch.Tensor, q_scale: torch.Tensor, head_scale: float, softmax_scale: float
) -> torch.Tensor:
    """``((gates * head_scale) * q_scale) * softmax_scale``, fp32, rounded after each product.

    gates ``[T, H]``, float: the output of weights_proj. q_scale ``[T, H, 1]``, fp32: the scales of
    act_quant. Returns ``[T, H, 1]``, fp32. The products have the order of
    ``Indexer._get_logits_head_gate``, so the result has the same bits.

    Raises ValueError if q_scale is not fp32 or its shape does not match gates.
    """
    if q_scale.dtype != torch.float32 or q_scale.shape != (*gates.shape, 1):
        raise ValueError(
            f"scale_head_gates: q_scale must be fp32 {[*gates.shape, 1]}, "
            f"not {q_scale.dtype} {list(q_scale.shape)}"
        )
    out = torch.empty(q_scale.shape, dtype=torch.float32, device=gates.device)
    num_gates = out.numel()
    if num_gates == 0:
        return out
    _scale_head_gates_kernel[(triton.cdiv(num_gates, GATE_BLOCK),)](
        gates.contiguous(),
        q_scale.contiguous(),
        out,
        num_gates,
        head_scale,
        softmax_scale,
        BLOCK=GATE_BLOCK,
        num_warps=1,
    )
    return out
