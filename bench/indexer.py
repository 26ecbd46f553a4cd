"""The indexer's K store and its head gates.

K: `eager` is the release's act_quant (TileLang, where it is installed) and store; `upstream` is
aiter's operator, which 0.5.11 calls. Gates: `eager` is the release's fp32 projection and scaling,
`upstream` is 0.5.11's in bf16. Both start from the model's bf16 x. No rank splits this work.
"""

import torch
from sglang.srt.rocm_patches.indexer_gate_kernel import project_head_gates
from sglang.srt.rocm_patches.indexer_kernel import PAGE_BYTES_PER_SLOT, store_index_k

from bench import shapes, upstream
from bench.harness import SLOTS, Case, Sides, slots


def cases(platform):
    for model, tp, rank in shapes.ranks("indexer"):
        for tokens in shapes.TOKENS:
            moved = tokens * (2 * rank.index_head + PAGE_BYTES_PER_SLOT + 8)
            build = _build_store(rank, tokens, platform.fp8_dtype)
            yield Case("index K", model, tp, tokens, "fp8", moved, build)
        for tokens in shapes.TOKENS:
            moved = 2 * rank.hidden * (tokens + rank.index_heads) + 8 * tokens * rank.index_heads
            build = _build_gate(rank, tokens)
            yield Case("head gates", model, tp, tokens, "bf16", moved, build)


def _build_store(rank, tokens: int, fp8_dtype: torch.dtype):
    def build() -> Sides:
        key = torch.randn(tokens, rank.index_head, device="cuda").bfloat16()
        cache = torch.zeros(SLOTS, PAGE_BYTES_PER_SLOT, dtype=torch.uint8, device="cuda")
        where = slots(tokens)
        store = upstream.kernel("layers.attention.nsa.index_buf_accessor", "_set_k_and_s_triton")
        act_quant = upstream.installed("tilelang", "jit") and upstream.kernel(
            "layers.attention.nsa.tilelang_kernel", "act_quant"
        )
        rival = upstream.installed("aiter.ops.cache", "indexer_k_quant_and_cache")
        pages = cache.unsqueeze(1).view(fp8_dtype)
        return Sides(
            lambda i: store_index_k(key, cache, where[i], 1, fp8_dtype),
            rival and (lambda i: rival(key, pages, where[i], rank.index_head, "ue8m0")),
            act_quant
            and (lambda i: store(cache, where[i], *act_quant(key, rank.index_head, "ue8m0"), 1)),
        )

    return build


def _build_gate(rank, tokens: int):
    def build() -> Sides:
        x = torch.randn(tokens, rank.hidden, device="cuda").bfloat16()
        weight = torch.randn(rank.index_heads, rank.hidden, device="cuda") * rank.hidden**-0.5
        weight_bf16 = weight.bfloat16()
        q_scale = torch.rand(tokens, rank.index_heads, 1, device="cuda")
        head_scale, softmax_scale = rank.index_heads**-0.5, rank.index_head**-0.5

        def scaled(gates):
            return (gates * head_scale).unsqueeze(-1) * q_scale * softmax_scale

        linear = torch.nn.functional.linear
        return Sides(
            lambda i: project_head_gates(x, weight_bf16, q_scale, head_scale, softmax_scale),
            lambda i: scaled(linear(x, weight_bf16)),
            lambda i: scaled(linear(x.float(), weight)),
        )

    return build
