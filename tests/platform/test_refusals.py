"""Catches a reference that lets a wrong call pass: a right one passes, and with one argument
changed it is refused, by name."""

import pytest
import torch

from tests.platform import operators, recorder
from tests.platform.imports import NotEmulatedError
from tests.platform.operators.quantisation import QuantType

pytestmark = pytest.mark.slow

BF16, INT = torch.bfloat16, torch.int32


@pytest.fixture(autouse=True)
def provided(platform):
    if platform.name == "rocm":
        pytest.skip("nothing is replaced there")
    device = torch.get_default_device()
    torch.set_default_device(platform.device)
    yield operators.install(platform)
    torch.set_default_device(device)


def fp8():
    return operators.chip().fp8_dtype


def foreign(x=None):
    """The other chip's e4m3, or a tensor in it."""
    [other] = {torch.float8_e4m3fn, torch.float8_e4m3fnuz} - {fp8()}
    return other if x is None else x.float().to(other)


def randn(*shape, dtype=BF16):
    return torch.randn(*shape).to(dtype)


def ints(*values):
    return torch.tensor(values, dtype=INT)


def first(x, value):
    """x, whose first element is another."""
    x = x.clone()
    x.view(-1)[0] = value
    return x


# The right calls: the operator, and what it is called with.


def fused_moe():
    return "aiter.fused_moe.fused_moe", {
        "hidden_states": randn(5, 16),
        "w1": randn(4, 24, 16, dtype=fp8()),
        "w2": randn(4, 16, 12, dtype=fp8()),
        "topk_weight": torch.rand(5, 2),
        "topk_ids": torch.randint(0, 4, (5, 2), dtype=INT),
        "quant_type": QuantType.per_Token,
        "w1_scale": torch.rand(4, 24),
        "w2_scale": torch.rand(4, 16),
    }


def fused_topk():
    return "aiter.fused_moe.fused_topk", {
        "hidden_states": randn(3, 16),
        "gating_output": randn(3, 8),
        "topk": 2,
        "renormalize": True,
        "topk_ids": torch.empty(3, 2, dtype=INT),
        "topk_weights": torch.empty(3, 2),
    }


def moe_align():
    return "sgl_kernel.moe_align_block_size", {
        "topk_ids": torch.randint(-1, 4, (5, 2), dtype=INT),
        "num_experts": 5,
        "block_size": 4,
        "sorted_token_ids": torch.empty(25, dtype=INT),
        "experts_ids": torch.empty(7, dtype=INT),
        "num_tokens_post_pad": torch.empty(1, dtype=INT),
        "cumsum_buffer": torch.empty(6, dtype=INT),
        "pad_sorted_token_ids": True,
    }


def mla_decode():
    return "aiter.mla.mla_decode_fwd", {
        "q": randn(2, 16, 48),
        "kv_buffer": randn(9, 1, 1, 48, dtype=fp8()),
        "o": torch.empty(2, 16, 32, dtype=BF16),
        "qo_indptr": ints(0, 1, 2),
        "kv_indptr": ints(0, 3, 5),
        "kv_indices": ints(8, 1, 4, 0, 3),
        "kv_last_page_lens": ints(1, 1),
        "max_seqlen_q": 1,
        "kv_scale": torch.tensor([0.5]),
    }


def mla_prefill():
    _, right = mla_decode()
    del right["kv_scale"], right["o"]
    rest = {"kv_buffer": randn(9, 1, 1, 48), "output": torch.empty(2, 16, 32, dtype=BF16)}
    return "aiter.mla.mla_prefill_fwd", right | rest


def mla_metadata():
    tables = ["work_metadata_ptrs", "work_info_set", "work_indptr"]
    tables += ["reduce_indptr", "reduce_final_map", "reduce_partial_map"]
    return "aiter.get_mla_metadata_v1", {
        "seqlens_qo_indptr": ints(0, 1, 2),
        "seqlens_kv_indptr": ints(0, 3, 5),
        "kv_last_page_lens": ints(1, 1),
        "num_heads_per_head_k": 16,
        "num_heads_k": 1,
        "is_causal": False,
        "max_seqlen_qo": 1,
        "uni_seqlen_qo": 1,
        "dtype_q": fp8(),
        "dtype_kv": fp8(),
        **{table: torch.empty(1, dtype=INT) for table in tables},
    }


