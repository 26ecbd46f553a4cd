"""Catches NSA's q and K rotated twice, never or elsewhere, rows that readers misread, and NaN."""

import pytest
import torch

from tests.modules.absorbed_mla import HISPARSE, LATENT, ROPE, inputs
from tests.modules.pools import SLOTS, cache_dtype
from tests.references import nsa_fp8_kv as reference
from tests.references.nsa_fp8_kv_sparse_mla import sparse_mla
from tests.tolerances import (
    BF16_STEPS,
    BF16_STEPS_TWICE,
    ROTATED,
    assert_bitwise,
    assert_close,
    declared,
)

FORWARD = "tests.modules.absorbed_mla:forward"
TOKENS, HEADS = 3, 8
EXTENDS = ["EXTEND", "MIXED", "SPLIT_PREFILL", "DLLM_EXTEND"]
DECODES = ["DECODE", "TARGET_VERIFY", "DRAFT_EXTEND", "DRAFT_EXTEND_V2"]
# As the reference of TileLang's operator says it, or TileLang itself.
UPSTREAM_TAKES_BF16 = r"kv is .*float8.*, expected torch\.bfloat16|KV dtype (mismatch, )?expected b"
caches = pytest.mark.parametrize("cache", ["bf16", "fp8"])


@pytest.fixture
def layer():
    return inputs(TOKENS, HEADS)


def kernel_ran(result) -> bool:
    return "_rope_and_write_kernel" in result.kernels


def check(platform, result, layer, cache="fp8", neox=False, slots=None, behind=None):
    """Rows and q hold fp64's rotation, once, by each token's own position."""
    found, dtype = result.outputs, cache_dtype(platform, cache)

    def whole(latent_part, rotary_part, dtype=dtype):
        angles = layer["positions"], found["cos"], found["sin"], neox
        turned = reference.rotated(rotary_part, *angles)
        return reference.saturated(torch.cat((latent_part.double(), turned), -1), dtype)

    latent = layer["latent"][:, None]
    rows = whole(latent[..., :LATENT], latent[..., LATENT:])
    if behind is not None:
        rows = torch.cat((rows, behind[:, None].double()))
    slots = layer["slots"] if slots is None else slots
    written = found["rows"].view(dtype)
    assert_close(written[slots], rows, declared("nsa-fp8-kv"), name="rows")
    others = torch.ones(len(written), dtype=torch.bool)
    others[slots] = False
    assert (found["rows"][others] == 0xA5).all(), "a row without a token was written"
    if found["q"] is not None:
        # TileLang's q has the cache's type; aiter is given it in bf16.
        seen = found["q"].view(dtype if found["q"].shape[-1] == LATENT + ROPE else torch.bfloat16)
        assert_close(
            seen,
            whole(found["q_nope"], layer["q"][..., -ROPE:], seen.dtype),
            declared("nsa-fp8-kv"),
            name="q",
        )


@pytest.mark.parametrize("mode", EXTENDS + DECODES)
@pytest.mark.parametrize(("prefill", "decode"), [("tilelang", "aiter"), ("aiter", "tilelang")])
def test_each_mode_is_rotated_once_and_fused_where_its_backend_is_tilelang(
    arms, platform, layer, mode, prefill, decode
):
    result = arms.patched.run(FORWARD, mode=mode, prefill=prefill, decode=decode, **layer)
    check(platform, result, layer)
    assert kernel_ran(result) == ((decode if mode in DECODES else prefill) == "tilelang")


