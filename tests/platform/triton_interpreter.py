"""Triton's interpreter with the arithmetic of a GPU.

`TRITON_INTERPRET=1` (Triton 3.9.0) runs a kernel in numpy, which has neither bf16 nor fp8:
  - bf16 is kept as uint16 and added, multiplied, compared, summed and dotted *as integers*;
  - fp32 -> bf16 truncates, casts to fp8 round wrongly near binade ends and in subnormals;
  - int <-> bf16 casts copy numbers into bit patterns;
  - a float argument is a Python number, so `bf16 * arg` stays bf16; on a GPU it becomes fp32;
  - fp16 and bf16 sums are exact to the end; on a GPU every step rounds;
  - tl.flip walks over single elements in Python;
  - an access outside the arguments reads or writes whatever lies there;
  - triton.language is replaced once more at each call of a device function.
`install()` replaces these operations, in this process only. What it does not implement raises.
Another project can take this file, triton_types.py and floats.py into a package of its own:
TRITON_INTERPRET=1 is set before Triton is imported, and install() called before the first launch.

Two choices are on the strict side, so that a careless kernel fails here and not on the hardware:
  - overflow to fp8 gives what the format has (NaN in e4m3, infinity in e5m2) and never saturates.
    Triton 3.9 sets MODE.FP16_OVFL on AMD and saturates; the Triton 3.4 and 3.5 of the ROCm images
    do not. A kernel has to clamp by itself.
  - lanes masked out of a load that names no `other` are poison (NaN, or a wild integer): Triton
    leaves them undefined.
"""

import dataclasses

import numpy as np
import torch
import triton
import triton.language as tl
from torch.utils._pytree import tree_flatten
from triton.runtime import interpreter

from . import triton_types
from .floats import E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, Fp8, bf16_to_fp32, fp32_to_bf16

TensorHandle = interpreter.TensorHandle
RTNE = interpreter._ir.ROUNDING_MODE.RTNE
RTZ = interpreter._ir.ROUNDING_MODE.RTZ
_implicit_cvt = interpreter._implicit_cvt
_get_np_dtype = interpreter._get_np_dtype
_patch_lang = interpreter._patch_lang

# The modules whose functions the interpreter replaces, and those that it has in the running launch.
LANGUAGES = {"tl": tl, "tl.core": tl.core}
_replaced: set[str] = set()


FP8 = {
    tl.float8e4nv: E4M3FN,
    tl.float8e4b8: E4M3FNUZ,
    tl.float8e5: E5M2,
    tl.float8e5b16: E5M2FNUZ,
}


def _is_fp8(dtype) -> bool:
    return dtype.is_floating() and dtype.primitive_bitwidth == 8


def _widen(handle: TensorHandle) -> np.ndarray:
    """The handle's numbers in a type that numpy calculates with; exact."""
    dtype = handle.dtype.scalar
    if dtype == tl.bfloat16:
        return bf16_to_fp32(handle.data)
    if _is_fp8(dtype):
        return _fp8_format(dtype).decode(handle.data)
    return handle.data


def _fp8_format(dtype) -> Fp8:
    if dtype not in FP8:
        raise NotImplementedError(f"the interpreter has no arithmetic for {dtype}")
    return FP8[dtype]


