"""Find what Triton would compile for a call, by making the call on tensors without memory.

    (launch,) = recorded(lambda: write_kv(k, v, cache, slots, None, None), "gfx942")
    code = aot.compile_request(launch.request)

A wrapper's own code chooses grid, block sizes and warps; the launcher's rules choose what Triton
specialises on: a type for each argument, 1 and None as constants, divisibility by 16 of integers
and addresses, and whether a tensor ends below 2 GiB. Both are applied here to meta tensors, so that
caches of any size cost nothing. Runs where Triton compiles, not in its interpreter.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from sglang.srt import rocm_patches

TRITON_TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
}
BELOW_2_GIB = 2**31 - 1


@contextlib.contextmanager
def believing(arch: str):
    """The overlay, and upstream's files, see this architecture."""
    properties = SimpleNamespace(gcnArchName=arch, multi_processor_count=304)
    rocm_patches.arch.cache_clear()
    with (
        mock.patch.object(torch.version, "hip", "7.0"),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        yield
    rocm_patches.arch.cache_clear()


@dataclass(frozen=True)
class Launch:
    request: dict  # what tests.kernels.aot.compile takes
    integers: dict[str, int]  # the values of integer arguments
    grid: tuple[int, ...]


def recorded(call: Callable[[], object], arch: str) -> list[Launch]:
    """The kernels that a call launches."""
    found: list[Launch] = []

    def run(self, *args, grid, warmup=False, **given):
        values = dict(zip(self.arg_names, args, strict=False))
        values |= {name: value for name, value in given.items() if name in self.arg_names}
        options = {name: value for name, value in given.items() if name not in self.arg_names}
        request = _request(self, values, options) | {"arch": arch}
        integers = {name: value for name, value in values.items() if type(value) is int}
        found.append(Launch(request, integers, tuple(grid(values) if callable(grid) else grid)))

    with believing(arch), mock.patch.object(triton.JITFunction, "run", run):
        call()
    return found


def _request(function: triton.JITFunction, values: dict, options: dict) -> dict:
    signature, constexprs, far = {}, {}, []
    for parameter in function.params:
        name = parameter.name
        if name not in values:  # a default
            value, constant = parameter.default, True
        else:
            value = values[name]
            constant = parameter.is_constexpr or value is None
            constant |= value is True or value is False
        if not constant and type(value) is int and not parameter.do_not_specialize:
            constant = value == 1
        if constant:
            constexprs[name] = value
        else:
            signature[name] = _kind(value, parameter)
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > BELOW_2_GIB:
                far.append(name)
    return {
        "module": function.fn.__module__,
        "kernel": function.fn.__name__,
        "signature": signature,
        "constexprs": {name: _named(value) for name, value in constexprs.items()},
        "far": far,
        "options": options,
    }


def _kind(value, parameter) -> str:
    """As aot.compile takes it: a type, and behind a colon by what it is divisible."""
    if isinstance(value, torch.Tensor):
        # Allocations are aligned to more than 16 bytes; a view is as far from one as its offset.
        aligned = value.storage_offset() * value.itemsize % 16 == 0
        aligned &= not parameter.do_not_specialize_on_alignment
        return f"*{TRITON_TYPES[value.dtype]}:{16 if aligned else value.itemsize}"
    if isinstance(value, int):
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        return f"{kind}:16" if value % 16 == 0 and not parameter.do_not_specialize else kind
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{parameter.name}: {value!r} is no argument of a kernel")


def _named(value):
    """A constant as JSON can carry it; aot.compile reads "tl.float32" as that Triton type."""
    if isinstance(value, triton.language.dtype):
        return f"tl.{next(n for n, t in vars(triton.language).items() if t is value)}"
    return value.value if isinstance(value, triton.language.constexpr) else value
