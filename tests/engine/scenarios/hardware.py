"""What upstream takes for granted of the hardware, and the emulation does not grant."""

import numpy as np
import torch

# _get_k_and_s_triton_kernel sums lanes that a load without `other` has masked off. Triton leaves
# them undefined; AMD's buffer loads, which are sent out of range for such lanes, give 0.
READ_ZERO_WHERE_MASKED = {"_get_k_and_s_triton_kernel"}


def grant(platform) -> None:
    if platform.name != "cpu":
        return
    _masked_lanes()
    _tensors_on_the_host()


def _tensors_on_the_host() -> None:
    """Lengths that the paged allocator insists are on the host, where every tensor says GPU."""
    from sglang.srt.mem_cache import allocator

    count = allocator.get_num_new_pages

    def undisguised(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return count(*args, **kwargs)

    allocator.get_num_new_pages = undisguised


def _masked_lanes() -> None:
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    from tests.platform import triton_interpreter

    poison, call = triton_interpreter._poison, triton_interpreter.Launch.__call__

    def zeros(shape, dtype):
        return TensorHandle(np.zeros(shape, dtype=_get_np_dtype(dtype)), dtype)

    def launch(self, *args, **kwargs):
        if self.fn.__name__ not in READ_ZERO_WHERE_MASKED:
            return call(self, *args, **kwargs)
        triton_interpreter._poison = zeros
        try:
            return call(self, *args, **kwargs)
        finally:
            triton_interpreter._poison = poison

    triton_interpreter.Launch.__call__ = launch
