"""The shapes of one rank of each model, for the benchmarks and for ahead-of-time compilation.

From the models' published config.json: GLM-5, DeepSeek-V3.2, gpt-oss-120b, MiniMax-M2.5 and, for
Qwen3-MoE, Qwen3-235B-A22B. Tensor parallelism divides the query heads and the KV heads. If there
are fewer KV heads than ranks, ranks share a KV head. The indexer and the latent rows of MLA are not
divided: every rank has all of them.
"""

from dataclasses import dataclass, replace

TENSOR_PARALLEL = (1, 4, 8)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CACHE_DTYPES = ("bf16", "fp8")


@dataclass(frozen=True)
class GroupedQuery:
    """Attention whose cache holds K and V of each KV head."""

    slugs: tuple[str, ...]  # the optimisations on this model's path
    hidden: int
    q_heads: int
    kv_heads: int
    head: int
    rotary: int  # elements of a head that are rotated; pairs (i, i + rotary / 2)

    def rank(self, tp: int) -> "GroupedQuery":
        return replace(self, q_heads=self.q_heads // tp, kv_heads=max(self.kv_heads // tp, 1))


@dataclass(frozen=True)
class SparseLatent:
    """Sparse MLA: a cache of latent rows with a rotary tail, and an indexer that selects some.

    Rotary pairs of q and of the rows are (2i, 2i + 1).
    """

    slugs: tuple[str, ...]
    hidden: int
    q_heads: int
    index_heads: int
    latent: int = 512
    rotary: int = 64
    index_head: int = 128
    topk: int = 2048

    def rank(self, tp: int) -> "SparseLatent":
        return replace(self, q_heads=self.q_heads // tp)


NSA = ("layernorm", "indexer", "nsa-fp8-kv")
MODELS: dict[str, GroupedQuery | SparseLatent] = {
    "GLM-5": SparseLatent(NSA, 6144, 64, 32),
    "DeepSeek-V3.2": SparseLatent(NSA, 7168, 128, 64),
    "gpt-oss-120b": GroupedQuery(("rope-kv-store", "fp8-kv-write"), 2880, 64, 8, 64, 64),
    # Upstream's model never asks the rotation to store.
    "MiniMax-M2.5": GroupedQuery(("fp8-kv-write",), 3072, 48, 8, 128, 64),
    "Qwen3-MoE": GroupedQuery(("rope-kv-store", "fp8-kv-write"), 4096, 64, 4, 128, 128),
}


def ranks(slug: str) -> list[tuple[str, int, GroupedQuery | SparseLatent]]:
    """(model, tp, what a rank holds) of every model that `slug` is about, at every degree."""
    return [
        (name, tp, model.rank(tp))
        for name, model in MODELS.items()
        if slug in model.slugs
        for tp in TENSOR_PARALLEL
    ]
