"""Catches K or V cached with a dropped or swapped scale, NaN for an overflow, in a wrong slot."""

import pytest
import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches import kv_cache
from sglang.srt.rocm_patches.fp8_kv_write_kernel import launch, write_kv
from sglang.srt.rocm_patches.kv_cache import LayerCache

from tests.kernels import aot
from tests.kernels.recorder import believing
from tests.platform.tensors import boundaries, poisoned
from tests.references import fp8_kv_write as reference
from tests.references.kv_cache import cached
from tests.tolerances import assert_bitwise

SLOTS = 96
# KV heads, head size, V head size
SHAPES = [
    pytest.param((2, 128, 128), id="MiniMax-M2.5 TP4"),
    pytest.param((1, 64, 64), id="gpt-oss TP8"),
    pytest.param((8, 64, 64), id="gpt-oss TP1"),
    pytest.param((3, 80, 80), id="80"),
    pytest.param((2, 192, 128), id="V smaller"),
    pytest.param((1, 40, 72), id="V larger"),
    pytest.param((9, 128, 128), id="wider than a block"),
]


def tokens(platform, count, shape, dtype=torch.bfloat16, gap=0):
    """k and v as slices of one projection's output, `gap` elements between the tokens."""
    heads, head, v_head = shape
    qkv = poisoned((count, heads * (head + v_head) + gap), dtype, platform.device)
    k, v = qkv[:, : heads * head], qkv[:, heads * head :][:, : heads * v_head]
    k.copy_(torch.randn(k.shape) * 8)
    v.copy_(torch.randn(v.shape) * 8)
    return k.view(count, heads, head), v.view(count, heads, v_head)


def fresh_slots(platform, count, dtype=torch.int64):
    return torch.randperm(SLOTS)[:count].to(platform.device, dtype)


