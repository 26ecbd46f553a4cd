"""Scenario: every guard of every slug, called so that it declines.

`walk` notes which returns the overlay was left by, and whether somebody was told: by a reason in
the slug's `declined`, or by an error.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import torch

from . import pools, setting


def walk(platform) -> dict:
    """Call every guard of every slug so that it declines, once for each of its reasons.

    Returns the returns that were left by: ``[module, function, line, what it returned, what was
    said]``, the latter being the reasons that slugs declined by and the error that the call raised.
    And the overlay's modules that this release has: none of a slug that upstream superseded.
    """
    from sglang.srt import rocm_patches

    laid = [s for s in rocm_patches.SLUGS if importlib.util.find_spec(rocm_patches.module_of(s))]
    slugs = [importlib.import_module(rocm_patches.module_of(slug)).SLUG for slug in laid]
    overlay = str(Path(rocm_patches.__file__).parent)
    records = []
    for call in (call for slug in laid for calls in _CALLS[slug] for call in calls(platform)):
        left: list[tuple] = []

        def watch(frame, event, value, left=left):
            if not frame.f_code.co_filename.startswith(overlay):
                return None
            if event == "return":
                module = frame.f_globals["__name__"].removeprefix(rocm_patches.__name__ + ".")
                told = value if isinstance(value, (bool, str)) else None
                left.append((module, frame.f_code.co_name, frame.f_lineno, told))
            return watch

        for slug in slugs:
            slug.declined.clear()
        said = []
        sys.settrace(watch)
        try:
            call()
        except ValueError as error:
            said = [str(error)]
        finally:
            sys.settrace(None)
        said += [reason for slug in slugs for reason in slug.declined]
        records += [[*each, said] for each in left]
    return {"left": records, "modules": [path.stem for path in Path(overlay).glob("*.py")]}


def _tensor(platform, *shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype, device=platform.device)


def _layernorm(platform):
    from sglang.srt.rocm_patches import layernorm

    norm = types.SimpleNamespace(hidden_size=8, dtype=torch.bfloat16)
    norm.elementwise_affine = norm.use_bias = False
    yield lambda: layernorm.fits(norm, _tensor(platform, 3, 8, dtype=torch.float32))


def _indexer(platform):
    from sglang.srt.rocm_patches import indexer

    def gates(heads=32, hidden=128, dtype=torch.bfloat16, turned=False):
        weight = _tensor(platform, heads, hidden)
        x = _tensor(platform, 3, hidden, dtype=dtype)
        projection = _Projection(weight)
        layer = types.SimpleNamespace(weights_proj=projection, n_heads=heads, softmax_scale=1.0)
        q_scale = _tensor(platform, 3, heads, 1, dtype=torch.float32)
        indexer.head_gate(layer, x.T.contiguous().T if turned else x, q_scale)

    setting.server_arguments(enable_deterministic_inference=True)
    yield gates
    setting.server_arguments()
    yield lambda: gates(heads=8)
    yield lambda: gates(hidden=200)
    yield lambda: gates(dtype=torch.float16)
    yield lambda: gates(turned=True)
    layer = types.SimpleNamespace(block_size=128, scale_fmt=None)
    yield lambda: indexer.store_index_k(layer, None, 0, _tensor(platform, 3, 128))


class _Projection:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, x):
        return x @ self.weight.T, None


def _nsa_writes(platform):
    from sglang.srt.layers.attention.nsa import utils
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.rocm_patches import nsa_fp8_kv

    setting.server_arguments(nsa_prefill_backend="tilelang", nsa_decode_backend="tilelang")
    pool = pools.latent_pool(platform, "bf16", nsa=True)
    rope = types.SimpleNamespace(cos_cache=_tensor(platform, 8, 1, 1, 32))
    attn = types.SimpleNamespace(
        rotary_emb=rope, current_attention_backend="nsa", qk_rope_head_dim=64
    )
    batch = types.SimpleNamespace(
        forward_mode=ForwardMode.DECODE, token_to_kv_pool=pool, attn_cp_metadata=None
    )
    batch.nsa_cp_metadata = None

    def asked(scaling=None):
        nsa_fp8_kv.ropes_in_core(attn, batch, scaling)

    def once(thing, name, value, call):
        def changed():
            with mock.patch.object(thing, name, value):
                call()

        return changed

    def holds():
        nsa_fp8_kv.holds_plain_rows(pool)

    own_way = types.SimpleNamespace(set_mla_kv_buffer=None)
    yield once(utils, "nsa_use_prefill_cp", lambda _: True, asked)
    yield lambda: asked(scaling=_tensor(platform, 1))
    yield once(batch, "token_to_kv_pool", own_way, asked)
    yield once(attn, "rotary_emb", types.SimpleNamespace(), asked)
    yield once(pool, "dtype", torch.float32, asked)
    yield once(pool, "dtype", torch.float32, holds)
    yield once(pool, "kv_cache_dim", 656, holds)
    setting.server_arguments(nsa_prefill_backend="tilelang", nsa_decode_backend="aiter")
    yield asked


def _nsa_attention(platform):
    from sglang.srt.rocm_patches import nsa_fp8_kv
    from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla as sparse

    def call(
        q=(3, 16, 576),
        kv=(64, 1, 576),
        topk=2048,
        q_dtype=torch.bfloat16,
        kv_dtype=torch.bfloat16,
        indices_dtype=torch.int32,
        gap=0,
        **given,
    ):
        query = _tensor(platform, *q[:-1], q[-1] + gap, dtype=q_dtype)[..., : q[-1]]
        cache = _tensor(platform, *kv, dtype=kv_dtype)
        indices = _tensor(platform, 3, 1, topk, dtype=indices_dtype)
        nsa_fp8_kv.attends(query, cache, indices, 512, **given)

    def with_(name, value, **given):
        def changed():
            with mock.patch.object(sparse, name, value):
                call(**given)

        return changed

    setting.server_arguments(enable_deterministic_inference=True)
    yield call
    setting.server_arguments()
    yield lambda: call(q=(3, 576))
    yield lambda: call(kv=(64, 1, 512))
    yield lambda: call(q_dtype=torch.float16)
    yield lambda: call(indices_dtype=torch.int64)
    yield lambda: call(gap=8)
    yield lambda: call(topk=100)
    yield lambda: call(kv_dtype=torch.float16)
    unchecked = sparse.unchecked_tilelang
    yield with_("unchecked_tilelang", lambda: unchecked("0.9"))
    yield with_("chip_of", lambda _: "gfx90a")
    # What upstream's kernels cannot take either is an error, in 0.5.9 and later.
    yield with_("chip_of", lambda _: "gfx90a", kv_dtype=platform.fp8_dtype, bf16_kernels=(32, 128))
    for heads, kv_dtype in ((6, torch.bfloat16), (24, platform.fp8_dtype), (160, torch.bfloat16)):
        q = _tensor(platform, 3, heads, 576)
        cache = _tensor(platform, 64, 1, 576, dtype=kv_dtype)
        yield lambda q=q, cache=cache: nsa_fp8_kv.fit_inner_iter(q, cache, 2048, 64, 256, 1)


def _rope_batches(platform):
    from sglang.srt.rocm_patches import rope_kv_store

    pool = pools.mha_pool(platform, "bf16", 2, 64)
    batch = types.SimpleNamespace(token_to_kv_pool=pool, encoder_lens=None)
    setting.server_arguments()
    yield lambda: rope_kv_store.enabled(batch, context_parallel=True)
    latent = pools.latent_pool(platform, "bf16", nsa=False)
    for field, value in (
        ("token_to_kv_pool", latent),
        ("encoder_lens", _tensor(platform, 1)),
        ("dcp_kv_mask", _tensor(platform, 1, dtype=torch.bool)),
    ):
        other = types.SimpleNamespace(**vars(batch) | {field: value})
        yield lambda other=other: rope_kv_store.enabled(other)

    def of_another_type():
        with mock.patch.object(pool, "dtype", torch.float8_e5m2):
            rope_kv_store.enabled(batch)

    def of_another_layout():
        with mock.patch.object(pool, "kv_cache_layout", "hnd", create=True):
            rope_kv_store.enabled(batch)

    yield of_another_type
    yield of_another_layout
    setting.server_arguments(rl_on_policy_target="fsdp")
    yield lambda: rope_kv_store.enabled(batch)
    setting.server_arguments()


def _rope_calls(platform):
    from sglang.srt.rocm_patches import rope_kv_store

    pool = pools.mha_pool(platform, "bf16", 2, 64)
    pool.set_kv_buffer = lambda *_: None
    slots = torch.arange(3, device=platform.device)

    def call(
        native=False, heads=4, dtype=torch.bfloat16, positions=slots, offsets=None, gap=0, **rope
    ):
        layer = setting.attention_layer(heads, 2, 64)
        q = _tensor(platform, 3, heads * 64, dtype=dtype)
        k, v = (_tensor(platform, 3, 2, 64 + gap, dtype=dtype)[..., :64] for _ in range(2))
        if gap:
            k = k.transpose(1, 2).contiguous().transpose(1, 2)
        angles = _tensor(platform, 8, 64)
        fields = {"cos_sin_cache": angles, "rotary_dim": 64, "head_size": 64}
        turn = types.SimpleNamespace(**fields | rope, is_neox_style=True)
        turn.forward_cuda = lambda positions, q, k, offsets: (q, k)
        store = rope_kv_store.KVStore(v, layer, pool, slots, None, None)
        if native:
            rope_kv_store.rotate_then_store(turn.forward_cuda, positions, q, k, offsets, store)
        else:
            rope_kv_store.rotate_and_store(turn, positions, q, k, offsets, store)

    yield lambda: call(native=True)
    yield lambda: call(positions=slots.expand(3, 3))
    yield lambda: call(offsets=slots)
    yield lambda: call(rotary_dim=32)
    yield lambda: call(dtype=torch.float32)
    yield lambda: call(dtype=torch.float16)
    yield lambda: call(heads=5)
    yield lambda: call(gap=1)


def _fp8_writes(platform):
    from sglang.srt.rocm_patches import fp8_kv_write

    pool = pools.mha_pool(platform, "fp8", 2, 64)
    slots = torch.arange(3, device=platform.device)

    def call(pool=pool, k=(3, 2, 64), k_dtype=torch.bfloat16):
        given = _tensor(platform, *k, dtype=k_dtype), _tensor(platform, 3, 2, 64)
        fp8_kv_write.write(pool, 0, slots, *given, None, None)

    [other] = {torch.float8_e4m3fn, torch.float8_e4m3fnuz} - {platform.fp8_dtype}

    def of_another_format():
        with mock.patch.object(pool, "dtype", other):
            call()

    yield lambda: call(pool=types.SimpleNamespace(dtype=platform.fp8_dtype))
    yield of_another_format
    yield lambda: call(k_dtype=torch.float16)
    yield lambda: call(k=(3, 2, 32))

    backend = types.SimpleNamespace(k_scale=None, v_scale=None)
    layer = setting.attention_layer(4, 2, 80)
    q = _tensor(platform, 3, 4 * 80)
    caches = [_tensor(platform, 8, 2, 80, dtype=platform.fp8_dtype) for _ in range(2)]
    yield lambda: fp8_kv_write.ragged(backend, layer, q, *caches)


_CALLS = {
    "layernorm": [_layernorm],
    "indexer": [_indexer],
    "nsa-fp8-kv": [_nsa_writes, _nsa_attention],
    "rope-kv-store": [_rope_batches, _rope_calls],
    "fp8-kv-write": [_fp8_writes],
}
