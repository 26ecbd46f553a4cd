"""Rotary embeddings: sgl_kernel's fallback kernel, aiter's classes, aiter's fused MLA write."""

import torch

from ..tensors import poisoned
from . import (
    chip,
    need,
    need_dtype,
    need_inside,
    need_scales,
    need_shape,
    operator,
    provided,
    unclamped,
)


def rotate(x, cos, sin, neox):
    """x[..., R] with cos and sin [..., R / 2], in the type of the arguments."""
    if neox:
        first, second = x.chunk(2, -1)
    else:
        first, second = x[..., ::2], x[..., 1::2]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(rotated, -1) if neox else torch.stack(rotated, -1).flatten(-2)


@operator("sgl_kernel.rotary_embedding")
def rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox):
    need(cos_sin_cache.dtype == query.dtype, f"rotary_embedding: {cos_sin_cache.dtype} table")
    need_inside("rotary_embedding", len(cos_sin_cache), positions=positions)
    width = cos_sin_cache.shape[-1]
    cos, sin = cos_sin_cache[positions].float()[:, None].chunk(2, -1)
    for tensor in (query, key):
        if tensor is None:
            continue
        heads = tensor.view(positions.numel(), -1, head_size)[..., :width]
        heads.copy_(rotate(heads.float(), cos, sin, is_neox).to(tensor.dtype))


class AiterRope(torch.nn.Module):
    """aiter.rotary_embedding: tables in the model's type, fp32 inside, one rounding."""

    def __init__(self, native):
        super().__init__()
        self.is_neox_style, self.head_size = native.is_neox_style, native.head_size
        self.rotary_dim = native.rotary_dim
        cos, sin = native.cos_sin_cache.chunk(2, -1)
        self.register_buffer("cos_cache", cos[:, None, None].contiguous(), persistent=False)
        self.register_buffer("sin_cache", sin[:, None, None].contiguous(), persistent=False)

    def forward(self, positions, query, key=None, offsets=None):
        need(offsets is None, "aiter rope: offsets")
        rope_cached_positions(query, key, self.cos_cache, self.sin_cache, positions, self)
        return query if key is None else (query, key)

    def forward_native(self, positions, query, key=None, offsets=None):
        """Each product and each sum in the type of the tensors, whose rest is copied."""
        need(offsets is None, "aiter rope: offsets")
        need(key is not None, "aiter's native rope: no key")
        tables, where = (self.cos_cache, self.sin_cache), positions.flatten()
        cos, sin = (table.index_select(0, where) for table in tables)
        turned = []
        for tensor in (query, key):
            heads = tensor.view(positions.numel(), -1, self.head_size)
            angles = cos.flatten(1)[:, None], sin.flatten(1)[:, None]
            rotary = rotate(heads[..., : self.rotary_dim], *angles, self.is_neox_style)
            rest = heads[..., self.rotary_dim :]
            turned.append(torch.cat((rotary, rest), -1).reshape(tensor.shape))
        return tuple(turned)


@operator("aiter.rope_cached_positions_2c_fwd_inplace")
def rope_cached_positions(query, key, cos_cache, sin_cache, positions, rope):
    need(positions.dtype == torch.int64, f"aiter rope: positions of {positions.dtype}")
    need(
        cos_cache.dtype == query.dtype, f"aiter rope: {cos_cache.dtype} table, {query.dtype} query"
    )
    need_dtype("aiter rope", cos_cache.dtype, sin_cache=sin_cache)
    need_shape("aiter rope", cos_cache.shape, sin_cache=sin_cache)
    need(
        cos_cache.shape[-1] * 2 == rope.rotary_dim,
        f"aiter rope: tables of {cos_cache.shape[-1]}, expected half of {rope.rotary_dim}",
    )
    if key is not None:
        need_dtype("aiter rope", query.dtype, key=key)
    known = (positions >= 0) & (positions < cos_cache.shape[0])  # other tokens are left alone
    cos = cos_cache.flatten(1)[positions[known]].float()[:, None]
    sin = sin_cache.flatten(1)[positions[known]].float()[:, None]
    # Of a head of both it loads both before it stores either: one that is handed in twice, as query
    # and as key, is rotated once. sgl_kernel's above rotates the query's heads first.
    turned = []
    for tensor in (query, key):
        if tensor is not None:
            heads = tensor.view(positions.numel(), -1, rope.head_size)[..., : rope.rotary_dim]
            turned.append((heads, rotate(heads[known].float(), cos, sin, rope.is_neox_style)))
    for heads, rotated in turned:
        heads[known] = rotated.to(heads.dtype)


