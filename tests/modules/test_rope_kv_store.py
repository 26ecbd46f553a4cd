"""Catches q and k rotated twice or never, and a K or V that neither rope nor attention stores."""

import pytest
import torch

from tests.modules.pools import SLOTS
from tests.platform.trees import slugs
from tests.references import rope_kv_store as reference
from tests.references.kv_cache import cached
from tests.tolerances import BF16_STEPS, assert_bitwise, assert_close, declared

LAYER = "tests.modules.rope_kv_store:layer"
NUMERICS = declared("rope-kv-store")
TOKENS, HEADS, KV_HEADS = 5, 6, 2
KERNEL = "_rotate_and_store_kernel"


@pytest.fixture
def given():
    return inputs(64)


def inputs(head_dim):
    return {
        "qkv": torch.randn(TOKENS, (HEADS + 2 * KV_HEADS) * head_dim).bfloat16() * 3,
        "positions": torch.randint(0, 256, (TOKENS,)),
        "slots": torch.randperm(SLOTS)[:TOKENS] + 1,
        "heads": HEADS,
        "head_dim": head_dim,
    }


def descaled(arms, backend="TritonAttnBackend", written=True, mode="DECODE", beside=None) -> bool:
    """Whether attention multiplies by the layer's scales.

    written: fp8-kv-write is on. beside: another backend of the server.
    """
    aiter = backend in ("AiterAttnBackend", "two", "unified", "overlap")
    written = written and "fp8-kv-write" in slugs(arms.release)
    if written and aiter and beside:
        return arms.release != "0.5.9" and beside == "triton"
    if arms.release == "0.5.9":
        return written and aiter
    alone = {"TritonAttnBackend": True, "unified": True, "WaveAttnBackend": False}
    return alone.get(backend, written or mode != "DECODE")


def check(platform, result, given, numerics=NUMERICS, neox=True, scaled=True):
    """q and k are turned once, and the cache holds that k and v, scaled, at its slots alone."""
    found, head_dim = result.outputs, given["head_dim"]
    sizes = [given["heads"] * head_dim, KV_HEADS * head_dim, KV_HEADS * head_dim]
    q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in given["qkv"].split(sizes, -1))
    for name, x in (("q", q), ("k", k)):
        turned = reference.rotate(x, given["positions"], found["table"], neox)
        assert_close(found[name].reshape(x.shape), turned, numerics, name=name)
    assert found["fused"]
    dtype = platform.fp8_dtype if given.get("cache") == "fp8" else torch.bfloat16
    slots = SLOTS - given["slots"] if given.get("kind") == "swa" else given["slots"]
    stored = slots[given["slots"] >= 0]
    k = found["k"].reshape(k.shape)
    for name, x in (("k", k), ("v", v)):
        rows = found[f"{name}_cache"].view(dtype).view(-1, KV_HEADS, head_dim)
        scale = given.get(f"{name}_scale") if scaled else None
        assert_bitwise(rows[stored], cached(x, dtype, scale)[given["slots"] >= 0], name)
        others = torch.ones(len(rows), dtype=torch.bool)
        others[stored] = False
        assert (found[f"{name}_cache"][others] == 0xA5).all(), f"{name}: another's slot"


@pytest.mark.parametrize("kind", ["mha", "swa"])
@pytest.mark.parametrize("cache", ["bf16", "fp8"])
@pytest.mark.parametrize("scales", [(None, None), (0.7, 0.03)], ids=str)
def test_slices_of_qkv_are_rotated_and_stored_in_one_launch(
    arms, platform, given, kind, cache, scales
):
    given |= {"kind": kind, "cache": cache, "window": kind == "swa"}
    given |= {"k_scale": scales[0], "v_scale": scales[1]}
    result = arms.patched.run(LAYER, **given)
    check(platform, result, given, scaled=descaled(arms))
    assert result.kernels == {KERNEL: 1}


@pytest.mark.parametrize(
    "backend",
    ["TritonAttnBackend", "AiterAttnBackend", "unified", "two", "overlap", "WaveAttnBackend"],
)
@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
@pytest.mark.parametrize("written", [True, False])
def test_what_is_stored_has_the_scales_that_attention_reads_it_with(
    arms, platform, given, backend, mode, written
):
    given |= {"cache": "fp8", "k_scale": 0.7, "v_scale": 0.03, "backend": backend, "mode": mode}
    arm = arms.patched_with(SGLANG_ROCM_PATCH_FP8_KV_WRITE=str(int(written)))
    scaled = descaled(arms, backend, written, mode)
    check(platform, arm.run(LAYER, **given), given, scaled=scaled)


