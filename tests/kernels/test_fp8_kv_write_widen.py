"""Catches a cached row that is converted wrongly, with the other's scale, or not at all."""

import types

import pytest
import torch
from sglang.srt.rocm_patches import fp8_kv_write_widen_kernel as kernel

from tests.kernels import aot
from tests.platform.tensors import poisoned
from tests.references import fp8_kv_write as reference
from tests.tolerances import assert_bitwise

SLOTS = 96
SHAPES = [(2, 128, 128), (1, 64, 64), (3, 80, 80), (2, 192, 128), (9, 128, 128)]


@pytest.fixture
def fresh(monkeypatch):
    """The kernel's outputs start as NaN, so that rows that nobody asked for are seen to be left."""
    monkeypatch.setattr(kernel, "torch", types.SimpleNamespace(empty=poisoned))


def caches(platform, shape, slots=SLOTS):
    heads, head, v_head = shape
    return [
        (torch.randn(slots, heads, width) * 8).to(platform.fp8_dtype).to(platform.device)
        for width in (head, v_head)
    ]


def check(platform, caches, slots, count, k_scale=None, v_scale=None, dtype=torch.bfloat16):
    end = torch.tensor([count], dtype=torch.int32, device=platform.device)
    found = kernel.widen(*caches, slots, end, k_scale, v_scale, dtype)
    for name, wide, cache, scale in zip("kv", found, caches, (k_scale, v_scale), strict=True):
        expected = reference.widen(cache, slots[:count], dtype, scale)
        assert_bitwise(wide.nan_to_num(7e4), expected.nan_to_num(7e4), name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_slots_in_use_and_no_others_are_converted_exactly(platform, fresh, shape, dtype):
    slots = torch.randperm(SLOTS)[:23].to(platform.device, torch.int32)
    check(platform, caches(platform, shape), slots, 19, dtype=dtype)


@pytest.mark.parametrize("form", ["tensor", "float"])
def test_k_and_v_are_each_multiplied_by_their_own_scale(platform, fresh, form):
    scales = (0.371, 0.0273)
    if form == "tensor":
        scales = [torch.tensor(each, device=platform.device) for each in scales]
    slots = torch.randperm(SLOTS)[:9].to(platform.device, torch.int32)
    check(platform, caches(platform, (2, 64, 64)), slots, 9, *scales)


def test_every_value_of_the_format_is_converted(platform, fresh):
    values = torch.arange(256, dtype=torch.uint8).view(platform.fp8_dtype)
    cache = values.view(4, 1, 64).to(platform.device)
    slots = torch.arange(4, dtype=torch.int32, device=platform.device)
    check(platform, [cache, cache], slots, 4)


def test_slots_that_requests_share_come_more_than_once(platform, fresh):
    slots = torch.tensor([5, 9, 5, 5, 9, 3], dtype=torch.int32, device=platform.device)
    check(platform, caches(platform, (2, 64, 64)), slots, 6)


@pytest.mark.parametrize("count", [0, 1])
def test_what_lies_past_the_end_is_no_slot(platform, fresh, count):
    slots = torch.full((40,), 2**30, dtype=torch.int32, device=platform.device)
    slots[0] = 7
    check(platform, caches(platform, (1, 64, 64)), slots, count)
    check(platform, caches(platform, (1, 64, 64)), slots[:0], 0)


def test_a_batch_longer_than_the_programs_is_walked_in_turns(platform, fresh, monkeypatch):
    monkeypatch.setattr(kernel, "PROGRAMS_OF_UNKNOWN_BATCH", 2)
    slots = torch.randperm(400)[:300].to(platform.device, torch.int32)
    check(platform, caches(platform, (2, 128, 128), 400), slots, 300)


# Machine code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("scale", [None, "*fp32"])
@pytest.mark.parametrize("shape", [(2, 128, 128), (8, 64, 64)], ids=str)
@pytest.mark.aot
def test_the_machine_code_moves_16_bytes_at_a_time(arch, shape, scale):
    heads, head, v_head = shape
    _, parameters = kernel.launch(8192, heads * head, heads * v_head)
    warps = parameters.pop("num_warps")
    signature = {"k_cache": "*fp8", "v_cache": "*fp8", "k_out": "*bf16", "v_out": "*bf16"}
    signature |= {"slots": "*i32", "end": "*i32:4"}
    signature |= {"k_cache_stride": "i32:16", "v_cache_stride": "i32:16"}
    code = aot.compile(
        kernel.__name__,
        "_widen_kernel",
        signature=signature | {"k_scale": scale, "v_scale": scale},
        constexprs=parameters,
        arch=arch,
        num_warps=warps,
    )
    aot.assert_resources(code, vgprs=128)
    assert code.widths("store").keys() == {16}
    assert 16 in code.widths("load")
