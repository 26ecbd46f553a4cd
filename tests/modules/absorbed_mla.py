"""Scenarios: prepare and core of the absorbed MLA of an NSA model, with its pool and backend."""

import contextlib
import json
import pathlib
import tempfile
import types
from unittest import mock

import torch

from ..platform import recorder
from . import pools, setting

LATENT, ROPE, NOPE, VALUE, TOPK = 512, 64, 128, 16, 2048
HISPARSE = 7  # how far that pool's slots lie from the logical ones


def inputs(tokens: int, heads: int, scale: float = 1.0) -> dict:
    """What the projections of one layer give, and its absorbed weights."""
    return {
        "q": torch.randn(tokens, heads, NOPE + ROPE).bfloat16() * scale,
        "latent": torch.randn(tokens, LATENT + ROPE).bfloat16() * scale,
        "w_kc": torch.randn(heads, NOPE, LATENT).bfloat16() / NOPE**0.5,
        "w_vc": torch.randn(heads, LATENT, VALUE).bfloat16() / LATENT**0.5,
        "positions": torch.randint(0, 300, (tokens,)),
        "slots": torch.randperm(pools.SLOTS)[:tokens] + 1,
    }


def forward(
    platform,
    q,
    latent,
    w_kc,
    w_vc,
    positions,
    slots,
    cache="fp8",
    mode="DECODE",
    prefill="tilelang",
    decode="tilelang",
    attention_backend="nsa",
    neox=False,
    k_scale=None,
    gathered=None,
    fused=None,
    scaling=None,
    hisparse=False,
    native=False,
    trusted=True,
):
    """One layer. Returns the cache's rows, q as the backend's kernel gets it, the output, the
    absorbed q_nope, the angles, the launches, and how TileLang's kernel was launched.

    gathered: rows ``[N, 576]`` of another rank, rotated, that context parallel puts behind these.
    fused=False: the patch decides, for once, that prepare rotates.
    scaling: llama_4_scaling, ``[T, 1, 1]``.
    native: rope as 0.5.9 has it for models without rope scaling.
    trusted=False: our attention was not checked with this TileLang.
    hisparse: the pool has slots of its own, HISPARSE behind those that it is given.
    """
    from sglang.srt.layers.attention.nsa_backend import NativeSparseAttnBackend
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    if mode != "DECODE" and not hasattr(NativeSparseAttnBackend, "_forward_aiter_extend"):
        # 0.5.9 has aiter for decode alone.
        prefill, decode = (x.replace("aiter", "flashmla_sparse") for x in (prefill, decode))
    arguments = setting.server_arguments(
        nsa_prefill_backend=prefill,
        nsa_decode_backend=decode,
        enable_nsa_prefill_context_parallel=gathered is not None,
        nsa_prefill_cp_mode="round-robin-split",
    )
    pool = pools.latent_pool(platform, cache, nsa=True)
    if hisparse:
        _translate(pool)
    attn = _attention(platform, w_kc, w_vc, cache, attention_backend, neox)
    if native:
        attn.rotary_emb.forward = attn.rotary_emb.forward_native
    heads = w_kc.shape[0]
    attn.attn_mqa = RadixAttention(
        heads, LATENT + ROPE, 0.1, num_kv_heads=1, layer_id=0, v_head_dim=LATENT
    )
    if k_scale is not None:
        attn.attn_mqa.k_scale = torch.tensor(k_scale, device=platform.device)
        attn.attn_mqa.k_scale_float = k_scale
    seen = {}
    if attention_backend == "nsa":
        backend = _nsa_backend(arguments, seen)
    else:
        backend = _dense_backend(pool, seen)
    batch = types.SimpleNamespace(
        forward_mode=ForwardMode[mode],
        token_to_kv_pool=pool,
        out_cache_loc=slots,
        attn_backend=backend,
        batch_size=q.shape[0],
        hisparse_coordinator=None,
        nsa_cp_metadata=None if gathered is None else object(),
        attn_cp_metadata=None if gathered is None else object(),
    )
    if gathered is not None:
        attn.rebuild_cp_kv_cache = _gather(gathered)
    attn.q_proj = lambda hidden: (q.flatten(1).clone(),)
    attn.kv_a_proj_with_mqa = lambda hidden: (latent.clone(),)
    with (
        _overridden(fused),
        _distrusted(trusted),
        _tilelang_launches(seen) as launched,
        recorder.record() as run,
    ):
        state = attn.forward_absorb_prepare(positions, None, batch, None, scaling)
        state = [*state[:7], _topk(q.shape[0], slots, platform), state[8]]
        output = attn.forward_absorb_core(*state)
    return {
        "rows": pool.get_key_buffer(0).view(torch.uint8).clone(),
        "q": seen["q"].view(torch.uint8).clone() if "q" in seen else None,
        "output": output,
        "q_nope": state[2],
        "cos": attn.rotary_emb.cos_cache,
        "sin": attn.rotary_emb.sin_cache,
        "launches": run.launches,
        "inner_iter": launched,
        "declined": _declined(),
    }


