"""Catches keys cached with bits that are not act_quant's (240 for 224), elsewhere, or unasked."""

import pytest
import torch
from sglang.srt.rocm_patches import indexer_gate_kernel, indexer_kernel
from sglang.srt.rocm_patches.indexer_gate_kernel import project_head_gates, why_not
from sglang.srt.rocm_patches.indexer_kernel import (
    HEAD_DIM,
    PAGE_BYTES_PER_SLOT,
    scale_head_gates,
    store_index_k,
    store_launch_parameters,
)

from tests.kernels import aot
from tests.kernels.recorder import believing
from tests.platform import operators
from tests.platform.tensors import boundaries, poisoned, strided
from tests.references import indexer as reference
from tests.tolerances import FP32_PRODUCTS, assert_bitwise, assert_close, declared

LAYOUTS = [
    pytest.param(1, False, id="page 1"),
    pytest.param(64, False, id="page 64"),
    pytest.param(64, True, id="page 64 preshuffled"),
]
# weights_proj of DeepSeek-V3.2 and of GLM-5: hidden size, heads
PROJECTIONS = [pytest.param(7168, 64, id="V3.2"), pytest.param(6144, 32, id="GLM-5")]
GATE_NUMERICS = declared("indexer")


def finite_bf16():
    """Every finite bf16 that is not negative, zero first."""
    return torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)


def keys(platform, tokens):
    """Rows over many magnitudes, so that their scales differ."""
    magnitude = torch.exp2(torch.randint(-24, 24, (tokens, 1), device=platform.device).float())
    return (torch.randn(tokens, HEAD_DIM, device=platform.device) * magnitude).bfloat16()


def fresh_slots(platform, tokens, pages, page_size):
    return torch.randperm(pages * page_size, device=platform.device)[:tokens]


