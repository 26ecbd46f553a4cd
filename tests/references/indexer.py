"""The indexer's K quantisation, its cache layouts and its head gates, in plain torch.

`act_quant` and the page of one slot are sglang's; the layouts with more slots are aiter's.
"""

import torch

HEAD_DIM = 128


def act_quant(k: torch.Tensor, quant_max: float, dtype: torch.dtype):
    """sglang's ``act_quant(k, 128, "ue8m0")``: e4m3 ``[T, 128]`` and fp32 scales ``[T]``."""
    if k.dim() != 2 or k.shape[1] != HEAD_DIM:
        raise ValueError(f"k is {tuple(k.shape)}, not [T, {HEAD_DIM}]")
    _require(k, torch.bfloat16, "k")
    k = k.float()
    product = k.abs().amax(1).clamp(min=1e-4) * k.new_tensor(1 / quant_max)
    # The least power of two that is no smaller: on the bits, as the kernel does it.
    bits = product.view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
    scale = (exponent << 23).view(torch.float32)
    return (k / scale[:, None]).clamp(-quant_max, quant_max).to(dtype), scale


def value_offset(slot_in_page: int, element: int, preshuffled: bool) -> int:
    """Where in its page a value's byte lies."""
    if not preshuffled:
        return slot_in_page * HEAD_DIM + element
    tile = slot_in_page // 16 * (16 * HEAD_DIM) + element // 16 * (16 * 16)
    return tile + slot_in_page % 16 * 16 + element % 16


def store_index_k(k, cache, slots, page_size, quant_max, dtype, preshuffled=False) -> None:
    """Write the quantised keys and their scales to a uint8 cache ``[pages, page_size * 132]``."""
    _require(cache, torch.uint8, "cache")
    if cache.shape[1] != page_size * (HEAD_DIM + 4):
        raise ValueError(f"pages of {cache.shape[1]} bytes do not hold {page_size} slots")
    if preshuffled and page_size % 16:
        raise ValueError(f"a preshuffled page cannot have {page_size} slots")
    values, scales = act_quant(k.contiguous(), quant_max, dtype)
    for value, scale, slot in zip(values, scales, slots.tolist(), strict=False):
        if slot < 0:
            continue
        page, o = cache[slot // page_size], slot % page_size
        offsets = [value_offset(o, element, preshuffled) for element in range(HEAD_DIM)]
        page[offsets] = value.view(torch.uint8)
        start = page_size * HEAD_DIM + 4 * o
        page[start : start + 4] = scale.reshape(1).view(torch.uint8)


def scale_head_gates(gates, q_scale, head_scale, softmax_scale) -> torch.Tensor:
    """What ``Indexer._get_logits_head_gate`` does to the projection's result."""
    _require(q_scale, torch.float32, "q_scale")
    return (gates.float() * head_scale).unsqueeze(-1) * q_scale * softmax_scale


def _require(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, not {dtype}")
