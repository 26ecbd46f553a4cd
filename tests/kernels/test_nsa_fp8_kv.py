"""Catches latent KV rows lost, misplaced, swapped, unrotated or NaN, and launches past the LDS."""

import pytest
import torch
from sglang.srt.rocm_patches import launch_parameters
from sglang.srt.rocm_patches import nsa_fp8_kv_kernel as kernel
from sglang.srt.rocm_patches import nsa_fp8_kv_lds as lds

from tests.kernels import aot
from tests.kernels.recorder import believing
from tests.platform.tensors import ODD_SIZES, boundaries, poisoned, strided
from tests.references import nsa_fp8_kv as reference
from tests.tolerances import ROTATED, assert_bitwise, assert_close, bits, declared

# The products of 16-bit numbers are exact in fp32; their sum is rounded there, to the model's type
# and to the cache's.
NUMERICS = declared("nsa-fp8-kv")
LATENT, ROPE = 512, 64
POSITIONS = 300
WIDTHS = [(512, 64), (256, 32), (96, 24), (40, 6)]
styles = pytest.mark.parametrize("neox", [True, False], ids=["neox", "interleaved"])


def cache_dtypes(platform):
    return platform.fp8_dtype, torch.bfloat16


def latent(platform, count, widths=(LATENT, ROPE), dtype=torch.bfloat16, scale=4.0):
    """k_nope and k_pe ``[T, 1, ..]`` as the slices of one projection that the model makes."""
    x = strided((torch.randn(count, 1, sum(widths)) * scale).to(platform.device, dtype), gap=16)
    return x[..., : widths[0]], x[..., widths[0] :]


def cache(platform, slots, widths=(LATENT, ROPE), dtype=None):
    return poisoned((slots, 1, sum(widths)), dtype or platform.fp8_dtype, platform.device)


def fresh_slots(platform, count, of, dtype=torch.int64):
    return torch.randperm(of)[:count].to(platform.device, dtype)


def check_write(rows, slots, nope, pe):
    expected = rows.clone()
    reference.write_rows(expected, slots, nope, pe)
    kernel.write_rows(rows, slots, nope, pe)
    assert_bitwise(rows, expected, "rows")


# The writer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ODD_SIZES)
def test_each_token_fills_its_row_and_no_other(platform, count):
    for dtype in cache_dtypes(platform):
        rows = cache(platform, count + 9, dtype=dtype)
        check_write(rows, fresh_slots(platform, count, count + 9), *latent(platform, count))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_of_any_width_and_type(platform, widths, dtype):
    nope, pe = latent(platform, 5, widths, dtype)
    rows = cache(platform, 8, widths)
    check_write(rows, fresh_slots(platform, 5, 8, torch.int32), nope, pe)
    if dtype != torch.float32:
        check_write(cache(platform, 8, widths, dtype), fresh_slots(platform, 5, 8), nope, pe)


