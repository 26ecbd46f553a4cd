"""Sparse MLA attention: ours beside upstream's TileLang kernels, whole calls with cast and combine.

The floor counts each selected row as read from memory once. With many heads the matrix products
take longer than the reads, so the row has `products_us` as well. Errors are ||out - ref|| / ||ref||
against fp64 attention, once over the stored cache and once over the cache before quantization.
"""

import logging

import torch

from bench import shapes, upstream
from bench.harness import CALLS, SLOTS, Case, Sides, dtype_of
from tests.references import nsa_fp8_kv_sparse_mla as reference

CHECKED_TOKENS = 8
# More selected rows than any cache holds: what one call read is gone before the next that reads it.
DRAWN_TOKENS = 4096


def cases(platform):
    for model, tp, rank in shapes.ranks("nsa-fp8-kv"):
        for cache_dtype in shapes.CACHE_DTYPES:
            dtype = dtype_of(cache_dtype, platform)
            for tokens in shapes.TOKENS:
                rows = rank.topk * ((rank.latent + rank.rotary) * dtype.itemsize + 4)
                q_and_out = rank.q_heads * (2 * rank.latent + rank.rotary) * 2
                moved = tokens * (rows + q_and_out)
                multiplied = rank.topk * rank.q_heads * (2 * rank.latent + rank.rotary)
                build = _build(rank, tokens, dtype)
                yield Case(
                    "sparse attention", model, tp, tokens, cache_dtype, moved, build,
                    flops=2 * tokens * multiplied,
                )  # fmt: skip


def _build(rank, tokens: int, dtype: torch.dtype):
    def build() -> Sides:
        logging.disable(logging.INFO)  # TileLang tells of every compilation
        from sglang.srt.rocm_patches.nsa_fp8_kv_sparse_mla import sparse_mla

        width = rank.latent + rank.rotary
        exact = torch.randn(SLOTS, 1, width, device="cuda").bfloat16()
        cache = exact.to(dtype)
        q = torch.randn(tokens, rank.q_heads, width, device="cuda").bfloat16()
        draws = [
            torch.randint(0, SLOTS, (tokens, 1, rank.topk), dtype=torch.int32, device="cuda")
            for _ in range(min(CALLS, -(-DRAWN_TOKENS // tokens)))
        ]

        def draw(i: int) -> torch.Tensor:
            return draws[i % len(draws)]

        scale = width**-0.5
        rival = upstream.kernel("layers.attention.nsa.tilelang_kernel", "tilelang_sparse_fwd")
        some = slice(CHECKED_TOKENS)
        expected = {
            name: reference.sparse_mla(q[some], kv, draws[0][some], scale, rank.latent)
            for name, kv in (("error", cache), ("error_unquantised", exact))
        }
        errors = {}
        for side, call in (("ours", sparse_mla), ("upstream", rival)):
            out = call(q, cache, draws[0], scale, rank.latent)
            out = out.view(tokens, rank.q_heads, rank.latent)[some].double()
            for name, right in expected.items():
                errors[f"{side}_{name}"] = round(((out - right).norm() / right.norm()).item(), 5)
        return Sides(
            lambda i: sparse_mla(q, cache, draw(i), scale, rank.latent),
            lambda i: rival(q, cache, draw(i), scale, rank.latent),
            more=errors,
        )

    return build
