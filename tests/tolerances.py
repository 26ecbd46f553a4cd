"""How close is close: the only place where a tolerance is written.

A numerics class is what a patch declares in its `Numerics` trailer:
  bitwise             the same bits
  ulp<=N              at most N representable values apart from the fp64 reference rounded once
  rel<=X vs fp64      the error is at most X of the largest magnitude in the row
A patch that changes how a cache is read, too, declares what attention's output may differ by:
  .. ; attention l2<=X vs fp64   L2 of a token's error, of all heads, relative to the truth's
A result that sums up `reduction` terms in fp32 may also err by what such a sum may: that much of
the row's largest magnitude is allowed on top, for values that cancel to nearly nothing.
A row is the last dimension.
"""

import functools
import re
from pathlib import Path

import torch

from patchset import series

# The spacing of the type relative to 1; half of it is one rounding.
SPACING = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float8_e4m3fn: 2.0**-3,
    torch.float8_e4m3fnuz: 2.0**-3,
    torch.float8_e5m2: 2.0**-2,
}
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# Numerics of operations that no patch declares: upstream's, torch's, and single steps of ours.
CORRECTLY_ROUNDED, ONE_ULP = "ulp<=0", "ulp<=1"
FP32_SUM = "rel<=1e-6 vs fp64"
FP32_PRODUCTS = "rel<=2e-5 vs fp64"  # a matrix product with fp32 accumulation
# x*cos - y*sin is computed in fp32 and can cancel to almost zero, so its error is not bounded in
# ULPs of the result. Bound: half a spacing of the dtype, relative to the row's largest value.
ROTATED = {
    torch.float16: "rel<=5e-4 vs fp64",
    torch.bfloat16: "rel<=4e-3 vs fp64",
    torch.float8_e4m3fn: "rel<=0.07 vs fp64",
    torch.float8_e4m3fnuz: "rel<=0.07 vs fp64",
}
# Units in the last place that a mean of errors may be off, beside what chance makes of so many.
UNBIASED, ENOUGH = 0.02, 64  # and how many a mean is asked of
# Each operation rounds to bf16: a native rotation, probabilities and parts of an attention.
BF16_STEPS = "rel<=1e-2 vs fp64"
BF16_STEPS_TWICE = "rel<=2e-2 vs fp64"  # such an attention and a projection of its result


def accumulation(reduction: int) -> float:
    """What a sum of so many terms in fp32 may err, relative to the largest: 4 random walks."""
    return 0.0 if reduction == 1 else 4 * SPACING[torch.float32] / 2 * reduction**0.5


def parse(numerics: str) -> tuple[str, float]:
    if numerics == "bitwise":
        return "bitwise", 0
    if match := re.fullmatch(r"ulp<=(\d+)", numerics):
        return "ulp", int(match[1])
    if match := re.fullmatch(r"rel<=([\d.e+-]+) vs fp64", numerics):
        return "rel", float(match[1])
    raise ValueError(f"numerics {numerics!r}: not bitwise, ulp<=N or rel<=X vs fp64")


def declared(slug: str) -> str:
    """The numerics class of what a slug's patches write or compute."""
    return _declared(slug).partition("; ")[0]


def declared_attention(slug: str) -> float:
    """The L2 that a slug's patches say of the output of attention."""
    match = re.fullmatch(r"attention l2<=([\d.e-]+) vs fp64", _declared(slug).partition("; ")[2])
    if not match:
        raise ValueError(f"{slug} says nothing of attention")
    return float(match[1])


@functools.cache
def _declared(slug: str) -> str:
    """It is one for all releases."""
    releases = series.load(Path(__file__).resolve().parents[1]).releases.values()
    found = {r.patches[slug].trailers["Numerics"] for r in releases if slug in r.patches}
    if len(found) != 1:
        raise ValueError(f"{slug} declares {sorted(found) or 'no numerics class'}")
    return found.pop()


def assert_close(actual, reference, numerics: str, reduction: int = 1, name: str = "result"):
    """`reference` is the fp64 truth; for `bitwise` it has the type of `actual`."""
    kind, bound = parse(numerics)
    if kind == "bitwise":
        assert_bitwise(actual, reference, name)
        return
    _same_shape(actual, reference, name)
    if reference.dtype != torch.float64:
        raise TypeError(f"{name}: the reference is {reference.dtype}, not the fp64 truth")
    rounded = reference.to(actual.dtype)
    found, truth = actual.double(), reference
    # Infinities and NaN, where the type of the result has none of the truth either, are exact.
    special = ~(found.isfinite() & rounded.double().isfinite())
    wrong_special = special & (bits(actual) != bits(rounded)) & ~(found.isnan() & truth.isnan())
    largest = (
        truth.abs().where(truth.isfinite(), 0).amax(-1, keepdim=True) if truth.dim() else truth
    )
    floor = accumulation(reduction) * largest
    error = (found - truth).abs()
    if kind == "ulp":
        distance = (ordered(actual) - ordered(rounded)).abs()
        wrong = (distance > bound) & (error > floor)
        worst = distance
    else:
        wrong = error > bound * largest + floor
        worst = error / largest
    _report((wrong & ~special) | wrong_special, actual, reference, worst, name, numerics)


