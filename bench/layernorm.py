"""LayerNorm of the indexer's k_norm in one launch, beside the release's two casts and fp32 norm.

`upstream` is aiter's operator. 0.5.11 calls it; our hook calls it too if weight and bias allow it.
`torch` is torch's own LayerNorm in bf16, which also rounds the weights. The indexer, and so this
work, is not split between ranks.
"""

import torch
from sglang.srt.rocm_patches.layernorm_kernel import layernorm

from bench import shapes, upstream
from bench.harness import Case, Sides

EPS = 1e-6


def cases(platform):
    for model, tp, rank in shapes.ranks("layernorm"):
        for tokens in shapes.TOKENS:
            moved = 2 * rank.index_head * (2 * tokens + 2)
            yield Case("k_norm", model, tp, tokens, "bf16", moved, _build(rank.index_head, tokens))


def _build(size: int, tokens: int):
    def build() -> Sides:
        x = torch.randn(tokens, size, device="cuda").bfloat16()
        weight, bias = torch.randn(2, size, device="cuda")
        parameters = weight.bfloat16(), bias.bfloat16()
        rival = upstream.installed("aiter", "layernorm2d_fwd")
        norm = torch.nn.functional.layer_norm
        return Sides(
            lambda i: layernorm(x, *parameters, EPS),
            rival and (lambda i: rival(x, *parameters, EPS)),
            lambda i: norm(x.float(), (size,), weight, bias, EPS).to(x.dtype),
            {"torch": lambda i: norm(x, (size,), *parameters, EPS)},
        )

    return build