def test_every_bf16_value_is_saturated_and_rounded_to_nearest_even(platform):
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = torch.cat((values, boundaries(platform.fp8_dtype, torch.bfloat16)))
    count = -(-len(values) // LATENT)
    nope = torch.zeros(count * LATENT, dtype=torch.bfloat16)
    nope[: len(values)] = values
    nope = nope.view(count, 1, LATENT).to(platform.device)
    pe = nope[..., :ROPE].flip(0)
    rows = cache(platform, count)
    kernel.write_rows(rows, torch.arange(count, device=platform.device), nope, pe)
    given = torch.cat((nope, pe), -1)
    # Upstream's own cast, wherever that is a number: it is NaN past the range.
    plain = given.to(platform.fp8_dtype)
    in_range = given.abs() <= platform.fp8_max
    assert torch.equal(bits(rows)[in_range], bits(plain)[in_range])
    past = given.abs() > platform.fp8_max
    assert torch.equal(rows.float()[past], platform.fp8_max * given[past].float().sign())
    assert rows.float().isnan().equal(given.isnan())


def test_negative_slots_and_padding_are_left_out(platform):
    slots = fresh_slots(platform, 7, 16)
    slots[[0, 4]] = torch.tensor([-1, -7], device=platform.device)
    check_write(cache(platform, 16), slots, *latent(platform, 7))
    check_write(cache(platform, 16), slots[:4], *latent(platform, 7))
    check_write(cache(platform, 16), slots, *latent(platform, 4))


def test_slots_may_be_a_strided_column(platform):
    table = torch.full((5, 2), -(2**31) + 5, device=platform.device)
    table[:, 1] = fresh_slots(platform, 5, 8)
    check_write(cache(platform, 8), table[:, 1], *latent(platform, 5))


def test_rows_may_lie_apart_and_tokens_may_have_no_head_dimension(platform):
    rows = strided(cache(platform, 8), gap=16)
    nope, pe = latent(platform, 5)
    check_write(rows, fresh_slots(platform, 5, 8), nope, pe)
    again = cache(platform, 8)
    slots = fresh_slots(platform, 5, 8)
    kernel.write_rows(again, slots, nope[:, 0], pe[:, 0])
    expected = cache(platform, 8)
    reference.write_rows(expected, slots, nope, pe)
    assert_bitwise(again, expected)


@pytest.mark.slow
def test_a_prefill_writes_every_token_once(platform):
    count = 1024 + 3
    slots = fresh_slots(platform, count, count + 5)
    slots[::61] = -1
    check_write(cache(platform, count + 5, (96, 24)), slots, *latent(platform, count, (96, 24)))


def test_a_cache_past_two_gib_is_addressed_in_64_bits(platform):
    slots = 2**31 // (LATENT + ROPE) + 16
    # Never filled: only the pages that are written become real.
    rows = torch.empty((slots, 1, LATENT + ROPE), dtype=platform.fp8_dtype, device=platform.device)
    nope, pe = latent(platform, 2)
    where = torch.tensor([slots - 1, 3], device=platform.device)
    kernel.write_rows(rows, where, nope, pe)
    expected = cache(platform, 2)
    reference.write_rows(expected, torch.arange(2), nope, pe)
    assert_bitwise(torch.stack([rows[slots - 1], rows[3]]), expected)
    q, q_pe, positions, cos, sin = query(platform, 2, 1)
    kernel.rope_and_write_rows(rows, where, q, q_pe, nope, pe, positions, cos, sin, False)
    truth = reference.rotated(pe, positions, cos, sin, False)
    assert_close(rows[slots - 1][..., LATENT:], truth[0], NUMERICS)


def test_no_token_is_no_launch(platform, monkeypatch):
    for name in ("_write_rows_kernel", "_rope_and_write_kernel", "_saturating_cast_kernel"):
        monkeypatch.setattr(kernel, name, None)  # a launch would raise TypeError
    slots = torch.zeros(0, dtype=torch.int64, device=platform.device)
    nope, pe = latent(platform, 0)
    kernel.write_rows(cache(platform, 2), slots, nope, pe)
    kernel.write_rows(cache(platform, 2), slots, *latent(platform, 3))
    q, q_pe, positions, cos, sin = query(platform, 0, 3)
    arguments = slots, q, q_pe, nope, pe, positions, cos, sin, True
    out = kernel.rope_and_write_rows(cache(platform, 2), *arguments)
    assert out.shape == (0, 3, LATENT + ROPE)
    assert kernel.saturating_cast(q, platform.fp8_dtype).shape == q.shape


def test_rows_of_another_width_are_refused(platform):
    nope, pe = latent(platform, 2)
    slots = fresh_slots(platform, 2, 4)
    with pytest.raises(ValueError, match="do not hold"):
        kernel.write_rows(cache(platform, 4, (528, 128)), slots, nope, pe)
    with pytest.raises(ValueError, match="do not hold"):
        kernel.write_rows(cache(platform, 4), slots, nope, pe[:1])
    transposed = torch.randn(LATENT, 1, 2, device=platform.device).transpose(0, 2)
    with pytest.raises(ValueError, match="contiguous"):
        kernel.write_rows(cache(platform, 4), slots, transposed, pe)


# Rotation and write -----------------------------------------------------------------------------


def query(platform, count, heads, widths=(LATENT, ROPE), angles=torch.bfloat16, scale=4.0):
    """q_nope as the batched GEMM leaves it, q_pe a slice of q, and the tables of aiter's rope."""
    q = torch.randn(heads, count, widths[0]).to(platform.device, torch.bfloat16).transpose(0, 1)
    whole = (torch.randn(count, heads, 128 + widths[1]) * scale).to(platform.device, torch.bfloat16)
    positions = torch.randint(0, POSITIONS, (count,), device=platform.device)
    frequency = 10000 ** -torch.linspace(0, 1, widths[1] // 2, dtype=torch.float64)
    angle = (torch.arange(POSITIONS)[:, None] * frequency)[:, None, None]
    tables = (angle.cos(), angle.sin())
    return q, whole[..., 128:], positions, *(t.to(platform.device, angles) for t in tables)


def check_rope(
    platform,
    slots,
    heads,
    neox,
    count=None,
    widths=(LATENT, ROPE),
    dtype=None,
    numerics=NUMERICS,
    angles=torch.bfloat16,
    scale=4.0,
    integer=torch.int64,
    q_dtype=None,
):
    count = len(slots) if count is None else count
    rows = cache(platform, 32 + len(slots), widths, dtype)
    nope, pe = latent(platform, count, widths, scale=scale)
    q, q_pe, positions, cos, sin = query(platform, count, heads, widths, angles, scale)
    positions = positions.to(integer)
    before = [x.clone() for x in (q_pe, pe)]
    out = kernel.rope_and_write_rows(
        rows, slots, q, q_pe, nope, pe, positions, cos, sin, neox, q_dtype
    )
    assert out.dtype == (q_dtype or rows.dtype)
    for x, old in zip((q_pe, pe), before, strict=True):
        assert_bitwise(x, old, "an input")

    def whole(latent_part, rotary_part, dtype):
        turned = reference.rotated(rotary_part, positions, cos, sin, neox)
        return reference.saturated(torch.cat((latent_part.double(), turned), -1), dtype)

    assert_close(out, whole(q, q_pe, out.dtype), numerics, name="q")
    truth = whole(nope, pe, rows.dtype)
    written = torch.zeros(len(rows), dtype=torch.bool, device=platform.device)
    for token, slot in enumerate(slots.tolist()[:count]):
        if slot >= 0:
            written[slot] = True
            assert_close(rows[slot], truth[token], numerics, name=f"row of token {token}")
    untouched = cache(platform, len(rows), widths, dtype)
    assert_bitwise(rows[~written], untouched[~written], "rows without a token")


@styles
@pytest.mark.parametrize("heads", [1, 3, 8, 16, 20])
def test_q_and_the_rows_are_rotated_once(platform, heads, neox):
    for dtype in cache_dtypes(platform):
        check_rope(platform, fresh_slots(platform, 3, 32), heads, neox, dtype=dtype)


@styles
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_rotary_parts_of_any_width(platform, widths, neox):
    check_rope(platform, fresh_slots(platform, 5, 32), 5, neox, widths=widths)


@styles
def test_tokens_without_a_slot_still_get_their_q(platform, neox):
    slots = fresh_slots(platform, 6, 32)
    slots[[1, 5]] = torch.tensor([-1, -3], device=platform.device)
    check_rope(platform, slots, 4, neox)
    check_rope(platform, slots[:2], 4, neox, count=6)
    check_rope(platform, slots[:0], 4, neox, count=6)
    check_rope(platform, slots, 4, neox, count=3)


@styles
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("angles", [torch.float32, torch.bfloat16], ids=str)
def test_positions_slots_and_angles_of_any_type(platform, angles, integer, neox):
    numerics = NUMERICS if angles == torch.bfloat16 else ROTATED[platform.fp8_dtype]
    slots = fresh_slots(platform, 3, 32, integer)
    check_rope(platform, slots, 4, neox, numerics=numerics, angles=angles, integer=integer)


@styles
def test_overflow_saturates_and_is_no_nan(platform, neox):
    check_rope(platform, fresh_slots(platform, 3, 32), 4, neox, scale=1000.0)


@styles
def test_q_keeps_its_range_beside_an_fp8_cache_where_it_is_asked_for_in_bf16(platform, neox):
    slots = fresh_slots(platform, 3, 32)
    check_rope(platform, slots, 5, neox, scale=1000.0, q_dtype=torch.bfloat16)


@styles
def test_rotating_on_the_way_gives_the_bytes_of_rotating_before(platform, neox):
    nope, pe = latent(platform, 9)
    q, q_pe, positions, cos, sin = query(platform, 9, 4)
    slots = fresh_slots(platform, 9, 16)
    # aiter's rotation in place: fp32 from the model's type, rounded once.
    turned, q_turned = (
        reference.rotated(x, positions, cos, sin, neox).float().bfloat16() for x in (pe, q_pe)
    )
    for dtype in cache_dtypes(platform):
        expected, rows = cache(platform, 16, dtype=dtype), cache(platform, 16, dtype=dtype)
        kernel.write_rows(expected, slots, nope, turned)
        out = kernel.rope_and_write_rows(rows, slots, q, q_pe, nope, pe, positions, cos, sin, neox)
        assert_bitwise(rows, expected, "rows")
        before = torch.cat((q, q_turned), -1)
        if dtype == platform.fp8_dtype:
            before = kernel.saturating_cast(before, dtype)
        assert_bitwise(out, before, "q")


@pytest.mark.parametrize("wrong", ["q_pe", "k_nope", "k_pe", "positions", "sin"])
def test_operands_that_do_not_belong_together_are_refused(platform, wrong):
    nope, pe = latent(platform, 3)
    q, q_pe, positions, cos, sin = query(platform, 3, 4)
    operands = {"q_nope": q, "q_pe": q_pe, "k_nope": nope, "k_pe": pe, "positions": positions}
    operands |= {"cos": cos, "sin": sin, "slots": fresh_slots(platform, 3, 8), "is_neox": True}
    operands[wrong] = operands[wrong][:2]
    match = "do not hold" if wrong in ("k_nope", "k_pe") else wrong
    with pytest.raises(ValueError, match=match):
        kernel.rope_and_write_rows(cache(platform, 8), **operands)


def test_k_gathered_from_other_ranks_is_refused(platform):
    q, q_pe, positions, cos, sin = query(platform, 3, 4)
    slots = fresh_slots(platform, 6, 8)
    arguments = slots, q, q_pe, *latent(platform, 6), positions, cos, sin, True
    with pytest.raises(ValueError, match="k_nope is"):
        kernel.rope_and_write_rows(cache(platform, 8), *arguments)


def test_a_query_past_the_range_is_cast_to_the_largest_value(platform):
    values = boundaries(platform.fp8_dtype, torch.bfloat16)
    q = values[torch.randint(len(values), (5, 3, 1001))].to(platform.device)
    q = torch.cat((q, torch.full_like(q[..., :1], torch.nan)), -1)
    for given in (q, q.transpose(0, 1), q[..., ::2]):
        found = kernel.saturating_cast(given, platform.fp8_dtype)
        truth = given.float().clamp(-platform.fp8_max, platform.fp8_max)
        assert torch.equal(found.float().isnan(), given.isnan())
        number = ~given.isnan()
        assert_bitwise(found[number], truth[number].to(platform.fp8_dtype))


# The LDS of TileLang's kernels ------------------------------------------------------------------

SHAPES = {
    ("gfx942", "bf16"): {"block": 32, "threads": 128, "key_blocks": 64},
    ("gfx942", "fp8"): {"block": 64, "threads": 256, "key_blocks": 32},
    ("gfx950", "bf16"): {"block": 64, "threads": 256, "key_blocks": 32},
    ("gfx950", "fp8"): {"block": 64, "threads": 256, "key_blocks": 32},
}
MEASURED = [
    (arch, *case, found) for arch, all in reference.LDS.items() for case, found in all.items()
]


def fit(arch, kind, heads, inner_iter):
    shape = SHAPES[arch, kind]
    return lds.fit(
        arch, fp8=kind == "fp8", heads=heads, width=LATENT + ROPE, inner_iter=inner_iter, **shape
    )


@pytest.mark.parametrize(("arch", "kind", "heads", "inner_iter", "found"), MEASURED)
def test_the_sum_of_the_buffers_bounds_what_tilelang_allocates(
    arch, kind, heads, inner_iter, found
):
    shape = {key: SHAPES[arch, kind][key] for key in ("block", "threads")}
    bound = lds.lds_bytes(
        fp8=kind == "fp8", heads=heads, width=LATENT + ROPE, inner_iter=inner_iter, **shape
    )
    assert found <= bound <= found + 4096


@pytest.mark.parametrize(("arch", "kind", "heads", "inner_iter", "found"), MEASURED)
def test_what_fits_is_upstreams_choice_and_what_does_not_gets_one_that_fits(
    arch, kind, heads, inner_iter, found
):
    chosen = fit(arch, kind, heads, inner_iter)
    if found <= lds.LDS_BYTES[arch]:
        assert chosen == inner_iter
    else:
        assert chosen == 2
        assert reference.LDS[arch][kind, heads, chosen] <= lds.LDS_BYTES[arch]


@pytest.mark.parametrize(("kind", "heads"), [("fp8", 24), ("fp8", 2), ("bf16", 10), ("bf16", 160)])
def test_heads_without_a_kernel_are_refused_with_the_flag_to_change(kind, heads):
    with pytest.raises(ValueError, match=f"{heads} query heads a rank.*--tp-size"):
        fit("gfx942", kind, heads, 1)


@pytest.mark.parametrize(("arch", "heads", "found"), reference.LDS_OF_ONE_PASS)
def test_the_kernels_of_0_5_9_are_refused_where_they_do_not_fit(arch, heads, found):
    block, threads = {"gfx942": (32, 128), "gfx950": (64, 256)}[arch]
    shape = {"heads": heads, "width": LATENT + ROPE, "block": block, "threads": threads}
    assert lds.lds_bytes(fp8=False, inner_iter=1, **shape) == found
    if found <= lds.LDS_BYTES[arch]:
        lds.require(arch, **shape)
    else:
        with pytest.raises(ValueError, match=rf"{heads} query heads a rank.*LDS.*--tp-size"):
            lds.require(arch, **shape)


def test_a_kernel_that_never_fits_is_refused():
    with pytest.raises(ValueError, match="more than 65536 bytes of LDS"):
        lds.fit(
            "gfx942", fp8=False, heads=64, width=2048, block=32, inner_iter=1, key_blocks=64,
            threads=128,
        )  # fmt: skip


# Machine code -----------------------------------------------------------------------------------

MODULE = "sglang.srt.rocm_patches.nsa_fp8_kv_kernel"
LARGEST = {"gfx942": 240.0, "gfx950": 448.0}
archs = pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
outputs = pytest.mark.parametrize("out", ["fp8", "bf16"])


def chosen(arch, work, count):
    """What a program takes, and its waves."""
    with believing(arch):
        choice = launch_parameters.choose(f"nsa-fp8-kv {work}", count)
        return choice.size, launch_parameters.warps(choice.threads)


def compiled(name, arch, out, pointers, integers, waves, **constexprs):
    signature = dict.fromkeys(pointers, "*bf16")
    signature |= {"rows": f"*{out}", "out": f"*{out}"}
    signature |= {"slots": "*i64", "positions": "*i64"} | integers
    largest = LARGEST[arch] if out == "fp8" else 0.0
    constexprs = {"MAX": largest} | constexprs
    wanted = set(getattr(kernel, name).arg_names) - constexprs.keys()
    return aot.compile(
        MODULE,
        name,
        signature={key: kind for key, kind in signature.items() if key in wanted},
        constexprs=constexprs,
        arch=arch,
        num_warps=waves,
    )


def compiled_write(arch, out, tokens):
    together, waves = chosen(arch, "write", tokens)
    strides = dict.fromkeys(("row_stride", "nope_stride", "pe_stride"), "i32:16")
    widths = {"NOPE": LATENT, "PE": ROPE, "BLOCK_NOPE": LATENT, "BLOCK_PE": ROPE}
    return compiled(
        "_write_rows_kernel", arch, out, ("nope", "pe"), strides | {"tokens": "i32"},
        waves, slot_stride=1, TOKENS=together, **widths,
    )  # fmt: skip


def compiled_rope(arch, out, neox, heads="i32:16", angles="*bf16"):
    together, waves = chosen(arch, "rope", 64)
    names = ("row", "q_nope_token", "q_nope_head", "q_pe_token", "q_pe_head", "k_nope", "k_pe")
    integers = {f"{name}_stride": "i32:16" for name in (*names, "angle")}
    integers |= {"slot_count": "i32", "heads": heads, "cos": angles, "sin": angles}
    widths = {"NOPE": LATENT, "HALF": ROPE // 2, "BLOCK_NOPE": LATENT, "BLOCK_HALF": ROPE // 2}
    tensors = ("q_out", "q_nope", "q_pe", "k_nope", "k_pe")
    return compiled(
        "_rope_and_write_kernel", arch, out, tensors, integers, waves, Q_MAX=0.0,
        slot_stride=1, position_stride=1, HEADS=together, NEOX=neox, **widths,
    )  # fmt: skip


@archs
@outputs
@pytest.mark.parametrize("tokens", [1, 8192])
@pytest.mark.aot
def test_the_writer_needs_no_scratch(arch, out, tokens):
    aot.assert_resources(compiled_write(arch, out, tokens), vgprs=128)


@archs
@pytest.mark.aot
def test_a_prefill_reads_and_writes_16_bytes_at_a_time(arch):
    rows, waves = chosen(arch, "write", 8192)
    elements = LATENT * rows // (64 * waves)
    for out, size in (("fp8", 1), ("bf16", 2)):
        code = compiled_write(arch, out, 8192)
        assert code.widths("load")[16] >= elements * 2 // 16
        assert code.widths("store")[16] >= elements * size // 16


@styles
@archs
@outputs
@pytest.mark.parametrize("heads", ["i32", "i32:16"])
@pytest.mark.parametrize("angles", ["*bf16", "*fp32"])
@pytest.mark.aot
def test_the_rotation_needs_no_scratch(arch, out, heads, angles, neox):
    code = compiled_rope(arch, out, neox, heads, angles)
    aot.assert_resources(code, vgprs=128)
    together, waves = chosen(arch, "rope", 64)
    assert code.widths("load")[16] >= LATENT * together * 2 // (64 * waves) // 16


@archs
@pytest.mark.aot
def test_the_cast_of_q_needs_no_scratch(arch):
    code = compiled(
        "_saturating_cast_kernel", arch, "fp8", ("x",), {"count": "i32:16"}, 4, BLOCK=4096
    )
    aot.assert_resources(code, vgprs=128)