def _narrow(value: np.ndarray, dtype, rounding=RTNE) -> TensorHandle:
    """Round numbers once to `dtype`."""
    if rounding == RTZ and dtype == tl.bfloat16 and value.dtype == np.float32:
        truncated = (value.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return TensorHandle(np.where(np.isnan(value), np.uint16(0x7FC0), truncated), dtype)
    if rounding != RTNE:
        raise NotImplementedError(f"{value.dtype} -> {dtype} with {rounding}")
    if dtype == tl.bfloat16:
        if value.dtype == np.float64:
            raise NotImplementedError("fp64 -> bf16 would round twice")
        return TensorHandle(fp32_to_bf16(value), dtype)
    if _is_fp8(dtype):
        return TensorHandle(_fp8_format(dtype).encode(value), dtype)
    return TensorHandle(value.astype(interpreter._get_np_dtype(dtype)), dtype)


def _needs_rounding(dtype) -> bool:
    if _is_fp8(dtype):
        raise NotImplementedError(f"arithmetic on {dtype}: no GPU has it, cast to fp32 first")
    return dtype == tl.bfloat16


def _result(output: np.ndarray, dtype) -> TensorHandle:
    return TensorHandle(output, tl.int1) if output.dtype == np.bool_ else _narrow(output, dtype)


class Builder(interpreter.InterpreterBuilder):
    """The operations that `install` puts in place of the interpreter's own."""

    def binary_op(self, lhs, rhs, op):
        dtype = lhs.dtype.scalar
        if _needs_rounding(dtype):
            return _result(op(_widen(lhs), _widen(rhs)), dtype)
        return super().binary_op(lhs, rhs, op)

    def unary_op(self, arg, op):
        dtype = arg.dtype.scalar
        if _needs_rounding(dtype):
            return _narrow(op(_widen(arg)), dtype)
        return super().unary_op(arg, op)

    def ternary_op(self, lhs, rhs, other, op):
        dtype = other.dtype.scalar
        if op is np.clip and _needs_rounding(dtype):
            return _narrow(op(_widen(lhs), _widen(rhs), _widen(other)), dtype)
        return super().ternary_op(lhs, rhs, other, op)

    def create_fma(self, x, y, z):
        if _needs_rounding(z.dtype.scalar):
            raise NotImplementedError("fma in bf16")
        return super().create_fma(x, y, z)

    def create_fabs(self, arg):
        _needs_rounding(arg.dtype.scalar)
        return super().create_fabs(arg)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if d.dtype.scalar == tl.bfloat16:
            raise NotImplementedError("tl.dot with a bf16 accumulator")
        product = np.matmul(_widen(a), _widen(b), dtype=d.data.dtype)
        return TensorHandle(product + d.data, d.dtype.scalar)

    def create_atomic_rmw(self, rmw_op, ptr, val, mask, sem, scope):
        dtype = val.dtype.scalar
        if dtype == tl.bfloat16 or _is_fp8(dtype):
            raise NotImplementedError(f"atomics on {dtype}")
        return super().create_atomic_rmw(rmw_op, ptr, val, mask, sem, scope)

    def create_masked_load(self, ptrs, mask, other, cache_policy, is_volatile):
        if other is None:
            other = _poison(ptrs.data.shape, ptrs.get_element_ty())
        _memory.check(ptrs, mask)
        return super().create_masked_load(ptrs, mask, other, cache_policy, is_volatile)

    def create_masked_store(self, ptrs, value, mask, cache_policy):
        _memory.check(ptrs, mask)
        return super().create_masked_store(ptrs, value, mask, cache_policy)

    def create_int_to_ptr(self, src, dst_type):
        _memory.known = None
        return super().create_int_to_ptr(src, dst_type)

    def cast_impl(self, src, dst_type):
        src_dtype, dst_dtype = src.dtype.scalar, dst_type.scalar
        if src_dtype.is_floating() and dst_dtype.is_floating():
            return _narrow(_widen(src), dst_dtype)
        if _is_fp8(src_dtype) or _is_fp8(dst_dtype):
            raise NotImplementedError(f"{src_dtype} -> {dst_dtype}: go through fp32")
        if src_dtype == tl.bfloat16:
            return TensorHandle(_widen(src).astype(interpreter._get_np_dtype(dst_dtype)), dst_dtype)
        if dst_dtype == tl.bfloat16:
            return _narrow(src.data.astype(np.float32), dst_dtype)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        # No rounding mode is given where every value fits.
        return _narrow(
            _widen(src), dst_type.scalar, RTNE if rounding_mode is None else rounding_mode
        )


def _poison(shape, dtype) -> TensorHandle:
    if isinstance(dtype, tl.pointer_type) or dtype == tl.int1:
        return TensorHandle(np.zeros(shape, dtype=interpreter._get_np_dtype(dtype)), dtype)
    if dtype.is_floating():
        return _narrow(np.full(shape, np.nan, dtype=np.float32), dtype)
    wild = np.frombuffer(b"\x5a" * 8, dtype=interpreter._get_np_dtype(dtype))[0]
    return TensorHandle(np.full(shape, wild), dtype)


class Memory:
    """The address ranges of the tensors that the running launch was given."""

    known: list[tuple[int, int]] | None = None  # None: the kernel makes pointers from integers

    def of_launch(self, tensors) -> None:
        storages = (tensor.untyped_storage() for tensor in tensors)
        self.known = [(each.data_ptr(), each.data_ptr() + each.nbytes()) for each in storages]

    def check(self, pointers: TensorHandle, mask: TensorHandle) -> None:
        if self.known is None:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        first = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        if not first.size:
            return
        low, high = int(first.min()), int(first.max()) + size
        if any(start <= low and high <= end for start, end in self.known):
            return
        inside = np.zeros(first.shape, dtype=bool)
        for start, end in self.known:
            inside |= (first >= start) & (first + np.uint64(size) <= end)
        outside = first[~inside]
        if outside.size:
            stray = int(outside[0])
            nearest = min((start for start, _ in self.known), key=lambda start: abs(stray - start))
            raise IndexError(
                f"{outside.size} of {inside.size} accesses lie outside every argument; the first "
                f"is {stray - nearest} bytes from the start of the nearest one"
            )


_memory = Memory()


class Launch(interpreter.GridExecutor):
    def __call__(self, *args, **kwargs):
        flat, _ = tree_flatten((args, kwargs))
        _memory.of_launch(arg for arg in flat if isinstance(arg, torch.Tensor))
        _replaced.clear()
        with np.errstate(all="ignore"):  # a GPU does not warn of infinities and NaN
            return super().__call__(*args, **kwargs)


def _replace_once(function) -> interpreter._LangPatchScope:
    """The interpreter's language, where the running launch has not replaced it already.

    It is asked for again at each call of a device function: a third of a kernel's time.
    """
    values = function.__globals__.values()
    seen = {name for name, lang in LANGUAGES.items() if any(each is lang for each in values)}
    if seen and seen <= _replaced:
        return interpreter._LangPatchScope()
    _replaced.update(seen)
    return _patch_lang(function)


class Reduce(interpreter.ReduceOps):
    def min_max(self, input, val_reduce_op, idx_reduce_op=None):
        tensor = input[0] if isinstance(input, tuple) else input
        if not _needs_rounding(tensor.dtype):
            return super().min_max(input, val_reduce_op, idx_reduce_op)
        exact = self.to_tensor(_widen(tensor.handle), tl.float32)
        result = super().min_max(exact, val_reduce_op, idx_reduce_op)
        if isinstance(result, tuple):
            return self._as_bf16(result[0]), result[1]
        return self._as_bf16(result) if val_reduce_op else result

    def _as_bf16(self, tensor):
        return self.to_tensor(fp32_to_bf16(tensor.handle.data), tl.bfloat16)

    def sum(self, input):
        if input.dtype not in (tl.bfloat16, tl.float16):
            _needs_rounding(input.dtype)
            return super().sum(input)
        axis, handle = self.axis, input.handle
        if axis is None:
            axis, handle = 0, TensorHandle(handle.data.reshape(-1), handle.dtype)
        data = np.moveaxis(handle.data, axis, 0)
        while data.shape[0] > 1:  # a tree, as lanes add up; blocks are powers of two long
            low, high = (TensorHandle(half, input.dtype) for half in np.split(data, 2))
            data = interpreter.interpreter_builder.create_fadd(low, high).data
        if not self.keep_dims:
            data = data[0]
        elif self.axis is None:
            data = data.reshape((1,) * input.handle.data.ndim)
        else:
            data = np.moveaxis(data, 0, axis)
        return self.to_tensor(data, input.dtype)

    def apply_impl(self, input):
        if self.combine_fn is tl.standard._xor_combine:  # tl.flip and tl.sort live on it
            data = input[0].handle.data
            folded = np.bitwise_xor.reduce(data, axis=self.axis, keepdims=self.keep_dims)
            return self.to_tensor(folded, input[0].dtype)
        return super().apply_impl(input)


class Scan(interpreter.ScanOps):
    def apply_impl(self, input):
        if any(_needs_rounding(tensor.dtype) for tensor in input):
            raise NotImplementedError("tl.cumsum, cumprod and associative_scan in bf16")
        return super().apply_impl(input)


_np_dtypes: dict[str, np.dtype] = {}


def _np_dtype(dtype) -> np.dtype:
    """As the interpreter's own, which builds a table of all types for each answer."""
    scalar = dtype.scalar
    if isinstance(scalar, tl.pointer_type):
        return _get_np_dtype(scalar)
    if scalar.name not in _np_dtypes:
        _np_dtypes[scalar.name] = _get_np_dtype(scalar)
    return _np_dtypes[scalar.name]


def _argument(arg):
    if isinstance(arg, float):
        return tl.tensor(TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
    return _implicit_cvt(arg)


def install() -> None:
    """Correct the interpreter of this process; a second call changes nothing."""
    builder = interpreter.interpreter_builder
    builder.__class__ = Builder
    # Its checks of 32-bit arithmetic are made of more operations, and dropped outside debug mode.
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    interpreter.ReduceOps = Reduce
    interpreter.ScanOps = Scan
    interpreter.GridExecutor = Launch
    interpreter._implicit_cvt = _argument
    interpreter._get_np_dtype = _np_dtype
    interpreter._patch_lang = _replace_once
    triton_types.share(interpreter.interpreter_semantic)


def _need_replaced(ours: type) -> None:
    """Each operation stands in for one of the same name: another would be there to no effect."""
    theirs = ours.__mro__[1]
    for name in vars(ours):
        replaces = name == "__call__" or not name.startswith("_")
        if replaces and not any(name in vars(base) for base in theirs.__mro__[:-1]):
            raise NotImplementedError(
                f"the interpreter of Triton {triton.__version__} has no {theirs.__name__}.{name} "
                "to replace; this was written for 3.9.0"
            )


for _each in (Builder, Reduce, Scan, Launch):
    _need_replaced(_each)
