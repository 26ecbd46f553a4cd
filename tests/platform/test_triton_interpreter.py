"""Catches a kernel that would compute one thing in the interpreter and another on a GPU.

torch on the CPU is the oracle, over all bit patterns.
"""

import os

import pytest
import torch
import triton
import triton.language as tl

FP8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="the kernels are compiled here"
    ),
]

WIDE = [torch.float32, torch.bfloat16, torch.float16]


def bits(tensor):
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def patterns(dtype):
    """Every value of a type of 8 or 16 bits."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype)
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def fp32_patterns():
    """Every bf16 pattern, and beside each the halfway points and their neighbours."""
    high = torch.arange(1 << 16, dtype=torch.int64) << 16
    low = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    return (high[:, None] + low).reshape(-1).to(torch.int32).view(torch.float32)


def cast(x, dtype):
    """torch's own cast, except that an overflow of e4m3fn is NaN.

    torch saturates it since 2.11 or so; torch 2.8 of the ROCm images and the format itself do not.
    """
    if dtype is not torch.float8_e4m3fn:
        return x.to(dtype)
    rounds_past_448 = x.float().abs() > 464
    return torch.where(rounds_past_448, torch.nan, x.float()).to(dtype)


def assert_same_bits(actual, expected):
    """Equal bits; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype
    nan = expected.float().isnan()
    assert torch.equal(actual.float().isnan(), nan)
    wrong = (bits(actual) != bits(expected)) & ~nan
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} differ, first at {int(wrong.nonzero()[0])}: "
        f"{actual[wrong][0]} for {expected[wrong][0]}"
    )


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def cast_kernel(x, out, n, BLOCK: tl.constexpr, ROUNDING: tl.constexpr = None):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0)
    tl.store(out + i, value.to(out.dtype.element_ty, fp_downcast_rounding=ROUNDING), mask=i < n)


def run(kernel, x, dtype, **constexprs):
    out = torch.full(x.shape, 3, dtype=torch.float32).to(dtype)
    block = 8192
    kernel[(triton.cdiv(x.numel(), block),)](x, out, x.numel(), BLOCK=block, **constexprs)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FP8], ids=str)
def test_a_store_and_an_explicit_cast_round_fp32_to_nearest_even(dtype):
    x = fp32_patterns()
    assert_same_bits(run(copy_kernel, x, dtype), cast(x, dtype))
    assert_same_bits(run(cast_kernel, x, dtype), cast(x, dtype))


@pytest.mark.parametrize("dtype", FP8, ids=str)
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16], ids=str)
def test_a_cast_of_every_16_bit_value_to_fp8_is_torchs(source, dtype):
    x = patterns(source)
    assert_same_bits(run(copy_kernel, x, dtype), cast(x, dtype))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("source", FP8, ids=str)
def test_every_fp8_code_has_torchs_value(source, dtype):
    x = patterns(source)
    assert_same_bits(run(copy_kernel, x, dtype), x.to(dtype))


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_every_16_bit_value_converts_as_in_torch(source, dtype):
    x = patterns(source)
    assert_same_bits(run(copy_kernel, x, dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", FP8[:2], ids=str)
def test_a_forgotten_clamp_gives_nan_and_not_the_largest_value(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest, largest * 1.2, -largest * 1.2, 1e30, float("inf")])
    out = run(copy_kernel, x, dtype).float()
    assert out[:2].tolist() == [largest, -largest]
    assert out[2:].isnan().all()


def test_rounding_toward_zero_truncates_to_bf16():
    x = fp32_patterns()
    x = x[~x.isnan()]
    expected = (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    assert_same_bits(run(cast_kernel, x, torch.bfloat16, ROUNDING="rtz"), expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64], ids=str)
def test_integers_and_bf16_convert_by_value(dtype):
    whole = torch.arange(-128, 128, dtype=dtype)
    assert_same_bits(run(cast_kernel, whole, torch.bfloat16), whole.to(torch.bfloat16))
    assert torch.equal(
        run(cast_kernel, whole.bfloat16() / 4, dtype), (whole.bfloat16() / 4).to(dtype)
    )


@triton.jit
def binary_kernel(x, y, out, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n, other=1.0)
    b = tl.load(y + i, mask=i < n, other=1.0)
    if OP == "add":
        r = a + b
    elif OP == "subtract":
        r = a - b
    elif OP == "multiply":
        r = a * b
    elif OP == "divide":
        r = a / b
    elif OP == "negate":
        r = -a
    elif OP == "absolute":
        r = tl.abs(a)
    elif OP == "minimum":
        r = tl.minimum(a, b)
    elif OP == "maximum":
        r = tl.maximum(a, b)
    elif OP == "where":
        r = tl.where(a < b, a, b)
    elif OP == "less":
        r = a < b
    elif OP == "less_equal":
        r = a <= b
    elif OP == "equal":
        r = a == b
    elif OP == "not_equal":
        r = a != b
    elif OP == "scalar":
        r = a * 0.1 + 3
    elif OP == "two_steps":
        r = a * b + b
    elif OP == "compare_to_number":
        r = (a > b).to(tl.bfloat16) * a
    tl.store(out + i, r, mask=i < n)


IN_BF16 = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negate": lambda a, b: -a,
    "absolute": lambda a, b: a.abs(),
    "minimum": torch.fmin,
    "maximum": torch.fmax,
    "where": lambda a, b: torch.where(a < b, a, b),
    "scalar": lambda a, b: a * torch.tensor(0.1).bfloat16() + torch.tensor(3).bfloat16(),
    "two_steps": lambda a, b: a * b + b,
    "compare_to_number": lambda a, b: (a > b).bfloat16() * a,
}
COMPARISONS = {
    "less": torch.lt,
    "less_equal": torch.le,
    "equal": torch.eq,
    "not_equal": torch.ne,
}