def assert_near(actual, reference, bound: float, name: str = "result"):
    """L2 of the difference, relative to the fp64 truth's; for sums of values that were rounded."""
    _same_shape(actual, reference, name)
    error = actual.double() - reference
    found = (error.norm() / reference.norm()).item()
    if not found <= bound:
        flat = error.abs().nan_to_num(torch.inf).flatten().argmax()
        index = tuple(each.item() for each in torch.unravel_index(flat, error.shape))
        raise AssertionError(
            f"{name}: {found:.3g} away from the truth, at most {bound} allowed; the farthest at "
            f"{list(index)}: {actual[index].item()!r}, expected {reference[index].item()!r}"
        )


def assert_unbiased(actual, reference, name: str = "result"):
    """Rounded to nearest, not cut off: on average as often up as down in magnitude.

    The mean of the error, in units of the last place, towards zero or away from it. A result that
    is rounded once has a mean of nothing, each error a deviation of 12**-0.5; one that is cut off
    has one of half a unit, and every one of its errors is allowed by `ulp<=1`.
    """
    _same_shape(actual, reference, name)
    found, truth = actual.double(), reference
    counted = found.isfinite() & truth.isfinite() & (truth != 0)
    if counted.sum() < ENOUGH:
        return
    unit = torch.exp2(truth[counted].abs().log2().floor()) * SPACING[actual.dtype]
    away = (found - truth)[counted] * truth[counted].sign() / unit
    mean = away.clamp(-1, 1).mean().item()  # what cancels to nearly nothing counts as any other
    allowed = UNBIASED + 4 * (12 * int(counted.sum())) ** -0.5
    if abs(mean) > allowed:
        raise AssertionError(
            f"{name}: magnitudes are {mean:+.3f} units in the last place off on average, at most "
            f"{allowed:.3f} allowed: cut off, not rounded, or off by a common factor"
        )


def assert_bitwise(actual, expected, name: str = "result"):
    _same_shape(actual, expected, name)
    if actual.dtype != expected.dtype:
        raise AssertionError(f"{name}: {actual.dtype}, expected {expected.dtype}")
    wrong = bits(actual) != bits(expected)
    _report(wrong, actual, expected, None, name, "bitwise")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.dtype.is_floating_point:
        return tensor
    return tensor.contiguous().view(INTEGER[tensor.element_size()])


def ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats: neighbours differ by one, both zeros are 0."""
    integer = bits(tensor).long()
    magnitude = integer & torch.iinfo(INTEGER[tensor.element_size()]).max
    return torch.where(integer < 0, -magnitude, magnitude)


def _same_shape(actual, expected, name):
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")


def _report(wrong, actual, expected, worst, name, numerics):
    if not wrong.any():
        return
    index = tuple(wrong.nonzero()[0].tolist())
    message = (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} values are not {numerics}; the first at "
        f"{list(index)}: {actual[index].item()!r}, expected {expected[index].item()!r}"
    )
    if worst is not None:
        message += f"; the worst is {worst[wrong].max().item():.4g}"
    raise AssertionError(message)


# Attention of one layer in bf16 over a cache as it is stored, against fp64 over the same bytes.
ATTENTION_OF_STORED = 0.005
# Attention of one layer over a cache of that format, against fp64 over the values that were given.
ATTENTION = {"bf16": 0.01, "fp8": 0.1}
# Logits of a whole model, by the format of its KV cache: how far a request's row may lie from
# another arm's, and from transformers' in fp32 with an unquantised cache; L2, relative to the row.
LOGITS_BETWEEN_ARMS = {"bf16": 0.02, "fp8": 0.06}
LOGITS_FROM_TRANSFORMERS = {"bf16": 0.03, "fp8": 0.1}
# Of what a sparse-attention indexer selects from a context longer than it may keep: the least
# share that two arms have in common, and an arm with transformers, which quantises nothing.
SELECTED_BETWEEN_ARMS = 0.99
SELECTED_FROM_TRANSFORMERS = 0.9


# Nats that the log-probability of a real model's token may move when roundings inside it do: FP8
# caches and another order of summation move it by some hundredths, a wrong scale or position by
# whole nats.
LOGPROB = 0.25
# The same on average over all tokens. Through whole engines, a trained toy and random weights: a
# hundredth with patches that are right, 0.14 with a double rotation and random weights, where few
# tokens move by more than LOGPROB.
LOGPROB_ON_AVERAGE = 0.05
