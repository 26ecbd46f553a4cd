"""Catches a reference that is not the operator it stands for, or that lets a wrong call pass.

Independent arithmetic is the oracle: fp64, single elements in loops, torch's own functions.
"""

import math

import pytest
import torch

from tests.platform import operators
from tests.platform.imports import NotEmulatedError
from tests.platform.tensors import poisoned
from tests.references.nsa_fp8_kv_sparse_mla import sparse_mla
from tests.tolerances import (
    ATTENTION,
    BF16_STEPS,
    CORRECTLY_ROUNDED,
    FP32_SUM,
    ONE_ULP,
    assert_bitwise,
    assert_close,
    assert_near,
)


@pytest.fixture(autouse=True)
def op(platform):
    if platform.name == "rocm":
        pytest.skip("nothing is replaced there")
    provided = operators.install(platform)
    return lambda name: provided[name]


@pytest.fixture
def randn(platform):
    def make(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=platform.device).to(dtype)

    return make


@pytest.mark.parametrize("width", [64, 129])
def test_norms_are_exact_to_an_ulp_and_cut_off_on_gfx942(op, platform, randn, width):
    x, weight, bias = randn(33, width), randn(width), randn(width)
    truth = torch.nn.functional.layer_norm(
        x.double(), (width,), weight.double(), bias.double(), 1e-6
    )
    y = op("aiter.layernorm2d_fwd")(x, weight, bias, 1e-6)
    assert_close(y, truth, ONE_ULP, reduction=width)
    away_from_zero = (y.double().abs() > truth.abs()).double().mean()
    assert (away_from_zero < 0.02) == platform.ck_truncates_bf16
    residual, out, left = randn(33, width), torch.empty_like(x), torch.empty_like(x)
    op("aiter.rmsnorm2d_fwd_with_add")(out, x, residual, left, weight, 1e-6)
    summed = x.double() + residual.double()
    root = summed.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    assert_close(out, summed / root * weight.double(), ONE_ULP, reduction=width)
    assert_close(left, summed, ONE_ULP)


def test_norms_refuse_what_the_kernels_misread(op, randn):
    layernorm, x, weight = op("aiter.layernorm2d_fwd"), randn(4, 64), randn(64)
    for call, reason in [
        (lambda: layernorm(x, weight.float(), weight.float()), "float32 parameter"),
        (lambda: layernorm(x.float(), weight, weight), "input of torch.float32"),
        (lambda: layernorm(x[None], weight, weight), "3-D input"),
        (lambda: layernorm(randn(64, 64).t(), weight, weight), "not contiguous"),
        (lambda: layernorm(x, weight, weight, x_bias=weight), "x_bias"),
    ]:
        with pytest.raises(NotEmulatedError, match=f"layernorm2d_fwd: .*{reason}"):
            call()
    with pytest.raises(TypeError, match="residual"):
        layernorm(x, weight, weight, residual=x)


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("scale_fmt", ["ue8m0", ""])
def test_indexer_rows_have_values_then_scales_in_each_page(op, platform, randn, page, scale_fmt):
    pages, tokens = 4, 7
    k = randn(tokens, 128) * 10 ** torch.randn(tokens, 1, device=platform.device).to(torch.bfloat16)
    slots = torch.randperm(pages * page, device=platform.device)[:tokens] if page > 1 else None
    slots = torch.tensor([3, -1, 0, 2, -1, 1, -1], device=platform.device) if page == 1 else slots
    slots[2] = -1
    cache = poisoned((pages, page, 132), torch.uint8, platform.device)
    op("aiter.ops.cache.indexer_k_quant_and_cache")(k, cache, slots, 128, scale_fmt)
    expected = poisoned((pages, page * 132), torch.uint8, platform.device)
    for token, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        block, offset = divmod(slot, page)
        scale = max(float(k[token].abs().max()), 1e-4) / platform.fp8_max
        if scale_fmt == "ue8m0":
            scale = 2.0 ** (torch.tensor(scale).log2().ceil().item())
        scale = torch.tensor([scale], dtype=torch.float32, device=platform.device)
        row = (k[token].float() * (1 / scale)).to(platform.fp8_dtype)
        expected[block, offset * 128 : offset * 128 + 128] = row.view(torch.uint8)
        at = page * 128 + offset * 4
        expected[block, at : at + 4] = scale.view(torch.uint8)
    assert_bitwise(cache.view(pages, -1), expected)


