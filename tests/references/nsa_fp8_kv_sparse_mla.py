"""Sparse MLA attention over a paged latent cache, in plain torch and fp64."""

import torch


def sparse_mla(q, kv, indices, sm_scale, d_v, kv_scale=1.0) -> torch.Tensor:
    """q ``[T, H, D]``, kv ``[slots, 1, D]``, indices ``[T, 1, K]``: ``[T, H, d_v]`` in fp64.

    Each token attends to the rows that its indices name, below 0 for none, twice to a row named
    twice; no rows at all give zeros.
    """
    if not (q.dim() == kv.dim() == indices.dim() == 3 and kv.shape[1] == indices.shape[1] == 1):
        raise ValueError(f"shapes {q.shape}, {kv.shape}, {indices.shape}")
    if not 0 < d_v < q.shape[2] == kv.shape[2] or q.shape[0] != indices.shape[0]:
        raise ValueError(f"d_v {d_v} with shapes {q.shape}, {kv.shape}, {indices.shape}")
    if indices.numel() and int(indices.max()) >= len(kv):
        raise ValueError(f"slot {int(indices.max())} of {len(kv)}")
    out = q.new_zeros((*q.shape[:2], d_v), dtype=torch.float64)
    for token, named in enumerate(indices[:, 0]):
        rows = kv[named[named >= 0].long(), 0].double() * kv_scale
        if len(rows):
            scores = q[token].double() @ rows.T * sm_scale
            out[token] = scores.softmax(-1) @ rows[:, :d_v]
    return out
