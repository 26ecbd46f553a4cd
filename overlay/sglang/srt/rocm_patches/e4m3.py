"""The two FP8 formats of the KV cache, and how to convert to them.

gfx942 stores e4m3fnuz (largest 240, no infinities, one NaN, 0x80), gfx950 stores OCP e4m3fn
(largest 448). Triton's plain cast does not clamp on AMD before 3.9 (an overflow becomes NaN), and
saturates on NVIDIA. So every kernel clamps first, then rounds to nearest even.
"""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches import arch

E4M3_MAX = {torch.float8_e4m3fnuz: 240.0, torch.float8_e4m3fn: 448.0}


def native_e4m3() -> torch.dtype:
    """The format that this GPU converts to and multiplies in hardware."""
    return torch.float8_e4m3fnuz if arch() == "gfx942" else torch.float8_e4m3fn


@triton.jit
def saturate_e4m3(x, MAX: tl.constexpr):
    """Clamp fp32 ``x`` to [-MAX, MAX]; NaN stays NaN, as in torch's cast."""
    return tl.clamp(x, -MAX, MAX, propagate_nan=tl.PropagateNan.ALL)
