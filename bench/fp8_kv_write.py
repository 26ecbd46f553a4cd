"""Cast and store K and V in an FP8 cache: one launch, as upstream's; the eager sequence takes four.

`widen` dequantizes the rows that a batch reads. Its `eager` dequantizes the same rows in torch. A
release converts its whole pool instead, in a time that grows with the pool.
"""

import torch
from sglang.srt.rocm_patches.fp8_kv_write_kernel import write_kv
from sglang.srt.rocm_patches.fp8_kv_write_widen_kernel import widen
from sglang.srt.rocm_patches.kv_cache import LayerCache

from bench import shapes, upstream
from bench.harness import SLOTS, Case, Sides, slots


def cases(platform):
    for model, tp, rank in shapes.ranks("fp8-kv-write"):
        for work, scaled in (("write", False), ("write, scaled", True)):
            for tokens in shapes.TOKENS:
                moved = tokens * (2 * rank.kv_heads * rank.head * (2 + 1) + 8)
                build = _build(rank, tokens, platform.fp8_dtype, scaled)
                yield Case(work, model, tp, tokens, "fp8", moved, build)
        for work, scaled in (("widen", False), ("widen, scaled", True)):
            for tokens in shapes.TOKENS:
                moved = tokens * (2 * rank.kv_heads * rank.head * (1 + 2) + 4)
                build = _build_widen(rank, tokens, platform.fp8_dtype, scaled)
                yield Case(work, model, tp, tokens, "fp8", moved, build)


def cast_and_store(k, v, k_cache, v_cache, where, k_scale=None, v_scale=None) -> None:
    """As MHATokenToKVPool.set_kv_buffer of 0.5.9 does on HIP, but for dividing in place."""
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if cache.dtype != x.dtype:
            x = x if scale is None else x / scale
            x, cache = x.to(cache.dtype).view(torch.uint8), cache.view(torch.uint8)
        cache[where] = x


def _caches(rank, fp8_dtype: torch.dtype) -> list[torch.Tensor]:
    shape = SLOTS, rank.kv_heads, rank.head
    return [torch.randn(shape, device="cuda").to(fp8_dtype) for _ in "kv"]


def _scales(scaled: bool) -> list[torch.Tensor | None]:
    return [torch.tensor(x, device="cuda") if scaled else None for x in (0.5, 0.25)]


def _build(rank, tokens: int, fp8_dtype: torch.dtype, scaled: bool):
    def build() -> Sides:
        shape = (tokens, 2 * rank.kv_heads, rank.head)
        k, v = torch.randn(shape, device="cuda").bfloat16().split(rank.kv_heads, 1)
        caches, scales = _caches(rank, fp8_dtype), _scales(scaled)
        cache, where = LayerCache(*caches, None), slots(tokens)
        rival = upstream.kernel("layers.attention.utils", "launch_reshape_and_cache_flash")
        paged = [each.unsqueeze(1) for each in caches]
        return Sides(
            lambda i: write_kv(k, v, cache, where[i], *scales),
            lambda i: rival(k, v, *paged, where[i], None, *scales),
            lambda i: cast_and_store(k, v, *caches, where[i], *scales),
        )

    return build


def _build_widen(rank, tokens: int, fp8_dtype: torch.dtype, scaled: bool):
    def build() -> Sides:
        caches, scales = _caches(rank, fp8_dtype), _scales(scaled)
        wide = [torch.empty(cache.shape, dtype=torch.bfloat16, device="cuda") for cache in caches]
        where = slots(tokens)
        indices = [each.int() for each in where]
        end = torch.tensor([tokens], dtype=torch.int32, device="cuda")

        def eager(i):
            for cache, scale, out in zip(caches, scales, wide, strict=True):
                x = cache.view(torch.uint8)[where[i]].view(fp8_dtype).to(out.dtype)
                out[where[i]] = x if scale is None else x * scale

        return Sides(
            lambda i: widen(*caches, indices[i], end, *scales, torch.bfloat16), eager=eager
        )

    return build
