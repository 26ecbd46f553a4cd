"""Rotate q and k in place and store K and V: one launch, beside upstream's one per query head.

Before it, a release rotates with sgl_kernel's operator, casts for an FP8 cache and stores; `eager`
is that sequence of 0.5.9, where sgl_kernel is installed.
"""

import torch
from sglang.srt.rocm_patches.kv_cache import LayerCache
from sglang.srt.rocm_patches.rope_kv_store_kernel import rotate_and_store

from bench import shapes, upstream
from bench.fp8_kv_write import cast_and_store
from bench.harness import SLOTS, Case, Sides, dtype_of, slots

KERNELS = ("rope_kv_store_kernel",)  # the overlay's modules that are timed
POSITIONS = 131072


def cases(platform):
    for model, tp, rank in shapes.ranks("rope-kv-store"):
        for cache_dtype in shapes.CACHE_DTYPES:
            for tokens in shapes.TOKENS:
                build = _build(rank, tokens, dtype_of(cache_dtype, platform))
                moved = _bytes(rank, tokens, dtype_of(cache_dtype, platform).itemsize)
                yield Case("rope and store", model, tp, tokens, cache_dtype, moved, build)


def _bytes(rank, tokens: int, cache_size: int) -> int:
    q, kv = rank.q_heads * rank.head, rank.kv_heads * rank.head
    per_token = 2 * 2 * q + 2 * 2 * kv + 2 * kv + 2 * kv * cache_size  # q, k, v, both caches
    return tokens * (per_token + 2 * rank.rotary + 8 + 8)  # cos and sin, position, slot


def _build(rank, tokens: int, cache_dtype: torch.dtype):
    def build() -> Sides:
        sizes = [heads * rank.head for heads in (rank.q_heads, rank.kv_heads, rank.kv_heads)]
        qkv = torch.randn(tokens, sum(sizes), device="cuda").bfloat16()
        q, k, v = (part.unflatten(-1, (-1, rank.head)) for part in qkv.split(sizes, -1))
        positions = torch.randint(0, POSITIONS, (tokens,), device="cuda")
        angle = torch.rand(POSITIONS, rank.rotary // 2, device="cuda") * 6.28
        cos_sin = torch.cat((angle.cos(), angle.sin()), 1).bfloat16()
        caches = [
            torch.zeros(SLOTS, rank.kv_heads, rank.head, device="cuda").to(cache_dtype)
            for _ in "kv"
        ]
        cache, where = LayerCache(*caches, None), slots(tokens)
        rival = upstream.kernel("layers.attention.utils", "fused_qk_rope_reshape_and_cache")
        rotate = upstream.installed("sgl_kernel", "rotary_embedding")

        def eager(i):
            rotate(positions, q.flatten(1), k.flatten(1), rank.head, cos_sin, True)
            cast_and_store(k, v, *caches, where[i])

        return Sides(
            lambda i: rotate_and_store(
                q, k, v, positions, cos_sin, True, cache, where[i], None, None
            ),
            lambda i: rival(
                q, k, v, *(c.unsqueeze(1) for c in caches), where[i], positions, cos_sin,
                None, None, True, True, q_out=q, k_out=k, output_zeros=False,
            ),
            eager if rotate else None,
        )  # fmt: skip

    return build