def unified(stored=BF16):
    scale = None if stored is BF16 else torch.tensor([0.5])
    return "aiter.ops.triton.attention.unified_attention.unified_attention", {
        "q": randn(3, 4, 32),
        "k": randn(6, 2, 2, 32, dtype=stored),
        "v": randn(6, 2, 2, 32, dtype=stored),
        "out": torch.empty(3, 4, 32, dtype=BF16),
        "cu_seqlens_q": ints(0, 1, 3),
        "max_seqlen_q": 2,
        "seqused_k": ints(3, 4),
        "max_seqlen_k": 6,
        "softmax_scale": 0.1,
        "causal": True,
        "window_size": (2, 0),
        "block_table": torch.tensor([[5, 1, -1], [0, 2, -1]], dtype=INT),
        "softcap": 0,
        "q_descale": None,
        "k_descale": scale,
        "v_descale": scale,
    }


def unified_fp8():
    return unified(fp8())


def prefill(dtype=BF16):
    scale = None if dtype is BF16 else torch.tensor([0.5])
    return "aiter.mha_batch_prefill_func", {
        "q": randn(3, 4, 32, dtype=dtype),
        "k": randn(9, 2, 32, dtype=dtype),
        "v": randn(9, 2, 32, dtype=dtype),
        "cu_seqlens_q": ints(0, 1, 3),
        "kv_indptr": ints(0, 3, 7),
        "kv_page_indices": ints(8, 1, 4, 0, 3, 2, 7),
        "max_seqlen_q": 2,
        "max_seqlen_k": 4,
        "causal": True,
        "q_descale": scale,
        "k_descale": scale,
        "v_descale": scale,
    }


def prefill_fp8():
    return prefill(fp8())


def ragged_decode():
    return "aiter.paged_attention_ragged", {
        "out": torch.empty(2, 4, 64, dtype=BF16),
        "workspace": None,
        "query": randn(2, 4, 64),
        "key_cache": randn(9, 1, 2, 64),
        "value_cache": randn(9, 1, 2, 64),
        "scale": 0.1,
        "kv_indptr": ints(0, 3, 5),
        "kv_page_indices": ints(8, 1, 4, 0, 3),
        "kv_last_page_lens": ints(1, 1, 1),
        "block_size": 1,
        "max_num_partitions": 1,
        "alibi_slopes": None,
        "kv_cache_dtype": "auto",
        "kv_cache_layout": "NHD",
        "logits_soft_cap": 0.0,
        "k_scale": torch.ones(1),
        "v_scale": torch.ones(1),
    }


def varlen():
    return "aiter.flash_attn_varlen_func", {
        "q": randn(3, 4, 48),
        "k": randn(7, 4, 48),
        "v": randn(7, 4, 32),
        "cu_seqlens_q": ints(0, 1, 3),
        "cu_seqlens_k": ints(0, 3, 7),
        "max_seqlen_q": 2,
        "max_seqlen_k": 4,
        "causal": True,
    }


def atomic_product():
    return "aiter.ops.triton.gemm_a16w16_atomic.gemm_a16w16_atomic", {
        "x": randn(5, 40),
        "w": randn(3, 40),
        "y": torch.zeros(5, 3),
    }


def shuffle_weight():
    return "aiter.ops.shuffle.shuffle_weight", {"x": randn(32, 64), "layout": (16, 16)}


def index_logits():
    return "aiter.ops.triton.fp8_mqa_logits.fp8_mqa_logits", {
        "Q": randn(3, 4, 64, dtype=fp8()),
        "KV": randn(9, 64, dtype=fp8()),
        "kv_scales": torch.rand(9),
        "weights": torch.rand(3, 4),
        "cu_starts": ints(0, 2, 5),
        "cu_ends": ints(9, 6, 5),
    }


def paged_index_logits():
    return "aiter.ops.triton.pa_mqa_logits.deepgemm_fp8_paged_mqa_logits", {
        "q_fp8": randn(2, 1, 4, 64, dtype=fp8()),
        "kv_cache": torch.zeros(9, 1, 1, 68, dtype=torch.uint8),
        "weights": torch.rand(2, 4),
        "out_logits": torch.empty(2, 12),
        "context_lens": ints(9, 4),
        "kv_indices": torch.arange(10, dtype=INT).repeat(2, 1),
        "max_model_len": 12,
    }


