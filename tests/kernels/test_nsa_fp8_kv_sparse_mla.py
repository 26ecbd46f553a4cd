"""Catches sparse attention that reads the wrong rows, counts a missing key, or outgrows the LDS."""

import re

import pytest
import torch

tilelang = pytest.importorskip("tilelang")
from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla as sparse_mla  # noqa: E402
from sglang.srt.rocm_patches.nsa_fp8_kv_sparse_mla_combine import combine  # noqa: E402

from evidence import key as keys  # noqa: E402
from evidence import store  # noqa: E402
from tests.kernels import hip_compiler, hip_source  # noqa: E402
from tests.kernels.aot import CompilationError  # noqa: E402
from tests.platform.tensors import poisoned  # noqa: E402
from tests.references import nsa_fp8_kv_sparse_mla as reference  # noqa: E402
from tests.tolerances import BF16_STEPS, assert_close  # noqa: E402

SHAPES = [(512, 64, 2048), (512, 64, 256), (256, 32, 128), (128, 16, 192)]  # d_v, tail, top-k
HIP = ("gfx942", "gfx950")


# On a GPU ---------------------------------------------------------------------------------------


@pytest.fixture
def device(platform):
    if platform.name == "cpu":
        pytest.skip("TileLang runs on a GPU; its HIP source is checked below")
    if platform.name == "cuda" and platform.arch != "gfx950":
        pytest.skip("an NVIDIA GPU stands for gfx950: it has no e4m3fnuz")
    device = torch.device("cuda", torch.cuda.current_device())
    if sparse_mla.chip_of(device) not in sparse_mla.CHIPS:
        pytest.skip(f"no tiling for {sparse_mla.chip_of(device)}")
    return device


def problem(device, dtype, tokens, heads, shape=(512, 64, 2048), slots=4096):
    d_v, tail, topk = shape
    q = torch.randn(tokens, heads, d_v + tail, device=device).bfloat16()
    kv = torch.randn(slots, 1, d_v + tail, device=device).to(dtype)
    indices = torch.randint(0, slots, (tokens, 1, topk), device=device, dtype=torch.int32)
    return q, kv, indices, (d_v + tail) ** -0.5, d_v


def check(q, kv, indices, sm_scale, d_v, kv_scale=1.0):
    out = sparse_mla.sparse_mla(q, kv, indices, sm_scale, d_v, kv_scale)
    expected = reference.sparse_mla(q, kv, indices, sm_scale, d_v, kv_scale)
    assert_close(out, expected, BF16_STEPS, reduction=indices.shape[2])


@pytest.mark.parametrize(
    ("tokens", "heads"),
    [(1, 1), (1, 16), (3, 8), (16, 64), (67, 24), (67, 40), (67, 128), (270, 16), (270, 64)],
)
def test_attention_is_the_references_at_any_batch_and_heads(device, platform, tokens, heads):
    for dtype in (platform.fp8_dtype, torch.bfloat16):
        check(*problem(device, dtype, tokens, heads))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_any_width_and_any_top_k(device, platform, shape):
    for dtype in (platform.fp8_dtype, torch.bfloat16):
        check(*problem(device, dtype, 5, 16, shape))


def test_missing_keys_count_for_nothing_wherever_they_are(device, platform):
    for dtype in (platform.fp8_dtype, torch.bfloat16):
        q, kv, indices, *rest = problem(device, dtype, 70, 16)
        indices[0] = -1  # a padded token
        indices[1, 0, 1:] = -1  # one key
        indices[2, 0, :-1] = -1
        indices[3:, 0][torch.rand(67, 2048, device=device) < 0.5] = -1
        kv[0] = poisoned((1, 576), dtype, device)  # the padding's slot may hold anything
        indices[indices == 0] = -1
        check(q, kv, indices, *rest)
        assert not sparse_mla.sparse_mla(q, kv, indices, *rest)[0].any()


