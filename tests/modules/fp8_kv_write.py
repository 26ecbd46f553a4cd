"""Scenario: a batch through every reader of an FP8 cache that the aiter backend has."""

import importlib.util
import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..platform import recorder
from . import backend, pools, setting


def read_back(
    platform,
    cache,
    kind,
    q,
    k,
    v,
    chunks,
    drafts,
    k_scale=None,
    v_scale=None,
    default_v_scale=1.0,
    unused=0,
    float_scales=False,
    softcap=0.0,
    **server,
):
    """q, k, v ``[B, S, heads, D]``, causal: prefill in ``chunks``, one decode, ``drafts`` verified.

    A sliding-window pool's window holds all of it. `default_v_scale` is what the backend descales
    v by where the layer says nothing; `unused` slots are in the pool beside; `float_scales` are
    what --quantization-param-path makes of a layer's; `server`: its arguments. "bytes": what the
    tensor operations of each step read and write.
    """
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    setting.server_arguments(**server)
    requests, length, heads, head_dim = q.shape
    kv_heads, device = k.shape[2], platform.device
    swa = kind == "swa"
    if swa:
        pool = pools.swa_pool(platform, cache, kv_heads, head_dim)
    else:
        size = max(pools.SLOTS, requests * length) + unused
        pool = pools.mha_pool(platform, cache, kv_heads, head_dim, slots=size)
    context = max(backend.CONTEXT, length)
    table = ReqToTokenPool(
        size=requests, max_context_len=context, device="cuda", enable_memory_saver=False
    )
    width = max(pools.SLOTS // requests, length)
    slots = 1 + torch.randperm(requests * width).view(requests, width)[:, :length].to(device)
    table.req_to_token[:requests, :length] = slots
    layer = setting.attention_layer(
        heads,
        kv_heads,
        head_dim,
        sliding_window_size=pools.SLOTS if swa else -1,
        **setting.scales(k_scale, v_scale, device),
    )
    if float_scales:
        layer.k_scale, layer.v_scale = k_scale, v_scale
        layer.k_scale_float = layer.v_scale_float = None
    layer.logit_cap = softcap
    shape = heads, kv_heads, head_dim
    attention = backend.aiter_backend(platform, pool, *shape, table, cache, context)
    attention.v_scale = torch.tensor([default_v_scale], device=device)
    attention.num_draft_tokens = drafts  # of what speculates
    whole = torch.ones(requests, dtype=torch.int64, device=device)
    outputs, moved, done = [], [], 0
    for mode, count in [
        *((ForwardMode.EXTEND, count) for count in chunks),
        (ForwardMode.DECODE, 1),
        *([(ForwardMode.TARGET_VERIFY, drafts)] if drafts else []),
    ]:
        new = slice(done, done + count)
        verify = mode.is_target_verify()
        batch = setting.forward_batch(
            mode,
            whole * (done if verify else done + count),
            slots[:, new].flatten(),
            pool,
            prefix=whole * done,
            spec_info=_verified(drafts, done, requests, device) if verify else None,
        )
        attention.init_forward_metadata(batch)
        forward = attention.forward_decode if mode.is_decode() else attention.forward_extend
        query, key, value = (each[:, new].flatten(0, 1).contiguous() for each in (q, k, v))
        live = key.clone(), value.clone()
        with Moved() as step:
            out = forward(query.flatten(1), key, value, layer, batch)
        moved.append(step.bytes)
        assert torch.equal(key, live[0]), f"{mode}: the live k is changed"
        assert torch.equal(value, live[1]), f"{mode}: the live v is changed"
        outputs.append(out.view(requests, count, -1))
        done += count
    rows = slots[:, :done]
    return {
        "out": torch.cat(outputs, 1),
        "rows": pool.full_to_swa_index_mapping[rows] if swa else rows,
        "stores": len(outputs),
        "bytes": moved,
    } | pools.contents(pool)


class Moved(TorchDispatchMode):
    """Bytes that tensor operations take and give, outside kernels and operators.

    Of a tensor that is changed in place, what is put into it.
    """

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if not (recorder.inside_a_launch() or function.is_view or name.startswith("aten::empty")):
            touched = args[1:] if name.endswith("_") else (*args, result)
            self.bytes += sum(each.nbytes for each in touched if isinstance(each, torch.Tensor))
        return result


def _verified(drafts, prefix, requests, device):
    """A chain of drafts: each sees the prefix, those before it and itself."""
    mask = torch.ones(drafts, prefix + drafts, dtype=torch.bool, device=device).tril(prefix)
    return types.SimpleNamespace(
        draft_token_num=drafts, custom_mask=mask.flatten().repeat(requests)
    )


def foreign_format(platform, k, v, slots):
    """A pool in the other architecture's e4m3: what is in it afterwards, and what was said."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    setting.server_arguments()
    both = {torch.float8_e4m3fn, torch.float8_e4m3fnuz}
    (foreign,) = both - {platform.fp8_dtype}
    heads, head_dim = k.shape[1:]
    pool = MHATokenToKVPool(
        size=pools.SLOTS,
        page_size=1,
        dtype=foreign,
        head_num=heads,
        head_dim=head_dim,
        layer_num=1,
        device="cuda",
        enable_memory_saver=False,
    )
    layer = setting.attention_layer(heads, heads, head_dim)
    pool.set_kv_buffer(layer, slots, k, v)
    return {"k": pool.get_key_buffer(0)[slots].float(), "declined": _declined()}


def settled(platform, k_scale, v_scale):
    """Scales of a model's layers that had floats, tensors, and none, once they are settled."""
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.rocm_patches import fp8_kv_write

    def layer(*scales):
        made = RadixAttention(4, 64, 0.125, num_kv_heads=2, layer_id=0)
        made.k_scale, made.v_scale = scales
        return made

    floats, none = layer(k_scale, v_scale), layer(None, None)
    tensors = layer(*(torch.tensor(each, device=platform.device) for each in (k_scale, v_scale)))
    weights = torch.nn.Linear(1, 1, device=platform.device)
    fp8_kv_write.settle_scales(torch.nn.ModuleList([weights, floats, tensors, none]))
    return {
        "tensors": [
            [each.k_scale, each.v_scale, each.k_scale_float, each.v_scale_float]
            for each in (floats, tensors, none)
        ]
    }


def said(platform):
    """What this process has declined so far."""
    return {"declined": _declined()}


def _declined() -> list[str]:
    if importlib.util.find_spec("sglang.srt.rocm_patches") is None:
        return []
    from sglang.srt import rocm_patches

    return rocm_patches.report()["slugs"]["fp8-kv-write"]["declined"]
