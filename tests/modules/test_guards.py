"""Catches a call that is left to the pristine path, and nobody is told why."""

import pytest

from tests.modules.ways_out import WayOut, ways_out
from tests.platform.trees import ROOT

OVERLAY = ROOT / "overlay" / "sglang" / "srt" / "rocm_patches"
# Returns that decline nothing, and why that is so. All others have to tell.
DECLINE_NOTHING = {
    # The package itself: a slug's state says what is off.
    "__init__.active: if importlib.util.find_spec(module_of(name)) is None: return False",
    "__init__.active: return importlib.import_module(module_of(name)).SLUG.active",
    "__init__._off: if value.strip().lower() in ('0', 'false', 'no', 'off'): "
    "return f'off: {variable}=0'",
    "__init__._off: return f'off: {variable}={value!r}'",
    "launch_parameters.on_amd: return arch() != ''",
    # Our own kernel runs in the operator's place, and the log says which.
    "aiter_ops.aiter_op: if not get_bool_env_var('SGLANG_USE_AITER'): return None",
    "aiter_ops.aiter_op: if (ImportError, AttributeError): return None",
    # forward_native raises: it is no LayerNorm of that input.
    "layernorm.fits: if x.shape[-1] != norm.hidden_size: return False",
    # Two kernels for one work.
    "layernorm.forward: if _aiter_layernorm is None or weight is None or bias is None or "
    "(not x.is_contiguous()) or (x.numel() == 0): return layernorm(x, weight, bias, eps)",
    "layernorm.forward: "
    "return _aiter_layernorm(x.view(-1, x.shape[-1]), weight, bias, eps).view(x.shape)",
    "indexer.head_gate: return project_head_gates(x, weight, q_scale, *scales)",
    # No query head, no token or no TileLang: nothing that could be rotated, read or written.
    "nsa_fp8_kv.ropes_in_core: "
    "if attn.rotary_emb is None or forward_batch.forward_mode.is_idle(): return False",
    "nsa_fp8_kv.reads_plain_rows: if 'tilelang' not in (server.nsa_prefill_backend, "
    "server.nsa_decode_backend): return False",
    # Dense attention: the table at the top of the module says who rotates.
    "nsa_fp8_kv.ropes_in_core: if attn.current_attention_backend != 'nsa': "
    "return arch() == 'gfx950' and get_bool_env_var('SGLANG_USE_AITER')",
    "nsa_fp8_kv._nsa_backend: if mode.is_decode() or mode.is_target_verify() or "
    "mode.is_draft_extend(include_v2=True): return server_args.nsa_decode_backend",
    "nsa_fp8_kv._nsa_backend: return server_args.nsa_prefill_backend",
    "nsa_fp8_kv_glm.register: if not nsa_fp8_kv.ACTIVE or 'glm_moe_dsa' in CONFIG_MAPPING: "
    "return False",
    # Facts about a server's or a batch's reader: both arms follow them.
    "kv_cache.triton_uses_scales: "
    "return 'k_scale' in inspect.signature(releases.triton_decode()).parameters",
    "kv_cache.aiter_uses_scales: return names - {None} <= "
    "({'aiter', 'triton'} if triton_uses_scales() else {'aiter'})",
    "rope_kv_store.reader_descales: if not _is(backend, 'AiterAttnBackend'): "
    "return _is(backend, 'TritonAttnBackend') and triton_uses_scales()",
    "rope_kv_store.reader_descales: if active('fp8-kv-write'): return aiter_uses_scales()",
    "rope_kv_store.reader_descales: if not triton_uses_scales(): return False",
    "rope_kv_store.reader_descales: return backend.use_triton_unified_attention or "
    "not forward_batch.forward_mode.is_decode()",
    "rope_kv_store._is: return type(backend).__name__ == name",
    "rope_kv_store.rotate_and_store: return (query, key)",
    # A pool that is not FP8 is no business of this slug.
    "fp8_kv_write.write: if pool.dtype not in E4M3_MAX: return False",
    "fp8_kv_write.fused_store_lacks_scales: "
    "if releases.kv_pool(forward_batch).dtype not in E4M3_MAX: return False",
    # False: upstream's fused store is right, and is left to do it.
    "fp8_kv_write.fused_store_lacks_scales: return any((_as_float(*each) != 1.0 "
    "for each in zip(scales(layer), loaded, strict=True)))",
    # A setting, and operands of an operator, each as it takes them.
    "fp8_kv_write._exact_decode: return value != 'fast'",
    "fp8_kv_write.scales: if not aiter_uses_scales(): return (None, None)",
    "fp8_kv_write.scales: return (layer.k_scale, layer.v_scale)",
    "fp8_kv_write.float_scales: if not ACTIVE or k_descale is None: return (1.0, 1.0)",
    "fp8_kv_write.float_scales: "
    "return (_as_float(k_scale, layer.k_scale_float), _as_float(v_scale, layer.v_scale_float))",
    "fp8_kv_write._as_float: if scale is None: return 1.0",
    "fp8_kv_write._as_float: return loaded if isinstance(scale, torch.Tensor) else scale",
    "fp8_kv_write.saturated: if not ACTIVE: return q",
    "fp8_kv_write.saturated: return q.clamp(-largest, largest)",
    "fp8_kv_write.ragged: if _DECODES_IN_FP8 and (head == 64 or head % 128 == 0): "
    "return Ragged(saturated(q), k_cache, v_cache, 'fp8', *descales(backend, layer))",
    "fp8_kv_write.ragged: return Ragged(q, *wide, 'auto', *one)",
    "fp8_kv_write._as_tensor: if scale is None: return one",
    "fp8_kv_write._as_tensor: return scale.float() if isinstance(scale, torch.Tensor) "
    "else _constant(scale, one.device)",
}


def must_tell() -> list[WayOut]:
    return [each for each in ways_out(OVERLAY) if str(each) not in DECLINE_NOTHING]


def test_what_is_said_to_decline_nothing_is_there():
    assert {str(each) for each in ways_out(OVERLAY)} >= DECLINE_NOTHING


@pytest.fixture(scope="module")
def walks():
    """What `walk` of guards.py tells, once for each arm."""
    found: dict = {}

    def of(arms):
        key = arms.release, arms.platform
        if key not in found:
            found[key] = arms.patched.run("tests.modules.guards:walk", alone=True).outputs
        return found[key]

    return of


def test_every_way_out_tells_why_it_was_taken(arms, walks):
    silent, missed = [], []
    walked = walks(arms)
    for way in (way for way in must_tell() if way.module in walked["modules"]):
        taken = [
            (told, said)
            for module, function, line, told, said in walked["left"]
            if (module, function) == (way.module, way.function)
            and way.lines[0] <= line <= way.lines[1]
            and told is not True
        ]
        if not taken:
            missed.append(str(way))
        for told, said in taken:
            if (told and not any(told in each for each in said)) or not said:
                silent.append(str(way))
    assert not silent, f"pristine path taken and nobody told: {silent}"
    assert not missed, (
        f"not walked: {missed}; call them in guards.py, or name them here with the reason why they "
        "decline nothing"
    )