@pytest.mark.parametrize("backend", ["two", "unified", "TritonAttnBackend"])
@pytest.mark.parametrize("beside", ["triton", "torch_native"])
@pytest.mark.parametrize("written", [True, False])
def test_aiter_follows_the_servers_other_backend(arms, platform, given, backend, beside, written):
    """Pristine aiter's cannot: its readers multiply by scales, or do not, whatever is beside it."""
    given |= {"cache": "fp8", "k_scale": 0.7, "v_scale": 0.03, "backend": backend}
    given |= {"prefill_attention_backend": beside, "decode_attention_backend": "aiter"}
    arm = arms.patched_with(SGLANG_ROCM_PATCH_FP8_KV_WRITE=str(int(written)))
    scaled = descaled(arms, backend, written, beside=beside)
    check(platform, arm.run(LAYER, **given), given, scaled=scaled)


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "neox"),
    [(80, 80, True), (96, 36, True), (128, 64, False), (64, 64, False)],
    ids=str,
)
def test_partial_and_odd_heads_are_rotated_in_the_same_launch(
    arms, platform, head_dim, rotary_dim, neox
):
    given = inputs(head_dim) | {"rotary_dim": rotary_dim, "neox": neox}
    result = arms.patched.run(LAYER, **given)
    check(platform, result, given, neox=neox)
    assert KERNEL in result.kernels


def test_a_window_on_a_plain_pool_keeps_the_pools_slots(arms, platform, given):
    given |= {"window": True}
    check(platform, arms.patched.run(LAYER, **given), given)


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
def test_torch_compiles_native_rope_rotates_once_and_stores(arms, platform, given, cache):
    given |= {"native": True, "cache": cache, "k_scale": 0.5, "v_scale": 0.25}
    result = arms.patched.run(LAYER, **given)
    # The native rotation rounds each operation to bf16.
    scaled = descaled(arms)
    check(platform, result, given, BF16_STEPS, scaled=scaled)
    assert KERNEL not in result.kernels
    assert any("runs natively" in reason for reason in result.outputs["declined"])


def test_a_layer_that_does_not_fit_is_rotated_once_and_stored(arms, platform, given):
    given |= {"heads": 5, "qkv": given["qkv"][:, 64:], "cache": "fp8"}
    given |= {"k_scale": 0.5, "v_scale": 0.25}
    # Without our own write to the pool, the pristine one divides what it is given in place.
    result = arms.patched_with(SGLANG_ROCM_PATCH_FP8_KV_WRITE="0").run(LAYER, **given)
    scaled = descaled(arms, written=False)
    check(platform, result, given, BF16_STEPS, scaled=scaled)
    assert KERNEL not in result.kernels
    assert any("5 q heads" in reason for reason in result.outputs["declined"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"kind": "mla"}, "MLATokenToKVPool is neither"),
        ({"kind": "subclass"}, "OtherLayout is neither"),
        ({"enable_prefill_context_parallel": True}, "context parallel"),
        ({"rl_on_policy_target": "fsdp"}, "native rotary embedding"),
        ({"batch": {"encoder_lens": torch.tensor([1])}}, "encoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_rope_cannot_store_is_left_to_attention_by_name(arms, given, setting, reason):
    if arms.release == "0.5.9" and "enable_prefill_context_parallel" in setting:
        pytest.skip("0.5.9 has context parallel for NSA models alone, whose pool is another")
    # A native rope stays in get_rope's memory, and with it in the process.
    alone = "rl_on_policy_target" in setting
    result = arms.patched.run(LAYER, alone=alone, **given | setting)
    assert not result.outputs["fused"]
    assert KERNEL not in result.kernels
    assert any(reason in each for each in result.outputs["declined"])


def test_padding_is_rotated_and_not_stored(arms, platform, given):
    given["slots"][[1, 4]] = -1
    check(platform, arms.patched.run(LAYER, **given), given)
