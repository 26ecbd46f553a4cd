"""Catches index keys that differ from upstream's by a bit, and gates that are not upstream's."""

import pytest
import torch

from tests.modules.pools import SLOTS
from tests.tolerances import assert_bitwise, assert_close, declared

TOKENS = 9
STORE = "aiter.ops.cache.indexer_k_quant_and_cache"
KERNEL = "_store_index_k_kernel"


def keys(tokens=TOKENS):
    key = torch.randn(tokens, 128) * torch.exp2(torch.randint(-20, 20, (tokens, 1)))
    key[:1] = torch.randn(128)
    key[:1, 5] = 232.0  # scaled to 224 and to 240 it has other bytes
    return key.bfloat16()


def slots(tokens=TOKENS):
    return torch.randperm(SLOTS)[:tokens] + 1


@pytest.fixture
def without_aiters_store(arms):
    return arms.patched_without(STORE)


@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_the_cache_has_upstreams_bytes(arms, tokens, gap):
    given = {"key": keys(tokens), "slots": slots(tokens), "gap": gap}
    expected = arms.pristine.run("tests.modules.indexer:store", **given).outputs["rows"]
    stored = arms.patched.run("tests.modules.indexer:store", **given)
    assert_bitwise(stored.outputs["rows"], expected)
    # Upstream makes the slots of the batch contiguous, for the layers after this one too.
    assert stored.launches == 1 + stored.tensor_operations.get("aten::clone", 0)


def test_aiter_stores_where_it_has_upstreams_constant_and_nowhere_else(arms, platform):
    given = {"key": keys(), "slots": slots()}
    result = arms.patched.run("tests.modules.indexer:store", **given)
    if platform.arch == "gfx950":
        assert (result.operators, result.kernels) == ({STORE: 1}, {})
    else:
        assert (result.operators, result.kernels) == ({}, {KERNEL: 1})


def test_an_aiter_without_the_operator_gives_the_same_bytes(arms, without_aiters_store):
    given = {"key": keys(), "slots": slots()}
    result = without_aiters_store.run("tests.modules.indexer:store", **given)
    assert (result.operators, result.kernels) == ({}, {KERNEL: 1})
    expected = arms.pristine.run("tests.modules.indexer:store", **given).outputs["rows"]
    assert_bitwise(result.outputs["rows"], expected)


def test_no_tokens_store_nothing(arms):
    result = arms.patched.run("tests.modules.indexer:store", key=keys(0), slots=slots(0))
    assert result.launches == 0
    assert (result.outputs["rows"] == 0xA5).all()


def test_skipped_slots_are_left_alone(arms):
    key, some = keys(), slots()
    kept = torch.arange(TOKENS) % 3 != 0
    skipping = torch.where(kept, some, -1)
    stored = arms.patched.run("tests.modules.indexer:store", key=key, slots=skipping)
    expected = arms.pristine.run("tests.modules.indexer:store", key=key[kept], slots=some[kept])
    assert_bitwise(stored.outputs["rows"], expected.outputs["rows"])


def test_another_scale_format_takes_upstreams_path(arms):
    given = {"key": keys(), "slots": slots(), "scale_fmt": None}
    expected = arms.pristine.run("tests.modules.indexer:store", **given)
    stored = arms.patched.run("tests.modules.indexer:store", **given)
    assert_bitwise(stored.outputs["rows"], expected.outputs["rows"])
    assert stored.kernels == expected.kernels


def test_the_k_only_prefill_stores_in_the_same_way(arms, platform):
    given = {"x": torch.randn(TOKENS, 256).bfloat16(), "slots": slots()}
    given["positions"] = torch.arange(TOKENS)
    # k_norm belongs to another slug.
    patched = arms.patched_with(SGLANG_ROCM_PATCH_LAYERNORM="0")
    result = patched.run("tests.modules.indexer:store_of_short_prefill", **given)
    expected = arms.pristine.run("tests.modules.indexer:store_of_short_prefill", **given)
    assert_bitwise(result.outputs["rows"], expected.outputs["rows"])
    assert result.operators.get(STORE, 0) + result.kernels.get(KERNEL, 0) == 1


@pytest.mark.parametrize("aiter", ["0", "1"])
def test_the_k_only_prefill_rotates_its_key_once(arms, aiter):
    given = {"x": torch.randn(TOKENS, 256).bfloat16(), "positions": torch.arange(TOKENS) * 7}
    patched = arms.patched_with(SGLANG_USE_AITER=aiter)
    found = patched.run("tests.modules.indexer:keys", **given).outputs
    assert_bitwise(found["alone"], found["beside_query"])
    upstream = arms.patched_with(SGLANG_USE_AITER=aiter, SGLANG_ROCM_PATCHES="0")
    found = upstream.run("tests.modules.indexer:keys", **given).outputs
    differ = not torch.equal(found["alone"], found["beside_query"])
    assert differ == (aiter == "0"), "upstream hands the key in as the query too"


