"""Cast and store K and V in an FP8 cache: one launch, beside upstream's one and the eager four."""

import torch
from sglang.srt.rocm_patches.fp8_kv_write_kernel import write_kv
from sglang.srt.rocm_patches.kv_cache import LayerCache

from bench import shapes, upstream
from bench.harness import SLOTS, Case, Sides, slots

KERNELS = ("fp8_kv_write_kernel",)  # the overlay's modules that are timed


def cases(platform):
    for model, tp, rank in shapes.ranks("fp8-kv-write"):
        for work, scaled in (("write", False), ("write, scaled", True)):
            for tokens in shapes.TOKENS:
                moved = tokens * (2 * rank.kv_heads * rank.head * (2 + 1) + 8)
                build = _build(rank, tokens, platform.fp8_dtype, scaled)
                yield Case(work, model, tp, tokens, "fp8", moved, build)


def cast_and_store(k, v, k_cache, v_cache, where, k_scale=None, v_scale=None) -> None:
    """As MHATokenToKVPool.set_kv_buffer of 0.5.9 does on HIP, but for dividing in place."""
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if cache.dtype != x.dtype:
            x = x if scale is None else x / scale
            x, cache = x.to(cache.dtype).view(torch.uint8), cache.view(torch.uint8)
        cache[where] = x


def _build(rank, tokens: int, fp8_dtype: torch.dtype, scaled: bool):
    def build() -> Sides:
        shape = (tokens, 2 * rank.kv_heads, rank.head)
        k, v = torch.randn(shape, device="cuda").bfloat16().split(rank.kv_heads, 1)
        caches = [
            torch.zeros(SLOTS, rank.kv_heads, rank.head, device="cuda").to(fp8_dtype) for _ in "kv"
        ]
        scales = [torch.tensor(x, device="cuda") if scaled else None for x in (0.5, 0.25)]
        cache, where = LayerCache(*caches, None), slots(tokens)
        rival = upstream.kernel("layers.attention.utils", "launch_reshape_and_cache_flash")
        paged = [each.unsqueeze(1) for each in caches]
        return Sides(
            lambda i: write_kv(k, v, cache, where[i], *scales),
            lambda i: rival(k, v, *paged, where[i], None, *scales),
            lambda i: cast_and_store(k, v, *caches, where[i], *scales),
        )

    return build
