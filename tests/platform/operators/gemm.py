"""aiter's matrix products and its weight layout."""

import torch

from . import need, operator, provided


class _TunedGemm:
    """The math is always inp @ weights.T + bias; the table picks a kernel."""


@operator("aiter.tuned_gemm.tgemm.mm")
def _mm(inp, weights, bias=None, otype=None, scale_a=None, scale_b=None, scale_c=None):
    for scale in (scale_a, scale_b, scale_c):
        need(scale is None, "tgemm.mm: scaled products")
    result = torch.nn.functional.linear(inp, weights, bias)
    return result if otype is None else result.to(otype)


_TunedGemm.mm = staticmethod(_mm)
provided["aiter.tuned_gemm.tgemm"] = _TunedGemm


def _shuffle_weight(x, layout=(16, 16), use_int4=False):
    """A layout for the kernels alone; the references read plain rows."""
    need(not use_int4, "shuffle_weight: use_int4")
    return x


provided["aiter.ops.shuffle.shuffle_weight"] = _shuffle_weight


@operator("aiter.ops.triton.gemm_a16w16_atomic.gemm_a16w16_atomic")
def gemm_a16w16_atomic(x, w, dtype=torch.bfloat16, y=None, config=None):
    """x @ w.T, added to y, whose parts are summed in y's type."""
    need(config is None, "gemm_a16w16_atomic: config")
    need(y is not None and y.dtype == torch.float32, "gemm_a16w16_atomic: no y in fp32")
    return y.add_(x.float() @ w.float().T)
