"""Catches a KV write in the wrong slot, row or scale, past the format, or into the live tensors."""

import pytest
import torch

from tests.modules.pools import SLOTS
from tests.platform.trees import slugs as series
from tests.tolerances import CORRECTLY_ROUNDED, ONE_ULP, assert_bitwise, assert_close

TOKENS = 9


@pytest.fixture
def slots():
    return torch.randperm(SLOTS)[:TOKENS] + 1


def swa_slots(slots):
    return SLOTS - slots


def expected_rows(platform, cache, values, scale):
    """The fp64 truth of what a slot holds."""
    exact = values.double() / (1.0 if scale is None else scale)
    if cache == "fp8":
        return exact.clamp(-platform.fp8_max, platform.fp8_max)
    return exact


def assert_cache(platform, cache, buffer, values, scale, slots, name):
    dtype = platform.fp8_dtype if cache == "fp8" else torch.bfloat16
    rows = buffer.view(dtype).view(buffer.shape[0], *values.shape[1:])
    truth = expected_rows(platform, cache, values, scale)
    # Upstream divides in bf16 before it casts, which rounds twice.
    assert_close(rows[slots], truth, ONE_ULP if scale else CORRECTLY_ROUNDED, name=name)
    others = torch.ones(len(buffer), dtype=torch.bool)
    others[slots] = False
    assert bool((buffer[others] == 0xA5).all()), f"{name}: a slot that was not asked for is written"


@pytest.mark.parametrize("kind", ["mha", "swa"])
@pytest.mark.parametrize("cache", ["bf16", "fp8"])
@pytest.mark.parametrize("scales", [(None, None), (0.7, 0.3)], ids=str)
def test_kv_pools_hold_what_was_stored(either_arm, platform, slots, kind, cache, scales):
    k, v = torch.randn(2, TOKENS, 2, 64).bfloat16()
    k_scale, v_scale = scales
    result = either_arm.run(
        "tests.modules.pools:store",
        kind=kind,
        cache=cache,
        k=k,
        v=v,
        slots=slots,
        k_scale=k_scale,
        v_scale=v_scale,
    ).outputs
    stored = swa_slots(slots) if kind == "swa" else slots
    if cache == "bf16":
        k_scale = v_scale = None  # a bf16 cache has no scale
    assert_cache(platform, cache, result["k_cache"], k, k_scale, stored, "k_cache")
    assert_cache(platform, cache, result["v_cache"], v, v_scale, stored, "v_cache")


def test_v_has_its_own_head_size(either_arm, platform, slots):
    k, v = torch.randn(TOKENS, 2, 64).bfloat16(), torch.randn(TOKENS, 2, 32).bfloat16()
    result = either_arm.run(
        "tests.modules.pools:store", kind="mha", cache="fp8", k=k, v=v, slots=slots
    ).outputs
    assert_cache(platform, "fp8", result["k_cache"], k, None, slots, "k_cache")
    assert_cache(platform, "fp8", result["v_cache"], v, None, slots, "v_cache")


def loads_integers(release, platform) -> bool:
    """Whether upstream's MLA write loads FP8 with an integer for masked lanes, as from 0.5.11 on.

    Triton's interpreter casts no integer to FP8.
    """
    return platform.name == "cpu" and release not in ("0.5.9", "0.5.10.post1")


@pytest.mark.parametrize("nsa", [False, True], ids=["mla", "nsa"])
@pytest.mark.parametrize("cache", ["bf16", "fp8"])
def test_latent_pools_hold_what_was_stored(either_arm, arms, platform, slots, cache, nsa):
    upstreams = either_arm is arms.pristine and (cache, nsa) == ("fp8", False)
    if upstreams and loads_integers(arms.release, platform):
        pytest.skip("Triton's interpreter does not run upstream's kernel")
    k_nope, k_rope = torch.randn(TOKENS, 1, 512), torch.randn(TOKENS, 1, 64)
    result = either_arm.run(
        "tests.modules.pools:store_latent",
        cache=cache,
        nsa=nsa,
        k_nope=k_nope.bfloat16(),
        k_rope=k_rope.bfloat16(),
        slots=slots,
    ).outputs
    row = torch.cat([k_nope, k_rope], -1).bfloat16()
    assert_cache(platform, cache, result["rows"], row, None, slots, "rows")
    assert_bitwise(result["k_nope"], k_nope.bfloat16(), "k_nope after the store")


def test_index_rows_hold_values_then_scale(either_arm, arms, platform, slots):
    if "indexer" not in series(arms.release):
        pytest.skip("its index pages are preshuffled, and none of the patches' business")
    values, scales = torch.randn(TOKENS, 128), torch.rand(TOKENS, 1)
    rows = either_arm.run(
        "tests.modules.pools:store_index", values=values, scales=scales, slots=slots
    ).outputs["rows"]
    assert_bitwise(rows[slots, :128].view(platform.fp8_dtype), values.to(platform.fp8_dtype))
    assert_bitwise(rows[slots, 128:].view(torch.float32), scales)


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
@pytest.mark.parametrize("slug", ["fp8-kv-write", "nsa-fp8-kv"])
def test_switched_off_pools_are_upstreams(arms, platform, slots, cache, slug):
    if slug == "fp8-kv-write":
        k, v = torch.randn(2, TOKENS, 2, 64).bfloat16()
        scenario, kinds = "store", [{"kind": "mha"}, {"kind": "swa"}]
        given = {"k": k, "v": v, "k_scale": 0.5, "v_scale": 0.25}
    else:
        scenario, kinds = "store_latent", [{"nsa": False}, {"nsa": True}]
        given = {name: torch.randn(TOKENS, 1, n) for name, n in (("k_nope", 512), ("k_rope", 64))}
        given = {name: x.bfloat16() for name, x in given.items()}
    if (slug, cache) == ("nsa-fp8-kv", "fp8") and loads_integers(arms.release, platform):
        kinds = [{"nsa": True}]
    for kind in kinds:
        each = given | kind | {"cache": cache, "slots": slots}
        expected = arms.pristine.run(f"tests.modules.pools:{scenario}", **each)
        for off in (arms.off, arms.without(slug)):
            result = off.run(f"tests.modules.pools:{scenario}", **each)
            for name, value in expected.outputs.items():
                assert_bitwise(result.outputs[name], value, name)
            assert result.launches == expected.launches
