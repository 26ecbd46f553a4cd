"""FP8 KV cache of native sparse attention (NSA): who rotates, who writes, who attends.

Upstream: https://github.com/sgl-project/sglang/pull/21511. Its one-launch write cannot be reached
on HIP (#22314 there). Its fused rotation is aiter's. It runs on gfx950 only and overflows to NaN.
Two places decide whether to use it, and they disagree. So upstream rotates twice under an aiter
attention backend (#24148), uses wrong positions under prefill context parallel (#32098), and fuses
batches whose NSA backend is not TileLang. Here `ropes_in_core` decides for both places and chips:

    attention backend  NSA backend of the forward mode  who rotates, what writes
    nsa                tilelang                         core, rope_and_write_rows, one launch
    nsa                another                          prepare; the pool, write_rows
    another, gfx950    (dense attention)                core, aiter's operator as upstream has it
    another, gfx942    (dense attention)                prepare; the pool

NativeSparseAttnBackend picks the NSA backend of a mode: the decode backend for decode, target
verify and draft extend, the prefill backend for every other extend. Prefill context parallel and
idle batches always rotate in prepare.

Our program (nsa_fp8_kv_sparse_mla.py) does the attention over the TileLang backend's rows, in
prefill and decode, over FP8 and bf16. `attends` checks each call. Unsupported calls fall back to
upstream's kernel. 0.5.9 has no FP8 kernel on AMD, so on 0.5.9 `reads_plain_rows` refuses an
unsupported FP8 cache at server start.

k_scale is not applied: the readers of an NSA cache do not descale, and the unfused paths write
without k_scale. Upstream's gfx950 path divides by k_scale, which is right only if k_scale is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.rocm_patches import Slug, arch, nsa_fp8_kv_lds

if TYPE_CHECKING:
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA

SLUG = Slug("nsa-fp8-kv")
ACTIVE = SLUG.active

if ACTIVE:
    from sglang.srt.rocm_patches.determinism import by_batch
    from sglang.srt.rocm_patches.e4m3 import native_e4m3
    from sglang.srt.rocm_patches.nsa_fp8_kv_kernel import (
        rope_and_write_rows,
        saturating_cast,  # noqa: F401  for tilelang_sparse_fwd
        write_rows,  # noqa: F401  for MLATokenToKVPool
    )

    _FP8_DTYPE = native_e4m3()

_FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def reads_plain_rows(runner: ModelRunner) -> bool:
    """Whether the readers of an NSA cache need plain rows: 512 + 64 elements without scales.

    For a release without its own FP8 kernels; called at server start. Raises ValueError, with the
    flag to change, if the cache is to be FP8 and our attention cannot read it.
    """
    from sglang.srt.configs.model_config import get_nsa_index_topk
    from sglang.srt.layers.dp_attention import get_attention_tp_size

    server, model = runner.server_args, runner.model_config
    if "tilelang" not in (server.nsa_prefill_backend, server.nsa_decode_backend):
        return False
    if runner.kv_cache_dtype in _FP8:
        from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla

        reason = by_batch() or nsa_fp8_kv_sparse_mla.why_never(
            torch.device("cuda", torch.cuda.current_device()),
            runner.kv_cache_dtype,
            model.num_attention_heads // get_attention_tp_size(),
            model.kv_lora_rank,
            model.qk_rope_head_dim,
            get_nsa_index_topk(model.hf_config),
        )
        if reason:
            raise ValueError(_NO_FP8.format(reason))
    return True


_NO_FP8 = (
    "this release has no FP8 sparse attention of its own for AMD, and rocm patch nsa-fp8-kv's is "
    "not for this server: {}; use --kv-cache-dtype bfloat16"
)


def holds_plain_rows(pool: MLATokenToKVPool) -> bool:
    """Whether ``write_rows`` can fill the pool's rows; ``set_mla_kv_buffer`` calls this."""
    return _fits(_why_not_plain(pool))


def ropes_in_core(
    attn: DeepseekV2AttentionMLA,
    forward_batch: ForwardBatch,
    llama_4_scaling: torch.Tensor | None,
) -> bool:
    """Whether forward_absorb_core rotates q_pe and k_pe, so that forward_absorb_prepare must not.

    For NSA models. Uses nothing that changes between the two, so both get the same answer.
    """
    from sglang.srt.layers.attention.nsa.utils import nsa_use_prefill_cp
    from sglang.srt.utils import get_bool_env_var

    if attn.rotary_emb is None or forward_batch.forward_mode.is_idle():
        return False
    if nsa_use_prefill_cp(forward_batch):
        SLUG.decline("prefill context parallel gathers K from ranks with other positions")
        return False
    if attn.current_attention_backend != "nsa":
        return arch() == "gfx950" and get_bool_env_var("SGLANG_USE_AITER")
    return _fits(_why_not_fused(attn, forward_batch, llama_4_scaling))


