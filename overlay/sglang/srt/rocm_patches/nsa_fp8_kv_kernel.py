"""Kernels that fill the latent KV cache of multi-head latent attention (MLA).

A slot of the cache is one row: the compressed KV (``nope``, kv_lora_rank wide), then the rotary
key that all heads share (``pe``, qk_rope_head_dim wide). Both have the same dtype. The format is
that of kv_cache.py with a scale of 1, because the readers of an NSA cache do not descale.
"""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.e4m3 import E4M3_MAX
from sglang.srt.rocm_patches.kv_cache import cached, load_slots, store_columns
from sglang.srt.rocm_patches.launch_parameters import choose, warps
from sglang.srt.rocm_patches.rotary import load_angles, load_pairs, rotate, store_pairs


@triton.jit
def _load_rows(rows, given, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows at ``[ROWS, 1]`` pointers; elements not ``given`` or past WIDTH are undefined."""
    column = tl.arange(0, BLOCK)[None, :]
    return tl.load(rows + column, mask=given & (column < WIDTH))


@triton.jit
def _store_rows(rows, x, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MAX: tl.constexpr):
    column = tl.arange(0, BLOCK)[None, :]
    store_columns(rows, x, live & (column < WIDTH), column, None, MAX)


@triton.jit
def _rope_rows(
    nope,
    pe,
    target,
    given,
    live,
    cos,
    sin,
    NOPE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NEOX: tl.constexpr,
    MAX: tl.constexpr,
):
    """Store ``cat(nope, rotated pe)`` at ``target`` for live rows.

    Round the rotated elements to the source dtype first, as a rotation in place does. So a token
    has the same bytes whether this kernel or an earlier one rotates it.
    """
    dtype: tl.constexpr = pe.dtype.element_ty
    # Load nope and pe first, which depend on nothing; the angles depend on the position, the stores
    # on the slot. Do all loads before the first store: the compiler moves no load across a store.
    x = _load_rows(nope, given, NOPE, BLOCK_NOPE)
    x1, x2 = load_pairs(pe, given, HALF, BLOCK_HALF, NEOX)
    always = tl.full((1, 1), 1, tl.int1)
    c, s = load_angles(cos, sin, always, HALF, BLOCK_HALF)
    y1, y2 = rotate(x1, x2, c, s)
    y1 = cached(y1.to(dtype), None, MAX)
    y2 = cached(y2.to(dtype), None, MAX)
    _store_rows(target, x, live, NOPE, BLOCK_NOPE, MAX)
    store_pairs(target + NOPE, y1, y2, live, HALF, BLOCK_HALF, NEOX)


@triton.jit(do_not_specialize=["tokens"])
def _write_rows_kernel(
    rows,
    slots,
    nope,
    pe,
    tokens,
    row_stride,
    slot_stride,
    nope_stride,
    pe_stride,
    NOPE: tl.constexpr,
    PE: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_PE: tl.constexpr,
    TOKENS: tl.constexpr,
    MAX: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    given = token < tokens
    # No other load depends on the slot, and no load comes after a store.
    slot = load_slots(slots, slot_stride, None, token, tokens)
    latent = _load_rows(nope + token * nope_stride, given, NOPE, BLOCK_NOPE)
    rotary = _load_rows(pe + token * pe_stride, given, PE, BLOCK_PE)
    target = rows + slot * row_stride
    live = slot >= 0
    _store_rows(target, latent, live, NOPE, BLOCK_NOPE, MAX)
    _store_rows(target + NOPE, rotary, live, PE, BLOCK_PE, MAX)


def write_rows(
    rows: torch.Tensor, slots: torch.Tensor, nope: torch.Tensor, pe: torch.Tensor
) -> None:
    """Write ``cat(nope, pe)`` to the rows that ``slots`` names, in one launch.

    rows: ``[N, 1, L + R]`` in e4m3fn, e4m3fnuz, bf16 or fp16, any stride between rows.
    slots: ``[S]`` int32 or int64; below 0 skips the token. Padding may have made it longer or
    shorter than the tokens: what has no partner is left alone.
    nope, pe: ``[T, 1, L]`` and ``[T, 1, R]``, or without the 1, of any float type, any stride
        between tokens.
    Raises ValueError if shapes do not fit or the elements of a row are not contiguous.
    """
    _check_rows(rows, nope, pe)
    tokens = min(slots.numel(), nope.shape[0])
    if tokens == 0:
        return
    _, together, threads = choose("nsa-fp8-kv write", tokens)
    _write_rows_kernel[(triton.cdiv(tokens, together),)](
        rows,
        slots,
        nope,
        pe,
        tokens,
        rows.stride(0),
        slots.stride(0),
        nope.stride(0),
        pe.stride(0),
        NOPE=nope.shape[-1],
        PE=pe.shape[-1],
        BLOCK_NOPE=triton.next_power_of_2(nope.shape[-1]),
        BLOCK_PE=triton.next_power_of_2(pe.shape[-1]),
        TOKENS=together,
        MAX=E4M3_MAX.get(rows.dtype, 0.0),
        num_warps=warps(threads),
    )


@triton.jit(do_not_specialize=["slot_count"])
def _rope_and_write_kernel(
    q_out,
    rows,
    slots,
    q_nope,
    q_pe,
    k_nope,
    k_pe,
    positions,
    cos,
    sin,
    slot_count,
    heads,
    row_stride,
    slot_stride,
    q_nope_token_stride,
    q_nope_head_stride,
    q_pe_token_stride,
    q_pe_head_stride,
    k_nope_stride,
    k_pe_stride,
    position_stride,
    angle_stride,
    NOPE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HEADS: tl.constexpr,
    NEOX: tl.constexpr,
    MAX: tl.constexpr,
    Q_MAX: tl.constexpr,
):
    """Program (t, 0) writes token t's cache row; program (t, b) its b-th block of query heads."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    angle = tl.load(positions + token * position_stride).to(tl.int64) * angle_stride
    always = tl.full((1, 1), 1, tl.int1)
    if block == 0:
        one = tl.arange(0, 1)[:, None]  # a tile of one row
        slot = load_slots(slots, slot_stride, None, token, slot_count)
        stored = always & (slot >= 0)
        row = rows + slot * row_stride + one
        latent = k_nope + token * k_nope_stride + one
        shared = k_pe + token * k_pe_stride + one
        _rope_rows(
            latent, shared, row, always, stored, cos + angle, sin + angle,
            NOPE, HALF, BLOCK_NOPE, BLOCK_HALF, NEOX, MAX,
        )  # fmt: skip
    else:
        head = ((block - 1) * HEADS + tl.arange(0, HEADS)[:, None]).to(tl.int64)
        live = head < heads
        out = q_out + (token * heads + head) * (NOPE + 2 * HALF)
        absorbed = q_nope + token * q_nope_token_stride + head * q_nope_head_stride
        rotary = q_pe + token * q_pe_token_stride + head * q_pe_head_stride
        _rope_rows(
            absorbed, rotary, out, live, live, cos + angle, sin + angle,
            NOPE, HALF, BLOCK_NOPE, BLOCK_HALF, NEOX, Q_MAX,
        )  # fmt: skip


def rope_and_write_rows(
    rows: torch.Tensor,
    slots: torch.Tensor,
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    k_nope: torch.Tensor,
    k_pe: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    is_neox: bool,
    q_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Rotate q_pe and k_pe, write the cache rows and return ``cat(q_nope, q_pe)``, in one launch.

    rows, slots, k_nope, k_pe: as in `write_rows`.
    q_nope, q_pe: ``[T, H, L]`` and ``[T, H, R]``, any strides between tokens and heads.
    positions: ``[T]`` int32 or int64, each below P.
    cos, sin: ``[P, ..., R / 2]``, any float type; the two of aiter's rotary embedding.
    Returns ``[T, H, L + R]`` in q_dtype (None: the dtype of ``rows``), for every token, including
        those with a negative slot.
    The rotation is rotary.py's: in fp32, rounded once to the dtype of q_pe and k_pe.
    Raises ValueError if shapes do not fit or the elements of a row are not contiguous.
    """
    _check_rows(rows, k_nope, k_pe)
    tokens, heads, width = q_nope.shape
    half = cos.shape[-1]
    expected = {
        "q_pe": (q_pe.shape, (tokens, heads, 2 * half)),
        "k_nope": (k_nope.shape, (tokens, 1, width)),
        "k_pe": (k_pe.shape, (tokens, 1, 2 * half)),
        "positions": (positions.shape, (tokens,)),
        "sin": (sin.shape, cos.shape),
    }
    for name, (shape, right) in expected.items():
        if tuple(shape) != tuple(right):
            raise ValueError(f"{name} is {tuple(shape)}, expected {tuple(right)}")
    if q_nope.stride(-1) != 1 or q_pe.stride(-1) != 1:
        raise ValueError("q_nope and q_pe must be contiguous in their last dimension")
    if cos.stride(-1) != 1 or sin.stride() != cos.stride():
        raise ValueError("cos and sin must be contiguous in their last dimension, strides alike")
    q_dtype = q_dtype or rows.dtype
    q_out = torch.empty((tokens, heads, rows.shape[-1]), dtype=q_dtype, device=q_nope.device)
    if tokens == 0:
        return q_out
    _, together, threads = choose("nsa-fp8-kv rope", heads)
    together = min(together, triton.next_power_of_2(heads))
    _rope_and_write_kernel[(tokens, 1 + triton.cdiv(heads, together))](
        q_out,
        rows,
        slots,
        q_nope,
        q_pe,
        k_nope,
        k_pe,
        positions,
        cos,
        sin,
        slots.numel(),
        heads,
        rows.stride(0),
        slots.stride(0),
        q_nope.stride(0),
        q_nope.stride(1),
        q_pe.stride(0),
        q_pe.stride(1),
        k_nope.stride(0),
        k_pe.stride(0),
        positions.stride(0),
        cos.stride(0),
        NOPE=width,
        HALF=half,
        BLOCK_NOPE=triton.next_power_of_2(width),
        BLOCK_HALF=triton.next_power_of_2(half),
        HEADS=together,
        NEOX=is_neox,
        MAX=E4M3_MAX.get(rows.dtype, 0.0),
        Q_MAX=E4M3_MAX.get(q_dtype, 0.0),
        num_warps=warps(threads),
    )
    return q_out


def _check_rows(rows: torch.Tensor, nope: torch.Tensor, pe: torch.Tensor) -> None:
    fitting = nope.shape[:-1] == pe.shape[:-1] and nope.shape[1:-1].numel() == 1
    if not fitting or rows.shape[1:] != (1, nope.shape[-1] + pe.shape[-1]):
        raise ValueError(
            f"rows of {tuple(rows.shape[1:])} do not hold {tuple(nope.shape)} and {tuple(pe.shape)}"
        )
    if rows.stride(-1) != 1 or nope.stride(-1) != 1 or pe.stride(-1) != 1:
        raise ValueError("rows, nope and pe must be contiguous in their last dimension")


@triton.jit
def _saturating_cast_kernel(x, out, count, BLOCK: tl.constexpr, MAX: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    store_columns(out, tl.load(x + i, mask=mask), mask, i, None, MAX)


def saturating_cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x.to(dtype)`` for e4m3fn or e4m3fnuz, with overflow clamped instead of NaN."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    if x.numel():
        _, block, threads = choose("nsa-fp8-kv cast", x.numel())
        _saturating_cast_kernel[(triton.cdiv(x.numel(), block),)](
            x, out, x.numel(), BLOCK=block, MAX=E4M3_MAX[dtype], num_warps=warps(threads)
        )
    return out