@pytest.mark.parametrize("scale_fmt", ["ue8m0", None])
def test_decode_stores_upstreams_bytes_and_gates_the_right_query(arms, scale_fmt):
    given = {"x": torch.randn(TOKENS, 256).bfloat16(), "query": torch.randn(TOKENS, 32, 128)}
    given |= {"query": given["query"].bfloat16(), "key": keys(), "slots": slots()}
    given["scale_fmt"] = scale_fmt
    expected = arms.pristine.run("tests.modules.indexer:forward", **given)
    result = arms.patched.run("tests.modules.indexer:forward", **given)
    assert_bitwise(result.outputs["rows"], expected.outputs["rows"])
    # Each arm has its own weights_proj; what the fp32 one makes is the truth of both.
    truth = expected.outputs["gates"][..., 0].double()
    assert_close(result.outputs["gates"][..., 0], truth, declared("indexer"), reduction=256)
    stores = result.operators.get(STORE, 0) + result.kernels.get(KERNEL, 0)
    assert stores == (1 if scale_fmt else 0)
    assert stores + result.kernels.get("_set_k_and_s_triton_kernel", 0) == 1
    assert stores + result.operators["tilelang.act_quant_kernel"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("heads", [32, 64])
def test_head_gates_are_in_the_declared_class(either_arm, heads, dtype):
    x = torch.randn(TOKENS, 256).bfloat16().to(dtype)
    q_scale = torch.exp2(torch.randint(-9, 0, (TOKENS, heads, 1)).float())
    result = either_arm.run("tests.modules.indexer:head_gates", x=x, q_scale=q_scale).outputs
    truth = x.double() @ result["weight"].double().T * q_scale[..., 0] * (heads * 128) ** -0.5
    assert result["gates"].dtype == torch.float32
    assert result["gates"].shape == (TOKENS, heads, 1)
    assert_close(result["gates"][..., 0], truth, declared("indexer"), reduction=256)


@pytest.mark.parametrize(
    ("heads", "hidden", "dtype", "reason"),
    [
        (8, 256, "bfloat16", "head gates: 8 index heads are not 16, 32 or 64"),
        (24, 256, "bfloat16", "head gates: 24 index heads are not 16, 32 or 64"),
        (32, 200, "bfloat16", "head gates: a hidden size of 200 is no multiple of 128"),
        (32, 256, "float32", "head gates: hidden states are torch.float32, weights_proj "
         "torch.bfloat16, not both bf16"),
    ],
)  # fmt: skip
def test_head_gates_that_do_not_fit_say_so(arms, heads, hidden, dtype, reason):
    given = {"x": torch.randn(TOKENS, hidden).to(getattr(torch, dtype))}
    given["q_scale"] = torch.ones(TOKENS, heads, 1)
    result = arms.patched.run("tests.modules.indexer:head_gates", **given)
    assert result.outputs["declined"] == [reason]
    assert result.kernels == {"_scale_head_gates_kernel": 1}


def test_deterministic_inference_has_upstreams_projection(arms):
    given = {"x": torch.randn(TOKENS, 256).bfloat16(), "q_scale": torch.ones(TOKENS, 32, 1)}
    result = arms.patched.run("tests.modules.indexer:head_gates", **given, deterministic=True)
    assert "deterministic inference" in result.outputs["declined"][0]
    assert result.kernels == {"_scale_head_gates_kernel": 1}


def test_head_gates_are_two_launches(arms):
    given = {"x": torch.randn(TOKENS, 256).bfloat16(), "q_scale": torch.ones(TOKENS, 32, 1)}
    result = arms.patched.run("tests.modules.indexer:head_gates", **given)
    assert result.outputs["weight"].dtype == torch.bfloat16
    assert (result.launches, result.outputs["declined"]) == (2, [])
    assert arms.pristine.run("tests.modules.indexer:head_gates", **given).launches > 2


def test_switched_off_the_indexer_is_upstreams(arms, off):
    store = {"key": keys(), "slots": slots()}
    gates = {"x": torch.randn(TOKENS, 256).bfloat16(), "q_scale": torch.rand(TOKENS, 32, 1)}
    for scenario, given in (("store", store), ("head_gates", gates)):
        expected = arms.pristine.run(f"tests.modules.indexer:{scenario}", **given)
        result = off.run(f"tests.modules.indexer:{scenario}", **given)
        for name in expected.outputs.keys() - {"declined"}:
            assert_bitwise(result.outputs[name], expected.outputs[name], name)
        assert result.launches == expected.launches
