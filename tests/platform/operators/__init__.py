"""Strict references of the compiled operators that the tested paths reach.

Each reference has the signature of its operator and the operator's arithmetic on the architecture:
the e4m3 format, its largest value, the rounding of bf16, the memory that is left untouched. An
argument that a reference does not implement raises NotEmulatedError with the operator's name,
because a reference that ignored the argument would let a wrong call pass.
"""

import dataclasses
import importlib
import itertools

import torch

from .. import recorder
from ..imports import NotEmulatedError
from ..value import Platform

FAMILIES = (
    "activation",
    "attention",
    "gemm",
    "indexer",
    "jit",
    "mla",
    "moe",
    "norm",
    "quantisation",
    "rope",
    "tilelang",
    "tilelang_programs",
)

provided: dict[str, object] = {}
counted: dict[str, str] = {}  # operators by qualified name, and the name that each counts under


@dataclasses.dataclass
class _Chip:
    platform: Platform | None = None


_chip = _Chip()


def chip() -> Platform:
    assert _chip.platform is not None, "the operators are not installed"
    return _chip.platform


def install(platform: Platform) -> dict[str, object]:
    """All operators for `platform`, by qualified name."""
    _chip.platform = platform
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    provided["aiter.dtypes.fp8"] = platform.fp8_dtype
    return provided


def operator(*names: str):
    """Provide the decorated reference under these qualified names; calls count under the first."""

    def decorate(function):
        wrapped = recorder.recorded(names[0])(function)
        provided.update(dict.fromkeys(names, wrapped))
        counted.update(dict.fromkeys(names, names[0]))
        return wrapped

    return decorate


def need(condition: bool, message: str) -> None:
    """Refuse what a reference does not implement."""
    if not condition:
        raise NotEmulatedError(message)


def need_dtype(name: str, allowed, **arguments: torch.Tensor) -> None:
    """Each argument of the allowed type, or of one of them."""
    allowed = allowed if isinstance(allowed, tuple) else (allowed,)
    expected = " or ".join(map(str, allowed))
    for argument, x in arguments.items():
        need(x.dtype in allowed, f"{name}: {argument} of {x.dtype}, expected {expected}")


def need_shape(name: str, shape, **arguments: torch.Tensor) -> None:
    for argument, x in arguments.items():
        found = tuple(x.shape)
        need(found == tuple(shape), f"{name}: {argument} of {found}, expected {tuple(shape)}")


def need_inside(name: str, size: int, **arguments: torch.Tensor) -> None:
    """Indices that a kernel may follow: it checks none, and torch takes -1 for the last."""
    for argument, indices in arguments.items():
        outside = (indices < 0) | (indices >= size)
        if bool(outside.any()):
            stray = int(indices[outside][0])
            raise NotEmulatedError(f"{name}: {argument} has {stray}, expected 0 to {size - 1}")


def need_scales(name: str, **scales) -> None:
    """fp32 scales of one value each, where there is one: compiled kernels read a float."""
    for argument, scale in scales.items():
        if scale is not None:
            need_dtype(name, torch.float32, **{argument: scale})
            need(scale.numel() == 1, f"{name}: {argument} of {scale.numel()} values, expected 1")


def need_longest(name: str, starts: list[int], **longest: int) -> None:
    """No sequence of these starts and end is longer than what the grid is made for."""
    [(argument, given)] = longest.items()
    found = max((end - start for start, end in itertools.pairwise(starts)), default=0)
    need(found <= given, f"{name}: {argument} of {given}, expected at least {found}")


def ck_cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp32 to the output type as aiter's compiled kernels do: bf16 is cut off on gfx942."""
    if dtype is torch.bfloat16 and chip().ck_truncates_bf16:
        return (value.contiguous().view(torch.int32) & -65536).view(torch.float32).to(dtype)
    return value.to(dtype)


def saturate(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp32 to fp8 as the compiled kernels do: clamped to the largest value, nearest even."""
    need(dtype is chip().fp8_dtype, f"{dtype} on {chip().arch}, which has {chip().fp8_dtype}")
    return value.clamp(-chip().fp8_max, chip().fp8_max).to(dtype)


def unclamped(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A plain cast, as a Triton store does it: in fp8 an overflow is NaN.

    torch saturates e4m3fn since 2.11 or so; the chips and the images' torch 2.8 do not.
    """
    if dtype is torch.float8_e4m3fn:
        value = torch.where(value.float().abs() > 464, torch.nan, value.float())
    return value.to(dtype)
