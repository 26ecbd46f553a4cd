"""Catches q or k rotated twice or not at all, K cached unrotated or unscaled, and a lost store."""

import pytest
import torch
from sglang.srt.rocm_patches.kv_cache import LayerCache
from sglang.srt.rocm_patches.rope_kv_store_kernel import launch, rotate_and_store

from tests.kernels import aot
from tests.kernels.recorder import believing
from tests.platform.tensors import poisoned
from tests.references import rope_kv_store as reference
from tests.references.kv_cache import store
from tests.tolerances import ROTATED, assert_bitwise, assert_close, declared

# The products of 16-bit numbers are exact in fp32, their sum is rounded there and then once more.
NUMERICS = declared("rope-kv-store")
SLOTS = 64
POSITIONS = 300
# q heads, KV heads, head size, V head size, rotary dim
SHAPES = [
    pytest.param((64, 8, 64, 64, 64), id="gpt-oss TP1"),
    pytest.param((8, 1, 64, 64, 64), id="gpt-oss TP8"),
    pytest.param((8, 1, 128, 128, 128), id="Qwen3-235B TP8"),
    pytest.param((12, 2, 128, 128, 64), id="partial"),
    pytest.param((10, 2, 80, 80, 80), id="80"),
    pytest.param((3, 3, 96, 96, 36), id="96, partial 36"),
    pytest.param((4, 2, 192, 128, 192), id="V smaller"),
]
small = pytest.mark.parametrize("shape", [(6, 2, 64, 64, 64), (6, 2, 80, 48, 24)], ids=str)
styles = pytest.mark.parametrize("neox", [True, False], ids=["neox", "interleaved"])