def rope_and_write(
    attn: DeepseekV2AttentionMLA,
    forward_batch: ForwardBatch,
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    k_nope: torch.Tensor,
    k_pe: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Rotate, write this layer's rows at ``out_cache_loc`` and return the full q ``[T, H, L + R]``.

    Called if `ropes_in_core` is true. q has the dtype that attention takes: bf16 for our program,
    the cache's dtype for upstream's. The NSA backend receives q without a q_rope; the last
    dimension of q is head_dim, so the backend does not concatenate again
    (https://github.com/sgl-project/sglang/pull/24125).
    """
    from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla

    ours = nsa_fp8_kv_sparse_mla.unchecked_tilelang() is None
    return rope_and_write_rows(
        forward_batch.token_to_kv_pool.get_key_buffer(attn.attn_mqa.layer_id),
        forward_batch.out_cache_loc,
        q_nope,
        q_pe,
        k_nope,
        k_pe,
        positions,
        attn.rotary_emb.cos_cache,
        attn.rotary_emb.sin_cache,
        attn.rotary_emb.is_neox_style,
        torch.bfloat16 if ours else None,
    )


def attends(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    d_v: int,
    bf16_kernels: tuple[int, int] | None = None,
) -> bool:
    """Whether `attend` supports this call of `tilelang_sparse_fwd`.

    bf16_kernels: keys and threads per workgroup, for a release that has only bf16 kernels with
    fixed sizes. There, a call that neither kernel supports raises ValueError with the reason.
    """
    from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla

    reason = by_batch() or nsa_fp8_kv_sparse_mla.why_not(q, kv, indices, d_v)
    if reason and bf16_kernels:
        if kv.dtype in _FP8:
            raise ValueError(_NO_FP8.format(reason))
        block, threads = bf16_kernels
        nsa_fp8_kv_lds.require(
            arch(), heads=q.shape[1], width=q.shape[2], block=block, threads=threads
        )
    return _fits(reason)


def attend(
    q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, sm_scale: float, d_v: int
) -> torch.Tensor:
    """`tilelang_sparse_fwd` by our program; returns ``[T, H, d_v]`` bf16."""
    from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla

    return nsa_fp8_kv_sparse_mla.attend(q, kv, indices, sm_scale, d_v)


def fit_inner_iter(
    q: torch.Tensor, kv: torch.Tensor, topk: int, block: int, threads: int, inner_iter: int
) -> int:
    """Upstream's ``inner_iter`` for `tilelang_sparse_fwd`, or the next larger that fits the LDS.

    Raises ValueError if TileLang has no kernel for q's number of heads.
    """
    return nsa_fp8_kv_lds.fit(
        arch(),
        fp8=kv.dtype in _FP8,
        heads=q.shape[1],
        width=q.shape[2],
        block=block,
        inner_iter=inner_iter,
        key_blocks=topk // block,
        threads=threads,
    )


def _fits(reason: str | None) -> bool:
    if reason is not None:
        SLUG.decline(reason)
    return reason is None


def _why_not_plain(pool: MLATokenToKVPool) -> str | None:
    if pool.dtype not in (_FP8_DTYPE, torch.bfloat16, torch.float16):
        return f"the KV cache holds {pool.dtype}"
    if pool.kv_cache_dim != pool.kv_lora_rank + pool.qk_rope_head_dim:
        return f"rows of {pool.kv_cache_dim} bytes in the KV cache carry scales"
    return None


def _why_not_fused(
    attn: DeepseekV2AttentionMLA,
    forward_batch: ForwardBatch,
    llama_4_scaling: torch.Tensor | None,
) -> str | None:
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    mode, pool, rope = (
        forward_batch.forward_mode,
        forward_batch.token_to_kv_pool,
        attn.rotary_emb,
    )
    if _nsa_backend(mode) != "tilelang":
        return f"{mode.name} runs the {_nsa_backend(mode)} NSA backend"
    if llama_4_scaling is not None:
        return "llama 4 scaling of q"
    if getattr(type(pool), "set_mla_kv_buffer", None) is not MLATokenToKVPool.set_mla_kv_buffer:
        return f"{type(pool).__name__} has a way of its own to write"  # HiSparse translates slots
    if not hasattr(rope, "cos_cache") or 2 * rope.cos_cache.shape[-1] != attn.qk_rope_head_dim:
        return f"{type(rope).__name__} does not hold cos and sin as aiter's does"
    return _why_not_plain(pool)


def _nsa_backend(mode: ForwardMode) -> str:
    """The NSA backend that NativeSparseAttnBackend's forward_decode and forward_extend choose."""
    from sglang.srt.server_args import get_global_server_args

    server_args = get_global_server_args()
    if mode.is_decode() or mode.is_target_verify() or mode.is_draft_extend(include_v2=True):
        return server_args.nsa_decode_backend
    return server_args.nsa_prefill_backend