def _get_rope(
    head_size,
    rotary_dim,
    max_position,
    base,
    is_neox_style=True,
    rope_scaling=None,
    dtype=None,
    partial_rotary_factor=1.0,
):
    from sglang.srt.layers.rotary_embedding import get_rope

    # aiter computes mscale and drops it; other scalings are its own code as well.
    kind = (rope_scaling or {}).get("rope_type", "default")
    need(kind == "default", f"aiter.rotary_embedding.get_rope: rope_scaling {rope_scaling}")
    dtype = dtype or torch.get_default_dtype()
    native = get_rope(
        head_size,
        rotary_dim,
        max_position,
        base,
        is_neox_style,
        rope_scaling,
        dtype,
        partial_rotary_factor,
    )
    native.cos_sin_cache = native.cos_sin_cache.to("cuda", dtype)  # where models are built
    return AiterRope(native)


provided["aiter.rotary_embedding.get_rope"] = _get_rope


@operator("aiter.ops.triton.fused_kv_cache.fused_qk_rope_cat_and_cache_mla")
def fused_qk_rope_cat_and_cache_mla(
    q_nope,
    q_pe,
    k_nope,
    k_pe,
    kv_cache,
    slot_mapping,
    pos,
    cos,
    sin,
    k_scale,
    is_neox,
    num_decode_toks_for_zeros=0,
    apply_scale=True,
    q_out=None,
    decode_q_pe_out=None,
    k_pe_out=None,
    q_out_dtype=None,
):
    name = "fused_qk_rope_cat_and_cache_mla"
    for given in (q_out, decode_q_pe_out, k_pe_out):
        need(given is None, f"{name}: an output given")
    need(num_decode_toks_for_zeros == 0, f"{name}: num_decode_toks_for_zeros")
    need(apply_scale, f"{name}: apply_scale=False")
    need(kv_cache.dim() == 3, f"{name}: cache of shape {tuple(kv_cache.shape)}")
    need_dtype(name, (torch.bfloat16, torch.float16, chip().fp8_dtype), kv_cache=kv_cache)
    tokens, stored = q_nope.shape[0], slot_mapping.shape[0]
    assert tokens <= stored <= k_nope.shape[0], f"{name}: {tokens} q, {stored} slots"
    assert k_nope.shape[-1] + k_pe.shape[-1] == kv_cache.shape[-1], f"{name}: row width"
    need(cos.shape[-1] * 2 == q_pe.shape[-1], f"{name}: cos of width {cos.shape[-1]}")
    need(sin.stride() == cos.stride(), f"{name}: sin with its own strides; the kernel has one set")
    need_shape(name, cos.shape, sin=sin)
    need_shape(name, (*q_nope.shape[:2], q_pe.shape[-1]), q_pe=q_pe)
    need_shape(name, (*k_nope.shape[:2], q_pe.shape[-1]), k_pe=k_pe)
    need_shape(name, (len(kv_cache), k_nope.shape[1], kv_cache.shape[-1]), kv_cache=kv_cache)
    need_shape(name, (tokens,), pos=pos)
    need_inside(name, len(cos), pos=pos)
    need_inside(name, len(kv_cache), slot_mapping=slot_mapping[slot_mapping >= 0])
    if isinstance(k_scale, torch.Tensor):
        need_scales(name, k_scale=k_scale)
    # The kernel rounds each product and the sum where its table is bf16: so does torch.
    angle = [table.flatten(1)[pos][:, None] for table in (cos, sin)]
    width = q_out_dtype or q_nope.dtype
    allowed = (q_nope.dtype, chip().fp8_dtype)
    need(width in allowed, f"{name}: q_out_dtype {width}, expected one of {allowed}")
    q = torch.cat(
        [unclamped(q_nope, width), unclamped(rotate(q_pe, *angle, is_neox).to(q_pe.dtype), width)],
        -1,
    )
    rotated = k_pe[:stored].clone()
    rotated[:tokens] = rotate(k_pe[:tokens], *angle, is_neox).to(k_pe.dtype)
    inverse = 1.0 if k_scale is None else 1 / torch.as_tensor(k_scale).float()
    row = torch.cat([k_nope[:stored].float() * inverse, rotated.float() * inverse], -1)
    kept = slot_mapping >= 0
    kv_cache[slot_mapping[kept]] = unclamped(row[kept], kv_cache.dtype)
    k_pe_out = poisoned(k_pe.shape, k_pe.dtype, k_pe.device)  # untouched for slots below 0
    k_pe_out[:stored][kept] = rotated[kept]
    none = q_nope.new_empty(0, *q_pe.shape[1:])
    return q, none, k_pe_out, q_nope.new_empty(0, *q_nope.shape[1:])


