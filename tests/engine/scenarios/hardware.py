"""What upstream takes for granted of the hardware, and the emulation does not grant."""

import contextlib
import importlib

import numpy as np
import torch

# Both sum lanes that a load without `other` has masked off. Triton leaves them undefined; AMD's
# buffer loads, which are sent out of range for such lanes, give 0.
READ_ZERO_WHERE_MASKED = {"_get_k_and_s_triton_kernel", "assign_draft_cache_locs"}


def grant(platform) -> None:
    if platform.name != "cpu":
        return
    _masked_lanes()
    _tensors_on_the_host()


def _tensors_on_the_host() -> None:
    """Lengths that the paged allocator insists are on the host, where every tensor says GPU."""
    for name in ("", ".paged", ".swa"):  # a module, and a package from 0.5.13 on
        with contextlib.suppress(ImportError):
            allocator = importlib.import_module(f"sglang.srt.mem_cache.allocator{name}")
            if hasattr(allocator, "get_num_new_pages"):
                allocator.get_num_new_pages = _undisguised(allocator.get_num_new_pages)


def _undisguised(count):
    def count_pages(*args, **kwargs):
        with torch._C.DisableTorchFunction():
            return count(*args, **kwargs)

    return count_pages


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


def draft_cache_locs(platform, seq_lens, extend_lens, page_size, topk, steps):
    """Where EAGLE's draft writes, from slots 1, 2, ..: rows of a table with a page for each."""
    from sglang.srt.speculative.spec_utils import assign_draft_cache_locs

    grant(platform)
    device, batch = platform.device, len(seq_lens)
    lens, new = (torch.tensor(x, device=device) for x in (seq_lens, extend_lens))
    table = torch.zeros(batch, 64, dtype=torch.int32, device=device)
    slots = torch.arange(1, int(new.sum()) + 1, device=device)
    none = torch.zeros(batch, dtype=torch.int64, device=device)
    assign_draft_cache_locs[(batch,)](
        torch.arange(batch, device=device), table, lens, new, none, slots, none, none, none, 0,
        table.shape[1], topk, steps, page_size, 4, 16,
    )  # fmt: skip
    return {"table": table}