@caches
@pytest.mark.parametrize("neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
def test_fusing_changes_no_bit(arms, platform, layer, cache, neox, mode):
    given = layer | {"cache": cache, "neox": neox, "mode": mode}
    fused = arms.patched.run(FORWARD, **given)
    check(platform, fused, layer, cache, neox)
    parted = arms.patched.run(FORWARD, fused=False, **given)
    for name in ("rows", "output"):
        assert_bitwise(fused.outputs[name], parted.outputs[name], name)
    # One launch instead of: rope, write, concatenation of q.
    assert parted.outputs["launches"] - fused.outputs["launches"] == 2
    if platform.arch == "gfx942" and (arms.release, cache) != ("0.5.9", "fp8"):
        pristine = arms.pristine.run(FORWARD, **given)  # rotates in fp32, too
        assert_bitwise(fused.outputs["rows"], pristine.outputs["rows"], "rows")
        # Of k_nope, k_pe and q; from 0.5.11 on upstream's write casts by itself.
        casts = 3 if arms.release in ("0.5.9", "0.5.10.post1") else 1
        casts *= cache == "fp8"
        parts = 0 if arms.release == "0.5.9" else 1  # upstream combines parts, as we do
        assert pristine.outputs["launches"] - fused.outputs["launches"] == 1 + casts + parts


@caches
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
def test_attention_is_fp64s_over_the_cache_as_it_is_stored(arms, platform, cache, mode):
    layer = inputs(TOKENS, HEADS)
    result = arms.patched.run(FORWARD, cache=cache, mode=mode, **layer)
    found, written = result.outputs, layer["slots"]
    q = found["q"].view(torch.bfloat16)
    rows = found["rows"].view(cache_dtype(platform, cache))[written]
    everything = torch.arange(TOKENS).expand(TOKENS, 1, TOKENS)
    latent = sparse_mla(q, rows, everything, 0.1, LATENT)
    truth = torch.einsum("thl,hlv->thv", latent, layer["w_vc"].double()).flatten(1)
    assert_close(found["output"].flatten(1), truth, BF16_STEPS_TWICE, reduction=LATENT)
    assert result.operators["tilelang.sparse_mla_partial"] == 1


@pytest.mark.parametrize("backend", ["tilelang", "aiter"])
def test_rope_without_scaling_is_rotated_once_whoever_does_it(arms, platform, layer, backend):
    """0.5.9 gives such models, GLM-5 among them, the native forward of aiter's rope."""
    given = layer | {"native": True, "prefill": backend, "decode": backend}
    if backend == "tilelang":
        check(platform, arms.patched.run(FORWARD, **given), layer)
        return
    found = arms.patched.run(FORWARD, **given).outputs
    angles = layer["positions"], found["cos"], found["sin"], False
    truth = reference.rotated(layer["latent"][:, None, LATENT:], *angles)
    rows = found["rows"].view(platform.fp8_dtype)[layer["slots"]][..., LATENT:]
    # To no ulp: each operation is rounded to bf16.
    assert_close(rows, truth, ROTATED[platform.fp8_dtype])


@caches
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
@pytest.mark.parametrize("backend", ["tilelang", "aiter"])
def test_switched_off_is_upstreams(arms, off, layer, cache, mode, backend):
    given = layer | {"cache": cache, "mode": mode, "prefill": backend, "decode": backend}
    if (arms.release, backend, cache) == ("0.5.9", "tilelang", "fp8"):
        for arm in (arms.pristine, off):
            with pytest.raises(Exception, match=UPSTREAM_TAKES_BF16):
                arm.run(FORWARD, **given)
        return
    expected, found = arms.pristine.run(FORWARD, **given), off.run(FORWARD, **given)
    for name in ("rows", "q", "output"):
        assert_bitwise(found.outputs[name], expected.outputs[name], name)
    assert found.outputs["launches"] == expected.outputs["launches"]


@caches
@pytest.mark.parametrize("backend", ["nsa", "triton"])
def test_context_parallel_rows_keep_the_positions_of_their_own_rank(
    arms, platform, layer, cache, backend
):
    """https://github.com/sgl-project/sglang/pull/32098"""
    behind = torch.randn(4, LATENT + ROPE).to(cache_dtype(platform, cache)).bfloat16()
    slots = torch.randperm(SLOTS)[: TOKENS + 4] + 1
    given = layer | {"cache": cache, "mode": "EXTEND", "slots": slots, "gathered": behind}
    given |= {"attention_backend": backend}
    result = arms.patched.run(FORWARD, **given)
    check(platform, result, layer, cache, slots=slots, behind=behind)
    assert not kernel_ran(result)


@caches
@pytest.mark.parametrize("backend", ["aiter", "triton"])
@pytest.mark.parametrize("mode", ["DECODE", "TARGET_VERIFY"])
def test_a_dense_attention_backend_is_rotated_once(arms, platform, cache, backend, mode):
    """https://github.com/sgl-project/sglang/pull/24148"""
    layer = inputs(TOKENS, HEADS)
    given = layer | {"cache": cache, "mode": mode, "attention_backend": backend}
    found = arms.patched.run(FORWARD, **given).outputs
    # gfx950 goes on with aiter's operator, which rounds the rotation three times in bf16 and gives
    # aiter's attention the q of the cache's type that its schedule is made for.
    dtype = cache_dtype(platform, cache)
    q_size = dtype.itemsize if platform.arch == "gfx950" else 2
    assert found["q"].shape[-1] == (LATENT + ROPE) * q_size
    angles = layer["positions"], found["cos"], found["sin"], False
    truth = reference.rotated(layer["latent"][:, None, LATENT:], *angles)
    rows = found["rows"].view(dtype)[layer["slots"]][..., LATENT:]
    assert_close(rows, truth, ROTATED[dtype] if cache == "fp8" else BF16_STEPS)


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
@pytest.mark.parametrize("fused", [None, False], ids=["fused", "parted"])
def test_overflow_of_q_and_k_is_the_largest_value(arms, platform, mode, fused):
    layer = inputs(TOKENS, HEADS, scale=500.0)
    result = arms.patched.run(FORWARD, mode=mode, fused=fused, **layer)
    check(platform, result, layer)
    assert result.outputs["output"].isfinite().all()


def test_k_scale_is_left_out_as_its_readers_do(arms, platform, layer):
    for fused in (None, False):
        result = arms.patched.run(FORWARD, k_scale=0.5, fused=fused, **layer)
        check(platform, result, layer)


def test_llama_4_scaling_is_rotated_once_without_the_fusion(arms, platform, layer):
    scaling = torch.full((TOKENS, 1, 1), 2.0)
    result = arms.patched.run(FORWARD, scaling=scaling, **layer)
    check(platform, result, layer)
    assert not kernel_ran(result)


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
def test_a_pool_that_translates_slots_writes_by_itself(arms, platform, layer, mode):
    if arms.release == "0.5.9":
        pytest.skip("0.5.9 has no such pool")
    result = arms.patched.run(FORWARD, mode=mode, hisparse=True, **layer)
    check(platform, result, layer, slots=(layer["slots"] + HISPARSE) % (SLOTS + 1))
    assert not kernel_ran(result)


def test_an_idle_rank_writes_nothing(arms, layer):
    result = arms.patched.run(FORWARD, mode="IDLE", **layer)
    assert (result.outputs["rows"] == 0xA5).all()
    assert result.outputs["output"].dtype == torch.bfloat16


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "parted"])
def test_tokens_without_a_slot_are_left_out(arms, platform, layer, fused):
    layer["slots"][1] = -1
    result = arms.patched.run(FORWARD, fused=fused, **layer)
    kept = layer["slots"] >= 0
    partial = {name: x[kept] if len(x) == TOKENS else x for name, x in layer.items()}
    outputs = result.outputs | {"q": None}
    check(platform, type(result)(outputs, {}, {}, {}), partial)


