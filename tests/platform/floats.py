"""bf16 and the 8-bit floats in numpy, from the definitions of the formats."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def bf16_to_fp32(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp32_to_bf16(value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, dtype=np.float32)
    bits = value.view(np.uint32)
    to_nearest_even = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    rounded = ((bits + to_nearest_even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True)
class Fp8:
    """An 8-bit float: its codes 0 .. max_code are the magnitudes in rising order.

    In each of the four formats max_code + 1 is what an overflow becomes: NaN or infinity.
    """

    mantissa_bits: int
    bias: int
    max_code: int
    nan_code: int
    negative_zero: bool

    @cached_property
    def magnitudes(self) -> np.ndarray:
        codes = np.arange(self.max_code + 2)
        exponent, mantissa = codes >> self.mantissa_bits, codes & ((1 << self.mantissa_bits) - 1)
        significand = mantissa + (np.where(exponent > 0, 1, 0) << self.mantissa_bits)
        return np.ldexp(
            significand.astype(np.float64),
            np.maximum(exponent, 1) - self.bias - self.mantissa_bits,
        )

    @cached_property
    def values(self) -> np.ndarray:
        """The fp32 value of each of the 256 codes."""
        table = np.full(256, np.nan, dtype=np.float32)
        finite = self.magnitudes[:-1].astype(np.float32)
        table[: finite.size] = finite
        table[128 : 128 + finite.size] = -finite
        if self == E5M2:
            table[[0x7C, 0xFC]] = np.inf, -np.inf
        if not self.negative_zero:
            table[0x80] = np.nan
        return table

    @cached_property
    def midpoints(self) -> np.ndarray:
        return (self.magnitudes[:-1] + self.magnitudes[1:]) / 2

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.values[codes]

    def encode(self, value: np.ndarray) -> np.ndarray:
        """Round to nearest, ties to the even code."""
        magnitude = np.abs(value)
        below = np.searchsorted(self.midpoints, magnitude, side="left")
        above = np.searchsorted(self.midpoints, magnitude, side="right")
        code = np.where(below % 2 == 0, below, above)
        signed = np.signbit(value) & (self.negative_zero | (code > 0))
        return np.where(np.isnan(value), self.nan_code, code | (signed * 0x80)).astype(np.uint8)


E4M3FN = Fp8(mantissa_bits=3, bias=7, max_code=0x7E, nan_code=0x7F, negative_zero=True)
E4M3FNUZ = Fp8(mantissa_bits=3, bias=8, max_code=0x7F, nan_code=0x80, negative_zero=False)
E5M2 = Fp8(mantissa_bits=2, bias=15, max_code=0x7B, nan_code=0x7F, negative_zero=True)
E5M2FNUZ = Fp8(mantissa_bits=2, bias=16, max_code=0x7F, nan_code=0x80, negative_zero=False)
