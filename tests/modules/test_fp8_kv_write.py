"""Catches FP8 caches written with one scale and read with another, in any phase of any backend."""

import pytest
import torch

from tests.modules.backend import DECODES, VERIFIES
from tests.platform.trees import RELEASES
from tests.references.kv_cache import cached
from tests.tolerances import (
    ATTENTION,
    ATTENTION_OF_STORED,
    assert_bitwise,
    assert_near,
    declared_attention,
)

READ_BACK = "tests.modules.fp8_kv_write:read_back"
REQUESTS, CHUNKS, DRAFTS = 2, [5, 4], 3
LENGTH = sum(CHUNKS) + 1 + DRAFTS
WIDEN = "_widen_kernel"
# Whether upstream's prefill, or its ragged decode, converts its whole pool to bf16.
PREFILL_CONVERTS = {release: release == "0.5.9" for release in RELEASES}
DECODE_CONVERTS = {release: release in ("0.5.9", "0.5.10.post1") for release in RELEASES}
PHASES = ["prefill", "prefill of a prefix", "decode", "verify"]
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
KERNEL = "_write_kv_kernel"


@pytest.fixture
def batch():
    q = torch.randn(REQUESTS, LENGTH, HEADS, HEAD_DIM).bfloat16()
    k, v = torch.randn(2, REQUESTS, LENGTH, KV_HEADS, HEAD_DIM).bfloat16()
    return {"q": q, "k": k, "v": v, "chunks": CHUNKS}


@pytest.fixture(params=["ragged", "unified", "swa"])
def read(request, arms, batch):
    """What the patched backend makes of such a pool, with such a decode."""
    if request.param not in DECODES[arms.release]:
        pytest.skip(f"{arms.release} has {', '.join(DECODES[arms.release])}")
    unified = {"SGLANG_USE_AITER_UNIFIED_ATTN": "1"} if request.param == "unified" else {}
    swa = request.param == "swa"
    # Upstream verifies the drafts of a sliding-window layer with the full pool's slots.
    drafts = DRAFTS if VERIFIES[arms.release] and not swa else 0
    given = {"kind": "swa" if swa else "mha", "drafts": drafts, "cache": "fp8"}
    return lambda **more: arms.patched_with(**unified).run(READ_BACK, **batch | given | more)


@pytest.fixture
def as_fp8(arms, batch):
    """What an arm makes of an FP8 pool with a ragged decode."""
    given = batch | {"kind": "mha", "drafts": 0, "cache": "fp8"}
    return lambda arm="patched", **more: getattr(arms, arm).run(READ_BACK, **given | more)