def row_width(
    platform, cache, prefill="tilelang", decode="tilelang", heads=16, topk=TOPK, trusted=True
):
    """The elements of a cache row that a server with these flags would allocate."""
    from sglang.srt.model_executor import model_runner_kv_cache_mixin as mixin

    hf = types.SimpleNamespace(architectures=["DeepseekV3ForCausalLM"], index_topk=topk)
    runner = types.SimpleNamespace(
        server_args=setting.server_arguments(
            nsa_prefill_backend=prefill, nsa_decode_backend=decode
        ),
        kv_cache_dtype=pools.cache_dtype(platform, cache),
        model_config=types.SimpleNamespace(
            hf_config=hf,
            num_attention_heads=heads,
            kv_lora_rank=LATENT,
            qk_rope_head_dim=ROPE,
        ),
    )
    one_rank = mock.patch("sglang.srt.layers.dp_attention.get_attention_tp_size", return_value=1)
    with one_rank, _distrusted(trusted):
        return {"width": mixin.ModelRunnerKVCacheMixin.calculate_mla_kv_cache_dim(runner)}


def glm_configuration(platform, kind):
    """GLM-5's as sglang reads it, from a file in the style of transformers 5."""
    from sglang.srt.utils.hf_transformers_utils import get_config

    written = {
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
        "hidden_size": 64,
        "num_attention_heads": 16,
        "rope_parameters": {"rope_type": kind, "rope_theta": 8e6},
    }
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(written))
        config = get_config(folder, trust_remote_code=False)
    return {
        "architecture": config.architectures[0],
        "theta": config.rope_theta,
        "scaling": config.rope_scaling,
        "parameters": config.rope_parameters,
    }


def _declined() -> list[str]:
    try:
        from sglang.srt import rocm_patches
    except ImportError:  # pristine
        return []
    return rocm_patches.report()["slugs"]["nsa-fp8-kv"]["declined"]


def _attention(platform, w_kc, w_vc, cache, attention_backend, neox):
    from sglang.srt.layers.rotary_embedding import get_rope_wrapper

    try:
        from sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla import (
            DeepseekMLAForwardMixin,
        )

        mla = DeepseekMLAForwardMixin
    except ImportError:  # 0.5.9
        from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA

        mla = DeepseekV2AttentionMLA
    attn = mla.__new__(mla)
    if isinstance(attn, torch.nn.Module):
        torch.nn.Module.__init__(attn)
    with setting.default_dtype(torch.bfloat16):
        attn.rotary_emb = get_rope_wrapper(
            ROPE,
            rotary_dim=ROPE,
            max_position=512,
            base=10000,
            rope_scaling=None,
            is_neox_style=neox,
            device="cuda",
        )
    vars(attn).update(
        q_lora_rank=None,
        kv_lora_rank=LATENT,
        qk_rope_head_dim=ROPE,
        qk_nope_head_dim=NOPE,
        qk_head_dim=NOPE + ROPE,
        v_head_dim=VALUE,
        num_local_heads=w_kc.shape[0],
        kv_a_layernorm=lambda x: x.clone(),
        use_deep_gemm_bmm=False,
        w_kc=w_kc,
        w_vc=w_vc,
        w_scale=1.0,
        use_nsa=True,
        current_attention_backend=attention_backend,
        kv_cache_dtype="fp8_e4m3" if cache == "fp8" else "bfloat16",
        next_skip_topk=None,
        kv_b_proj=types.SimpleNamespace(),  # without a LoRA
    )
    attn.o_proj = _nothing
    return attn