def both(platform, k, slots, page_size=1, preshuffled=False, pages=None, expected_k=None):
    """Caches after the kernel and after the reference, from the same poison."""
    if pages is None:
        pages = max(1, int(slots.max()) // page_size + 1) if len(slots) else 1
    shape = (pages, page_size * PAGE_BYTES_PER_SLOT)
    cache = poisoned(shape, torch.uint8, platform.device)
    expected = poisoned(shape, torch.uint8)
    store_index_k(k, cache, slots, page_size, platform.fp8_dtype, preshuffled)
    reference.store_index_k(
        (k if expected_k is None else expected_k).cpu(),
        expected,
        slots.cpu(),
        page_size,
        platform.act_quant_max,
        platform.fp8_dtype,
        preshuffled,
    )
    return cache.cpu(), expected


@pytest.mark.parametrize(("page_size", "preshuffled"), LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 7, 64, 1027])
def test_a_batch_is_stored_in_its_slots_and_nowhere_else(platform, tokens, page_size, preshuffled):
    pages = 2 * tokens // page_size + 2
    slots = fresh_slots(platform, tokens, pages, page_size)
    slots[tokens // 2] = -1
    assert_bitwise(*both(platform, keys(platform, tokens), slots, page_size, preshuffled, pages))


@pytest.mark.slow
def test_every_amax_gives_act_quants_scale(platform, monkeypatch):
    # More tokens a program than any launch takes: the interpreter's time goes by programs.
    few = {"BLOCK_T": 64, "VECTOR": 8, "num_warps": 4}
    monkeypatch.setattr(indexer_kernel, "store_launch_parameters", lambda _: few)
    amax = finite_bf16()
    k = torch.zeros(len(amax), HEAD_DIM, dtype=torch.bfloat16)
    k[:, 5] = -amax
    k[:, 77] = amax / 3
    slots = torch.arange(len(k), device=platform.device)
    cache = poisoned((len(k), PAGE_BYTES_PER_SLOT), torch.uint8, platform.device)
    store_index_k(k.to(platform.device), cache, slots, 1, platform.fp8_dtype)
    values, scales = reference.act_quant(k, platform.act_quant_max, platform.fp8_dtype)
    cache = cache.cpu()
    assert_bitwise(cache[:, HEAD_DIM:].contiguous().view(torch.float32)[:, 0], scales, "scales")
    assert_bitwise(cache[:, :HEAD_DIM].contiguous(), values.view(torch.uint8), "values")


def test_every_boundary_of_the_format_rounds_as_in_torch(platform):
    edges = boundaries(platform.fp8_dtype, torch.bfloat16)
    edges = edges[edges.abs() < platform.act_quant_max]
    k = torch.zeros(-(-len(edges) // (HEAD_DIM - 1)), HEAD_DIM, dtype=torch.bfloat16)
    k[:, 0] = platform.act_quant_max  # the row's scale is 1
    k[:, 1:].flatten()[: len(edges)] = edges
    k[:, 1:] = torch.nn.functional.pad(edges, (0, k[:, 1:].numel() - len(edges))).view(len(k), -1)
    slots = torch.arange(len(k), device=platform.device)
    cache, expected = both(platform, k.to(platform.device), slots)
    assert (cache[:, HEAD_DIM:].contiguous().view(torch.float32) == 1).all()
    assert_bitwise(cache, expected)


def test_a_row_below_the_floor_has_the_floors_scale(platform):
    k = torch.zeros(3, HEAD_DIM, dtype=torch.bfloat16, device=platform.device)
    k[1] = 1e-6
    k[2] = -9e-5
    cache, expected = both(platform, k, torch.arange(3, device=platform.device))
    assert_bitwise(cache, expected)
    assert (cache[0, :HEAD_DIM] == 0).all()
    assert len(cache[:, HEAD_DIM:].contiguous().view(torch.float32).unique()) == 1


def test_an_infinite_key_has_an_infinite_scale_and_is_a_nan_itself(platform):
    k = keys(platform, 2)
    k[0, 9] = -torch.inf
    cache, expected = both(platform, k, torch.arange(2, device=platform.device))
    assert cache[0, 9].view(platform.fp8_dtype).float().isnan()
    cache[0, 9] = expected[0, 9]  # a NaN of either sign
    assert_bitwise(cache, expected)


def test_a_nan_stays_a_nan_and_leaves_the_rest_of_its_row_alone(platform):
    k = keys(platform, 3)
    k[0, 9] = 0
    k[1, 9] = 0
    _, expected = both(platform, k, torch.arange(3, device=platform.device))
    k[1, 9] = torch.nan
    cache, _ = both(platform, k, torch.arange(3, device=platform.device))
    written = cache[1, 9].view(platform.fp8_dtype)
    assert written.float().isnan()
    cache[1, 9] = expected[1, 9]
    assert_bitwise(cache, expected)


def test_all_slots_below_zero_write_nothing(platform):
    slots = torch.full((5,), -1, device=platform.device)
    cache, _ = both(platform, keys(platform, 5), slots)
    assert_bitwise(cache, poisoned(cache.shape, torch.uint8))


@pytest.mark.parametrize(("tokens", "slots"), [(9, 5), (5, 9), (0, 3), (3, 0), (0, 0)])
def test_as_many_tokens_as_both_have(platform, tokens, slots):
    # What lies behind the shorter one is poison: a slot past it would be one below zero or wild.
    behind = poisoned((4, HEAD_DIM), torch.bfloat16, platform.device)
    k = torch.cat([keys(platform, tokens), behind])
    loc = torch.cat([torch.arange(slots), torch.full((4,), 2)]).to(platform.device)
    assert_bitwise(*both(platform, k[:tokens], loc[:slots], pages=16))


def test_no_tokens_launch_nothing(platform, monkeypatch):
    monkeypatch.delattr(indexer_kernel, "_store_index_k_kernel")
    both(platform, keys(platform, 0), torch.arange(0, device=platform.device))
    monkeypatch.delattr(indexer_kernel, "_scale_head_gates_kernel")
    gates = torch.empty(0, 32, device=platform.device)
    assert scale_head_gates(gates, gates.unsqueeze(-1), 1.0, 1.0).shape == (0, 32, 1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_of_either_width_with_gaps(platform, dtype):
    slots = torch.full((20,), 3, dtype=dtype, device=platform.device)[::2]
    slots.copy_(torch.randperm(10))
    assert_bitwise(*both(platform, keys(platform, 10), slots, pages=16))


@pytest.mark.parametrize("tokens", [9, 1027])
def test_keys_with_gaps_between_rows_or_between_elements(platform, tokens):
    k = keys(platform, tokens)
    slots = fresh_slots(platform, tokens, tokens, 1)
    assert_bitwise(*both(platform, strided(k), slots, expected_k=k))
    assert_bitwise(*both(platform, k.T.contiguous().T, slots, expected_k=k))


def test_a_slot_past_two_gib_is_addressed(platform):
    pages = 2**31 // PAGE_BYTES_PER_SLOT + 4
    cache = torch.empty(pages, PAGE_BYTES_PER_SLOT, dtype=torch.uint8, device=platform.device)
    k = keys(platform, 1)
    slot = torch.tensor([pages - 1], dtype=torch.int32, device=platform.device)
    store_index_k(k, cache, slot, 1, platform.fp8_dtype)
    _, expected = both(platform, k, torch.zeros_like(slot))
    assert_bitwise(cache[-1].cpu(), expected[0])


def test_what_does_not_fit_is_refused_by_name(platform):
    k = keys(platform, 2)
    slots = torch.arange(2, device=platform.device)

    def store(k=k, slots=slots, page_size=1, row=PAGE_BYTES_PER_SLOT, preshuffled=False):
        cache = poisoned((4, row), torch.uint8, platform.device)
        store_index_k(k, cache, slots, page_size, platform.fp8_dtype, preshuffled)

    with pytest.raises(ValueError, match=r"page_size 64 needs pages of 8448 bytes, .* has 132"):
        store(page_size=64)
    with pytest.raises(ValueError, match="page_size 8 is no multiple of 16"):
        store(page_size=8, row=8 * PAGE_BYTES_PER_SLOT, preshuffled=True)
    with pytest.raises(ValueError, match=r"k must be \[T, 128\], not \[2, 64\]"):
        store(k=k[:, :64])
    with pytest.raises(ValueError, match=r"slots must be .*, not torch\.float32"):
        store(slots=slots.float())
    with pytest.raises(ValueError, match="cache must be"):
        store_index_k(k, torch.zeros(4, 132, device=platform.device), slots, 1, platform.fp8_dtype)


def aiters_store(platform):
    if platform.name == "rocm":
        from aiter.ops.cache import indexer_k_quant_and_cache

        return indexer_k_quant_and_cache
    return operators.install(platform)["aiter.ops.cache.indexer_k_quant_and_cache"]


def test_aiters_operator_has_act_quants_bytes_on_gfx950_and_not_on_gfx942(platform):
    """Why the hook calls it on the one and never on the other."""
    amax = finite_bf16()
    k = (torch.rand(len(amax), HEAD_DIM) * 2 - 1).bfloat16() * amax[:, None]
    k[:, 5] = amax
    slots = torch.arange(len(k), device=platform.device)
    cache = poisoned((len(k), PAGE_BYTES_PER_SLOT), torch.uint8, platform.device)
    pages = cache.unsqueeze(1).view(platform.fp8_dtype)
    aiters_store(platform)(k.to(platform.device), pages, slots, HEAD_DIM, "ue8m0")
    values, scales = reference.act_quant(k, platform.act_quant_max, platform.fp8_dtype)
    expected = torch.cat([values.view(torch.uint8), scales[:, None].view(torch.uint8)], dim=1)
    assert torch.equal(cache.cpu(), expected) == (platform.arch == "gfx950")


@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize("tokens", [0, 1, 7, 65])
def test_head_gates_have_the_bits_of_the_three_products(platform, tokens, heads):
    gates = torch.randn(tokens, heads, device=platform.device).bfloat16()
    q_scale = torch.exp2(torch.randint(-12, 4, (tokens, heads, 1), device=platform.device).float())
    q_scale *= 1 + torch.rand(tokens, heads, 1, device=platform.device)
    scales = heads**-0.5, HEAD_DIM**-0.5
    expected = reference.scale_head_gates(gates, q_scale, *scales)
    assert_bitwise(scale_head_gates(gates, q_scale, *scales), expected)
    assert_bitwise(scale_head_gates(strided(gates), strided(q_scale), *scales), expected)


def test_head_gates_refuse_scales_of_another_shape_or_type(platform):
    gates = torch.randn(3, 32, device=platform.device).bfloat16()
    scale = torch.ones(3, 32, 1, device=platform.device)
    for wrong in (scale[:2], scale[..., 0], scale.bfloat16()):
        with pytest.raises(ValueError, match="q_scale must be fp32"):
            scale_head_gates(gates, wrong, 1.0, 1.0)


@pytest.mark.parametrize(("hidden", "heads"), PROJECTIONS)
def test_gates_of_a_bf16_projection_are_in_the_declared_class(platform, hidden, heads):
    x = torch.randn(16, hidden, device=platform.device).bfloat16()
    weight = (torch.randn(heads, hidden, device=platform.device) * hidden**-0.5).bfloat16()
    q_scale = torch.exp2(torch.randint(-9, -6, (16, heads, 1), device=platform.device).float())
    gates = scale_head_gates(
        torch.nn.functional.linear(x, weight), q_scale, heads**-0.5, HEAD_DIM**-0.5
    )
    truth = (x.double() @ weight.double().T) * q_scale[..., 0] * (heads * HEAD_DIM) ** -0.5
    assert_close(gates[..., 0], truth, GATE_NUMERICS, reduction=hidden)


def projection(platform, tokens, hidden, heads):
    """x with gaps between its rows, a weight, and q's scales."""
    x = strided(torch.randn(tokens, hidden, device=platform.device).bfloat16(), 8)
    weight = (torch.randn(heads, hidden, device=platform.device) * hidden**-0.5).bfloat16()
    q_scale = torch.exp2(torch.randint(-9, -6, (tokens, heads, 1), device=platform.device).float())
    return x, weight, q_scale * (1 + torch.rand_like(q_scale))


def check_projection(x, weight, q_scale):
    heads = weight.shape[0]
    gates = project_head_gates(x, weight, q_scale, heads**-0.5, HEAD_DIM**-0.5)
    truth = x.double() @ weight.double().T * q_scale[..., 0].double() * (heads * HEAD_DIM) ** -0.5
    # An fp32 sum of the exact products: nothing is rounded to bf16.
    assert_close(gates[..., 0], truth, FP32_PRODUCTS, reduction=x.shape[1])


@pytest.mark.parametrize(("hidden", "heads"), PROJECTIONS)
@pytest.mark.parametrize("tokens", [1, 17, 67])
def test_projected_gates_are_the_fp64_sums_to_fp32(platform, tokens, hidden, heads):
    check_projection(*projection(platform, tokens, hidden, heads))


@pytest.mark.parametrize("tokens", [3, 70])
def test_gates_in_one_part_need_no_second_launch(platform, tokens, monkeypatch):
    monkeypatch.setattr(indexer_gate_kernel, "device_programs", lambda: 1)
    monkeypatch.delattr(indexer_gate_kernel, "_add_parts_kernel")
    check_projection(*projection(platform, tokens, 512, 16))


def test_gates_of_no_tokens_launch_nothing(platform, monkeypatch):
    monkeypatch.delattr(indexer_gate_kernel, "_project_kernel")
    x, weight, q_scale = projection(platform, 0, 256, 32)
    assert project_head_gates(x, weight, q_scale, 1.0, 1.0).shape == (0, 32, 1)


def test_gates_refuse_scales_of_another_shape_and_know_what_fits(platform):
    x, weight, q_scale = projection(platform, 3, 256, 32)
    with pytest.raises(ValueError, match="q_scale must be fp32"):
        project_head_gates(x, weight, q_scale[..., 0], 1.0, 1.0)
    assert why_not(x, weight) is None
    assert why_not(x.float(), weight) == (
        "hidden states are torch.float32, weights_proj torch.bfloat16, not both bf16"
    )
    assert "weights_proj torch.float32" in why_not(x, weight.float())
    for other in (x.T.contiguous().T, x[None]):
        assert "contiguous rows" in why_not(other, weight)
    assert "contiguous rows" in why_not(x[:, :128], weight[:, ::2])
    assert why_not(x[:, :200], weight[:, :200].contiguous()) == (
        "a hidden size of 200 is no multiple of 128"
    )
    assert why_not(x, weight[:24]) == "24 index heads are not 16, 32 or 64"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize(("page_size", "preshuffled"), LAYOUTS)
@pytest.mark.parametrize("tokens", [64, 8192])
@pytest.mark.aot
def test_the_store_converts_in_hardware_and_spills_nothing(arch, page_size, preshuffled, tokens):
    with believing(arch):
        parameters = store_launch_parameters(tokens)
    num_warps = parameters.pop("num_warps")
    fp8_dtype = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn
    pointers = {"k_ptr": "*bf16", "slot_ptr": "*i64", "value_ptr": "*fp8", "scale_ptr": "*fp32"}
    code = aot.compile(
        indexer_kernel.__name__,
        "_store_index_k_kernel",
        signature=pointers | {"num_tokens": "i32", "k_token_stride": "i32:16"},
        constexprs={
            "k_element_stride": 1,
            "slot_stride": 1,
            "HEAD_DIM": HEAD_DIM,
            "PAGE_SIZE": page_size,
            "PAGE_STRIDE": page_size * PAGE_BYTES_PER_SLOT,
            "PRESHUFFLED": preshuffled,
            "QUANT_MAX": indexer_kernel.QUANT_MAX[fp8_dtype],
            **parameters,
        },
        arch=arch,
        num_warps=num_warps,
    )
    aot.assert_resources(code, vgprs=64)
    assert code.native_e4m3 == any("pk_fp8_f32" in name for name in code.instructions)
    if tokens == 8192:
        assert 16 in code.widths("load")  # k
        # Rows of 132 bytes are aligned to 4; those of a larger page to a lane's 8 values.
        assert max(code.widths("store")) == (4 if page_size == 1 else 8)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.aot
def test_the_gates_move_16_bytes_a_lane(arch):
    code = aot.compile(
        indexer_kernel.__name__,
        "_scale_head_gates_kernel",
        signature={
            "gate_ptr": "*bf16",
            "q_scale_ptr": "*fp32",
            "out_ptr": "*fp32",
            "num_gates": "i32:16",
            "head_scale": "fp32",
            "softmax_scale": "fp32",
        },
        constexprs={"BLOCK": indexer_kernel.GATE_BLOCK},
        arch=arch,
        num_warps=1,
    )
    aot.assert_resources(code, vgprs=64)
    assert code.widths("load").keys() == code.widths("store").keys() == {16}
