"""sgl_kernel's activations, the Hadamard transform and the choice of a token."""

import torch

from . import need, need_dtype, need_shape, operator


@operator("sgl_kernel.silu_and_mul")
def silu_and_mul(input, out=None):
    gate, up = input.float().chunk(2, -1)
    result = (torch.nn.functional.silu(gate) * up).to(input.dtype)
    if out is not None:
        need_dtype("silu_and_mul", input.dtype, out=out)
        need_shape("silu_and_mul", result.shape, out=out)
    return result if out is None else out.copy_(result)


@operator("fast_hadamard_transform.hadamard_transform")
def hadamard_transform(x, scale=1.0):
    size = x.shape[-1]
    need(size & (size - 1) == 0, f"hadamard_transform: {size} is no power of two")
    y, half = x.float().reshape(-1, size), 1
    while half < size:
        low, high = y.view(-1, size // (2 * half), 2, half).unbind(2)
        y = torch.stack([low + high, low - high], 2).reshape(-1, size)
        half *= 2
    return (y * scale).view(x.shape).to(x.dtype)


@operator("aiter.greedy_sample")
def greedy_sample(out, logits):
    need(logits.dim() == 2, f"greedy_sample: {logits.dim()}-D logits")
    need_dtype("greedy_sample", torch.int32, out=out)
    need_shape("greedy_sample", logits.shape[:1], out=out)
    out.copy_(logits.argmax(-1))