def every_bf16_and_a_partner():
    x = patterns(torch.bfloat16)
    x = torch.where(x.isnan(), torch.nan, x)  # torch's fmin keeps a signalling NaN
    partners = x[torch.randperm(x.numel())]
    return torch.cat([x, x, x]), torch.cat([partners, x, -x])


@pytest.mark.parametrize("op", IN_BF16)
def test_bf16_arithmetic_rounds_every_step_to_bf16(op):
    x, y = every_bf16_and_a_partner()
    out = torch.empty_like(x)
    binary_kernel[(triton.cdiv(x.numel(), 8192),)](x, y, out, x.numel(), OP=op, BLOCK=8192)
    assert_same_bits(out, IN_BF16[op](x, y))


@pytest.mark.parametrize("op", COMPARISONS)
def test_bf16_comparisons_compare_numbers(op):
    x, y = every_bf16_and_a_partner()
    out = torch.empty(x.shape, dtype=torch.bool)
    binary_kernel[(triton.cdiv(x.numel(), 8192),)](x, y, out, x.numel(), OP=op, BLOCK=8192)
    assert torch.equal(out, COMPARISONS[op](x, y))


def test_a_comparison_of_fp32_is_one_or_zero_in_bf16():
    x, y = torch.randn(2, 64)
    out = torch.empty(64)
    binary_kernel[(1,)](x, y, out, 64, OP="compare_to_number", BLOCK=64)
    assert torch.equal(out, (x > y).float() * x)


@triton.jit
def float_argument_kernel(x, out, scale, N: tl.constexpr):
    i = tl.arange(0, N)
    r = tl.load(x + i) * scale
    tl.static_assert(r.dtype == tl.float32)
    tl.store(out + i, r)


def test_a_float_argument_is_fp32_and_lifts_bf16_with_it():
    x = torch.randn(64).bfloat16()
    out = torch.empty(64)
    float_argument_kernel[(1,)](x, out, 0.1, N=64)
    assert torch.equal(out, x.float() * torch.tensor(0.1))


