"""The rotation of q and k in place, in one launch, for the sequences that store after it.

On HIP a release calls sgl_kernel's or aiter's operator. If sgl_kernel is not installed, the
release's Triton kernel for three-axis positions replaces it, with three equal axes; it takes one
launch too.
"""

import torch

from bench import upstream


def rotation(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, neox: bool
):
    """A call that rotates q ``[T, q heads, D]`` and k ``[T, KV heads, D]``, each head's first part.

    Heads lie side by side. cos_sin ``[positions, R]``: R/2 cosines, then R/2 sines.
    """
    head, q, k = q.shape[-1], q.flatten(1), k.flatten(1)
    operator = upstream.installed("sgl_kernel", "rotary_embedding")
    if operator:
        return lambda: operator(positions, q, k, head, cos_sin, neox)
    return three_axes(q, k, positions, cos_sin, head, neox)


def three_axes(q, k, positions, cos_sin, head: int, neox: bool):
    kernel = upstream.kernel("layers.rotary_embedding.triton_kernels", "triton_mrope_fused")
    rotary = cos_sin.shape[1]
    sections = [rotary // 2, 0, 0]  # all pairs turn by the first axis
    axes = positions.expand(3, -1)
    return lambda: kernel(
        q, k, cos_sin, axes, sections, head, rotary, False, False, neox, axis_map=positions
    )
