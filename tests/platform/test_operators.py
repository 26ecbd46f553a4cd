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
from tests.tolerances import assert_bitwise, assert_close


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
    assert_close(y, truth, "ulp<=1", reduction=width)
    away_from_zero = (y.double().abs() > truth.abs()).double().mean()
    assert (away_from_zero < 0.02) == platform.ck_truncates_bf16
    residual, out, left = randn(33, width), torch.empty_like(x), torch.empty_like(x)
    op("aiter.rmsnorm2d_fwd_with_add")(out, x, residual, left, weight, 1e-6)
    summed = x.double() + residual.double()
    root = summed.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    assert_close(out, summed / root * weight.double(), "ulp<=1", reduction=width)
    assert_close(left, summed, "ulp<=1")


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
    assert_close(out[0, :9], logits[0].double(), "ulp<=1", reduction=64)
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


def test_decode_of_an_fp8_cache_rounds_q_and_the_weights_of_256_keys(op, platform, randn):
    fp8, width = platform.fp8_dtype, 64
    caches = [randn(400, 2, width).to(fp8) for _ in "kv"]
    slots = torch.randperm(400, device=platform.device)[:300].int()
    q = randn(1, 4, width)
    found = ragged(op, q, caches, slots)
    for h in range(4):
        k, v = (each.double()[slots.long(), h // 2] for each in caches)
        logits = [float(q[0, h].to(fp8).double() @ row) * 0.5 / 8 for row in k]
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
        (lambda: ragged(op, q, caches, slots, softcap=30.0), "logits_soft_cap"),
        (lambda: ragged(op, q, caches, slots, "fp8_e5m2"), "fp8_e5m2 cache"),
    ]:
        with pytest.raises(NotEmulatedError, match=f"paged_attention_ragged: .*{reason}"):
            call()


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
    assert_close(q[0], truth, "ulp<=0", reduction=2)


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
    assert_close(cache[[4, 0], :, 512:], truth[[0, 2]], "rel<=1e-2 vs fp64")
    assert_bitwise(cache[[4, 0], :, :512], k_nope[[0, 2]])
    assert cache[1:4].isnan().all()
    assert k_rotated[1].isnan().all()


def test_sparse_mla_over_partial_groups_is_softmax_over_the_chosen(platform, randn):
    from tests.platform.operators import tilelang

    for dtype, factory, bound in [
        (torch.bfloat16, tilelang.sparse_mla_fwd_decode_partial, 2e-2),
        (platform.fp8_dtype, tilelang.sparse_mla_fwd_decode_partial_fp8, 0.1),
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
            error = (out[0, token].double() - truth).norm() / truth.norm()
            assert error < bound


def test_a_product_of_parts_is_added_to_what_it_is_given(op, randn):
    x, w, y = randn(5, 40), randn(3, 40), randn(5, 3, dtype=torch.float32)
    truth = y.double() + x.double() @ w.double().T
    multiply = op("aiter.ops.triton.gemm_a16w16_atomic.gemm_a16w16_atomic")
    assert multiply(x, w, y=y) is y
    assert_close(y, truth, "rel<=1e-6 vs fp64", reduction=40)
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
        assert_close(out, truth, "rel<=1e-2 vs fp64", reduction=256)


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
