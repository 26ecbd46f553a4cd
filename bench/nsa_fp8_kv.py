"""Latent rows of MLA: cast, concatenate and write; and the same with the rotation and with q.

==============  =========================================  =====================================
work            upstream                                   eager
==============  =========================================  =====================================
write           the release's kernel (FP8: not reachable   the release's path on HIP: two casts
                on HIP)                                    and a store
rope and write  aiter's operator                           both releases' path: the rotation, the
                                                           concatenation of q, and the write
==============  =========================================  =====================================

Every rank writes full rows. In "rope and write", q is bf16, because our attention reads bf16.
"""

import torch
from sglang.srt.rocm_patches.nsa_fp8_kv_kernel import rope_and_write_rows, write_rows

from bench import shapes, upstream
from bench.harness import SLOTS, Call, Case, Sides, dtype_of, slots
from bench.rotation import rotation

POSITIONS = 131072


def cases(platform):
    for model, tp, rank in shapes.ranks("nsa-fp8-kv"):
        width = rank.latent + rank.rotary
        for cache_dtype in shapes.CACHE_DTYPES:
            dtype = dtype_of(cache_dtype, platform)
            row = width * (2 + dtype.itemsize) + 8
            for tokens in shapes.TOKENS:
                build = _build_write(rank, tokens, dtype)
                yield Case("write", model, tp, tokens, cache_dtype, tokens * row, build)
            whole = row + rank.q_heads * width * (2 + 2) + 2 * rank.rotary + 8
            for tokens in shapes.TOKENS:
                build = _build_rope(rank, tokens, dtype)
                yield Case("rope and write", model, tp, tokens, cache_dtype, tokens * whole, build)


def _key(rank, tokens: int, dtype: torch.dtype):
    latent = torch.randn(tokens, 1, rank.latent + rank.rotary, device="cuda").bfloat16()
    rows = torch.zeros(SLOTS, 1, rank.latent + rank.rotary, device="cuda").to(dtype)
    return rows, slots(tokens), *latent.split([rank.latent, rank.rotary], -1)


def cast_and_store(rows, where, nope, pe) -> Call:
    """As MLATokenToKVPool.set_mla_kv_buffer does on HIP."""
    store = upstream.kernel("mem_cache.utils", "set_mla_kv_buffer_triton")
    if rows.dtype == nope.dtype:
        return lambda i: store(rows, where[i], nope, pe)

    def call(i):
        parts = [x.to(rows.dtype).view(torch.uint8) for x in (nope, pe)]
        store(rows.view(torch.uint8), where[i], *parts)

    return call


def _build_write(rank, tokens: int, dtype: torch.dtype):
    def build() -> Sides:
        rows, where, nope, pe = _key(rank, tokens, dtype)

        def ours(i):
            write_rows(rows, where[i], nope, pe)

        releases = cast_and_store(rows, where, nope, pe)
        if dtype == torch.bfloat16:
            return Sides(ours, releases)
        fused = upstream.kernel("mem_cache.utils", "set_mla_kv_buffer_triton_fp8_quant")
        return Sides(ours, lambda i: fused(rows, where[i], nope, pe, dtype), releases)

    return build


def _build_rope(rank, tokens: int, dtype: torch.dtype):
    def build() -> Sides:
        rows, where, k_nope, k_pe = _key(rank, tokens, dtype)
        # The absorbed q_nope comes from a batched product, heads first; q_pe from a projection.
        q_nope = torch.randn(rank.q_heads, tokens, rank.latent, device="cuda").bfloat16()
        q_nope = q_nope.transpose(0, 1)
        q_pe = torch.randn(tokens, rank.q_heads, rank.rotary, device="cuda").bfloat16()
        positions = torch.randint(0, POSITIONS, (tokens,), device="cuda")
        angle = torch.rand(POSITIONS, 1, 1, rank.rotary // 2, device="cuda") * 6.28
        cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        key = (k_nope, k_pe, positions, cos, sin)
        rival = upstream.installed(
            "aiter.ops.triton.fused_kv_cache", "fused_qk_rope_cat_and_cache_mla"
        )
        one = torch.ones((), device="cuda")
        cos_sin = torch.cat((cos, sin), -1).view(POSITIONS, rank.rotary)
        rotate = rotation(q_pe, k_pe, positions, cos_sin, False)
        write = cast_and_store(rows, where, k_nope, k_pe)

        def eager(i):
            rotate()
            torch.cat((q_nope, q_pe), -1)
            write(i)

        return Sides(
            lambda i: rope_and_write_rows(
                rows, where[i], q_nope, q_pe, *key, False, torch.bfloat16
            ),
            rival
            and (
                lambda i: rival(
                    q_nope, q_pe, k_nope, k_pe, rows, where[i], positions, cos, sin, one,
                    False, q_out_dtype=torch.bfloat16,
                )
            ),
            eager,
        )  # fmt: skip

    return build
