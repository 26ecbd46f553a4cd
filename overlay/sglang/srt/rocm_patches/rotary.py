"""Rotary position embedding on tiles, for the kernels that rotate and store in one launch.

A head's rotary part has ``2 * HALF`` elements in HALF pairs. Pair i is ``(x[i], x[i + HALF])`` in
neox order and ``(x[2i], x[2i + 1])`` in interleaved (GPT-J) order. Every pair is rotated by the
angle of its token's position (RoFormer, https://arxiv.org/abs/2104.09864, equation 34)::

    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin

All tiles are ``[ROWS, BLOCK]``. A row is one head of one token. BLOCK is HALF rounded up to a power
of two. ``rows`` is a ``[ROWS, 1]`` tile of pointers to each row's first rotary element; ``live`` is
the ``[ROWS, 1]`` mask of the rows to process. Loads convert to fp32 and give zero for masked
elements. The rotation is in fp32. Stores round once, to nearest even.
"""

import triton
import triton.language as tl


@triton.jit
def load_angles(cos_rows, sin_rows, live, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin of each row's position: fp32 ``[ROWS, BLOCK]`` from tables of any float type."""
    i = tl.arange(0, BLOCK)[None, :]
    mask = live & (i < HALF)
    cos = tl.load(cos_rows + i, mask=mask, other=0.0).to(tl.float32)
    sin = tl.load(sin_rows + i, mask=mask, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def load_pairs(rows, live, HALF: tl.constexpr, BLOCK: tl.constexpr, NEOX: tl.constexpr):
    """Both members of each row's pairs: two fp32 tiles ``[ROWS, BLOCK]``."""
    if NEOX:
        i = tl.arange(0, BLOCK)[None, :]
        mask = live & (i < HALF)
        x1 = tl.load(rows + i, mask=mask, other=0.0)
        x2 = tl.load(rows + HALF + i, mask=mask, other=0.0)
    else:
        # One contiguous load of both members, so that a thread reads 16 bytes at once.
        i = tl.arange(0, 2 * BLOCK)[None, :]
        x = tl.load(rows + i, mask=live & (i < 2 * HALF), other=0.0)
        x1, x2 = tl.split(tl.reshape(x, (x.shape[0], BLOCK, 2)))
    return x1.to(tl.float32), x2.to(tl.float32)


@triton.jit
def rotate(x1, x2, cos, sin):
    """The rotated pair, fp32, with explicit fma, so that the bits do not depend on the batch.

    Left alone, the compiler fuses a product and a sum only within one basic block, and masks split
    the blocks differently in different launches.
    """
    return tl.fma(x1, cos, -(x2 * sin)), tl.fma(x2, cos, x1 * sin)


@triton.jit
def store_pairs(rows, y1, y2, live, HALF: tl.constexpr, BLOCK: tl.constexpr, NEOX: tl.constexpr):
    """Store pairs in their original order, converted to the element type of ``rows``.

    If that type is e4m3, the caller must saturate y1 and y2 first.
    """
    dtype: tl.constexpr = rows.dtype.element_ty
    if NEOX:
        i = tl.arange(0, BLOCK)[None, :]
        mask = live & (i < HALF)
        tl.store(rows + i, y1.to(dtype), mask=mask)
        tl.store(rows + HALF + i, y2.to(dtype), mask=mask)
    else:
        i = tl.arange(0, 2 * BLOCK)[None, :]
        y = tl.reshape(tl.join(y1, y2), (y1.shape[0], 2 * BLOCK))
        tl.store(rows + i, y.to(dtype), mask=live & (i < 2 * HALF))
