"""The latent KV cache of sparse MLA, in plain torch, and what TileLang's kernels ask of the LDS."""

import torch

from tests.references.kv_cache import E4M3_MAX, cached, store
from tests.references.rope_kv_store import rotate as rotate_fp64

# (kernel, heads, inner_iter): dyn_shared_memory_buf, as TileLang 0.1.8 lowers the kernels of sglang
# 0.5.10.post1 with their own parameters for a HIP target. 115200 is what a user saw on MI300X:
# https://github.com/sgl-project/sglang/pull/23963.
LDS = {
    "gfx942": {
        ("bf16", 8, 1): 55296, ("bf16", 8, 2): 38912, ("bf16", 16, 1): 55296,
        ("bf16", 16, 2): 38912, ("bf16", 32, 1): 76288, ("bf16", 32, 2): 39936,
        ("bf16", 48, 1): 115200, ("bf16", 48, 2): 41984, ("bf16", 64, 1): 115200,
        ("bf16", 64, 2): 41984, ("bf16", 64, 4): 41984, ("bf16", 96, 1): 193024,
        ("bf16", 96, 2): 46080, ("bf16", 128, 1): 115200, ("bf16", 128, 2): 41984,
        ("fp8", 8, 1): 46336, ("fp8", 8, 2): 49408, ("fp8", 16, 1): 46336,
        ("fp8", 64, 1): 46336, ("fp8", 128, 1): 46336, ("fp8", 128, 8): 49408,
    },
    "gfx950": {
        ("bf16", 8, 1): 92160, ("bf16", 8, 2): 77824, ("bf16", 16, 1): 92160,
        ("bf16", 16, 2): 77824, ("bf16", 32, 1): 115712, ("bf16", 32, 2): 79872,
        ("bf16", 48, 1): 156672, ("bf16", 48, 2): 83968, ("bf16", 64, 1): 156672,
        ("bf16", 64, 2): 83968, ("bf16", 64, 4): 83968, ("bf16", 96, 1): 238592,
        ("bf16", 96, 2): 92160, ("bf16", 128, 1): 156672, ("bf16", 128, 2): 83968,
        ("fp8", 8, 1): 46336, ("fp8", 8, 2): 49408, ("fp8", 16, 1): 46336,
        ("fp8", 64, 1): 46336, ("fp8", 128, 1): 46336, ("fp8", 128, 8): 49408,
    },
}  # fmt: skip


# The same of 0.5.9's sparse_attention_fwd_kernel_v1, as TileLang 0.1.15 lowers it: architecture,
# heads, bytes.
LDS_OF_ONE_PASS = [
    ("gfx942", 8, 57344), ("gfx942", 16, 57344), ("gfx942", 32, 76800), ("gfx942", 64, 115712),
    ("gfx942", 128, 115712),
    ("gfx950", 8, 96256), ("gfx950", 16, 96256), ("gfx950", 32, 116736), ("gfx950", 64, 157696),
    ("gfx950", 128, 157696),
]  # fmt: skip


def saturated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The truth in the range of ``dtype``: what fp64 rounds to it from."""
    return x.clamp(-E4M3_MAX[dtype], E4M3_MAX[dtype]) if dtype in E4M3_MAX else x


def write_rows(rows, slots, nope, pe) -> None:
    """Put ``cat(nope, pe)``, ``[T, 1, L]`` and ``[T, 1, R]``, at ``slots``; each in rows' type."""
    store(torch.cat((cached(nope, rows.dtype), cached(pe, rows.dtype)), -1), rows, slots)


def rotated(x, positions, cos, sin, is_neox):
    """x ``[T, heads, R]`` in fp64; cos and sin ``[positions, .., R / 2]``."""
    table = torch.cat((cos.flatten(1), sin.flatten(1)), 1)
    if table.shape[1] != x.shape[-1]:
        raise ValueError(f"{table.shape[1]} angles for {x.shape[-1]} elements")
    return rotate_fp64(x, positions, table, is_neox)
