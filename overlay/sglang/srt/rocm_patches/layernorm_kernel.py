"""LayerNorm over the last dimension in one launch.

The bits of a row do not depend on the other rows of the launch. Two rules ensure that:

- Triton sums a row in the order of its layout: first the elements of each thread, then the threads
  of a warp, then the warps. So a thread holds `PER_THREAD` elements of a row in every launch. A
  program with more rows gets more warps; the number of warps for one row stays the same.
- The compiler fuses a product and a sum into an fma only if both are in one basic block. Masks
  split the blocks differently when a program has several rows. So fusion is switched off.
"""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.launch_parameters import choose, warps

# A row up to this size stays in registers (16 fp32 values a lane at 8 warps of 64); a longer one is
# read three times, the second and third time from cache.
MAX_BLOCK = 8192
PER_THREAD = 8  # one 16-byte access
MOST_THREADS = 512
OPTIONS = {"enable_fp_fusion": False}


# Do not specialize on num_rows: Triton would compile three variants (1, a multiple of 16, any
# other) of identical code.
@triton.jit(do_not_specialize=["num_rows"])
def _layernorm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    x_row_stride,
    eps,
    N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_inside = (row < num_rows)[:, None]
    x_row = x_ptr + row.to(tl.int64)[:, None] * x_row_stride
    out_row = out_ptr + row.to(tl.int64)[:, None] * N
    # One column index per row, so that weight and bias are loaded in the layout of x.
    column = tl.arange(0, BLOCK_N)[None, :] + tl.zeros([BLOCK_R, 1], dtype=tl.int32)

    # If BLOCK_N covers the row, each loop runs once and the compiler reuses the first load.
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + column
        x = tl.load(x_row + n, mask=row_inside & (n < N), other=0.0).to(tl.float32)
        total += tl.sum(x, axis=1)
    mean = (total / N)[:, None]

    # E[(x - mean)^2], never E[x^2] - mean^2: the latter cancels if the mean is large.
    squares = tl.zeros([BLOCK_R], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + column
        x = tl.load(x_row + n, mask=row_inside & (n < N), other=0.0).to(tl.float32)
        centred = tl.where(n < N, x - mean, 0.0)
        squares += tl.sum(centred * centred, axis=1)
    rstd = tl.rsqrt(squares / N + eps)[:, None]

    for start in range(0, N, BLOCK_N):
        n = start + column
        x = tl.load(x_row + n, mask=row_inside & (n < N), other=0.0).to(tl.float32)
        y = (x - mean) * rstd
        if weight_ptr is not None:
            y *= tl.load(weight_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(out_row + n, y.to(out_ptr.dtype.element_ty), mask=row_inside & (n < N))


def launch_parameters(num_rows: int, hidden_size: int) -> dict[str, int]:
    """Block sizes and warps for ``num_rows`` rows of ``hidden_size``."""
    block_n = min(triton.next_power_of_2(hidden_size), MAX_BLOCK)
    block_r = max(choose("layernorm", num_rows).size // block_n, 1)
    return {
        "BLOCK_R": block_r,
        "BLOCK_N": block_n,
        "num_warps": warps(min(block_r * block_n // PER_THREAD, MOST_THREADS)),
    }


def layernorm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension.

    x ``[..., N]``, float; weight and bias ``[N]``, contiguous, float, either may be None. All
    arithmetic is fp32, rounded once (to nearest even) to x's dtype; the variance is the biased one.
    Returns a contiguous tensor of x's shape.

    Raises ValueError if weight or bias is not a contiguous ``[N]``.
    """
    hidden_size = x.shape[-1]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and not (
            parameter.shape == (hidden_size,) and parameter.is_contiguous()
        ):
            raise ValueError(f"layernorm: {name} must be a contiguous [{hidden_size}]")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    rows = x.reshape(-1, hidden_size)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    num_rows = rows.shape[0]
    parameters = launch_parameters(num_rows, hidden_size)
    _layernorm_kernel[(triton.cdiv(num_rows, parameters["BLOCK_R"]),)](
        rows,
        weight,
        bias,
        out,
        num_rows,
        rows.stride(0),
        eps,
        N=hidden_size,
        **parameters,
        **OPTIONS,
    )
    return out