def check(platform, k, v, slots, full_to_swa=None, k_scale=None, v_scale=None, rows=SLOTS):
    """The kernel's caches are the reference's, byte for byte, and so are the live k and v."""
    found = []
    live = k.clone(), v.clone()
    for write in (
        lambda kc, vc: write_kv(
            k, v, LayerCache(kc, vc, full_to_swa), slots, k_scale=k_scale, v_scale=v_scale
        ),
        lambda kc, vc: reference.write_kv(k, v, kc, vc, slots, full_to_swa, k_scale, v_scale),
    ):
        caches = [
            poisoned((rows, *x.shape[1:]), platform.fp8_dtype, platform.device) for x in (k, v)
        ]
        write(*caches)
        found.append(caches)
    assert_bitwise(found[0][0], found[1][0], "K cache")
    assert_bitwise(found[0][1], found[1][1], "V cache")
    assert_bitwise(k, live[0], "live k")
    assert_bitwise(v, live[1], "live v")
    return found[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_a_projection_are_stored_at_their_slots(platform, shape):
    k, v = tokens(platform, 7, shape, gap=5)
    check(platform, k, v, fresh_slots(platform, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_rounding_boundary_is_the_saturated_cast(platform, dtype):
    values = boundaries(platform.fp8_dtype, dtype)
    values = torch.cat([values, values.new_zeros(-len(values) % 64)])
    k = values.view(-1, 1, 64).to(platform.device)
    slots = fresh_slots(platform, len(k))
    k_cache, _ = check(platform, k, -k, slots)
    assert_bitwise(k_cache[slots], cached(k, platform.fp8_dtype), "boundaries")


def test_nan_stays_nan(platform):
    k, v = tokens(platform, 2, (1, 64, 64))
    k[1, 0, ::3] = torch.nan
    cache = [torch.zeros(SLOTS, 1, 64, device=platform.device).to(platform.fp8_dtype) for _ in "kv"]
    write_kv(k, v, LayerCache(*cache, None), torch.tensor([3, 9], device=platform.device), 0.5, 0.5)
    assert torch.equal(cache[0][9].float().isnan(), k[1].isnan())
    assert not cache[0][3].float().isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_scales_and_in_range_the_bytes_are_the_pristine_cast(platform, dtype):
    k, v = tokens(platform, 5, (2, 64, 64), dtype)
    k_cache, v_cache = check(platform, k, v, slots := fresh_slots(platform, 5))
    assert_bitwise(k_cache[slots], k.to(platform.fp8_dtype))
    assert_bitwise(v_cache[slots], v.to(platform.fp8_dtype))


@pytest.mark.parametrize("power", [-3, 0, 4])
def test_a_power_of_two_scale_gives_the_pristine_bytes(platform, power):
    k, v = tokens(platform, 5, (2, 64, 64))
    scale = torch.tensor(2.0**power, device=platform.device)
    slots = fresh_slots(platform, 5)
    k_cache, _ = check(platform, k, v, slots, k_scale=scale, v_scale=scale)
    assert_bitwise(k_cache[slots], cached(k.clone().div_(scale), platform.fp8_dtype))


@pytest.mark.parametrize("k_form", ["0-d tensor", "1-d tensor", "float", "none", "one"])
@pytest.mark.parametrize("v_form", ["0-d tensor", "float", "none"])
def test_k_and_v_are_each_divided_by_their_own_scale(platform, k_form, v_form):
    forms = {
        "0-d tensor": lambda x: torch.tensor(x, device=platform.device),
        "1-d tensor": lambda x: torch.tensor([x], device=platform.device),
        "float": lambda x: x,
        "none": lambda x: None,
        "one": lambda x: 1.0,
    }
    k, v = tokens(platform, 3, (1, 64, 64))
    k_scale, v_scale = forms[k_form](0.0371), forms[v_form](0.273)
    check(platform, k, v, fresh_slots(platform, 3), k_scale=k_scale, v_scale=v_scale)


def test_every_bf16_is_divided_as_ieee_says(platform):
    k = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    k = k[k.abs() < 2.0**20].view(-1)
    k = k[: len(k) // 256 * 256].view(-1, 2, 128).to(platform.device)
    scale = torch.rand(1, device=platform.device) + 0.01
    slots = torch.randperm(len(k), device=platform.device)
    check(platform, k, k, slots, k_scale=scale, v_scale=scale * 3, rows=len(k))


@pytest.mark.parametrize("scale", [3.0, 5.0, 7.0, 41.0, 97.0])
def test_a_quotient_that_is_a_tie_goes_to_even(platform, scale):
    # A product with the reciprocal misses some of these ties by one fp32 rounding.
    values = torch.arange(127, dtype=torch.uint8).view(platform.fp8_dtype).float()
    ties = (values[1:] + values[:-1]) / 2
    k = torch.cat((ties * scale, torch.zeros(2))).view(2, 1, 64).to(platform.device)
    scales = torch.tensor(scale, device=platform.device)
    check(platform, k, -k, fresh_slots(platform, 2), k_scale=scales, v_scale=scales)


@triton.jit
def _cached_kernel(x, scale, out, MAX: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = kv_cache.cached(tl.load(x + i), tl.load(scale + i), MAX)
    tl.store(out + i, y.to(out.dtype.element_ty))


def beside_ties(fp8_dtype, dtype):
    """Every x of `dtype` and every fp32 scale whose quotient is within 20 ulp of a tie of e4m3.

    But for powers of two: x of one binade, scales of one, and the 16 least ties, of which the
    others are multiples.
    """
    digits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    least = torch.ones(1, dtype=torch.uint8).view(fp8_dtype).double()
    ties = (torch.arange(16) + 0.5) * least
    x = torch.arange(2 ** (digits - 1), 2**digits).double()[:, None]
    exponent = torch.floor(torch.log2(x / ties))
    nearest = (x / ties * 2**-exponent).float().view(torch.int32)
    scale = (nearest[..., None] + torch.arange(-24, 25, dtype=torch.int32)).view(torch.float32)
    x = (x * 2**-exponent)[..., None].expand_as(scale)
    return x.flatten().to(dtype), scale.flatten()


def check_quotients(platform, x, scale):
    """Each x divided by its own scale has the e4m3 of the IEEE quotient."""
    found = poisoned((len(x),), platform.fp8_dtype, platform.device)
    block = min(len(x), 2048)
    _cached_kernel[(len(x) // block,)](
        x.to(platform.device), scale.to(platform.device), found, MAX=platform.fp8_max, BLOCK=block
    )
    assert_bitwise(found.cpu(), cached(x.float() / scale, platform.fp8_dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_quotient_beside_a_tie_goes_to_another_side_than_the_exact_one(platform, dtype):
    check_quotients(platform, *beside_ties(platform.fp8_dtype, dtype))


def test_numbers_of_24_bits_are_divided_exactly(platform):
    # Quotients below half an ulp above the tie i / 16, by 2^-48 of themselves.
    i = torch.tensor([17, 19, 21, 23]).double()
    x, scale = i * (32 - i) * 2**16 + 2, (32 - i) * 2**20 + 1
    check_quotients(platform, x.float() / 2**20, scale.float() / 2**20)


@pytest.mark.parametrize("scale", [0.0371, 1.3 * 2.0**-100, 1.3 * 2.0**100])
def test_zeros_infinities_and_any_scale_give_what_a_division_gives(platform, scale):
    k, v = tokens(platform, 3, (1, 64, 64))
    k *= scale
    v[0, 0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3e38, -3e38])
    v[1, 0, :4] = torch.tensor([1e-38, -1e-38, 1e-40, -1e-40])
    scale = torch.tensor(scale, device=platform.device)
    check(platform, k, v, fresh_slots(platform, 3), k_scale=scale, v_scale=scale)


def test_slots_below_zero_are_not_written(platform):
    k, v = tokens(platform, 9, (2, 64, 64))
    slots = fresh_slots(platform, 9)
    slots[[0, 4, 8]] = torch.tensor([-1, -7, -1], device=platform.device)
    k_cache, _ = check(platform, k, v, slots)
    assert int(k_cache.float().isnan().all(-1).all(-1).sum()) == SLOTS - 6


@pytest.mark.parametrize(("count", "slot_count"), [(7, 4), (4, 7), (7, 0), (0, 7), (0, 0)])
def test_tokens_without_a_slot_and_slots_without_a_token_are_left_out(platform, count, slot_count):
    k, v = tokens(platform, count, (2, 64, 64))
    check(platform, k, v, fresh_slots(platform, slot_count))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_may_be_a_strided_column(platform, dtype):
    k, v = tokens(platform, 6, (2, 64, 64))
    table = torch.full((6, 3), -(2**31) + 5, dtype=dtype, device=platform.device)
    table[:, 1] = fresh_slots(platform, 6, dtype)
    check(platform, k, v, table[:, 1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_sliding_window_pool_gets_the_mapped_slots(platform, dtype):
    k, v = tokens(platform, 8, (2, 64, 64))
    full_slots = 4 * SLOTS
    full_to_swa = torch.full((full_slots + 1,), -1, dtype=dtype, device=platform.device)
    slots = torch.randperm(full_slots, device=platform.device)[:8]
    full_to_swa[slots[:6]] = fresh_slots(platform, 6, dtype)
    slots[2] = -1
    check(platform, k, v, slots, full_to_swa)


@pytest.mark.slow
def test_a_prefill_stores_every_token(platform):
    count = 1030
    k, v = tokens(platform, count, (2, 96, 64), gap=3)
    slots = torch.randperm(count + 40, device=platform.device)[:count]
    slots[::97] = -1
    check(platform, k, v, slots, k_scale=0.5, rows=count + 40)


def test_heads_with_gaps_are_stored_as_packed_ones(platform):
    k, v = (torch.randn(5, 2, 70, device=platform.device).bfloat16()[..., :64] for _ in range(2))
    check(platform, k, v, fresh_slots(platform, 5))
    transposed = torch.randn(128, 5, device=platform.device).bfloat16().T
    cache = [poisoned((SLOTS, 2, 64), platform.fp8_dtype, platform.device) for _ in range(2)]
    slots = torch.arange(5, device=platform.device)
    write_kv(transposed, transposed, LayerCache(*cache, None), slots, None, None)
    assert_bitwise(cache[0][slots], cached(transposed.reshape(5, 2, 64), platform.fp8_dtype))


def test_a_cache_past_two_gib_is_addressed_in_64_bits(platform):
    heads, head = 8, 128
    rows = 2**31 // (heads * head) + 16
    k, v = tokens(platform, 3, (heads, head, head))
    # Never filled: only the pages that are written become real.
    cache = [
        torch.empty((rows, heads, head), dtype=platform.fp8_dtype, device=platform.device)
        for _ in range(2)
    ]
    slots = torch.tensor([rows - 1, 5, rows - 9], device=platform.device)
    write_kv(k, v, LayerCache(*cache, None), slots, None, None)
    for slot, row in zip(slots.tolist(), k, strict=True):
        assert_bitwise(cache[0][slot], cached(row, platform.fp8_dtype))


def test_a_cache_of_another_format_is_refused(platform):
    k, v = tokens(platform, 2, (1, 64, 64))
    cache = torch.zeros(SLOTS, 1, 64, dtype=torch.float8_e5m2, device=platform.device)
    with pytest.raises(KeyError):
        write_kv(k, v, LayerCache(cache, cache, None), fresh_slots(platform, 2), None, None)


# Machine code -----------------------------------------------------------------------------------


def compiled(arch, count, shape, k_scale=None, full_to_swa=None, slot="*i64"):
    heads, head, v_head = shape
    with believing(arch):
        _, parameters = launch(count, heads * head, heads * v_head)
    warps = parameters.pop("num_warps")
    constexprs = {**parameters, "MAX": 240.0 if arch == "gfx942" else 448.0, "slots_stride": 1}
    signature = {
        "k": "*bf16",
        "v": "*bf16",
        "k_cache": "*fp8",
        "v_cache": "*fp8",
        "slots": slot,
        "n": "i32",
        "k_stride": "i32:16",
        "v_stride": "i32:16",
        "k_cache_stride": "i32:16",
        "v_cache_stride": "i32:16",
    }
    signature |= {"k_scale": k_scale, "v_scale": k_scale, "full_to_swa": full_to_swa}
    return aot.compile(
        "sglang.srt.rocm_patches.fp8_kv_write_kernel",
        "_write_kv_kernel",
        signature=signature,
        constexprs=constexprs,
        arch=arch,
        num_warps=warps,
    )


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("count", [1, 8192])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.aot
def test_the_machine_code_needs_no_scratch(arch, shape, count):
    aot.assert_resources(compiled(arch, count, shape), vgprs=128)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("scale", ["*fp32", "fp32"])
@pytest.mark.aot
def test_scales_and_a_slot_mapping_compile(arch, scale):
    code = compiled(arch, 8192, (2, 128, 128), scale, "*i64", "*i32")
    aot.assert_resources(code, vgprs=128)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("shape", [(2, 128, 128), (8, 64, 64), (1, 64, 64)], ids=str)
@pytest.mark.aot
def test_a_prefill_moves_16_bytes_at_a_time(arch, shape):
    code = compiled(arch, 8192, shape)
    assert code.widths("store").keys() == {16}
    assert 16 in code.widths("load")
    assert not code.widths("load").keys() - {16, 8}  # 8: the slots
