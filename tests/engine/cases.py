"""The models, cache formats and settings that the arms are compared in."""

from dataclasses import dataclass, field, replace

import pytest

from tests.engine import arms
from tests.engine.checkpoints import checkpoint
from tests.platform.value import ARCHS

AITER = {"attention_backend": "aiter"}
TRITON = {"attention_backend": "triton"}
# 0.5.9 does not choose it by itself.
TILELANG = {"nsa_prefill_backend": "tilelang", "nsa_decode_backend": "tilelang"}
UNIFIED = {"SGLANG_USE_AITER_UNIFIED_ATTN": "1"}
# Upstream leaves a graph's page table unfilled under unified attention with pages of one token.
PAGED = AITER | {"page_size": 16}
# One backend for prefill, another for decode.
PAIRS = {
    f"{prefill}-{decode}": {
        "prefill_attention_backend": prefill,
        "decode_attention_backend": decode,
    }
    for prefill, decode in (("triton", "aiter"), ("aiter", "triton"))
}
LONG = {"max_total_tokens": 2560, "context_length": 2400, "chunked_prefill_size": 4096}
# What a checkpoint may say of its KV cache. Neither 1 nor a power of two, and not the same: a scale
# that is dropped, squared, or taken from the other of the two moves every value.
SCALES = {"k": 0.11, "v": 0.037}


@dataclass(frozen=True)
class Case:
    checkpoint: str
    kv: str  # "bf16" or "fp8"
    slugs: tuple[str, ...]  # those that change what is launched
    archs: tuple[str, ...] = ARCHS
    server: dict = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] | None = None
    # Architectures where upstream's logits are to be had bit for bit.
    bitwise: tuple[str, ...] = ()
    # What upstream gets wrong here, so that only transformers says what is right.
    upstream_fault: str | None = None
    # What upstream gets wrong and no slug is about, so that transformers cannot be met.
    unmended_fault: str | None = None
    # Why upstream does not run here at all, as it says so: a pattern of its error.
    upstream_refuses: str | None = None
    release: str = "0.5.10.post1"
    # Each part of what it shows is shown by another: it runs with --long.
    long: bool = False

    def result(self, arm: str, platform, **watched) -> dict:
        """What tests.engine.scenarios.teacher_forced.logits returns in an arm."""
        model = checkpoint(self.checkpoint)
        return arms.result(
            self.release,
            arm,
            platform,
            "teacher_forced:logits",
            self.environment,
            path=str(model.path),
            requests=model.requests,
            prompts=model.prompts,
            server=self.server | {"kv_cache_dtype": {"bf16": "auto", "fp8": "fp8_e4m3"}[self.kv]},
            scales=self.scales,
            **watched,
        )


NO_FP8 = r"expected torch\.bfloat16|656"
DIVIDED = "prefill divides the live k and v by their scales; decode stores without them"
UNREAD = "prefill divides the live k and v by their scales, and no attention reads with them"
UNSCALED = "prefill descales an unscaled q by k_scale, ragged decode reads without scales"
WINDOW = "decode attends to one key fewer than the window holds"
NSA = ("layernorm", "indexer", "nsa-fp8-kv")
ROPE = ("rope-kv-store",)
WRITE = ("fp8-kv-write",)


def in_a_graph(case: Case) -> Case:
    """The same, decoding through capture and replay, padded from 3 requests to 4."""
    return replace(case, server=case.server | {"disable_cuda_graph": False, "cuda_graph_bs": [4]})


