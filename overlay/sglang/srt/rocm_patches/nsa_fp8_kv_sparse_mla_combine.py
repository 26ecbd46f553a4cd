"""TileLang program that combines the split results of nsa_fp8_kv_sparse_mla_tiles.py."""

# TVMScript evaluates annotations and names from this module's globals: no `annotations` future.
import tilelang.language as T  # noqa: N812
from sglang.srt.rocm_patches.nsa_fp8_kv_sparse_mla_tiles import BELOW_ALL


def combine(*, heads: int, d_v: int, splits: int):
    """Combine the splits of each token and head: out [tokens, heads, d_v] bf16.

    part and lse are ``partial``'s out and lse. One program per token and head loads all splits at
    once.
    """
    per_thread = 4
    tokens = T.dynamic("tokens")

    @T.prim_func
    def sparse_mla_combine(
        part: T.Tensor([tokens, splits, heads, d_v], "bfloat16"),
        lse: T.Tensor([tokens, splits, heads], "float32"),
        out: T.Tensor([tokens, heads, d_v], "bfloat16"),
    ):
        with T.Kernel(tokens, heads, threads=d_v // per_thread) as (token, head):
            first = T.get_thread_binding() * per_thread
            parts = T.alloc_local([splits * per_thread], "bfloat16")
            weight = T.alloc_local([splits], "float32")
            acc = T.alloc_local([per_thread], "float32")
            top = T.alloc_local([1], "float32")
            total = T.alloc_local([1], "float32")

            for s in T.unroll(splits):
                weight[s] = lse[token, s, head]
                for e in T.vectorized(per_thread):
                    parts[s * per_thread + e] = part[token, s, head, first + e]
            top[0] = BELOW_ALL
            for s in T.unroll(splits):
                top[0] = T.max(top[0], weight[s])
            total[0] = 0.0
            for e in T.unroll(per_thread):
                acc[e] = 0.0
            for s in T.unroll(splits):
                weight[s] = T.exp2(weight[s] - top[0])
                total[0] += weight[s]
                for e in T.unroll(per_thread):
                    acc[e] += weight[s] * T.cast(parts[s * per_thread + e], "float32")
            # If no split has keys, every weight is 1 and every value 0, so the result is 0.
            for e in T.vectorized(per_thread):
                out[token, head, first + e] = acc[e] / total[0]

    return sparse_mla_combine