@caches
@pytest.mark.parametrize("heads", [8, 24, 128])
def test_any_number_of_heads_is_ours(arms, platform, cache, heads):
    """https://github.com/sgl-project/sglang/pull/23963: 115200 bytes on gfx942."""
    result = arms.patched.run(FORWARD, cache=cache, **inputs(1, heads))
    assert result.operators["tilelang.sparse_mla_partial"] == 1
    assert result.outputs["inner_iter"] == []


@caches
@pytest.mark.parametrize("heads", [8, 16, 32, 64, 128])
def test_upstreams_kernels_get_a_launch_that_fits_the_lds(arms, platform, cache, heads):
    if arms.release == "0.5.9":
        pytest.skip("its kernels have one launch, which fits or does not")
    layer = inputs(1, heads)
    outputs = arms.patched.run(FORWARD, cache=cache, trusted=False, **layer).outputs
    (inner_iter,) = outputs["inner_iter"]
    allocated = reference.LDS[platform.arch]
    if (cache, heads, inner_iter) not in allocated:  # e4m3 tiles have 16 heads, however many
        heads = 16
    assert allocated[cache, heads, inner_iter] <= platform.lds_bytes


def test_heads_that_upstreams_kernels_cannot_take_name_the_flag(arms, platform):
    heads = 24
    if arms.release == "0.5.9":
        heads = 128
        if platform.arch == "gfx950":
            pytest.skip("160 KiB hold every launch of 0.5.9's kernels")
    given = inputs(1, heads) | {"trusted": False}
    given |= {"cache": "bf16"} if arms.release == "0.5.9" else {}
    with pytest.raises(Exception, match=rf"{heads} query heads a rank.*--tp-size"):
        arms.patched.run(FORWARD, **given)