@triton.jit
def row_kernel(x, out, OP: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    r = tl.arange(0, R)[:, None]
    c = tl.arange(0, C)[None, :]
    a = tl.load(x + r * C + c)
    if OP == "sum":
        reduced = tl.sum(a, axis=1, keep_dims=True)
    elif OP == "max":
        reduced = tl.max(a, axis=1, keep_dims=True)
    elif OP == "min":
        reduced = tl.min(a, axis=1, keep_dims=True)
    elif OP == "argmax":
        reduced = tl.argmax(a, axis=1, keep_dims=True)
    elif OP == "sum_all":
        reduced = tl.sum(a, keep_dims=True)
    tl.store(out + r + c * 0, tl.broadcast_to(reduced, (R, C)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_sum_rounds_every_step(dtype):
    absorbs_one = 2 / torch.finfo(dtype).eps
    x = torch.tensor([[absorbs_one] + [1.0] * 255, [1.0] * 256], dtype=dtype)
    out = torch.empty(2, dtype=dtype)
    row_kernel[(1,)](x, out, OP="sum", R=2, C=256)
    tree = x.clone()
    while tree.shape[1] > 1:
        tree = tree[:, : tree.shape[1] // 2] + tree[:, tree.shape[1] // 2 :]
    assert torch.equal(out, tree[:, 0])
    row_kernel[(1,)](x, out, OP="sum_all", R=2, C=256)
    assert torch.allclose(out.float(), x.float().sum(), rtol=2**-7)


def test_bf16_reductions_order_numbers():
    x = torch.randn(8, 64).bfloat16()
    out = torch.empty(8, dtype=torch.bfloat16)
    row_kernel[(1,)](x, out, OP="max", R=8, C=64)
    assert torch.equal(out, x.amax(1))
    row_kernel[(1,)](x, out, OP="min", R=8, C=64)
    assert torch.equal(out, x.amin(1))
    index = torch.empty(8, dtype=torch.int32)
    row_kernel[(1,)](x, index, OP="argmax", R=8, C=64)
    assert torch.equal(index.long(), x.argmax(1))


@triton.jit
def dot_kernel(a, b, out, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(out + m[:, None] * N + n[None, :], tl.dot(left, right))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FP8], ids=str)
def test_dot_multiplies_exactly_and_accumulates_in_fp32(dtype):
    a, b = torch.randn(16, 64).to(dtype), torch.randn(64, 32).to(dtype)
    out = torch.empty(16, 32)
    dot_kernel[(1,)](a, b, out, M=16, K=64, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


@triton.jit
def flip_kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.flip(tl.load(x + i)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int32], ids=str)
def test_flip_reverses(dtype):
    x = (torch.randn(256) * 100).to(dtype)
    out = torch.empty_like(x)
    flip_kernel[(1,)](x, out, N=256)
    assert torch.equal(out, x.flip(0))


@triton.jit
def masked_kernel(x, out, n, N: tl.constexpr, OTHER: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=OTHER))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *FP8], ids=str)
def test_masked_lanes_hold_the_other_value_or_poison(dtype):
    x = torch.ones(8).to(dtype)
    out = torch.zeros(8).to(dtype)
    masked_kernel[(1,)](x, out, 5, N=8, OTHER=0.5)
    assert out.float().tolist() == [1.0] * 5 + [0.5] * 3
    masked_kernel[(1,)](x, out, 5, N=8, OTHER=None)
    assert out[:5].float().tolist() == [1.0] * 5
    assert out[5:].float().isnan().all()


@triton.jit
def fp8_arithmetic_kernel(x, out):
    tl.store(out, tl.load(x) + tl.load(x))


@pytest.mark.parametrize("dtype", FP8[:2], ids=str)
def test_arithmetic_on_fp8_is_refused(dtype):
    x = torch.ones(1).to(dtype)
    with pytest.raises(Exception, match="cast to fp32 first"):
        fp8_arithmetic_kernel[(1,)](x, torch.empty_like(x))


@triton.jit
def offset_kernel(x, out, offset, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + offset + i))


@pytest.mark.parametrize("offset", [-1, 1])
def test_an_access_outside_the_arguments_is_refused(offset):
    x, out = torch.zeros(16), torch.zeros(16)
    offset_kernel[(1,)](x, out, 0, N=16)
    with pytest.raises(Exception, match="outside every argument"):
        offset_kernel[(1,)](x, out, offset, N=16)
    with pytest.raises(Exception, match="outside every argument"):
        offset_kernel[(1,)](x, out[1:].clone(), 0, N=16)


@triton.jit
def through_address_kernel(addresses, out):
    pointer = tl.load(addresses).to(tl.pointer_type(tl.float32))
    tl.store(out, tl.load(pointer))


def test_a_pointer_made_from_an_integer_is_followed():
    x, out = torch.ones(1), torch.zeros(1)
    through_address_kernel[(1,)](torch.tensor([x.data_ptr()], dtype=torch.uint64), out)
    assert out.item() == 1


@pytest.mark.parametrize("name", ["create_renamed", "__call__"])
def test_an_operation_that_triton_renamed_is_not_replaced_to_no_effect(name):
    from triton.runtime import interpreter

    from tests.platform import triton_interpreter

    ours = type("Builder", (interpreter.InterpreterBuilder,), {name: lambda self: None})
    with pytest.raises(NotImplementedError, match=rf"no InterpreterBuilder\.{name} to replace"):
        triton_interpreter._need_replaced(ours)


def test_equal_types_are_one_and_others_are_told_apart():
    blocks = [
        tl.block_type(element, shape)
        for element in (tl.float32, tl.int32, tl.pointer_type(tl.float32), tl.pointer_type(tl.int8))
        for shape in ([4], [4, 8], [8, 4])
    ]
    for block in blocks:
        assert [other == block for other in blocks] == [other is block for other in blocks]
        assert tl.block_type(block.element_ty, [tl.constexpr(n) for n in block.shape]) is block
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [3])
    with pytest.raises(TypeError, match="0d"):
        tl.block_type(tl.float32, [])
