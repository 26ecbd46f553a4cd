"""Rotate q and k in place and store K and V: one launch, beside upstream's one per query head.

A release without the fused kernel rotates with an operator, casts for an FP8 cache, and stores;
`eager` is that sequence of 0.5.9. Half of gpt-oss' layers have a sliding window. Both kernels look
up its slots themselves; the eager sequence looks them up once for all layers, outside the timing.
"""

import torch
from sglang.srt.rocm_patches.kv_cache import LayerCache
from sglang.srt.rocm_patches.rope_kv_store_kernel import rotate_and_store

from bench import shapes, upstream
from bench.fp8_kv_write import cast_and_store
from bench.harness import SLOTS, Case, Sides, dtype_of, slots
from bench.rotation import rotation

POSITIONS = 131072


def cases(platform):
    for model, tp, rank in shapes.ranks("rope-kv-store"):
        for cache_dtype in shapes.CACHE_DTYPES:
            dtype = dtype_of(cache_dtype, platform)
            works = {"rope and store": (False, False)}  # scaled, sliding window
            if cache_dtype == "fp8":
                works["rope and store, scaled"] = (True, False)
            if model.startswith("gpt-oss"):
                works["rope and store, sliding window"] = (False, True)
            for work, (scaled, swa) in works.items():
                for tokens in shapes.TOKENS:
                    build = _build(rank, tokens, dtype, scaled, swa)
                    moved = _bytes(rank, tokens, dtype.itemsize, swa)
                    yield Case(work, model, tp, tokens, cache_dtype, moved, build)


def _bytes(rank, tokens: int, cache_size: int, swa: bool) -> int:
    q, kv = rank.q_heads * rank.head, rank.kv_heads * rank.head
    per_token = 2 * 2 * q + 2 * 2 * kv + 2 * kv + 2 * kv * cache_size  # q, k, v, both caches
    slot = 16 if swa else 8
    return tokens * (per_token + 2 * rank.rotary + 8 + slot)  # cos and sin, position


def _build(rank, tokens: int, cache_dtype: torch.dtype, scaled: bool, swa: bool):
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
        scales = [torch.tensor(x, device="cuda") if scaled else None for x in (0.5, 0.25)]
        to_swa = torch.randperm(SLOTS, device="cuda") if swa else None
        cache, where = LayerCache(*caches, to_swa), slots(tokens)
        stored_at = where if to_swa is None else [to_swa[each] for each in where]
        rival = upstream.kernel("layers.attention.utils", "fused_qk_rope_reshape_and_cache")
        rotate = rotation(q, k, positions, cos_sin, True)

        def eager(i):
            rotate()
            cast_and_store(k, v, *caches, stored_at[i], *scales)

        return Sides(
            lambda i: rotate_and_store(
                q, k, v, positions, cos_sin, True, cache, where[i], *scales
            ),
            lambda i: rival(
                q, k, v, *(c.unsqueeze(1) for c in caches), where[i], positions, cos_sin,
                *scales, True, True, q_out=q, k_out=k, output_zeros=False,
                swa_slot_mapping=to_swa,
            ),
            eager,
        )  # fmt: skip

    return build