def test_the_indexer_refuses_what_would_read_or_write_elsewhere(op, platform, randn):
    store = op("aiter.ops.cache.indexer_k_quant_and_cache")
    k, cache = randn(4, 128), poisoned((8, 1, 132), torch.uint8, platform.device)
    slots = torch.arange(4, device=platform.device)
    for call, reason in [
        (lambda: store(k, cache, slots[:3], 128, "ue8m0"), "more keys than slots"),
        (lambda: store(k, cache, slots.int(), 128, "ue8m0"), "slots of torch.int32"),
        (lambda: store(k, cache, slots + 8, 128, "ue8m0"), "past the cache"),
        (lambda: store(k[:0], cache, slots, 128, "ue8m0"), "no tokens"),
        (lambda: store(k, cache, slots, 64, "ue8m0"), "blocks of 64"),
    ]:
        with pytest.raises(NotEmulatedError, match=reason):
            call()


def test_index_logits_are_gated_sums_and_see_only_their_range(op, platform, randn):
    q, k = randn(3, 4, 64, dtype=platform.fp8_dtype), randn(9, 64, dtype=platform.fp8_dtype)
    scale, weights = torch.rand(9, device=platform.device), randn(3, 4, dtype=torch.float32)
    starts = torch.tensor([0, 2, 5], device=platform.device, dtype=torch.int32)
    ends = torch.tensor([9, 6, 5], device=platform.device, dtype=torch.int32)
    logits = op("aiter.ops.triton.fp8_mqa_logits.fp8_mqa_logits")(
        q, k, scale, weights, starts, ends
    )
    for i in range(3):
        for j in range(9):
            if not starts[i] <= j < ends[i]:
                assert logits[i, j] == -torch.inf
                continue
            each = (q[i].double() @ k[j].double() * scale[j]).relu() @ weights[i].double()
            torch.testing.assert_close(logits[i, j].double(), each, rtol=1e-5, atol=1e-5)
    paged = op("aiter.ops.triton.pa_mqa_logits.deepgemm_fp8_paged_mqa_logits")
    rows = torch.cat([k.view(torch.uint8), scale[:, None].view(torch.uint8)], 1)[:, None, None]
    out = poisoned((3, 12), torch.float32, platform.device)
    table = torch.arange(9, device=platform.device, dtype=torch.int32).repeat(3, 1)
    lengths = torch.tensor([9, 4, 0], device=platform.device, dtype=torch.int32)
    paged(q[:, None], rows, weights, out, lengths, table, 12)
    assert_close(out[0, :9], logits[0].double(), ONE_ULP, reduction=64)
    assert out[0, 9:].isnan().all()
    assert out[1, 4:].isnan().all()
    assert out[2].isnan().all()


def test_attention_over_pages_is_attention(op, platform, randn):
    heads, kv_heads, width, lengths, new = 4, 2, 32, [5, 9], [2, 3]
    cache_k, cache_v = randn(20, kv_heads, width), randn(20, kv_heads, width)
    q, chosen, expected = randn(sum(new), heads, width), [], []
    for b, length in enumerate(lengths):
        slots = torch.randperm(20, device=platform.device)[:length]
        chosen.append(slots)
        rows = q[sum(new[:b]) : sum(new[: b + 1])].double()
        mask = torch.ones(new[b], length, dtype=torch.bool, device=q.device).tril(length - new[b])
        out = torch.nn.functional.scaled_dot_product_attention(
            rows.transpose(0, 1),
            cache_k[slots].double().repeat_interleave(2, 1).transpose(0, 1),
            cache_v[slots].double().repeat_interleave(2, 1).transpose(0, 1),
            attn_mask=mask,
        )
        expected.append(out.transpose(0, 1))
    expected = torch.cat(expected)
    starts = torch.tensor([0, 2, 5], device=platform.device, dtype=torch.int32)
    indptr = torch.tensor([0, 5, 14], device=platform.device, dtype=torch.int32)
    slots = torch.cat(chosen).int()
    prefill = op("aiter.mha_batch_prefill_func")
    found = prefill(q, cache_k, cache_v, starts, indptr, slots, 3, 9, causal=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)
    tables = torch.zeros(2, 9, dtype=torch.int32, device=platform.device)
    for b, each in enumerate(chosen):
        tables[b, : len(each)] = each
    out = torch.empty_like(q)
    unified = op("aiter.ops.triton.attention.unified_attention.unified_attention")
    used = torch.tensor(lengths, device=platform.device, dtype=torch.int32)
    unified(
        q, cache_k[:, None], cache_v[:, None], out, starts, 3, used, 9, width**-0.5, True,
        (-1, -1), tables, 0, None, None, None,
    )  # fmt: skip
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