def best():
    return "sgl_kernel.fast_topk_v2", {
        "score": torch.rand(2, 2100),
        "lengths": ints(2090, 7),
        "topk": 2048,
        "row_starts": ints(10, 0),
    }


def best_of_a_table():
    return "sgl_kernel.fast_topk_transform_fused", {
        "score": torch.rand(2, 2100),
        "lengths": ints(2100, 7),
        "page_table_size_1": torch.arange(2100, dtype=INT).repeat(2, 1),
        "cu_seqlens_q": ints(0, 1, 2),
        "topk": 2048,
    }


def index_store():
    return "aiter.ops.cache.indexer_k_quant_and_cache", {
        "k": randn(2, 128),
        "kv_cache": torch.zeros(4, 1, 132, dtype=torch.uint8),
        "slot_mapping": torch.tensor([3, -1]),
        "quant_block_size": 128,
        "scale_fmt": "ue8m0",
    }


def fused_mla_write():
    return "aiter.ops.triton.fused_kv_cache.fused_qk_rope_cat_and_cache_mla", {
        "q_nope": randn(3, 2, 32),
        "q_pe": randn(3, 2, 16),
        "k_nope": randn(3, 1, 32),
        "k_pe": randn(3, 1, 16),
        "kv_cache": randn(5, 1, 48, dtype=fp8()),
        "slot_mapping": torch.tensor([4, -1, 0]),
        "pos": torch.tensor([1, 2, 3]),
        "cos": randn(8, 1, 1, 8),
        "sin": randn(8, 1, 1, 8),
        "k_scale": None,
        "is_neox": True,
    }


def rope():
    return "sgl_kernel.rotary_embedding", {
        "positions": torch.tensor([7, 0]),
        "query": randn(2, 32),
        "key": randn(2, 16),
        "head_size": 16,
        "cos_sin_cache": randn(8, 16),
        "is_neox": True,
    }


def rmsnorm():
    rows = {name: randn(3, 16) for name in ("out", "input", "residual_in", "residual_out")}
    return "aiter.rmsnorm2d_fwd_with_add", rows | {"weight": randn(16), "epsilon": 1e-6}


def group_quant():
    return "aiter.per_group_quant_hip", {"x": randn(3, 256), "quant_dtype": fp8()}


def token_quant():
    return "aiter.dynamic_per_token_scaled_quant", {
        "out": torch.empty(3, 65, dtype=fp8()),
        "input": randn(3, 65),
        "scales": torch.empty(3, 1),
    }


def tensor_quant():
    return "aiter.static_per_tensor_quant", {
        "out": torch.empty(3, 65, dtype=fp8()),
        "input": randn(3, 65),
        "scale": torch.ones(1),
    }


def act_quant():
    from tests.platform.operators.tilelang import act_quant_kernel

    return act_quant_kernel(256, round_scale=True), {
        "x": randn(3, 256),
        "y": torch.empty(3, 256, dtype=fp8()),
        "scales": torch.empty(3, 2),
    }


def sparse_rows(factory, dtype):
    kernel = factory(16, 32, 16, 128, sm_scale=0.1)
    kernel.__qualname__ = factory.__name__
    return kernel, {
        "q": randn(1, 2, 16, 48).to(dtype),
        "kv": randn(1, 9, 1, 48).to(dtype),
        "indices": torch.randint(-1, 9, (1, 2, 1, 128), dtype=INT),
    }


def sparse_attention():
    from tests.platform.operators.tilelang import sparse_attention_fwd_kernel_v1

    return sparse_rows(sparse_attention_fwd_kernel_v1, BF16)


def sparse_partial():
    from tests.platform.operators.tilelang import sparse_mla_fwd_decode_partial

    return sparse_rows(sparse_mla_fwd_decode_partial, BF16)


def sparse_combine():
    from tests.platform.operators.tilelang import sparse_mla_fwd_decode_combine

    return sparse_mla_fwd_decode_combine(16, 32, 128, 4), {
        "partial_out": randn(1, 3, 2, 16, 32),
        "partial_lse": torch.rand(1, 3, 2, 16),
    }


