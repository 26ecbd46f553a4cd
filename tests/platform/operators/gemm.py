"""aiter's matrix products and its weight layout."""

import torch

from . import need, need_dtype, operator, provided


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
    need(tuple(layout) == (16, 16), f"shuffle_weight: layout {layout}, expected (16, 16)")
    rows, columns = x.shape[-2:]
    assert rows % 16 == 0, f"shuffle_weight: {rows} rows"
    assert columns % 32 == 0, f"shuffle_weight: {columns} columns"
    return x


provided["aiter.ops.shuffle.shuffle_weight"] = _shuffle_weight


@operator("aiter.ops.triton.gemm_a16w16_atomic.gemm_a16w16_atomic")
def gemm_a16w16_atomic(x, w, dtype=torch.bfloat16, y=None, config=None):
    """x @ w.T, added to y, whose parts are summed in y's type."""
    name = "gemm_a16w16_atomic"
    need(config is None, f"{name}: config")
    need(dtype is torch.bfloat16, f"{name}: dtype {dtype}, which says nothing beside y")
    need(y is not None and y.dtype == torch.float32, f"{name}: no y in fp32")
    need_dtype(name, (torch.bfloat16, torch.float16), x=x, w=w)
    return y.add_(x.float() @ w.float().T)
