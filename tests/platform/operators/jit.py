"""sglang's own C++ kernels, compiled at run time through tvm_ffi: its Python wrappers stay real."""

import torch

from .. import recorder
from ..imports import NotEmulatedError
from . import need, need_inside, need_shape, provided

_functions: dict[str, object] = {}


def _function(function):
    _functions[function.__name__] = recorder.recorded(f"jit.{function.__name__}")(function)
    return function


class _Module:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name):
        if name not in _functions:
            raise NotEmulatedError(f"function {name} of the JIT module {self._name}")
        return _functions[name]


def _load(name, *args, **kwargs):
    return _Module(name)


def load_references() -> None:
    """In a process that has the real tvm_ffi, since TileLang needs it."""
    from tvm_ffi import cpp

    cpp.load = cpp.load_inline = _load


provided["tvm_ffi.cpp.load"] = provided["tvm_ffi.cpp.load_inline"] = _load


@_function
def store_cache(k, v, k_cache, v_cache, indices, num_split, size_limit=0):
    """size_limit: slots that may be named, 0 for all; 0.5.16 checks them."""
    need(indices.dtype in (torch.int32, torch.int64), f"store_cache: indices of {indices.dtype}")
    need(
        indices.numel() == k.shape[0], f"store_cache: {indices.numel()} slots for {k.shape[0]} rows"
    )
    for source, cache in ((k, k_cache), (v, v_cache)):
        need(source.dtype == cache.dtype, f"store_cache: {source.dtype} into {cache.dtype}")
        need(source.shape[1:] == cache.shape[1:], f"store_cache: rows of {tuple(source.shape[1:])}")
    need_shape("store_cache", k.shape, v=v)
    need_shape("store_cache", k_cache.shape, v_cache=v_cache)
    row = k.shape[1:].numel() * k.element_size()
    need(
        num_split == 1 or (num_split in (2, 4) and row % (num_split * 128) == 0),
        f"store_cache: num_split {num_split} for rows of {row} bytes",
    )
    slots = indices.long()
    need_inside("store_cache", size_limit or len(k_cache), indices=slots)
    for source, cache in ((k, k_cache), (v, v_cache)):
        cache.view(torch.uint8)[slots] = source.contiguous().view(torch.uint8)


@_function
def clamp_position(positions, sequence_lengths):
    positions.copy_((sequence_lengths - 1).clamp(min=0))


@_function
def resolve_future_token_ids(input_ids, future_ids):
    resolved = future_ids[(-input_ids).clamp(min=0)]
    input_ids.copy_(torch.where(input_ids < 0, resolved, input_ids))
