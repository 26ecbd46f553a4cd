"""TileLang program of sparse MLA attention over a paged FP8 or bf16 KV cache.

Storage is FP8; arithmetic is 16-bit. Each FP8 key row is converted to fp16 on its way to LDS, which
is exact for e4m3. Both GEMMs run on the 16-bit matrix units with fp32 accumulators. So the only
rounding to FP8 is the cache's own; FP8 GEMMs would round q and the probabilities as well. The
16-bit GEMMs cost no time while the kernel is bound by memory: 16 heads do 60 FLOP per byte of FP8
cache.

The FP8 bytes are loaded as 32-bit words and converted by the C++ functions below. TileLang's own
FP8 types are not used: before https://github.com/tile-ai/tilelang/pull/1743 its e4m3 is the wrong
format on gfx950, and its casts convert one element at a time.

Both GEMMs are transposed (keys or value columns as rows, heads as columns): a matrix instruction
has at least 16 (AMD) or 64 (Hopper) rows, which few heads would not fill.
"""

# TVMScript evaluates annotations and names from this module's globals: no `annotations` future.
import tilelang
import tilelang.language as T  # noqa: N812

LOG2_E = 1.4426950408889634
# Initial m_i: below every score, and finite, so that m_old - m_new is never NaN.
BELOW_ALL = -(2.0**30)
# Rows of one matrix instruction; one wave reduces the maximum over so many key rows.
MATRIX_ROWS = 16

PASSES = {
    # The wrapper checks bounds; a check in each load would be a branch.
    tilelang.PassConfigKey.TL_DISABLE_SAFE_MEMORY_ACCESS: True,
    tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
    tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
}

# Two functions in native instructions. `uint32_t e4m3x2_to_f16x2(uint16_t)` converts two values of
# the chip's own e4m3 format, NaN included. `float power_of_2(float)` may flush results below
# 2^-126 to 0; exp2f needs four more instructions to return them.
NATIVE = {
    "cuda": """
__device__ __forceinline__ unsigned e4m3x2_to_f16x2(unsigned short pair) {
  unsigned wide;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(pair));
  return wide;
}
__device__ __forceinline__ float power_of_2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
""",
    "hip": """
#include <hip/hip_runtime.h>
__device__ __forceinline__ unsigned e4m3x2_to_f16x2(unsigned short pair) {
  typedef float float_pair __attribute__((ext_vector_type(2)));
  float_pair wide = __builtin_amdgcn_cvt_pk_f32_fp8(pair, false);
  return __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pkrtz(wide[0], wide[1]));
}
__device__ __forceinline__ float power_of_2(float x) { return __builtin_amdgcn_exp2f(x); }
""",
}


