"""The indexer's K cache write, and the scaling of its head gates, in one launch each.

**K cache.** A page of ``N`` slots is ``N * 128`` bytes of e4m3 values, then ``N`` fp32 scales; with
one slot a page it is a row of 132 bytes. Element ``d`` of the page's slot ``o`` lies at byte
``o * 128 + d`` in the row-major layout, and at ``o // 16 * 2048 + d // 16 * 256 + o % 16 * 16 +
d % 16`` in the preshuffled one (tiles of 16 slots by 16 elements: ``N`` is a multiple of 16). The
slot's scale is the page's ``32 * N + o``-th fp32 in both.

**Quantisation** is that of sglang's ``act_quant(k, 128, "ue8m0")``, to the bit for finite k::

    scale = 2 ** ceil(log2(max(amax, 1e-4) * fp32(1 / QUANT_MAX)))
    value = e4m3(clamp(k / scale, -QUANT_MAX, QUANT_MAX))

A NaN stays a NaN of its own element and is not counted in amax.
"""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.launch_parameters import choose, warps

HEAD_DIM = 128
PAGE_BYTES_PER_SLOT = HEAD_DIM + 4

# What act_quant scales amax to. On e4m3fnuz it is 224, not the format's largest 240, which aiter's
# indexer_k_quant_and_cache takes: rows with amax in (224, 240] * 2^n would get half the scale.
QUANT_MAX = {torch.float8_e4m3fnuz: 224.0, torch.float8_e4m3fn: 448.0}
AMAX_FLOOR = tl.constexpr(1e-4)


@triton.jit
def _power_of_two_at_least(x):
    """The least power of two >= x, exactly, and its inverse.

    x is a positive normal fp32 below 2^126, or infinity, whose inverse is 0.
    """
    bits = (x.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    inverse = tl.maximum(
        0x7F000000 - bits, 0
    )  # exponents e and -e have biased ones that add to 254
    return bits.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def _store_half(rows, d, value, written, PRESHUFFLED: tl.constexpr):
    column = d // 16 * 256 + d % 16 if PRESHUFFLED else d
    tl.store(rows + column, value.to(rows.dtype.element_ty), mask=written)


# A count selects no other code: without this, counts of 1, 16 n and the rest compile thrice.
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
    # A row in halves: two loads under way, and half as many lanes to find its maximum in.
    HALF: tl.constexpr = HEAD_DIM // 2
    d = tl.arange(0, HALF)[None, :]
    if VECTOR < 8:  # else nothing needs to be told, and Triton 3.5 would forget what it knew
        d = tl.max_contiguous(d, (1, VECTOR))
    half = k_ptr + token[:, None] * k_token_stride + d * k_element_stride
    k1 = tl.load(half, mask=inside[:, None], other=0.0).to(tl.float32)
    half += HALF * k_element_stride
    k2 = tl.load(half, mask=inside[:, None], other=0.0).to(tl.float32)
    slot = tl.load(slot_ptr + token * slot_stride, mask=inside, other=-1).to(tl.int64)

    amax = tl.max(tl.maximum(tl.abs(k1), tl.abs(k2)), axis=1)  # NaN is left out
    scale, inverse = _power_of_two_at_least(tl.maximum(amax, AMAX_FLOOR) * (1.0 / QUANT_MAX))
    # A product with the inverse of a power of two is the quotient, exactly; and it needs no clamp:
    # no element is above amax, and what rounding takes from the scale, rounding to e4m3 takes back.
    inverse = inverse[:, None]

    written = slot >= 0
    page = slot // PAGE_SIZE * PAGE_STRIDE
    o = slot % PAGE_SIZE
    first = o // 16 * (16 * HEAD_DIM) + o % 16 * 16 if PRESHUFFLED else o * HEAD_DIM
    rows = value_ptr + (page + first)[:, None]
    _store_half(rows, d, k1 * inverse, written[:, None], PRESHUFFLED)
    _store_half(rows, d + HALF, k2 * inverse, written[:, None], PRESHUFFLED)
    # By a lane that knows it: from one tile of lanes to another it would go by shared memory.
    lane = tl.arange(0, HALF // VECTOR)[None, :]
    scales = scale_ptr + page // 4 + PAGE_SIZE * HEAD_DIM // 4 + o
    tl.store(scales[:, None] + lane, scale[:, None], mask=written[:, None] & (lane == 0))


def store_launch_parameters(num_tokens: int) -> dict[str, int]:
    """Compile-time parameters for a write of ``num_tokens`` tokens."""
    _, block_t, threads = choose("indexer store", num_tokens)
    vector = block_t * HEAD_DIM // 2 // threads  # elements of a half that a thread has
    return {"BLOCK_T": block_t, "VECTOR": vector, "num_warps": warps(threads)}


def store_index_k(
    k: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    page_size: int,
    fp8_dtype: torch.dtype,
    preshuffled: bool = False,
) -> None:
    """Quantise the indexer's keys and write them, with their scales, to their slots.

    k ``[T, 128]``, float, any strides; cache ``[pages, page_size * 132]``, uint8, contiguous;
    slots ``[S]``, int32 or int64, any stride. The first ``min(T, S)`` tokens are written; a slot
    below 0 is none. The layout and the arithmetic are the module's.

    Raises ValueError where a shape or dtype is another, or page_size does not fit the cache or the
    layout.
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


GATE_BLOCK = 512  # one warp: 8 gates a lane, 16 bytes of bf16


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

    gates ``[T, H]``, float: what weights_proj returns; q_scale ``[T, H, 1]``, fp32, of act_quant.
    Returns ``[T, H, 1]``, fp32. The order is that of ``Indexer._get_logits_head_gate``, so that the
    result has its bits.

    Raises ValueError where q_scale is not fp32 or does not have gates' elements.
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
