"""Scenarios: upstream's KV pools and what writes into them. Caches come back as bytes and dtype."""

import importlib
import importlib.util
import inspect
import types

import torch

from ..platform import recorder
from ..platform.tensors import poisoned
from . import setting

SLOTS = 64


def cache_dtype(platform, name):
    return platform.fp8_dtype if name == "fp8" else torch.bfloat16


def poison(buffer) -> None:
    """What is not written has to be seen to be left alone."""
    raw = buffer.view(torch.uint8)
    raw.copy_(poisoned(raw.shape, torch.uint8, raw.device))


def mha_pool(platform, cache, heads, head_dim, v_head_dim=None, page_size=1, slots=SLOTS):
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool(
        size=slots,
        page_size=page_size,
        dtype=cache_dtype(platform, cache),
        head_num=heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        layer_num=1,
        device="cuda",
        enable_memory_saver=False,
    )
    poison(pool.k_buffer[0])
    poison(pool.v_buffer[0])
    return pool


def swa_pool(platform, cache, heads, head_dim):
    """Layer 0 has a sliding window, layer 1 sees everything; the window's slots are reversed."""
    from sglang.srt.mem_cache import memory_pool
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    layouts = "kv_cache_layout" in inspect.signature(memory_pool.MHATokenToKVPool).parameters
    pool = SWAKVPool(
        size=SLOTS,
        size_swa=SLOTS,
        page_size=1,
        dtype=cache_dtype(platform, cache),
        head_num=heads,
        head_dim=head_dim,
        swa_attention_layer_ids=[0],
        full_attention_layer_ids=[1],
        device="cuda",
        **({} if layouts else {"enable_kvcache_transpose": False}),
    )
    for each in (pool.swa_kv_pool, pool.full_kv_pool):
        poison(each.k_buffer[0])
        poison(each.v_buffer[0])
    mapping = torch.arange(SLOTS, -1, -1, device=platform.device)
    pool.register_mapping(torch.cat([mapping, mapping.new_tensor([-1])]))
    return pool


def latent_pool(platform, cache, nsa):
    """MLA or NSA: rows of 512 latent and 64 rotary columns, no scales."""
    from sglang.srt.mem_cache import memory_pool

    common = {
        "size": SLOTS,
        "page_size": 1,
        "dtype": cache_dtype(platform, cache),
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "layer_num": 1,
        "device": "cuda",
        "enable_memory_saver": False,
    }
    if nsa:
        common["page_size"] = index_page()
        sparse = getattr(memory_pool, "NSATokenToKVPool", None) or memory_pool.DSATokenToKVPool
        pool = sparse(index_head_dim=128, kv_cache_dim=576, **common)
        poison(pool.index_k_with_scale_buffer[0])
    else:
        pool = memory_pool.MLATokenToKVPool(**common)
    poison(pool.kv_buffer[0])
    return pool


def index_page() -> int:
    """Tokens of a page of a sparse pool: 64 where index K is preshuffled, from 0.5.12 on."""
    name = "nsa" if importlib.util.find_spec("sglang.srt.layers.attention.nsa_backend") else "dsa"
    utils = importlib.import_module(f"sglang.srt.layers.attention.{name}.utils")
    preshuffles = getattr(utils, "aiter_can_use_preshuffle_paged_mqa", lambda: False)
    return 64 if preshuffles() else 1


def contents(pool, layer_id=0) -> dict:
    k, v = pool.get_kv_buffer(layer_id)
    return {"k_cache": k.view(torch.uint8).clone(), "v_cache": v.view(torch.uint8).clone()}


def store(platform, kind, cache, k, v, slots, k_scale=None, v_scale=None):
    """set_kv_buffer, as the attention backends call it in prefill."""
    setting.server_arguments()
    heads, head_dim = k.shape[1:]
    if kind == "swa":
        pool = swa_pool(platform, cache, heads, head_dim)
    else:
        pool = mha_pool(platform, cache, heads, head_dim, v.shape[-1])
    scales = setting.scales(k_scale, v_scale, platform.device)
    layer = setting.attention_layer(heads, heads, head_dim, v.shape[-1], **scales)
    with recorder.measured():
        pool.set_kv_buffer(layer, slots, k, v, layer.k_scale, layer.v_scale)
    return contents(pool) | {"k": k, "v": v}


def store_latent(platform, cache, nsa, k_nope, k_rope, slots):
    setting.server_arguments()
    pool = latent_pool(platform, cache, nsa)
    layer = types.SimpleNamespace(layer_id=0)
    with recorder.measured():
        pool.set_mla_kv_buffer(layer, slots, k_nope, k_rope)
    rows = pool.get_key_buffer(0)
    return {"rows": rows.view(torch.uint8).clone(), "k_nope": k_nope, "k_rope": k_rope}


def store_index(platform, values, scales, slots):
    setting.server_arguments()
    pool = latent_pool(platform, "bf16", nsa=True)
    quantised = values.to(platform.fp8_dtype)
    pool.set_index_k_scale_buffer(layer_id=0, loc=slots, index_k=quantised, index_k_scale=scales)
    return {"rows": pool.get_index_k_with_scale_buffer(layer_id=0).clone()}
