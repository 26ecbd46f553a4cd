"""sglang's TileLang kernels: the host code that calls them stays real, each jitted factory is
replaced by a reference of the same name. On a GPU that has TileLang, its own kernels run."""

import functools

import torch

from .. import recorder
from ..imports import NotEmulatedError
from . import chip, need, need_dtype, need_inside, need_shape, provided, saturate

_factories: dict[str, object] = {}


def _factory(function):
    _factories[function.__name__] = function
    return function


def _jit(function=None, **options):
    def decorate(kernel):
        def factory(*args, **kwargs):
            if kernel.__name__ not in _factories:
                raise NotEmulatedError(f"the TileLang kernel {kernel.__name__}")
            reference = _factories[kernel.__name__](*args, **kwargs)
            return recorder.recorded(f"tilelang.{kernel.__name__}")(reference)

        return factory

    return decorate if function is None else decorate(function)


def count_native_launches() -> None:
    """From now on each launch of a TileLang kernel counts under the name that its reference has."""
    import tilelang

    compiled_by = tilelang.jit

    def jit(function=None, **options):
        def decorate(kernel):
            compiled = compiled_by(**options)(kernel)

            @functools.wraps(kernel)
            def factory(*args, **kwargs):
                return recorder.recorded(f"tilelang.{kernel.__name__}")(compiled(*args, **kwargs))

            return factory

        return decorate if function is None else decorate(function)

    tilelang.jit = jit
    compile_program = tilelang.compile

    def compiled_once(program, **options):
        name = program.attrs["global_symbol"]
        return recorder.recorded(f"tilelang.{name}")(compile_program(program, **options))

    tilelang.compile = compiled_once


provided["tilelang.jit"] = _jit
provided["tilelang.set_log_level"] = lambda level: None