CASES = {
    "glm-5-bf16": Case("glm-5", "bf16", NSA, ("gfx942",), long=True),
    "glm-5-fp8": Case("glm-5", "fp8", NSA),
    "gpt-oss-bf16": Case(
        "gpt-oss", "bf16", ROPE, ("gfx942",), AITER, unmended_fault=WINDOW
    ),
    "gpt-oss-fp8-scaled": Case(
        "gpt-oss", "fp8", ROPE, ("gfx950",), AITER, {}, SCALES, (), DIVIDED, WINDOW
    ),
    "qwen3-moe-bf16": Case("qwen3-moe", "bf16", ROPE, ("gfx950",), AITER, long=True),
    "qwen3-moe-fp8-scaled": Case(
        "qwen3-moe", "fp8", (*ROPE, *WRITE), ("gfx942",), AITER, {}, SCALES, (), DIVIDED
    ),
    "minimax-m2-fp8": Case(
        "minimax-m2", "fp8", WRITE, ("gfx942",), PAGED, UNIFIED, bitwise=("gfx942",)
    ),
    "minimax-m2-fp8-scaled": Case(
        "minimax-m2", "fp8", WRITE, ("gfx942",), AITER, {}, SCALES, (), DIVIDED, long=True
    ),
    "minimax-m2-fp8-scaled-unified": Case(
        "minimax-m2", "fp8", WRITE, ("gfx950",), PAGED, UNIFIED, SCALES, (), DIVIDED
    ),
    "0.5.9-minimax-m2-bf16": Case(
        "minimax-m2", "bf16", (), ("gfx942",), AITER, bitwise=("gfx942",), release="0.5.9",
        long=True,
    ),
    "0.5.9-minimax-m2-fp8": Case(
        "minimax-m2", "fp8", WRITE, ("gfx950",), AITER, release="0.5.9", long=True
    ),
    "0.5.9-minimax-m2-fp8-scaled": Case(
        "minimax-m2", "fp8", WRITE, ("gfx942",), AITER, {}, SCALES, (), UNREAD, release="0.5.9"
    ),
    "0.5.9-qwen3-moe-fp8-scaled-aiter": Case(
        "qwen3-moe", "fp8", (*ROPE, *WRITE), ("gfx950",), AITER, {}, SCALES, (), UNREAD,
        release="0.5.9", long=True,
    ),
    "0.5.9-glm-5-bf16": Case("glm-5", "bf16", NSA, ("gfx942",), TILELANG, release="0.5.9"),
    "0.5.9-glm-5-fp8": Case(
        "glm-5", "fp8", NSA, ARCHS, TILELANG, upstream_refuses=NO_FP8, release="0.5.9"
    ),
    "0.5.9-gpt-oss-bf16": Case(
        "gpt-oss", "bf16", ROPE, ("gfx942",), TRITON, unmended_fault=WINDOW, release="0.5.9",
        long=True,
    ),
    "0.5.9-qwen3-moe-fp8-scaled": Case(
        "qwen3-moe", "fp8", ROPE, ("gfx950",), TRITON, {}, SCALES, release="0.5.9"
    ),
    "0.5.12-minimax-m2-fp8-scaled": Case(
        "minimax-m2", "fp8", WRITE, ("gfx942",), AITER, {}, SCALES, (), UNSCALED,
        release="0.5.12.post1", long=True,
    ),
    "0.5.12-qwen3-moe-fp8-scaled": Case(
        "qwen3-moe", "fp8", (*ROPE, *WRITE), ("gfx950",), AITER, {}, SCALES, (), UNSCALED,
        release="0.5.12.post1", long=True,
    ),
    "0.5.12-gpt-oss-fp8-scaled": Case(
        "gpt-oss", "fp8", ROPE, ("gfx942",), AITER, {}, SCALES, (), UNSCALED, WINDOW,
        release="0.5.12.post1", long=True,
    ),
}  # fmt: skip


def params(cases: dict) -> list:
    """The names of cases for pytest.mark.parametrize; those that are `long` are marked so."""
    return [
        pytest.param(name, marks=pytest.mark.long if case.long else ())
        for name, case in cases.items()
    ]


# Longer than index_topk: what the indexers select is all that attention sees.
SPARSE = {
    "0.5.10.post1": Case("glm-5-long", "fp8", NSA, server=LONG),
    "0.5.9": Case(
        "glm-5-long",
        "fp8",
        NSA,
        server=LONG | TILELANG,
        upstream_refuses=NO_FP8,
        release="0.5.9",
    ),
}