def test_every_value_of_the_cache_is_read_as_what_it_is(device, platform):
    """One key a token: the result is that row, rounded to bf16, which holds every e4m3 value."""
    q, kv, indices, sm_scale, d_v = problem(device, platform.fp8_dtype, 256, 16)
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    kv[:256] = codes.view(platform.fp8_dtype).view(256, 1, 1)
    indices.fill_(-1)
    indices[:, 0, 7] = torch.arange(256, device=device)
    out = sparse_mla.sparse_mla(q, kv, indices, sm_scale, d_v)
    expected = kv[:256, :, :d_v].to(torch.bfloat16).expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_each_column_comes_back_in_its_place(device, platform):
    for dtype in (platform.fp8_dtype, torch.bfloat16):
        q, kv, indices, sm_scale, d_v = problem(device, dtype, 8, 16)
        indices.fill_(-1)
        indices[:, 0, 0] = torch.arange(8, device=device)
        out = sparse_mla.sparse_mla(q, kv, indices, sm_scale, d_v)
        assert torch.equal(out, kv[:8, :, :d_v].to(torch.bfloat16).expand_as(out))


def test_the_caches_scale_multiplies_keys_and_values(device, platform):
    check(*problem(device, platform.fp8_dtype, 9, 16), kv_scale=0.37)


def test_q_of_the_caches_type_is_taken_as_it_is(device, platform):
    q, *rest = problem(device, platform.fp8_dtype, 5, 16)
    check(q.to(platform.fp8_dtype), *rest)


def test_large_scores_do_not_overflow(device, platform):
    q, kv, *rest = problem(device, platform.fp8_dtype, 5, 16)
    check(q * 100, (kv.float() * 60).clamp(-240, 240).to(platform.fp8_dtype), *rest)


def test_no_tokens_and_graph_replays(device, platform):
    q, kv, indices, *rest = problem(device, platform.fp8_dtype, 17, 16)
    assert sparse_mla.sparse_mla(q[:0], kv, indices[:0], *rest).shape == (0, 16, 512)
    eager = sparse_mla.sparse_mla(q, kv, indices, *rest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sparse_mla.sparse_mla(q, kv, indices, *rest)
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, eager)


@pytest.mark.slow
def test_rows_past_two_gigabytes_are_reached(device, platform):
    slots = (1 << 31) // 576 + 100
    q = torch.randn(2, 16, 576, device=device).bfloat16()
    kv = torch.zeros(slots, 1, 576, device=device, dtype=platform.fp8_dtype)
    kv[-64:] = torch.randn(64, 1, 576, device=device).to(platform.fp8_dtype)
    indices = torch.full((2, 1, 2048), -1, dtype=torch.int32, device=device)
    indices[:, 0, :64] = torch.arange(slots - 64, slots, device=device)
    check(q, kv, indices, 576**-0.5, 512)


# HIP source, without a GPU ----------------------------------------------------------------------


def lowered(arch, program):
    """The HIP source and LDS of a program."""
    if not hip_source.writes_hip():
        pytest.skip(f"this build of TileLang {tilelang.__version__} writes no HIP source")
    return hip_source.lowered(arch, program)


