"""Rotary embedding in fp64, in plain torch; tests/references/kv_cache.py is the store after it."""

import torch


def rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, neox: bool):
    """x ``[T, heads, D]`` rotated in its first R elements, fp64; cos_sin ``[positions, R]``."""
    rotary = cos_sin.shape[1]
    if x.dim() != 3 or positions.shape != x.shape[:1] or rotary % 2 or rotary > x.shape[2]:
        raise ValueError(f"x {list(x.shape)}, positions {list(positions.shape)}, R {rotary}")
    x = x.double()
    cos, sin = cos_sin[positions.long()].double()[:, None].chunk(2, -1)
    pairs = (rotary // 2, 2) if not neox else (2, rotary // 2)
    x1, x2 = x[..., :rotary].unflatten(-1, pairs).unbind(-1 if not neox else -2)
    turned = torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1 if not neox else -2)
    return torch.cat((turned.flatten(-2), x[..., rotary:]), -1)