def partial(
    *,
    platform: str,
    fp8: bool,
    heads: int,
    d_v: int,
    tail: int,
    topk: int,
    splits: int,
    head_tile: int,
    keys: int,
    threads: int,
):
    """Split-KV forward: attention of each token over the ``topk / splits`` keys of each split.

    q [tokens, heads, d_v + tail] bf16; kv [bytes / 16, 4] int32, the cache's bytes; indices
    [tokens, topk] int32, negative for no key; out [tokens, splits, heads, d_v] bf16; lse [tokens,
    splits, heads] fp32, to base 2. A split without keys has lse BELOW_ALL and out 0. score_scale
    includes log2(e). One program per token, tile of ``head_tile`` heads, and split; it reads
    ``keys`` keys per step.
    """
    wide = "float16" if fp8 else "bfloat16"
    per_chunk = 16 if fp8 else 8  # elements in the 16 bytes that a thread loads at once
    row_chunks = (d_v + tail) // per_chunk
    slots_first = platform == "hip"
    rows = topk // splits
    tiles_of_heads = -(-heads // head_tile)
    groups = keys // MATRIX_ROWS
    # At least one wave per 16 rows; additional waves divide the heads.
    policy = T.GemmWarpPolicy.FullRow if threads == 128 else T.GemmWarpPolicy.FullCol
    tokens, chunks = T.dynamic("tokens"), T.dynamic("chunks")

    def passes(columns):
        return -(-keys * columns // per_chunk // threads)

    def place(column):
        """Swizzle: the LDS position of a column of d_v. The mapping is its own inverse.

        A thread converts 16 FP8 bytes to two chunks of 16 bytes. Stored side by side, the chunks of
        neighbouring threads would be 32 bytes apart, with bank conflicts. So swap bits 0 and 3 of
        the chunk index: the first chunks of 8 threads then cover 128 contiguous bytes, and so do
        the second chunks. q uses the same order; the result is stored in the original order.
        """
        if not fp8 or d_v % 128:
            return column
        first, middle, last = column // 8 % 2, column // 16 % 4, column // 64 % 2
        return column // 128 * 128 + first * 64 + middle * 16 + last * 8 + column % 8

    def as_is(column):
        return column

    def power_of_2(exponent):
        return T.call_extern("float32", "power_of_2", exponent)

    def slot_of_chunk(slot_of, tile, chunk, columns):
        return slot_of[tile * keys + chunk // (columns // per_chunk)]

    @T.macro
    def gather(kv, slot_of, slots, words, tile, first, columns, thread):
        """Columns [first, first + columns) of a tile's rows, 16 bytes at a time.

        Load zeros if there is no key: any cache row may hold NaN, and 0 * NaN is NaN. This needs a
        branch around each load. On AMD, read all slots first; otherwise each load would wait for
        its slot. On NVIDIA, reading all slots first gives worse code (bench/README.md).
        """
        lanes = columns // per_chunk
        if slots_first:
            for i in T.unroll(passes(columns)):
                chunk = i * threads + thread
                if chunk < keys * lanes:
                    slots[i] = slot_of_chunk(slot_of, tile, chunk, columns)
        for i in T.unroll(passes(columns)):
            chunk = i * threads + thread
            if chunk < keys * lanes:
                slot = slots[i] if slots_first else slot_of_chunk(slot_of, tile, chunk, columns)
                row = T.cast(slot, "int64")  # large pools have more than 2^31 bytes
                words[T.Ramp(i * 4, 1, 4)] = T.if_then_else(
                    slot >= 0,
                    kv[row * row_chunks + (first // per_chunk + chunk % lanes), T.Ramp(0, 1, 4)],
                    T.Broadcast(0, 4),
                )

    @T.macro
    def widen(words, first_word, elements):
        for w in T.unroll(4):
            word = T.reinterpret("uint32", words[first_word + w])
            if fp8:
                for side in T.unroll(2):  # not named `half`, which is a type in HIP
                    pair = T.cast((word >> T.uint32(16 * side)) & T.uint32(0xFFFF), "uint16")
                    elements[T.Ramp(w * 4 + side * 2, 1, 2)] = T.reinterpret(
                        "float16x2", T.call_extern("uint32", "e4m3x2_to_f16x2", pair)
                    )
            else:
                elements[T.Ramp(w * 2, 1, 2)] = T.reinterpret("bfloat16x2", word)

    @T.macro
    def put(words, elements, shared, columns, order, thread):
        """Convert gathered words and store them in LDS."""
        lanes = columns // per_chunk
        for i in T.unroll(passes(columns)):
            chunk = i * threads + thread
            if chunk < keys * lanes:
                widen(words, i * 4, elements)
                for piece in T.unroll(per_chunk // 8):
                    for e in T.vectorized(8):
                        shared[chunk // lanes, order(chunk % lanes * per_chunk + piece * 8 + e)] = (
                            elements[piece * 8 + e]
                        )

    @T.prim_func
    def sparse_mla_partial(
        q: T.Tensor([tokens, heads, d_v + tail], "bfloat16"),
        kv: T.Tensor([chunks, 4], "int32"),
        indices: T.Tensor([tokens, topk], "int32"),
        out: T.Tensor([tokens, splits, heads, d_v], "bfloat16"),
        lse: T.Tensor([tokens, splits, heads], "float32"),
        score_scale: T.float32,
        value_scale: T.float32,
    ):
        with T.Kernel(tokens * tiles_of_heads, splits, threads=threads) as (program, split):
            T.import_source(NATIVE[platform])
            token = program // tiles_of_heads
            head0 = program % tiles_of_heads * head_tile
            thread = T.get_thread_binding()

            slot_of = T.alloc_shared([rows], "int32")
            q_head = T.alloc_shared([head_tile, d_v], wide)
            q_tail = T.alloc_shared([head_tile, tail], wide)
            kv_head = T.alloc_shared([keys, d_v], wide)
            kv_tail = T.alloc_shared([keys, tail], wide)
            p_shared = T.alloc_shared([keys, head_tile], wide)
            top_shared = T.alloc_shared([groups, head_tile], "float32")
            shrink_shared = T.alloc_shared([head_tile], "float32")
            # Padded by 16 bytes, so that the heads of one column are on different banks.
            out_shared = T.alloc_shared([head_tile, d_v + 8], "bfloat16")

            words_head = T.alloc_local([passes(d_v) * 4], "int32")
            words_tail = T.alloc_local([passes(tail) * 4], "int32")
            elements = T.alloc_local([per_chunk], wide)
            slots = T.alloc_local([max(passes(d_v), passes(tail))], "int32")

            scores = T.alloc_fragment([keys, head_tile], "float32")
            grouped = T.alloc_fragment([groups, MATRIX_ROWS, head_tile], "float32")
            top_of_group = T.alloc_fragment([groups, head_tile], "float32")
            sums = T.alloc_fragment([keys, head_tile], "float32")
            total = T.alloc_fragment([head_tile], "float32")
            acc = T.alloc_fragment([d_v, head_tile], "float32")
            top = T.alloc_fragment([head_tile], "float32")
            # alpha = 2^(m_old - m_new), once in the layout of the scores and once in that of acc.
            shrink = T.alloc_fragment([head_tile], "float32")
            shrink_acc = T.alloc_fragment([head_tile], "float32")

            for i in T.Parallel(rows):
                slot_of[i] = indices[token, split * rows + i]
            for h, d in T.Parallel(head_tile, d_v):
                q_head[h, d] = T.if_then_else(
                    head0 + h < heads,
                    T.cast(T.cast(q[token, head0 + h, place(d)], "float32"), wide),
                    T.cast(0, wide),
                )
            for h, d in T.Parallel(head_tile, tail):
                q_tail[h, d] = T.if_then_else(
                    head0 + h < heads,
                    T.cast(T.cast(q[token, head0 + h, d_v + d], "float32"), wide),
                    T.cast(0, wide),
                )
            T.fill(acc, 0)
            T.fill(sums, 0)
            T.fill(top, BELOW_ALL)

            gather(kv, slot_of, slots, words_head, 0, 0, d_v, thread)
            gather(kv, slot_of, slots, words_tail, 0, d_v, tail, thread)
            for tile in T.serial(rows // keys):
                put(words_head, elements, kv_head, d_v, place, thread)
                put(words_tail, elements, kv_tail, tail, as_is, thread)
                # Prefetch the next tile into registers while this tile is computed.
                if tile + 1 < rows // keys:
                    gather(kv, slot_of, slots, words_head, tile + 1, 0, d_v, thread)
                    gather(kv, slot_of, slots, words_tail, tile + 1, d_v, tail, thread)

                T.gemm(kv_head, q_head, scores, transpose_B=True, clear_accum=True, policy=policy)
                T.gemm(kv_tail, q_tail, scores, transpose_B=True, policy=policy)
                for i, h in T.Parallel(keys, head_tile):
                    scores[i, h] = T.if_then_else(
                        slot_of[tile * keys + i] >= 0,
                        scores[i, h] * score_scale,
                        -T.infinity("float32"),
                    )

                # Each wave reduces the maximum of its own rows, then the waves exchange maxima once
                # through LDS. A reduction over the workgroup takes two barriers per doubling.
                for i, h in T.Parallel(keys, head_tile):
                    grouped[i // MATRIX_ROWS, i % MATRIX_ROWS, h] = scores[i, h]
                T.reduce_max(grouped, top_of_group, dim=1)
                T.copy(top_of_group, top_shared)
                T.copy(top, shrink)
                for h in T.Parallel(head_tile):
                    for g in T.unroll(groups):
                        top[h] = T.max(top[h], top_shared[g, h])
                for h in T.Parallel(head_tile):
                    shrink[h] = power_of_2(shrink[h] - top[h])
                T.copy(shrink, shrink_shared)
                for i, h in T.Parallel(keys, head_tile):
                    scores[i, h] = power_of_2(scores[i, h] - top[h])
                # For the same reason, each thread keeps partial sums of l_i until the end.
                for i, h in T.Parallel(keys, head_tile):
                    sums[i, h] = sums[i, h] * shrink[h] + scores[i, h]
                T.copy(scores, p_shared)
                T.copy(shrink_shared, shrink_acc)
                for d, h in T.Parallel(d_v, head_tile):
                    acc[d, h] *= shrink_acc[h]
                T.gemm(kv_head, p_shared, acc, transpose_A=True, policy=policy)

            T.reduce_sum(sums, total, dim=0)
            for h in T.Parallel(head_tile):
                shrink[h] = T.if_then_else(total[h] > 0, value_scale / total[h], 0.0)
            T.copy(shrink, shrink_shared)
            T.copy(shrink_shared, shrink_acc)
            for d, h in T.Parallel(d_v, head_tile):
                out_shared[h, d] = T.cast(acc[d, h] * shrink_acc[h], "bfloat16")
            for h, d in T.Parallel(head_tile, d_v):
                if head0 + h < heads:
                    out[token, split, head0 + h, d] = out_shared[h, place(d)]
            for h in T.Parallel(head_tile):
                if head0 + h < heads:
                    lse[token, split, head0 + h] = T.if_then_else(
                        total[h] > 0, T.log2(total[h]) + top[h], BELOW_ALL
                    )

    return sparse_mla_partial