@pytest.mark.slow
@pytest.mark.parametrize("arch", HIP)
@pytest.mark.parametrize(
    ("fp8", "heads", "tokens"),
    [(True, 8, 1), (True, 16, 64), (True, 128, 4096), (False, 16, 64)],
)
def test_hip_source_stays_in_the_lds_and_loads_16_bytes(arch, fp8, heads, tokens):
    chip = sparse_mla.CHIPS[arch]
    tiling = sparse_mla.tiling_for(arch, heads, 512, 64, 2048)
    settings = hip_source.settings_of(arch, fp8, heads, tokens)
    splits = settings["splits"]
    source, lds = lowered(arch, hip_source.partial(settings))
    bound = sparse_mla.lds_bytes(tiling, 512, 64, 2048 // splits)
    assert lds <= bound <= chip.lds
    padding = 16 * tiling.keys  # of the probabilities' rows, in older TileLang
    assert lds >= bound - padding or splits * tiling.keys == 2048  # one tile: more overlaps
    assert "mfma_f32_16x16x16" in source
    loads = re.findall(r"\*\((\w+)\*\)\(kv \+ (.*)\);", source)
    assert {width for width, _ in loads} == {"int4"}
    assert all("(int64_t)" in address for _, address in loads)
    body = source[source.index('extern "C"') :]
    assert not re.search(r"fp8|f8", body.replace("e4m3x2_to_f16x2", ""))
    assert ("e4m3x2_to_f16x2" in body) == fp8
    assert not re.search(r"\bint half\b", body)  # a type in HIP


@pytest.mark.parametrize("arch", HIP)
def test_hip_source_of_the_combination_uses_no_lds(arch):
    said = hip_source.told(*lowered(arch, combine(heads=16, d_v=512, splits=64)))
    registers = {"threads": 128, "vgprs": 128, "spills": 0, "scratch": 0}
    row = said | registers | {"kernel": "sparse_mla_combine"}
    assert not list(hip_source.problems(arch, row))
    faults = {"lds": 4, "cache_loads": [2], "addresses_64_bit": False}
    for name, value in (faults | {"spills": 1, "scratch": 4}).items():
        assert list(hip_source.problems(arch, row | {name: value})), name


@pytest.mark.parametrize(("threads", "vgprs", "enough"), [(128, 512, True), (512, 264, False)])
def test_registers_must_leave_the_waves_that_the_lds_does(threads, vgprs, enough):
    resources = {"lds": 60 << 10, "threads": threads, "vgprs": vgprs, "spills": 0, "scratch": 0}
    row = resources | {
        "kernel": "sparse_mla_partial",
        "cache_loads": [16],
        "addresses_64_bit": True,
        "e4m3": True,
        "matrix_instructions": ["mfma_f32_16x16x16f16"],
    }
    assert (not list(hip_source.problems("gfx942", row))) == enough


def test_the_compiler_of_hip_is_asked_for_its_registers(tmp_path, monkeypatch):
    """By a stand-in, which writes what clang would at the end of its assembly."""
    counts = {"vgpr_count": 241, "agpr_count": 0, "sgpr_count": 30, "private_segment_fixed_size": 8}
    counts |= {"vgpr_spill_count": 3, "sgpr_spill_count": 0}
    metadata = "\n".join(f"    .{name}: {count}" for name, count in counts.items())
    stand_in = tmp_path / "hipcc"
    stand_in.write_text(
        f"#!/bin/sh\nwhile [ $# -gt 1 ]; do [ $1 = -o ] && out=$2; shift; done\n"
        f"grep -q broken $1 && {{ echo 'error: broken' >&2; exit 1; }}\n"
        f"cat > $out <<END\n{metadata}\nEND\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("HIPCC", str(stand_in))
    code = hip_compiler.compile("whole", "gfx942", 57536, 128)
    assert {name: getattr(code, name) for name in counts} == counts
    assert (code.lds, code.warps) == (57536, 2)
    with pytest.raises(CompilationError, match="gfx942: error: broken"):
        hip_compiler.compile("broken", "gfx942", 57536, 128)
    monkeypatch.setenv("HIPCC", str(tmp_path / "missing"))
    with pytest.raises(CompilationError, match="missing was not found; run this in a ROCm image"):
        hip_compiler.compile("whole", "gfx942", 57536, 128)


@pytest.mark.aot
@pytest.mark.parametrize("arch", HIP)
def test_every_form_that_the_real_models_select_fits_the_chip(arch):
    """By evidence/, as long as the code that decides it is the same: to write all takes minutes."""
    kept = store.read(hip_source.evidence_of(arch))
    renew = "python3 -m tests.kernels.hip_source"
    if changed := keys.changed(kept.header["key"], keys.of_hip_source()):
        pytest.skip(f"evidence of tilelang.{arch} is stale ({changed[0]} changed): {renew}")
    named = [(row["kernel"], row["heads"], row["splits"], row["tokens"]) for row in kept.rows]
    selected = [
        (name, form["heads"], form["splits"], sorted({call["tokens"] for call in calls}))
        for name, form, calls in hip_source.forms(arch)
    ]
    assert named == selected, renew
    assert {row["heads"] for row in kept.rows} == {8, 16, 32, 64, 128}
    assert not [problem for row in kept.rows for problem in hip_source.problems(arch, row)]
    assert all(row["upstream"]["kernel"].startswith("sparse_mla_fwd") for row in kept.rows)


def test_an_address_computed_in_32_bits_is_told():
    source = """extern "C" __global__ void kernel(bfloat16_t* __restrict__ out, int tokens) {
  *(uint4*)(out + ((((int64_t)((int)blockIdx.x)) * (int64_t)8192) + (int64_t)8)) = value;
}"""
    assert hip_source.told(source, 0)["addresses_64_bit"]
    for old, new in (
        ("((int64_t)((int)blockIdx.x)) * (int64_t)8192", "(int64_t)(((int)blockIdx.x) * 8192)"),
        ("((((int64_t)", "((((int)"),
    ):
        assert old in source
        assert not hip_source.told(source.replace(old, new), 0)["addresses_64_bit"]


# Choices and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("arch", sparse_mla.CHIPS)
def test_no_tiling_outgrows_its_chips_lds(arch):
    chip = sparse_mla.CHIPS[arch]
    for heads in (1, 8, 16, 17, 64, 128):
        for d_v in range(64, 1025, 64):
            for tail in (16, 64, 128):
                for topk in (64, 2048, 4096):
                    try:
                        tiling = sparse_mla.tiling_for(arch, heads, d_v, tail, topk)
                    except ValueError as error:
                        assert "bytes of LDS" in str(error)  # noqa: PT017
                    else:
                        assert sparse_mla.lds_bytes(tiling, d_v, tail, topk) <= chip.lds


@pytest.mark.parametrize("arch", sparse_mla.CHIPS)
def test_what_the_tiling_does_not_allow_is_refused_by_name(arch):
    for shape, words in (
        ((16, 500, 64, 2048), "500 value columns"),
        ((16, 512, 0, 2048), "0 rotary columns"),
        ((16, 512, 24, 2048), "24 rotary columns"),
        ((16, 512, 64, 2040), "top-k of 2040"),
        ((16, 512, 64, 1 << 16), "bytes of LDS"),
    ):
        with pytest.raises(ValueError, match=words):
            sparse_mla.tiling_for(arch, *shape)


@pytest.mark.parametrize("arch", sparse_mla.CHIPS)
def test_splits_divide_the_keys_and_fill_the_chip(arch):
    chip = sparse_mla.CHIPS[arch]
    tiling = sparse_mla.tiling_for(arch, 16, 512, 64, 2048)
    resident = chip.lds // sparse_mla.lds_bytes(tiling, 512, 64, tiling.keys)
    before = 2048
    for tokens in range(1, 600):
        splits = sparse_mla.splits_for(arch, tiling, tokens, 16, 512, 64, 2048)
        assert 2048 % (splits * tiling.keys) == 0
        assert splits <= before
        assert tokens * splits >= 0.9 * chip.units * resident or splits * tiling.keys == 2048
        before = splits
    assert before == min(resident, 2)


def test_parts_of_a_long_prefill_of_many_heads_take_no_memory():
    tiling = sparse_mla.tiling_for("gfx950", 128, 512, 64, 2048)
    splits = [sparse_mla.splits_for("gfx950", tiling, n, 128, 512, 64, 2048) for n in (2048, 16384)]
    assert splits == [2, 1]


def test_only_checked_tilelang_is_trusted():
    trusted, other = (
        sparse_mla.CHECKED_RELEASES,
        ("0.1.6", "0.1.99", "0.1.7.post3+rocm.git12345678"),
    )
    for version in (*trusted, *(f"0.1.7.post3+rocm.git{c}" for c in sparse_mla.IMAGE_COMMITS)):
        assert sparse_mla.unchecked_tilelang(version) is None
    for version in other:
        assert version in sparse_mla.unchecked_tilelang(version)


def test_calls_that_do_not_fit_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(sparse_mla, "chip_of", lambda device: "gfx942")
    monkeypatch.setattr(sparse_mla, "unchecked_tilelang", lambda: None)
    q = torch.zeros(2, 16, 576, dtype=torch.bfloat16)
    kv = torch.zeros(9, 1, 576, dtype=torch.float8_e4m3fnuz)
    indices = torch.zeros(2, 1, 2048, dtype=torch.int32)
    assert sparse_mla.why_not(q, kv, indices) is None
    for call, words in (
        ((q, kv.view(torch.float8_e4m3fn), indices), "KV cache of torch.float8_e4m3fn on gfx942"),
        ((q.half(), kv, indices), "q of torch.float16"),
        ((q, kv, indices.long()), "indices of torch.int64"),
        ((q, kv, indices[:1]), "do not agree"),
        ((q, kv[:, 0], indices), "not 3-D"),
        ((q[:, ::2], kv, indices), "not contiguous"),
        ((q, kv, indices[..., :2000].contiguous()), "top-k of 2000"),
    ):
        assert words in sparse_mla.why_not(*call)
        with pytest.raises(ValueError, match=re.escape(words)):
            sparse_mla.sparse_mla(*call, 1.0)
    monkeypatch.setattr(sparse_mla, "chip_of", lambda device: "gfx90a")
    assert "gfx90a is none of" in sparse_mla.why_not(q, kv, indices)