@operator("aiter.fused_qk_norm_mrope_3d_cache_pts_quant_shuffle")
def norm_mrope_and_store(
    qkv, q_weight, k_weight, cos_sin, positions, num_tokens, heads, k_heads, v_heads, head,
    neox, section, interleaved, epsilon, q_out, k_cache, v_cache, slots, k_scale, v_scale,
    k_out, v_out, return_kv, shuffled, block_size, x,
):  # fmt: skip
    """RMSNorm of q and k, M-RoPE by three rows of positions, and the store; fp32 inside."""
    name = "fused_qk_norm_mrope_3d_cache_pts_quant_shuffle"
    need(
        not (return_kv or shuffled or block_size or x), f"{name}: k_out, v_out or a shuffled cache"
    )
    need(k_out is None and v_out is None, f"{name}: k_out or v_out")
    for each in (k_scale, v_scale):
        need(float(each) == 1, f"{name}: a scale other than 1")
    need_dtype(name, qkv.dtype, cos_sin=cos_sin, q_weight=q_weight, k_weight=k_weight, q_out=q_out)
    need_dtype(name, torch.int64, positions=positions, slots=slots)
    need_dtype(name, (qkv.dtype, chip().fp8_dtype), k_cache=k_cache)
    need_dtype(name, k_cache.dtype, v_cache=v_cache)
    need_shape(name, (num_tokens, heads + k_heads + v_heads, head), qkv=qkv)
    need_shape(name, (num_tokens, heads, head), q_out=q_out)
    need_shape(name, (3, num_tokens), positions=positions)
    need_shape(name, (len(k_cache), k_heads, head), k_cache=k_cache, v_cache=v_cache)
    need_inside(name, len(cos_sin), positions=positions)
    need_inside(name, len(k_cache), slots=slots)
    need(cos_sin.shape[1] == head and sum(section) * 2 == head, f"{name}: a partial rotation")
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(section)).to(qkv.device)
    if interleaved:
        pair = torch.arange(head // 2, device=qkv.device)
        axis = pair % 3
        axis[pair >= 3 * torch.tensor(section, device=qkv.device)[axis]] = 0
    angles = cos_sin.float()[positions]
    cos, sin = (
        each.gather(0, axis.expand(1, num_tokens, -1))[0, :, None] for each in angles.chunk(2, -1)
    )
    q, k, v = qkv.float().split([heads, k_heads, v_heads], 1)
    for found, weight, out in ((q, q_weight, q_out), (k, k_weight, None)):
        normed = found * torch.rsqrt(found.square().mean(-1, keepdim=True) + epsilon)
        turned = rotate(normed * weight.float(), cos, sin, neox)
        if out is None:
            k_cache[slots] = unclamped(turned, k_cache.dtype)
        else:
            out.copy_(turned)
    v_cache[slots] = unclamped(v, v_cache.dtype)