def attention(batch, softcap=0.0):
    """fp64 causal attention."""
    q, k, v = (batch[name].double() for name in ("q", "k", "v"))
    k, v = (each.repeat_interleave(HEADS // KV_HEADS, 2) for each in (k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def assert_attends(found, batch, v_factor=1.0, **options):
    """Each phase by itself: a decode that is wrong alone must not hide among the prefills."""
    truth, start = attention(batch, **options) * v_factor, 0
    for phase, count in zip(PHASES, [*CHUNKS, 1, DRAFTS], strict=True):
        part, right = (each[:, start : start + count] for each in (found.double(), truth))
        start += count
        if part.numel():
            assert_near(part, right, ATTENTION["fp8"], phase)


@pytest.mark.parametrize("scales", [(None, None), (0.031, 0.43), (0.43, 0.031)], ids=str)
def test_every_phase_reads_the_values_that_were_given(read, batch, scales):
    result = read(k_scale=scales[0], v_scale=scales[1])
    assert_attends(result.outputs["out"], batch)


@pytest.mark.parametrize("scales", [(None, None), (0.031, 0.43)], ids=str)
def test_every_phase_stores_the_same_quotients_in_one_launch(read, batch, platform, scales):
    result = read(k_scale=scales[0], v_scale=scales[1])
    assert result.kernels[KERNEL] == result.outputs["stores"]
    rows = result.outputs["rows"]
    for name, scale in zip("kv", scales, strict=True):
        cache = result.outputs[f"{name}_cache"].view(platform.fp8_dtype)
        given = batch[name][:, : rows.shape[1]]
        found = cache.view(-1, KV_HEADS, HEAD_DIM)[rows]
        assert_bitwise(found, cached(given, platform.fp8_dtype, scale), name)


def test_decode_reads_the_cache_as_it_is_and_prefill_converts_the_slots_in_use(arms, as_fp8):
    result, pristine = as_fp8(), as_fp8("pristine")
    converts = PREFILL_CONVERTS[arms.release]
    assert result.kernels.get(WIDEN, 0) == converts * len(CHUNKS)
    row = KV_HEADS * HEAD_DIM * 2  # bytes of a slot in FP8, K and V
    unused = 1000
    grown = {}
    for arm in ("patched", "pristine"):
        few, many = (as_fp8(arm, unused=n).outputs["bytes"] for n in (0, unused))
        grown[arm] = [after - before for before, after in zip(few, many, strict=True)]
    assert grown["patched"] == [0] * (len(CHUNKS) + 1)
    converted = unused * (row + 2 * row)
    assert [each >= converted for each in grown["pristine"]] == [
        *[converts] * len(CHUNKS),
        DECODE_CONVERTS[arms.release],
    ]
    prefilled = sum(CHUNKS)
    assert_bitwise(result.outputs["out"][:, :prefilled], pristine.outputs["out"][:, :prefilled])


def test_every_reader_takes_scales_that_are_floats(read, batch):
    result = read(k_scale=0.031, v_scale=0.43, float_scales=True)
    assert_attends(result.outputs["out"], batch)


def test_floats_of_a_json_file_become_what_a_checkpoint_holds(arms):
    given = {"k_scale": 0.25, "v_scale": 0.5}
    found = arms.patched.run("tests.modules.fp8_kv_write:settled", **given).outputs["tensors"]
    floats, tensors, none = found
    assert [each.item() for each in floats[:2]] == [0.25, 0.5]
    assert all(each.dtype is torch.float32 for each in floats[:2])
    assert floats[2:] == [0.25, 0.5]
    assert [each.item() for each in tensors[:2]] == [0.25, 0.5]
    assert tensors[2:] == [None, None]
    assert none == [None] * 4


SERVERS = {
    "triton beside": {"prefill_attention_backend": "triton", "decode_attention_backend": "aiter"},
    "torch_native beside": {
        "prefill_attention_backend": "torch_native",
        "attention_backend": "aiter",
    },
    "a triton draft": {
        "attention_backend": "aiter",
        "speculative_draft_attention_backend": "triton",
    },
    "prefill elsewhere": {"attention_backend": "aiter", "disaggregation_mode": "decode"},
    "pages kept elsewhere": {"attention_backend": "aiter", "hicache_storage_backend": "file"},
    "pages shared by LMCache": {"attention_backend": "aiter", "enable_lmcache": True},
    "aiter alone": {"prefill_attention_backend": "aiter", "decode_attention_backend": "aiter"},
}


@pytest.mark.parametrize("beside", SERVERS)
def test_every_phase_stores_and_reads_as_the_servers_other_backend_does(
    read, arms, batch, platform, beside
):
    result = read(k_scale=0.031, v_scale=0.43, **SERVERS[beside])
    assert_attends(result.outputs["out"], batch)
    follows = (
        beside != "torch_native beside" if arms.release != "0.5.9" else beside == "aiter alone"
    )
    rows = result.outputs["rows"]
    for name, scale in (("k", 0.031), ("v", 0.43)):
        cache = result.outputs[f"{name}_cache"].view(platform.fp8_dtype)
        found = cache.view(-1, KV_HEADS, HEAD_DIM)[rows]
        given = batch[name][:, : rows.shape[1]]
        assert_bitwise(found, cached(given, platform.fp8_dtype, scale if follows else None), name)


def test_logits_are_capped_over_an_fp8_cache_too(as_fp8, batch):
    given = {"k_scale": 0.031, "v_scale": 0.43, "softcap": 0.5}
    assert_attends(as_fp8(**given).outputs["out"], batch, softcap=0.5)


def test_exact_decode_converts_the_slots_in_use_and_no_others(arms, as_fp8, batch):
    given = batch | {"kind": "mha", "drafts": 0, "cache": "fp8"}
    exact = arms.patched_with(SGLANG_ROCM_PATCH_FP8_KV_WRITE_DECODE="exact").run(READ_BACK, **given)
    if DECODE_CONVERTS[arms.release]:  # else upstream multiplies in FP8
        pristine = as_fp8("pristine").outputs["out"]
        assert_bitwise(exact.outputs["out"], pristine, "out")
    assert_attends(exact.outputs["out"], batch)
    assert exact.kernels[WIDEN] == PREFILL_CONVERTS[arms.release] * len(CHUNKS) + 1


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_decode_of_a_long_context_is_as_exact_as_the_patch_declares(arms, platform, decode, spread):
    """Over the cache as it is stored; the nearer q is to 0, the flatter are the weights."""
    heads, width, length = 8, 128, 501
    q = (torch.randn(1, length, heads, width) * spread).bfloat16()
    k, v = torch.randn(2, 1, length, 1, width).bfloat16()
    given = {"q": q, "k": k, "v": v, "chunks": [length - 1], "kind": "mha", "drafts": 0}
    arm = arms.patched_with(SGLANG_ROCM_PATCH_FP8_KV_WRITE_DECODE=decode)
    out = arm.run(READ_BACK, cache="fp8", **given).outputs["out"][0, -1].double()
    k, v = (x.to(platform.fp8_dtype).double()[0, :, 0] for x in (k, v))
    weights = (q[0, -1].double() @ k.T * width**-0.5).softmax(-1)
    bound = declared_attention("fp8-kv-write") if decode == "fast" else ATTENTION_OF_STORED
    assert_near(out, (weights @ v).flatten(), bound)
    if decode == "fast":
        with pytest.raises(AssertionError):
            assert_near(out, (weights @ v).flatten(), ATTENTION_OF_STORED)


def test_an_odd_word_for_decodes_precision_counts_as_exact(arms, batch):
    arm = arms.patched_with(SGLANG_ROCM_PATCH_FP8_KV_WRITE_DECODE="exactly")
    given = batch | {"kind": "mha", "drafts": 0, "cache": "fp8"}
    assert WIDEN in arm.run(READ_BACK, **given).kernels


def test_heads_that_paged_attention_cuts_short_are_declined_by_name(arms):
    """The operator's own reference refuses them, so only what is said before can be looked at."""
    q, k, v = (torch.randn(REQUESTS, LENGTH, n, 96).bfloat16() for n in (HEADS, KV_HEADS, KV_HEADS))
    given = {"q": q, "k": k, "v": v, "chunks": CHUNKS, "kind": "mha", "drafts": 0, "cache": "fp8"}
    with pytest.raises(Exception, match="paged_attention_ragged: heads of 96"):
        arms.patched.run(READ_BACK, **given)
    declined = arms.patched.run("tests.modules.fp8_kv_write:said").outputs["declined"]
    assert any("heads of 96" in reason for reason in declined)


def test_q_beyond_the_format_is_saturated_before_aiter_casts_it(as_fp8, batch):
    batch["q"][:, :, 0] *= 1000  # of every phase
    assert as_fp8(q=batch["q"]).outputs["out"].isfinite().all()


def test_heads_that_aiter_cannot_read_as_fp8_are_converted_in_decode(arms, as_fp8):
    wide = {"q": torch.randn(REQUESTS, LENGTH, HEADS, 192).bfloat16()}
    wide |= zip("kv", torch.randn(2, REQUESTS, LENGTH, KV_HEADS, 192).bfloat16(), strict=True)
    result = as_fp8(**wide, k_scale=0.031, v_scale=0.43)
    assert_attends(result.outputs["out"], wide)
    assert result.kernels[WIDEN] == PREFILL_CONVERTS[arms.release] * len(CHUNKS) + 1


def test_aiters_other_kernel_for_decode_is_given_bf16(arms, batch):
    other = arms.patched_with(QKV_VERSION="EXPERIMENTAL")
    given = batch | {"kind": "mha", "drafts": 0, "cache": "fp8", "k_scale": 0.031, "v_scale": 0.43}
    result = other.run(READ_BACK, **given)
    assert_attends(result.outputs["out"], batch)
    assert result.kernels[WIDEN] == PREFILL_CONVERTS[arms.release] * len(CHUNKS) + 1


def test_v_without_a_scale_is_not_descaled_by_the_default_of_k(arms, batch):
    if "unified" not in DECODES[arms.release]:
        pytest.skip("no reader has a default")
    arm = arms.patched_with(SGLANG_USE_AITER_UNIFIED_ATTN="1")
    given = batch | {"kind": "mha", "cache": "fp8", "drafts": 0, "default_v_scale": 4.0}
    assert_attends(arm.run(READ_BACK, **given).outputs["out"], batch, v_factor=4.0)


@pytest.mark.parametrize("value", [1e4, -1e4, 500.0, -500.0])
def test_what_overflows_is_the_largest(arms, platform, value):
    k = torch.full((3, 2, 64), value).bfloat16()
    slots = torch.tensor([5, 9, 11])
    given = {"kind": "mha", "cache": "fp8", "k": k, "v": -k, "slots": slots}
    result = arms.patched.run("tests.modules.pools:store", **given)
    for name, sign in (("k", 1), ("v", -1)):
        rows = result.outputs[f"{name}_cache"].view(platform.fp8_dtype)[slots].float()
        largest = platform.fp8_max if value > 0 else -platform.fp8_max
        assert (rows == largest * sign).all()


@pytest.mark.parametrize("scales", [(None, None), (0.7, 0.3)], ids=str)
def test_a_store_is_one_launch(arms, scales):
    k, v = torch.randn(2, 3, 2, 64).bfloat16()
    given = {"kind": "mha", "cache": "fp8", "k": k, "v": v, "slots": torch.tensor([5, 9, 11])}
    given |= {"k_scale": scales[0], "v_scale": scales[1]}
    result = arms.patched.run("tests.modules.pools:store", **given)
    assert result.kernels == {KERNEL: 1}
    assert result.launches == 1


def test_the_other_architectures_format_is_declined_by_name(arms, platform):
    k = torch.randn(3, 2, 64).bfloat16()
    slots = torch.tensor([5, 9, 11])
    given = {"k": k, "v": k, "slots": slots}
    result = arms.patched.run("tests.modules.fp8_kv_write:foreign_format", **given)
    assert any("this GPU's format is" in reason for reason in result.outputs["declined"])
    assert KERNEL not in result.kernels