@caches
def test_a_tilelang_that_was_not_checked_leaves_attention_to_upstream_by_name(
    arms, platform, layer, cache
):
    given = layer | {"cache": cache, "trusted": False}
    if (arms.release, cache) == ("0.5.9", "fp8"):
        with pytest.raises(Exception, match="TileLang was not checked; use --kv-cache-dtype"):
            arms.patched.run(FORWARD, **given)
        return
    result = arms.patched.run(FORWARD, **given)
    check(platform, result, layer, cache)
    assert "tilelang.sparse_mla_partial" not in result.operators
    assert any("not checked" in reason for reason in result.outputs["declined"])


# At start ---------------------------------------------------------------------------------------


def width(arm, cache, **server):
    return arm.run("tests.modules.absorbed_mla:row_width", cache=cache, **server).outputs


@caches
def test_tilelang_reads_rows_of_576(arms, platform, cache):
    assert width(arms.patched, cache)["width"] == 576
    assert width(arms.patched, cache, decode="aiter")["width"] == 576
    if arms.release == "0.5.9":
        with_scales = cache == "fp8" and platform.arch == "gfx950"
        assert width(arms.pristine, cache)["width"] == (656 if with_scales else 576)


def test_other_backends_keep_the_rows_that_they_read(arms):
    server = {"prefill": "flashmla_sparse", "decode": "flashmla_kv"}
    pristine, patched = (width(arm, "fp8", **server) for arm in (arms.pristine, arms.patched))
    assert patched["width"] == pristine["width"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [({"trusted": False}, "not checked"), ({"topk": 2040}, "top-k of 2040")],
    ids=["TileLang", "top-k"],
)
def test_a_server_whose_cache_nothing_could_read_does_not_start(arms, setting, reason):
    if arms.release != "0.5.9":
        pytest.skip("upstream has FP8 kernels there")
    with pytest.raises(Exception, match=f"{reason}.*use --kv-cache-dtype bfloat16"):
        width(arms.patched, "fp8", **setting)
    assert width(arms.patched, "bf16", **setting)["width"] == 576


def test_glm_5s_configuration_is_known_with_its_rope(arms):
    if arms.release != "0.5.9":
        pytest.skip("transformers 5 knows it")
    given = {"scenario": "tests.modules.absorbed_mla:glm_configuration", "alone": True}
    for kind, scaling in (("default", None), ("yarn", {"rope_type": "yarn", "rope_theta": 8e6})):
        found = arms.patched.run(**given, kind=kind).outputs
        assert found["architecture"] == "GlmMoeDsaForCausalLM"
        assert (found["theta"], found["scaling"]) == (8e6, scaling)
        assert found["parameters"]["rope_theta"] == 8e6
    with pytest.raises(Exception, match="does not recognize this architecture"):
        arms.off.run(**given, kind="default")


def test_a_pool_saturates_what_it_casts(arms, platform):
    k_nope, k_rope = torch.randn(5, 1, 512).bfloat16() * 900, torch.randn(5, 1, 64).bfloat16() * 900
    slots = torch.randperm(SLOTS)[:5] + 1
    given = {"k_nope": k_nope, "k_rope": k_rope, "slots": slots, "cache": "fp8", "nsa": True}
    result = arms.patched.run("tests.modules.pools:store_latent", **given)
    row = torch.cat((k_nope, k_rope), -1).float().clamp(-platform.fp8_max, platform.fp8_max)
    rows = result.outputs["rows"].view(platform.fp8_dtype)
    assert_bitwise(rows[slots], row.to(platform.fp8_dtype), "rows")
    assert result.kernels == {"_write_rows_kernel": 1}
