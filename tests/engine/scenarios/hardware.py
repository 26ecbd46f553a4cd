"""What upstream's kernels take for granted of the hardware, and the interpreter does not grant."""

import numpy as np

# _get_k_and_s_triton_kernel sums lanes that a load without `other` has masked off. Triton leaves
# them undefined; AMD's buffer loads, which are sent out of range for such lanes, give 0.
READ_ZERO_WHERE_MASKED = {"_get_k_and_s_triton_kernel"}


def grant(platform) -> None:
    if platform.name != "cpu":
        return
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