def _nothing(x):
    """An output projection that leaves its input alone."""
    return x, None


_nothing.weight = torch.empty(0, dtype=torch.bfloat16)


def _nsa_backend(arguments, seen):
    from sglang.srt.layers.attention.nsa_backend import NativeSparseAttnBackend

    backend = NativeSparseAttnBackend.__new__(NativeSparseAttnBackend)
    backend.forward_metadata = None
    backend.nsa_prefill_impl = arguments.nsa_prefill_backend
    backend.nsa_decode_impl = arguments.nsa_decode_backend
    backend.use_mha = backend.nsa_kv_cache_store_fp8 = False
    backend.kv_cache_dtype = None

    def aiter(q_all, **_):
        seen["q"] = q_all
        return q_all[..., :LATENT].clone()

    backend._forward_aiter = backend._forward_aiter_extend = aiter
    backend._forward_flashmla_sparse = aiter
    return backend


def _dense_backend(pool, seen):
    """As the aiter backend does with K and V; its kernel is left out."""

    def forward(q, k, v, layer, batch, save_kv_cache, **_):
        if save_kv_cache:
            pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
        seen["q"] = q
        return q[..., :LATENT].clone()

    return types.SimpleNamespace(forward=forward)


def _gather(others):
    def rebuild(latent, batch, k_nope, k_pe):
        mine = torch.cat((k_nope, k_pe), -1)
        rows = torch.cat((mine, others[:, None]))
        return rows[..., :LATENT], rows[..., LATENT:]

    return rebuild


def _topk(tokens, slots, platform):
    """Every token sees every written slot, far from each other among places that are empty."""
    chosen = torch.full((tokens, TOPK), -1, dtype=torch.int32, device=platform.device)
    written = slots[slots >= 0].int()
    places = torch.arange(len(written), device=platform.device) * (TOPK // max(len(written), 1))
    chosen[:, places] = written
    return chosen


def _translate(pool):
    from sglang.srt.mem_cache.hisparse_memory_pool import HiSparseNSATokenToKVPool

    pool.__class__ = HiSparseNSATokenToKVPool
    mapping = torch.arange(pools.SLOTS + 1, device="cuda") + HISPARSE
    pool.register_mapping(mapping % (pools.SLOTS + 1))


@contextlib.contextmanager
def _tilelang_launches(seen):
    """q of the sparse attention, and the ``inner_iter`` of each launch of upstream's kernels."""
    from sglang.srt.layers.attention.nsa import tilelang_kernel

    launched = []

    def spied(factory):
        def make(*arguments, inner_iter=None, **others):
            launched.append(inner_iter)
            chosen = {} if inner_iter is None else {"inner_iter": inner_iter}
            return factory(*arguments, **chosen, **others)

        return make

    attention = tilelang_kernel.tilelang_sparse_fwd

    def attend(q, *arguments, **others):
        seen["q"] = q
        return attention(q, *arguments, **others)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(tilelang_kernel, "tilelang_sparse_fwd", attend))
        for name in (
            "sparse_attention_fwd_kernel_v1",
            "sparse_mla_fwd_decode_partial",
            "sparse_mla_fwd_decode_partial_fp8",
        ):
            if factory := getattr(tilelang_kernel, name, None):
                stack.enter_context(mock.patch.object(tilelang_kernel, name, spied(factory)))
        yield launched


@contextlib.contextmanager
def _distrusted(trusted):
    if trusted:
        yield
        return
    from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla

    reason = mock.Mock(return_value="TileLang was not checked")
    with mock.patch.object(nsa_fp8_kv_sparse_mla, "unchecked_tilelang", reason):
        yield


@contextlib.contextmanager
def _overridden(fused):
    if fused is None:
        yield
        return
    from sglang.srt.rocm_patches import nsa_fp8_kv

    with mock.patch.object(nsa_fp8_kv, "ropes_in_core", return_value=fused):
        yield