def store_cache():
    from tests.platform.operators.jit import store_cache

    return store_cache, {
        "k": randn(3, 128),
        "v": randn(3, 128),
        "k_cache": randn(9, 128),
        "v_cache": randn(9, 128),
        "indices": torch.tensor([8, 0, 4]),
        "num_split": 2,
    }


def silu():
    return "sgl_kernel.silu_and_mul", {
        "input": randn(3, 16),
        "out": torch.empty(3, 8, dtype=BF16),
    }


# A right call, what is changed in it, and what the refusal says.
WRONG = [
    (fused_moe, lambda a: {"w1_scale": None}, "w1_scale is None, expected one per_Token"),
    (fused_moe, lambda a: {"w2_scale": None}, "w2_scale is None"),
    (fused_moe, lambda a: {"w1_scale": a["w1_scale"].double()}, "w1_scale of torch.float64"),
    (fused_moe, lambda a: {"quant_type": QuantType.No}, "w1_scale for weights as they are"),
    (fused_moe, lambda a: {"quant_type": QuantType.per_1x32}, "per_1x32"),
    (fused_moe, lambda a: {"w1": foreign(a["w1"])}, "w1 of torch.float8"),
    (fused_moe, lambda a: {"w1": a["w1"][:, :, :8]}, "w1 of .*, expected"),
    (fused_moe, lambda a: {"topk_ids": first(a["topk_ids"], -1)}, "topk_ids has -1"),
    (fused_moe, lambda a: {"topk_ids": first(a["topk_ids"], 4)}, "topk_ids has 4, expected 0 to 3"),
    (fused_moe, lambda a: {"topk_ids": a["topk_ids"].long()}, "topk_ids of torch.int64"),
    (fused_moe, lambda a: {"topk_weight": a["topk_weight"].bfloat16()}, "topk_weight of"),
    (fused_topk, lambda a: {"topk": 3}, "topk_ids of .3, 2., expected .3, 3."),
    (fused_topk, lambda a: {"topk_ids": a["topk_ids"].long()}, "topk_ids of torch.int64"),
    (fused_topk, lambda a: {"topk_weights": None}, "no topk_ids, topk_weights"),
    (moe_align, lambda a: {"topk_ids": first(a["topk_ids"], 4)}, "has 5, expected 0 to 4"),
    (moe_align, lambda a: {"sorted_token_ids": ints(0)}, "shorter than"),
    (moe_align, lambda a: {"cumsum_buffer": ints(0)}, "cumsum_buffer of 1, expected 6"),
    (mla_decode, lambda a: {"kv_buffer": foreign(a["kv_buffer"])}, "kv_buffer of torch.float8"),
    (mla_decode, lambda a: {"kv_buffer": a["kv_buffer"].bfloat16()}, "kv_scale for torch.bfloat16"),
    (mla_decode, lambda a: {"q": a["q"].to(fp8())}, "q_scale is None"),
    (mla_decode, lambda a: {"q_scale": torch.tensor([0.5])}, "q_scale for torch.bfloat16"),
    (mla_decode, lambda a: {"kv_scale": torch.ones(2)}, "kv_scale of 2 values"),
    (mla_decode, lambda a: {"q": randn(2, 7, 48), "o": randn(2, 7, 32)}, "7 heads, expected one"),
    (mla_decode, lambda a: {"q": randn(2, 48, 48), "o": randn(2, 48, 32)}, "48 heads"),
    (mla_decode, lambda a: {"kv_last_page_lens": ints(7, 7)}, r"kv_last_page_lens \[7, 7\]"),
    (mla_decode, lambda a: {"kv_last_page_lens": ints(1)}, r"expected 1 for each of 2"),
    (mla_decode, lambda a: {"kv_indices": first(a["kv_indices"], -1)}, "kv_indices has -1"),
    (mla_decode, lambda a: {"kv_indices": first(a["kv_indices"], 9)}, "kv_indices has 9"),
    (mla_decode, lambda a: {"kv_indices": a["kv_indices"][:4]}, "4 kv_indices, expected 5"),
    (mla_decode, lambda a: {"kv_indptr": a["kv_indptr"].long()}, "kv_indptr of torch.int64"),
    (mla_decode, lambda a: {"max_seqlen_q": 0}, "max_seqlen_q of 0, expected at least 1"),
    (mla_decode, lambda a: {"o": randn(2, 16, 64)}, "out of width 64"),
    (mla_decode, lambda a: {"work_indptr": ints(0)}, "expected all or none"),
    (mla_decode, lambda a: {"page_size": 16}, "page_size 16"),
    (mla_prefill, lambda a: {"kv_buffer": a["kv_buffer"].to(fp8())}, "kv_buffer of torch.float8"),
    (mla_prefill, lambda a: {"q": randn(2, 32, 48)}, "32 heads, expected 16 or 128"),
    (mla_prefill, lambda a: {"kv_indices": first(a["kv_indices"], -1)}, "kv_indices has -1"),
    (mla_metadata, lambda a: {"num_heads_per_head_k": 7}, "7 heads"),
    (mla_metadata, lambda a: {"num_heads_k": 2}, "num_heads_k 2"),
    (mla_metadata, lambda a: {"is_causal": True}, "is_causal"),
    (mla_metadata, lambda a: {"page_size": 16}, "page_size 16"),
    (mla_metadata, lambda a: {"kv_granularity": 17}, "kv_granularity 17"),
    (mla_metadata, lambda a: {"dtype_kv": foreign()}, "q or kv of torch.float8"),
    (mla_metadata, lambda a: {"kv_last_page_lens": ints(1, 7)}, r"kv_last_page_lens \[1, 7\]"),
    (mla_metadata, lambda a: {"seqlens_qo_indptr": ints(0, 1, 3)}, "max_seqlen_qo of 1"),
    (mla_metadata, lambda a: {"intra_batch_mode": True}, "fast_mode and intra_batch_mode"),
    (unified, lambda a: {"window_size": (2, 3)}, r"window_size \(2, 3\)"),
    (unified, lambda a: {"max_seqlen_q": 1}, "max_seqlen_q of 1, expected at least 2"),
    (unified, lambda a: {"max_seqlen_k": 3}, "max_seqlen_k for 3 keys, expected at least 4"),
    (unified, lambda a: {"k_descale": torch.ones(1)}, "k_descale is given for torch.bfloat16"),
    (unified, lambda a: {"v_descale": torch.ones(1)}, "v_descale is given for torch.bfloat16"),
    (unified, lambda a: {"block_table": first(a["block_table"], -1)}, "block_table has -1"),
    (unified, lambda a: {"block_table": first(a["block_table"], 6)}, "block_table has 6"),
    (unified, lambda a: {"block_table": a["block_table"][:, :1]}, "block_table for 2 keys"),
    (unified, lambda a: {"seqused_k": ints(3)}, "seqused_k for 1 sequences"),
    (unified, lambda a: {"sinks": torch.rand(2)}, r"sinks of \(2,\), expected \(4,\)"),
    (unified, lambda a: {"k": foreign(a["k"]), "v": foreign(a["v"])}, "k of torch.float8"),
    (unified_fp8, lambda a: {"k_descale": None}, "k_descale is None"),
    (unified_fp8, lambda a: {"v": a["v"].bfloat16()}, "v of torch.bfloat16"),
    (prefill, lambda a: {"k_descale": torch.ones(1)}, "k_descale is given for torch.bfloat16"),
    (prefill, lambda a: {"v_descale": torch.ones(1)}, "v_descale is given for torch.bfloat16"),
    (prefill, lambda a: {"kv_page_indices": first(a["kv_page_indices"], -1)}, "indices has -1"),
    (prefill, lambda a: {"kv_page_indices": first(a["kv_page_indices"], 9)}, "indices has 9"),
    (prefill, lambda a: {"kv_page_indices": a["kv_page_indices"].long()}, "kv_page_indices of"),
    (prefill, lambda a: {"max_seqlen_q": 1}, "max_seqlen_q of 1, expected at least 2"),
    (prefill, lambda a: {"max_seqlen_k": 3}, "max_seqlen_k of 3, expected at least 4"),
    (prefill, lambda a: {"window_size": (2, 3)}, r"window_size \(2, 3\)"),
    (prefill, lambda a: {"window_size": (2, -1), "causal": False}, "not causal"),
    (prefill_fp8, lambda a: {"v_descale": None}, "v_descale is None"),
    (prefill_fp8, lambda a: {"q": a["q"].bfloat16()}, "torch.bfloat16 query on torch.float8"),
    (prefill_fp8, lambda a: {"k_descale": torch.ones(2)}, "k_descale of 2 values"),
    (ragged_decode, lambda a: {"kv_page_indices": first(a["kv_page_indices"], -1)}, "has -1"),
    (ragged_decode, lambda a: {"kv_last_page_lens": ints(1, 7)}, r"kv_last_page_lens \[1, 7\]"),
    (ragged_decode, lambda a: {"max_num_partitions": 0}, "max_num_partitions of 0"),
    (ragged_decode, lambda a: {"partition_size": 128}, "partition_size 128"),
    (varlen, lambda a: {"max_seqlen_q": 1}, "max_seqlen_q of 1"),
    (varlen, lambda a: {"max_seqlen_k": 3}, "max_seqlen_k of 3"),
    (varlen, lambda a: {"cu_seqlens_k": ints(0, 3, 6)}, "cu_seqlens_k to 6, expected 7"),
    (varlen, lambda a: {"k": a["k"].to(fp8())}, "k of torch.float8"),
    (varlen, lambda a: {"cu_seqlens_q": a["cu_seqlens_q"].long()}, "cu_seqlens_q of torch.int64"),
    (atomic_product, lambda a: {"dtype": torch.float16}, "dtype torch.float16"),
    (atomic_product, lambda a: {"x": a["x"].float()}, "x of torch.float32"),
    (shuffle_weight, lambda a: {"layout": (32, 16)}, r"layout \(32, 16\), expected \(16, 16\)"),
    (shuffle_weight, lambda a: {"use_int4": True}, "use_int4"),
    (index_logits, lambda a: {"weights": a["weights"].bfloat16()}, "weights of torch.bfloat16"),
    (index_logits, lambda a: {"kv_scales": torch.rand(1)}, "1 kv_scales for 9 keys"),
    (index_logits, lambda a: {"KV": foreign(a["KV"])}, "KV of torch.float8"),
    (paged_index_logits, lambda a: {"max_model_len": 13}, "out_logits of .2, 12., expected .2, 13"),
    (paged_index_logits, lambda a: {"weights": a["weights"].bfloat16()}, "weights of torch.bf"),
    (paged_index_logits, lambda a: {"weights": a["weights"][:1]}, r"weights of \(1, 4\)"),
    (paged_index_logits, lambda a: {"kv_indices": first(a["kv_indices"], -1)}, "kv_indices has -1"),
    (paged_index_logits, lambda a: {"kv_indices": a["kv_indices"][:, :8]}, "kv_indices for 8 keys"),
    (paged_index_logits, lambda a: {"context_lens": ints(13, 4)}, "max_model_len for 12 keys"),
    (paged_index_logits, lambda a: {"KVBlockSize": 64}, "KVBlockSize 64"),
    (best, lambda a: {"topk": 1024}, "topk 1024, expected 2048"),
    (best, lambda a: {"row_starts": ints(11, 0)}, "to 2101 from row_starts 11"),
    (best, lambda a: {"lengths": a["lengths"].long()}, "lengths of torch.int64"),
    (best, lambda a: {"score": a["score"].bfloat16()}, "score of torch.bfloat16"),
    (
        best_of_a_table,
        lambda a: {"page_table_size_1": a["page_table_size_1"][:, :6], "lengths": ints(7, 7)},
        "page_table_size_1: position has 6, expected 0 to 5",
    ),
    (best_of_a_table, lambda a: {"page_table_size_1": a["page_table_size_1"][:1]}, "of 1, expect"),
    (
        best_of_a_table,
        lambda a: {"cu_seqlens_q": ints(0, 1, 1), "row_starts": ints(0, 0)},
        "cu_seqlens_q to 1, expected 2",
    ),
    (index_store, lambda a: {"slot_mapping": torch.tensor([4, -1])}, "a slot past the cache"),
    (index_store, lambda a: {"kv_cache": a["kv_cache"][..., :131].contiguous()}, "rows of 131"),
    (fused_mla_write, lambda a: {"kv_cache": foreign(a["kv_cache"])}, "kv_cache of torch.float8"),
    (fused_mla_write, lambda a: {"q_out_dtype": foreign()}, "q_out_dtype torch.float8"),
    (fused_mla_write, lambda a: {"slot_mapping": first(a["slot_mapping"], 5)}, "mapping has 5"),
    (fused_mla_write, lambda a: {"pos": first(a["pos"], -1)}, "pos has -1"),
    (fused_mla_write, lambda a: {"pos": a["pos"][:1]}, r"pos of \(1,\), expected \(3,\)"),
    (fused_mla_write, lambda a: {"k_scale": torch.ones(2)}, "k_scale of 2 values"),
    (rope, lambda a: {"positions": torch.tensor([7, -1])}, "positions has -1, expected 0 to 7"),
    (rmsnorm, lambda a: {"residual_in": a["residual_in"].float()}, "residual_in of torch.float32"),
    (rmsnorm, lambda a: {"residual_out": randn(4, 3, 16)}, "residual_out of"),
    (group_quant, lambda a: {"quant_dtype": foreign()}, "torch.float8"),
    (group_quant, lambda a: {"x": randn(3, 130)}, "x of width 130"),
    (token_quant, lambda a: {"out": foreign(randn(3, 65))}, "torch.float8"),
    (token_quant, lambda a: {"input": a["input"] * 0}, "a row of zeros"),
    (token_quant, lambda a: {"scales": torch.empty(1)}, "1 scales, expected 3"),
    (tensor_quant, lambda a: {"scale": torch.ones(3, 1)}, "scale of 3 values"),
    (tensor_quant, lambda a: {"out": torch.empty(4, 65, dtype=fp8())}, r"out of \(4, 65\)"),
    (act_quant, lambda a: {"x": randn(3, 128)}, r"x of \(3, 128\), expected \(3, 256\)"),
    (act_quant, lambda a: {"scales": torch.empty(3, 1)}, r"scales of \(3, 1\)"),
    (sparse_attention, lambda a: {"indices": a["indices"][..., :64]}, "indices of .*, expected .*"),
    (sparse_attention, lambda a: {"indices": first(a["indices"], 9)}, "indices has 9"),
    (sparse_partial, lambda a: {"indices": a["indices"][..., :64]}, "indices of .*64., expected"),
    (sparse_partial, lambda a: {"indices": first(a["indices"], 9)}, "indices has 9"),
    (sparse_partial, lambda a: {"indices": a["indices"].long()}, "indices of torch.int64"),
    (sparse_partial, lambda a: {"q": randn(1, 2, 7, 48)}, "q of .*, expected .1, 2, 16, 48"),
    (sparse_combine, lambda a: {"partial_lse": torch.rand(1, 1, 2, 16)}, "partial_lse of"),
    (store_cache, lambda a: {"indices": torch.tensor([8, -1, 4])}, "indices has -1"),
    (store_cache, lambda a: {"num_split": 4}, "num_split 4 for rows of 256 bytes"),
    (store_cache, lambda a: {"v": a["v"][:1]}, r"v of \(1, 128\)"),
    (silu, lambda a: {"out": torch.empty(4, 3, 8, dtype=BF16)}, "out of"),
]


@pytest.mark.parametrize(
    ("call", "change", "reason"),
    WRONG,
    ids=[f"{call.__name__}: {reason}" for call, _, reason in WRONG],
)
def test_a_call_that_is_wrong_in_one_argument_is_refused_by_name(provided, call, change, reason):
    operator, right = call()
    if isinstance(operator, str):
        name, operator = operator.rpartition(".")[2], provided[operator]
    else:
        name = operator.__qualname__.partition(".")[0]
    operator(**right)
    with pytest.raises(NotEmulatedError, match=f"^{name}: .*{reason}"):
        operator(**right | change(right))


def test_the_schedule_of_the_absorbed_mla_is_a_launch(provided):
    name, right = mla_metadata()
    with recorder.record() as run:
        provided[name](**right)
    assert run.operators == {name: 1}
    assert run.launches == 1