@_factory
def act_quant_kernel(N, in_dtype="bfloat16", out_dtype=None, scale_dtype=None, round_scale=False):
    need(in_dtype == "bfloat16", f"act_quant_kernel: input of {in_dtype}")
    need(out_dtype is None and scale_dtype is None, "act_quant_kernel: out_dtype or scale_dtype")

    def kernel(x, y, scales):
        _typed("act_quant_kernel", torch.bfloat16, x=x)
        _typed("act_quant_kernel", torch.float32, scales=scales)
        need_shape("act_quant_kernel", (len(x), N), x=x, y=y)
        need_shape("act_quant_kernel", (len(x), N // 128), scales=scales)
        for argument, operand in (("x", x), ("y", y), ("scales", scales)):
            need(operand.is_contiguous(), f"act_quant_kernel: strides of {argument}")
        groups = x.float().unflatten(-1, (-1, 128))
        largest = chip().act_quant_max
        inverse = torch.tensor(1 / largest, dtype=torch.float32, device=x.device)
        scale = groups.abs().amax(-1).clamp(min=1e-4) * inverse
        if round_scale:  # exact in the kernel too: it works on the exponent's bits
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        scales.copy_(scale)
        y.copy_(
            saturate((groups / scale[..., None]).clamp(-largest, largest), y.dtype).view(y.shape)
        )

    return kernel


@_factory
def sparse_attention_fwd_kernel_v1(
    num_heads,
    dim,
    tail_dim,
    topk,
    *,
    kv_group=1,
    sm_scale=None,
    is_causal=True,
    block_I=64,
    num_stages=2,
    threads=256,
):
    """0.5.9's: all keys of a token in one workgroup, bf16 alone; 0 / 0 for a token without keys."""
    assert is_causal, "sparse_attention_fwd_kernel_v1: non-causal"
    assert topk % block_I == 0, "sparse_attention_fwd_kernel_v1: topk"
    assert num_heads <= 64 or num_heads % 64 == 0, "sparse_attention_fwd_kernel_v1: heads"
    need(kv_group == 1, "sparse_attention_fwd_kernel_v1: kv_group")
    need(sm_scale is not None, "sparse_attention_fwd_kernel_v1: sm_scale=None")

    def kernel(q, kv, indices):
        name = "sparse_attention_fwd_kernel_v1"
        _typed(name, torch.bfloat16, q=q, kv=kv)
        _need_sparse(name, num_heads, dim + tail_dim, topk, q, kv, indices)
        out = q.new_empty(1, q.shape[1], num_heads, dim)
        rows = kv[0, :, 0]
        for token in range(q.shape[1]):
            chosen = indices[0, token, 0]
            key = rows[chosen[chosen >= 0].long()].float()
            logits = q[0, token].float() @ key.T * (sm_scale * LOG2_E)
            top = logits.amax(-1, keepdim=True) if len(key) else -(2.0**30)
            weights = torch.exp2(logits - top)
            value = weights.to(torch.bfloat16).float() @ key[:, :dim]
            out[0, token] = (value / weights.sum(-1, keepdim=True)).to(torch.bfloat16)
        return out

    return kernel


def _typed(name, dtype, **operands):
    """As TileLang's host code checks what it is called with."""
    for operand, x in operands.items():
        if x.dtype is not dtype:
            raise TypeError(f"{name}: {operand} is {x.dtype}, expected {dtype}")


def _need_sparse(name, heads, width, topk, q, kv, indices):
    """One batch and one KV head, in the shapes that the kernel is compiled for."""
    tokens = q.shape[1]
    need_dtype(name, torch.int32, indices=indices)
    need_shape(name, (1, tokens, heads, width), q=q)
    need_shape(name, (1, kv.shape[1], 1, width), kv=kv)
    need_shape(name, (1, tokens, 1, topk), indices=indices)
    need_inside(name, kv.shape[1], indices=indices[indices >= 0])


def _partial(name, heads, dim, tail_dim, topk, sm_scale, block, inner_iter, dtype, attend):
    groups = topk // (block * inner_iter)

    def kernel(q, kv, indices):
        _typed(name, dtype, q=q, kv=kv)
        _need_sparse(name, heads, dim + tail_dim, topk, q, kv, indices)
        tokens = q.shape[1]
        out = q.new_empty(1, tokens, groups, heads, dim, dtype=torch.bfloat16)
        lse = q.new_empty(1, tokens, groups, heads, dtype=torch.float32)
        rows = kv[0, :, 0]
        for token in range(tokens):
            chosen = indices[0, token, 0].view(groups, -1).long()
            for group in range(groups):
                kept = chosen[group][chosen[group] >= 0]
                if not len(kept):
                    out[0, token, group], lse[0, token, group] = 0, -(2.0**30)
                    continue
                key = rows[kept].float()
                logits = q[0, token].float() @ key.T * (sm_scale * LOG2_E)
                top = logits.amax(-1, keepdim=True)
                weights = torch.exp2(logits - top)
                total = weights.sum(-1)
                value = attend(weights, key[:, :dim]) / total[:, None]
                out[0, token, group] = value.to(torch.bfloat16)
                lse[0, token, group] = torch.log2(total) + top[:, 0]
        return out, lse

    return kernel


LOG2_E = 1.44269504


@_factory
def sparse_mla_fwd_decode_partial(
    heads,
    dim,
    tail_dim,
    topk,
    *,
    kv_group=1,
    sm_scale=None,
    is_causal=True,
    block_I=64,
    inner_iter=1,
    num_stages=1,
    threads=256,
):
    assert is_causal, "sparse_mla_fwd_decode_partial: non-causal"
    assert kv_group == 1, "sparse_mla_fwd_decode_partial: kv_group"
    assert topk % (block_I * inner_iter) == 0, "sparse_mla_fwd_decode_partial: topk"
    need(sm_scale is not None, "sparse_mla_fwd_decode_partial: sm_scale=None")

    def attend(weights, value):
        return weights.to(torch.bfloat16).float() @ value

    shape = heads, dim, tail_dim, topk, sm_scale, block_I, inner_iter
    return _partial("sparse_mla_fwd_decode_partial", *shape, torch.bfloat16, attend)


@_factory
def sparse_mla_fwd_decode_partial_fp8(
    num_heads, d_v, d_tail, topk, *, sm_scale=None, block_I=64, inner_iter=1, threads=256
):
    assert d_v == 512, "sparse_mla_fwd_decode_partial_fp8: d_v"
    assert num_heads <= 16 or num_heads % 16 == 0, "sparse_mla_fwd_decode_partial_fp8: heads"
    assert topk % (block_I * inner_iter) == 0, "sparse_mla_fwd_decode_partial_fp8: topk"
    need(sm_scale is not None, "sparse_mla_fwd_decode_partial_fp8: sm_scale=None")
    fp8, largest = chip().fp8_dtype, chip().fp8_max

    def attend(weights, value):
        return saturate(weights * largest, fp8).float() @ value / largest

    shape = num_heads, d_v, d_tail, topk, sm_scale, block_I, inner_iter
    return _partial("sparse_mla_fwd_decode_partial_fp8", *shape, fp8, attend)


@_factory
def sparse_mla_fwd_decode_combine(heads, dim, topk, head_per_block, *, block_I=64, threads=256):
    assert heads % head_per_block == 0, "sparse_mla_fwd_decode_combine: head_per_block"

    def kernel(partial_out, partial_lse):
        name, groups = "sparse_mla_fwd_decode_combine", topk // block_I
        _typed(name, torch.bfloat16, partial_out=partial_out)
        _typed(name, torch.float32, partial_lse=partial_lse)
        tokens = partial_out.shape[1]
        need_shape(name, (1, tokens, groups, heads, dim), partial_out=partial_out)
        need_shape(name, (1, tokens, groups, heads), partial_lse=partial_lse)
        weights = torch.exp2(partial_lse - partial_lse.amax(2, keepdim=True))
        weights = weights / weights.sum(2, keepdim=True)
        return (partial_out.float() * weights[..., None]).sum(2).to(torch.bfloat16)

    return kernel
