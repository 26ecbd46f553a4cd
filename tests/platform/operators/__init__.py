"""Strict references of the compiled operators that the tested paths reach.

Each has the signature of the operator that it stands for and its arithmetic on the architecture
(which e4m3, which largest value, how bf16 is rounded, what is left untouched). What a reference
does not implement raises NotEmulatedError, with the operator's name: an argument that is passed and
ignored would let a wrong call pass.
"""

import dataclasses
import importlib

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