class Layer:
    """One layer's inputs: q, k and v as slices of one projection, with gaps between tokens."""

    def __init__(self, platform, count, shape, dtype=torch.bfloat16, angles=torch.bfloat16):
        q_heads, kv_heads, head, v_head, rotary = shape
        sizes = [q_heads * head, kv_heads * head, kv_heads * v_head]
        qkv = poisoned((count, sum(sizes) + 3), dtype, platform.device)
        self.q, self.k, self.v = (
            part.unflatten(-1, (-1, size))
            for part, size in zip(
                qkv[:, : sum(sizes)].split(sizes, -1), (head, head, v_head), strict=True
            )
        )
        for part in (self.q, self.k, self.v):
            part.copy_(torch.randn(part.shape) * 4)
        self.positions = torch.randint(0, POSITIONS, (count,), device=platform.device)
        frequency = 10000 ** -torch.linspace(0, 1, rotary // 2, dtype=torch.float64)
        angle = torch.arange(POSITIONS)[:, None] * frequency
        self.cos_sin = torch.cat((angle.cos(), angle.sin()), 1).to(platform.device, angles)


def fresh_slots(platform, count, dtype=torch.int64):
    return torch.randperm(SLOTS)[:count].to(platform.device, dtype)


def check(
    platform,
    layer,
    neox,
    slots,
    cache_dtype=None,
    full_to_swa=None,
    k_scale=None,
    v_scale=None,
    rows=SLOTS,
    numerics=NUMERICS,
):
    """q and k are the fp64 rotation; the caches are what storing that k and v would have made."""
    q, k = (reference.rotate(x, layer.positions, layer.cos_sin, neox) for x in (layer.q, layer.k))
    v = layer.v.clone()
    caches, expected = (
        [
            poisoned((rows, *x.shape[1:]), cache_dtype or x.dtype, platform.device)
            for x in (layer.k, layer.v)
        ]
        for _ in range(2)
    )
    rotate_and_store(
        layer.q,
        layer.k,
        layer.v,
        layer.positions,
        layer.cos_sin,
        neox,
        LayerCache(*caches, full_to_swa),
        slots,
        k_scale,
        v_scale,
    )
    assert_close(layer.q, q, numerics, name="q")
    assert_close(layer.k, k, numerics, name="k")
    assert_bitwise(layer.v, v, "live v")
    store(layer.k, expected[0], slots, full_to_swa, k_scale)
    store(layer.v, expected[1], slots, full_to_swa, v_scale)
    assert_bitwise(caches[0], expected[0], "K cache")
    assert_bitwise(caches[1], expected[1], "V cache")


@styles
@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_a_projection_are_rotated_in_place_and_stored(platform, shape, neox):
    check(platform, Layer(platform, 3, shape), neox, fresh_slots(platform, 3))


@styles
@small
def test_an_fp8_cache_holds_the_rotated_k_divided_by_its_scale(platform, shape, neox):
    layer = Layer(platform, 5, shape)
    k_scale = torch.rand((), device=platform.device) + 0.01
    slots = fresh_slots(platform, 5)
    check(platform, layer, neox, slots, platform.fp8_dtype, k_scale=k_scale, v_scale=0.37)


def test_a_16_bit_cache_takes_no_scale(platform):
    layer = Layer(platform, 3, (4, 2, 64, 64, 64))
    scale = torch.tensor(0.25, device=platform.device)
    check(platform, layer, True, fresh_slots(platform, 3), k_scale=scale, v_scale=scale)


@styles
@pytest.mark.parametrize("angles", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_of_any_type_turn_in_fp32(platform, dtype, angles, neox):
    layer = Layer(platform, 4, (4, 2, 64, 64, 32), dtype, angles)
    check(platform, layer, neox, fresh_slots(platform, 4), numerics=ROTATED[dtype])


@styles
@small
def test_tokens_without_a_slot_are_rotated_only(platform, shape, neox):
    slots = fresh_slots(platform, 7)
    slots[[0, 3]] = torch.tensor([-1, -9], device=platform.device)
    check(platform, Layer(platform, 7, shape), neox, slots, platform.fp8_dtype)
    check(platform, Layer(platform, 7, shape), neox, slots[:4])
    check(platform, Layer(platform, 7, shape), neox, slots[:0])
    check(platform, Layer(platform, 4, shape), neox, slots)


def test_no_token_is_no_launch(platform):
    check(platform, Layer(platform, 0, (6, 2, 64, 64, 64)), True, fresh_slots(platform, 3))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_sliding_window_pool_gets_the_mapped_slots(platform, dtype):
    full_to_swa = torch.full((4 * SLOTS + 1,), -1, dtype=dtype, device=platform.device)
    slots = torch.randperm(4 * SLOTS, device=platform.device)[:8]
    full_to_swa[slots[:6]] = fresh_slots(platform, 6, dtype)
    slots[2] = -1
    check(platform, Layer(platform, 8, (4, 2, 64, 64, 64)), True, slots, full_to_swa=full_to_swa)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_and_positions_may_be_strided_columns(platform, dtype):
    layer = Layer(platform, 5, (4, 2, 64, 64, 64))
    table = torch.full((5, 3), -(2**31) + 5, dtype=dtype, device=platform.device)
    table[:, 1], table[:, 2] = fresh_slots(platform, 5, dtype), layer.positions
    layer.positions = table[:, 2]
    check(platform, layer, True, table[:, 1])


@pytest.mark.slow
@styles
def test_a_prefill_rotates_and_stores_every_token_once(platform, neox):
    kv_heads = 8
    count = 4096 // kv_heads + 3
    grid, parameters = launch(count, 16, kv_heads, 32, 32, 24)
    assert parameters["BLOCK_T"] > 1
    assert grid[0] < count * kv_heads
    layer = Layer(platform, count, (16, kv_heads, 32, 32, 24))
    slots = torch.randperm(count + 9, device=platform.device)[:count]
    slots[::61] = -1
    check(platform, layer, neox, slots, platform.fp8_dtype, k_scale=0.5, rows=count + 9)


def test_a_cache_past_two_gib_is_addressed_in_64_bits(platform):
    layer = Layer(platform, 2, (2, 1, 128, 128, 128))
    rows = 2**31 // 128 + 16
    # Never filled: only the pages that are written become real.
    caches = [
        torch.empty((rows, 1, 128), dtype=platform.fp8_dtype, device=platform.device) for _ in "kv"
    ]
    slots = torch.tensor([rows - 1, 7], device=platform.device)
    arguments = layer.q, layer.k, layer.v, layer.positions, layer.cos_sin, True
    rotate_and_store(*arguments, LayerCache(*caches, None), slots, None, None)
    for cache, x in zip(caches, (layer.k, layer.v), strict=True):
        expected = poisoned((2, 1, 128), platform.fp8_dtype, platform.device)
        store(x, expected, torch.arange(2, device=platform.device))
        assert_bitwise(torch.stack([cache[rows - 1], cache[7]]), expected)


# Machine code -----------------------------------------------------------------------------------


def compiled(arch, count, shape, neox=True, cache="*fp8", angles="*bf16", swa=False, scale=None):
    q_heads, kv_heads, head, v_head, rotary = shape
    with believing(arch):
        _, parameters = launch(count, q_heads, kv_heads, head, v_head, rotary)
    warps = parameters.pop("num_warps")
    largest = (240.0 if arch == "gfx942" else 448.0) if cache == "*fp8" else 0.0
    constexprs = {**parameters, "NEOX": neox, "MAX": largest}
    constexprs |= {"slots_stride": 1, "positions_stride": 1}
    signature = dict.fromkeys(("q", "k", "v"), "*bf16")
    signature |= dict.fromkeys(("k_cache", "v_cache"), cache)
    signature |= {"positions": "*i64", "slots": "*i64", "cos_sin": angles}
    signature |= {"tokens": "i32", "n": "i32"}
    strides = ["q", "q_head", "k", "k_head", "v", "v_head", "k_cache", "v_cache", "cos_sin"]
    signature |= {f"{name}_stride": "i32:16" for name in strides}
    signature |= {"k_scale": scale, "v_scale": scale, "full_to_swa": "*i64" if swa else None}
    return aot.compile(
        "sglang.srt.rocm_patches.rope_kv_store_kernel",
        "_rotate_and_store_kernel",
        signature=signature,
        constexprs=constexprs,
        arch=arch,
        num_warps=warps,
    )


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("count", [1, 8192])
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((128, 1, 128, 128, 128), id="MQA 128")])
@pytest.mark.aot
def test_the_machine_code_needs_no_scratch(arch, shape, count):
    aot.assert_resources(compiled(arch, count, shape), vgprs=256)


@styles
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("cache", ["*bf16", "*fp8"])
@pytest.mark.parametrize("angles", ["*bf16", "*fp32"])
@pytest.mark.aot
def test_caches_angles_scales_and_a_slot_mapping_compile(arch, cache, angles, neox):
    scale = "*fp32" if cache == "*fp8" else None
    shape = (8, 1, 64, 64, 64)
    code = compiled(arch, 8192, shape, neox, cache, angles, swa=True, scale=scale)
    aot.assert_resources(code, vgprs=256)


@styles
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.aot
def test_a_prefill_moves_q_16_bytes_at_a_time(arch, neox):
    code = compiled(arch, 8192, (64, 8, 64, 64, 64), neox, cache="*bf16")
    assert code.widths("load")[16] == 4  # both members of the pairs, their cosines and sines
    assert code.widths("store")[16] == 2