def ragged(op, q, caches, slots, form="fp8", scales=(0.5, 0.25), softcap=0.0):
    """One request's decode."""
    indptr = torch.tensor([0, len(slots)], device=q.device, dtype=torch.int32)
    ones = torch.ones(1, device=q.device, dtype=torch.int32)
    k_scale, v_scale = (torch.tensor([each], device=q.device) for each in scales)
    out = torch.empty_like(q)
    op("aiter.paged_attention_ragged")(
        out, None, q, *(each[:, None] for each in caches), q.shape[-1] ** -0.5, indptr, slots,
        ones, 1, 2, None, form, "NHD", softcap, k_scale, v_scale, None, 256,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("softcap", [0.0, 0.5])
def test_decode_of_an_fp8_cache_rounds_q_and_the_weights_of_256_keys(op, platform, randn, softcap):
    fp8, width = platform.fp8_dtype, 64
    caches = [randn(400, 2, width).to(fp8) for _ in "kv"]
    slots = torch.randperm(400, device=platform.device)[:300].int()
    q = randn(1, 4, width)
    found = ragged(op, q, caches, slots, softcap=softcap)
    for h in range(4):
        k, v = (each.double()[slots.long(), h // 2] for each in caches)
        logits = [float(q[0, h].to(fp8).double() @ row) * 0.5 / 8 for row in k]
        if softcap:
            logits = [softcap * math.tanh(each / softcap) for each in logits]
        total, out = sum(map(math.exp, logits)), torch.zeros(width, dtype=torch.float64)
        for first in (0, 256):
            some = range(first, min(first + 256, 300))
            part = sum(math.exp(logits[j]) for j in some)
            for j in some:
                weight = torch.tensor(math.exp(logits[j]) / part).to(fp8).double()
                out += weight * v[j].cpu() * 0.25 * part / total
        torch.testing.assert_close(found[0, h].double().cpu(), out, rtol=1e-2, atol=2e-3)
    assert ragged(op, q * 1000, caches, slots).isnan().any()


def test_decode_refuses_a_cache_that_it_would_misread(op, platform, randn):
    slots = torch.arange(3, device=platform.device, dtype=torch.int32)
    caches = [randn(8, 2, 64).to(platform.fp8_dtype) for _ in "kv"]
    other = {torch.float8_e4m3fn, torch.float8_e4m3fnuz} - {platform.fp8_dtype}
    foreign = [each.float().to(*other) for each in caches]
    wide = [randn(8, 2, 192).to(platform.fp8_dtype) for _ in "kv"]
    q = randn(1, 4, 64)
    for call, reason in [
        (lambda: ragged(op, q, caches, slots, "auto"), "cache for torch.bfloat16 query"),
        (lambda: ragged(op, q, [x.bfloat16() for x in caches], slots), "bfloat16 read as"),
        (lambda: ragged(op, q, foreign, slots), "read as"),
        (lambda: ragged(op, randn(1, 4, 192), wide, slots), "rows of 192"),
        (lambda: ragged(op, q, caches, slots, scales=(1, 1)), "scales"),
        (lambda: ragged(op, q, caches, slots, "fp8_e5m2"), "fp8_e5m2 cache"),
    ]:
        with pytest.raises(NotEmulatedError, match=f"paged_attention_ragged: .*{reason}"):
            call()


@pytest.mark.parametrize("head", [64, 80, 96, 112, 120, 128, 192, 256, 320])
def test_decode_of_a_16_bit_cache_takes_heads_that_its_loops_cover(op, platform, randn, head):
    slots = torch.arange(3, device=platform.device, dtype=torch.int32)
    caches = [randn(8, 2, head) for _ in "kv"]
    if head in (64, 128, 192, 256):
        assert ragged(op, randn(1, 4, head), caches, slots, "auto").isfinite().all()
        return
    with pytest.raises(NotEmulatedError, match=f"paged_attention_ragged: heads of {head}"):
        ragged(op, randn(1, 4, head), caches, slots, "auto")


def test_a_window_of_n_sees_n_keys_before_its_own():
    from tests.platform.operators.attention import visible

    assert visible(1, 10, True, 3, "cpu").nonzero()[:, 1].tolist() == [6, 7, 8, 9]
    assert visible(2, 3, True, -1, "cpu").tolist() == [[True, True, False], [True, True, True]]


def test_rope_of_aiter_leaves_unknown_positions_alone(op, platform, randn):
    from types import SimpleNamespace

    q, k = randn(3, 2, 16), randn(3, 1, 16)
    before = q.clone()
    angle = torch.rand(8, 8, device=platform.device)
    cos, sin = (each.bfloat16()[:, None, None] for each in (angle.cos(), angle.sin()))
    rope = SimpleNamespace(head_size=16, rotary_dim=16, is_neox_style=False)
    positions = torch.tensor([7, 8, -1], device=platform.device)
    op("aiter.rope_cached_positions_2c_fwd_inplace")(q, k, cos, sin, positions, rope)
    assert_bitwise(q[1:], before[1:])
    x = torch.view_as_complex(before[0].double().view(2, 8, 2))
    turned = x * torch.complex(cos[7, 0, 0].double(), sin[7, 0, 0].double())
    truth = torch.view_as_real(turned).flatten(1)
    assert_close(q[0], truth, CORRECTLY_ROUNDED, reduction=2)


def test_the_fused_mla_write_rotates_once_and_skips_negative_slots(op, platform, randn):
    fused = op("aiter.ops.triton.fused_kv_cache.fused_qk_rope_cat_and_cache_mla")
    angle = torch.rand(8, 32, device=platform.device)
    cos, sin = (each.bfloat16()[:, None, None] for each in (angle.cos(), angle.sin()))
    q_nope, q_pe, k_nope, k_pe = (
        randn(3, 2, 512),
        randn(3, 2, 64),
        randn(3, 1, 512),
        randn(3, 1, 64),
    )
    cache = poisoned((5, 1, 576), torch.bfloat16, platform.device)
    slots = torch.tensor([4, -1, 0], device=platform.device)
    positions = torch.tensor([1, 2, 3], device=platform.device)
    q, _, k_rotated, _ = fused(
        q_nope, q_pe, k_nope, k_pe, cache, slots, positions, cos, sin, None, True
    )
    assert_bitwise(q[..., :512], q_nope)
    c, s = (each[positions, 0].double() for each in (cos, sin))
    first, second = k_pe.double().chunk(2, -1)
    truth = torch.cat([first * c - second * s, second * c + first * s], -1)
    assert_close(cache[[4, 0], :, 512:], truth[[0, 2]], BF16_STEPS)
    assert_bitwise(cache[[4, 0], :, :512], k_nope[[0, 2]])
    assert cache[1:4].isnan().all()
    assert k_rotated[1].isnan().all()


def test_sparse_mla_over_partial_groups_is_softmax_over_the_chosen(platform, randn):
    from tests.platform.operators import tilelang

    for cache, dtype, factory in [
        ("bf16", torch.bfloat16, tilelang.sparse_mla_fwd_decode_partial),
        ("fp8", platform.fp8_dtype, tilelang.sparse_mla_fwd_decode_partial_fp8),
    ]:
        q = randn(1, 2, 16, 576).div(4).to(dtype)
        kv = randn(1, 300, 1, 576).div(4).to(dtype)
        indices = torch.randint(0, 300, (1, 2, 1, 256), device=q.device, dtype=torch.int32)
        indices[0, 1, 0, 100:] = -1
        partial = factory(16, 512, 64, 256, sm_scale=0.05, block_I=64, inner_iter=2)(q, kv, indices)
        out = tilelang.sparse_mla_fwd_decode_combine(16, 512, 128, 4, block_I=64)(*partial)
        for token in range(2):
            chosen = indices[0, token, 0]
            key = kv[0, chosen[chosen >= 0].long(), 0].double()
            weights = (q[0, token].double() @ key.T * 0.05).softmax(-1)
            truth = weights @ key[:, :512]
            assert_near(out[0, token], truth, ATTENTION[cache])


def test_a_product_of_parts_is_added_to_what_it_is_given(op, randn):
    x, w, y = randn(5, 40), randn(3, 40), randn(5, 3, dtype=torch.float32)
    truth = y.double() + x.double() @ w.double().T
    multiply = op("aiter.ops.triton.gemm_a16w16_atomic.gemm_a16w16_atomic")
    assert multiply(x, w, y=y) is y
    assert_close(y, truth, FP32_SUM, reduction=40)
    with pytest.raises(NotEmulatedError, match="no y"):
        multiply(x, w)


@pytest.mark.parametrize("splits", [1, 4])
def test_our_programs_are_softmax_over_the_chosen_in_any_number_of_parts(platform, randn, splits):
    from tests.platform.operators import tilelang_programs as programs

    for dtype, wide in ((torch.bfloat16, "bfloat16"), (platform.fp8_dtype, "float16")):
        q, kv = randn(3, 16, 576).div(4), randn(300, 1, 576).div(4).to(dtype)
        indices = torch.randint(0, 300, (3, 256), device=q.device, dtype=torch.int32)
        indices[1, 100:] = -1
        indices[2] = -1
        part = poisoned((3, splits, 16, 512), torch.bfloat16, q.device)
        lse = poisoned((3, splits, 16), torch.float32, q.device)
        words, scale = kv.view(torch.int32).view(-1, 4), 0.05 * 0.5 * math.log2(math.e)
        settings = {"wide": wide}
        programs.sparse_mla_partial(settings, q, words, indices, part, lse, scale, 0.5)
        out = poisoned((3, 16, 512), torch.bfloat16, q.device)
        programs.sparse_mla_combine({}, part, lse, out)
        truth = sparse_mla(q, kv, indices[:, None], 0.05, 512, kv_scale=0.5)
        assert_close(out, truth, BF16_STEPS, reduction=256)


def test_a_program_is_called_as_its_signature_says():
    from tests.platform.operators import tilelang_programs as programs

    rows = programs.Dynamic("rows")
    signature = {"x": programs.Spec([rows, 2], "int32"), "y": programs.Spec([rows], "float32")}
    program = programs.Program("program", signature, {})
    x, y = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3)
    programs._bind(program, (x, y))
    for wrong in ((x,), (x, y[:2]), (x.long(), y), (x[:, :1], y)):
        with pytest.raises(TypeError, match="program: "):
            programs._bind(program, wrong)
    with pytest.raises(NotEmulatedError, match="strides of x"):
        programs._bind(program, (torch.zeros(2, 3, dtype=torch.int32).T, y))


def test_experts_are_weighted_mlps(op, randn):
    x, w1, w2 = randn(5, 16), randn(4, 24, 16), randn(4, 16, 12)
    weights, chosen = (
        torch.rand(5, 2, device=x.device),
        torch.randint(0, 4, (5, 2), device=x.device, dtype=torch.int32),
    )
    found = op("aiter.fused_moe.fused_moe")(x, w1, w2, weights, chosen)
    for token in range(5):
        truth = torch.zeros(16, dtype=torch.float64, device=x.device)
        for weight, expert in zip(weights[token], chosen[token], strict=True):
            gate, up = (w1[expert].double() @ x[token].double()).chunk(2)
            truth += weight * (w2[expert].double() @ (torch.nn.functional.silu(gate) * up))
        assert (found[token].double() - truth).norm() / truth.norm() < 2e-2
    with pytest.raises(NotEmulatedError, match="expert_mask"):
        op("aiter.fused_moe.fused_moe")(x, w1, w2, weights, chosen, expert_mask=weights)


def starts_of(lengths, device):
    starts = torch.tensor([0, *lengths], device=device).cumsum(0)
    return starts.to(torch.int32)


def softmax_in_fp64(q, k, v, scale):
    """[T, H, D] on [N, H, D], the last query at the last key."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    out = torch.nn.functional.scaled_dot_product_attention(
        *(each.double().transpose(0, 1) for each in (q, k, v)), attn_mask=seen, scale=scale
    )
    return out.transpose(0, 1)


def test_absorbed_mla_reads_the_value_from_the_key(op, platform, randn):
    device, new, lengths = platform.device, (3, 1), (7, 5)
    cache, q = randn(13, 1, 1, 72), randn(sum(new), 16, 72)
    slots = [torch.randperm(13, device=device)[:length] for length in lengths]
    places = (
        starts_of(new, device),
        starts_of(lengths, device),
        torch.cat(slots).int(),
        torch.ones(2, dtype=torch.int32, device=device),
        3,
    )
    rows = [cache[each, 0].expand(-1, 16, -1) for each in slots]
    truth = [
        softmax_in_fp64(each, row, row[..., :64], 0.1)
        for each, row in zip(q.split(new), rows, strict=True)
    ]
    for name in ("aiter.mla.mla_decode_fwd", "aiter.mla.mla_prefill_fwd"):
        out = poisoned((sum(new), 16, 64), torch.bfloat16, device)
        op(name)(q, cache, out, *places, sm_scale=0.1)
        assert_close(out, torch.cat(truth), ONE_ULP, reduction=7)
    stored, scale = cache.to(platform.fp8_dtype), torch.tensor([0.37], device=device)
    out = poisoned((sum(new), 16, 64), torch.bfloat16, device)
    op("aiter.mla.mla_decode_fwd")(q, stored, out, *places, sm_scale=0.1, kv_scale=scale)
    rows = [stored.double()[each, 0].expand(-1, 16, -1) * 0.37 for each in slots]
    truth = [
        softmax_in_fp64(each, row, row[..., :64], 0.1)
        for each, row in zip(q.split(new), rows, strict=True)
    ]
    assert_close(out, torch.cat(truth), ONE_ULP, reduction=7)


def test_sequences_that_lie_behind_each_other_attend_to_themselves(op, platform, randn):
    new, lengths, device = (2, 3), (5, 9), platform.device
    q, k, v = randn(5, 4, 48), randn(14, 4, 48), randn(14, 4, 33)
    found = op("aiter.flash_attn_varlen_func")(
        q, k, v, starts_of(new, device), starts_of(lengths, device), 3, 9, causal=True
    )
    each = zip(q.split(new), k.split(lengths), v.split(lengths), strict=True)
    truth = torch.cat([softmax_in_fp64(*some, 48**-0.5) for some in each])
    assert_close(found, truth, ONE_ULP, reduction=48)


def test_a_key_that_is_no_number_shows_and_a_query_without_keys_is_zero(op, platform, randn):
    device = platform.device
    q, k, v = randn(3, 2, 16), randn(4, 2, 16), randn(4, 2, 16)
    k[3] = torch.nan
    starts = starts_of((2, 1), device)
    keys = torch.tensor([0, 0, 4], dtype=torch.int32, device=device)
    found = op("aiter.flash_attn_varlen_func")(q, k, v, starts, keys, 2, 4)
    assert (found[:2] == 0).all()
    assert found[2].isnan().all()


@pytest.mark.parametrize("fused", ["", "paged", "ragged"])
def test_the_best_keys_of_a_row_are_those_of_a_sort(op, platform, fused):
    device, topk = platform.device, 2048
    score = torch.randperm(3 * 2501, device=device).float().view(3, 2501)  # no two alike
    lengths = torch.tensor([2401, 17, 2048], dtype=torch.int32, device=device)
    first = torch.tensor([99, 0, 7], dtype=torch.int32, device=device)
    table = torch.randperm(9000, device=device).int().view(3, 3000)
    if fused == "paged":
        order = starts_of((2, 1, 0), device)  # of two tokens the first sequence's, of one the next
        of_row = (0, 0, 1)
        found = op("sgl_kernel.fast_topk_transform_fused")(
            score, lengths, table, order, topk, row_starts=first
        )
    elif fused:
        found = op("sgl_kernel.fast_topk_transform_ragged_fused")(
            score, lengths, first * 10, topk, row_starts=first
        )
    else:
        found = op("sgl_kernel.fast_topk_v2")(score, lengths, topk, first)
    for row in range(3):
        length = int(lengths[row])
        mine = score[row, first[row] : first[row] + length].double()
        best = mine.argsort(descending=True)[:topk] if length > topk else torch.arange(length)
        if fused == "paged":
            best = table[of_row[row]][best]
        elif fused:
            best = best + first[row] * 10
        kept = found[row][found[row] >= 0]
        assert sorted(kept.tolist()) == sorted(best.tolist())
        assert (found[row] < 0).sum() == topk - min(length, topk)


def test_quantised_rows_are_scaled_to_the_largest_value(op, platform, randn):
    fp8, largest = platform.fp8_dtype, platform.fp8_max
    x = randn(7, 384) * 3
    blocks = x.double().view(7, 3, 128)
    amax = blocks.abs().amax(-1)
    found, scales = op("aiter.per_group_quant_hip")(x, quant_dtype=fp8)
    torch.testing.assert_close(scales.double(), amax / largest, rtol=1e-6, atol=0)
    assert_close(found, (blocks / scales.double()[..., None]).view(7, 384), ONE_ULP)
    assert (found.float().view(7, 3, 128).abs().amax(-1) == largest).all()
    out, scales = torch.empty_like(x, dtype=fp8), torch.empty(7, 1, device=x.device)
    op("aiter.dynamic_per_token_scaled_quant")(out, x, scales)
    truth = x.double().abs().amax(-1, keepdim=True) / largest
    torch.testing.assert_close(scales.double(), truth, rtol=1e-6, atol=0)
    assert_close(out, x.double() / scales.double(), ONE_ULP)
    scale = torch.empty(1, device=x.device)
    op("aiter.dynamic_per_tensor_quant")(out, x, scale)
    torch.testing.assert_close(scale.double()[0], amax.max() / largest, rtol=1e-6, atol=0)
    assert_close(out, x.double() / scale.double(), ONE_ULP)
    op("aiter.static_per_tensor_quant")(out, x, scale / 4)
    assert_close(out, (x.double() / scale.double() * 4).clamp(-largest, largest), ONE_ULP)


@pytest.mark.parametrize("rounded", [True, False])
def test_activations_are_quantised_in_blocks_with_a_floor(platform, randn, rounded):
    from tests.platform.operators.tilelang import act_quant_kernel

    x = randn(7, 384)
    x[2, 128:256] = 1e-9
    y, scales = torch.empty_like(x, dtype=platform.fp8_dtype), torch.empty(7, 3, device=x.device)
    act_quant_kernel(384, round_scale=rounded)(x, y, scales)
    blocks = x.double().view(7, 3, 128)
    truth = blocks.abs().amax(-1).clamp(min=1e-4) / platform.act_quant_max
    if rounded:
        truth = torch.exp2(truth.log2().ceil())
    torch.testing.assert_close(scales.double(), truth, rtol=1e-6, atol=0)
    assert_close(y, (blocks / scales.double()[..., None]).view(7, 384), ONE_ULP)


def test_a_stored_row_goes_to_its_slot_and_nowhere_else(platform, randn):
    from tests.platform.operators.jit import store_cache

    k, v = randn(5, 66), randn(5, 66)
    caches = [poisoned((9, 66), torch.bfloat16, platform.device) for _ in "kv"]
    slots = torch.randperm(9, device=platform.device)[:5]
    store_cache(k, v, *caches, slots.int(), 1)
    others = [slot for slot in range(9) if slot not in slots.tolist()]
    for cache, rows in zip(caches, (k, v), strict=True):
        assert_bitwise(cache[slots], rows)
        assert cache[others].isnan().all()


@pytest.mark.parametrize("neox", [True, False])
def test_rope_of_sgl_kernel_turns_pairs_and_leaves_the_rest(op, platform, randn, neox):
    angle = torch.rand(11, 8, device=platform.device)
    table = torch.cat([angle.cos(), angle.sin()], -1).bfloat16()
    positions = torch.randint(0, 11, (5,), device=platform.device)
    query, key = randn(5, 3 * 24), randn(5, 24)
    before = torch.cat([query.view(5, 3, 24), key.view(5, 1, 24)], 1)
    op("sgl_kernel.rotary_embedding")(positions, query, key, 24, table, neox)
    cos, sin = table[positions].double()[:, None].chunk(2, -1)
    pairs = before[..., :16].double().unflatten(-1, (2, 8) if neox else (8, 2))
    pairs = pairs.movedim(-2 if neox else -1, -1).contiguous()
    turned = torch.view_as_complex(pairs) * torch.complex(cos, sin)
    turned = torch.view_as_real(turned)
    turned = turned.transpose(-1, -2) if neox else turned
    after = torch.cat([query.view(5, 3, 24), key.view(5, 1, 24)], 1)
    assert_close(after[..., :16], turned.flatten(-2), CORRECTLY_ROUNDED, reduction=2)
    assert_bitwise(after[..., 16:], before[..., 16:])


def test_tokens_are_aligned_to_blocks_of_one_expert(op, platform):
    device, experts, block = platform.device, 5, 4
    chosen = torch.randint(-1, experts, (13, 3), dtype=torch.int32, device=device)
    size = chosen.numel() + (experts + 1) * (block - 1)
    order = poisoned((size,), torch.int32, device)
    owner = poisoned((-(-size // block),), torch.int32, device)
    padded = poisoned((1,), torch.int32, device)
    buffer = poisoned((experts + 2,), torch.int32, device)
    align = op("sgl_kernel.moe_align_block_size")
    align(chosen, experts + 1, block, order, owner, padded, buffer, True)
    counts = (chosen.flatten() + 1).bincount(minlength=experts + 1)
    assert int(padded) == int((counts.double() / block).ceil().sum()) * block
    places = order[: int(padded)].view(-1, block)
    for row, expert in zip(places, owner, strict=False):
        real = row[row < chosen.numel()]
        assert (chosen.flatten()[real.long()] == expert).all()
    real = order[order < chosen.numel()]
    assert sorted(real.tolist()) == list(range(chosen.numel()))


def test_routers_choose_the_best_and_weigh_them(op, platform, randn):
    gating, bias = randn(7, 12), randn(12)
    weights = torch.empty(7, 3, device=platform.device)
    ids = torch.empty(7, 3, dtype=torch.int32, device=platform.device)
    soft = gating.double().softmax(-1)
    op("sgl_kernel.topk_softmax")(weights, ids, gating, renormalize=True)
    best = soft.sort(descending=True).values[:, :3]
    assert_close(weights, best / best.sum(-1, keepdim=True), FP32_SUM)
    assert_close(weights, _weights(soft, ids, True), FP32_SUM)
    op("aiter.fused_moe.fused_topk")(gating, gating, 3, False, ids, weights)
    assert_close(weights, best, FP32_SUM)
    gates = gating.double().sigmoid()
    op("sgl_kernel.topk_sigmoid")(weights, ids, gating, True, bias)
    ranked = (gates + bias.double()).sort(descending=True)
    assert (ids.long().sort().values == ranked.indices[:, :3].sort().values).all()
    assert_close(weights, _weights(gates, ids, True), FP32_SUM)
    op("aiter.biased_grouped_topk")(gating, bias, weights, ids, 4, 2, True, 2.5)
    groups = (gates + bias.double()).view(7, 4, 3)
    kept = groups.topk(2, -1).values.sum(-1).argsort(descending=True)[:, :2]
    for row in range(7):
        inside = torch.full((4, 3), -torch.inf, dtype=torch.float64, device=platform.device)
        inside[kept[row]] = groups[row, kept[row]]
        best = inside.flatten().argsort(descending=True)[:3]
        assert sorted(ids[row].tolist()) == sorted(best.tolist())
    assert_close(weights, _weights(gates, ids, True) * 2.5, FP32_SUM)


def _weights(scores, ids, renormalised):
    taken = scores.gather(1, ids.long())
    return taken / taken.sum(-1, keepdim=True) if renormalised else taken
