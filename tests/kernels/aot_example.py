"""Kernels that tests/kernels/test_aot.py compiles."""

import triton
import triton.language as tl


@triton.jit
def scale_to_fp8(x, out, scale, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0).to(tl.float32) * scale
    value = tl.clamp(value, -240.0, 240.0)
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < n)


@triton.jit
def large_dot(a, b, out, M: tl.constexpr, K: tl.constexpr):
    m, k = tl.arange(0, M), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * M + m[None, :])
    tl.store(out + m[:, None] * M + m[None, :], tl.dot(left, right))


@triton.jit
def copy_rows(x, out, x_stride, out_stride, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Row of a program to its row; the offset is computed in 64 bits only if WIDE."""
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    column = tl.arange(0, BLOCK)
    tl.store(out + row * out_stride + column, tl.load(x + row * x_stride + column))
