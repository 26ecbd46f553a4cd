"""Catches a row whose bits depend on how many rows are launched with it.

The tests cover every kernel of the overlay. `ALONE` runs a row by itself and among 600 rows, on any
platform. A CPU reveals a sum that is split by the batch size. Only a GPU, or the compiled code of
each launch, reveals how a sum is laid out over threads; these tests inspect the compiled code. A
kernel whose rows depend on the batch is in `BY_BATCH`: its slug declines in deterministic
inference.
"""

import ast
import re
from pathlib import Path

import pytest
import torch
from sglang.srt.rocm_patches import (
    SLUGS,
    fp8_kv_write_kernel,
    fp8_kv_write_widen_kernel,
    indexer_gate_kernel,
    indexer_kernel,
    layernorm_kernel,
    nsa_fp8_kv_kernel,
    rope_kv_store_kernel,
)
from sglang.srt.rocm_patches.kv_cache import LayerCache

from tests.kernels import aot
from tests.kernels.recorder import believing
from tests.platform.tensors import poisoned
from tests.tolerances import assert_bitwise

OVERLAY = Path(layernorm_kernel.__file__).parent
ROWS, SAMPLE = 600, (0, 1, 299, 598, 599)
POSITIONS = 64
# The projection's sum has parts, as many as keep a GPU busy with few tokens.
BY_BATCH = {"_project_kernel", "_add_parts_kernel"}


def launched() -> set[str]:
    """The names of all kernels that the overlay launches, from its syntax trees."""
    return {
        node.func.value.id
        for path in OVERLAY.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.endswith("_kernel")
    }


class Inputs:
    """Of ROWS tokens, unlike each other; `part` has those of some tokens alone."""

    def __init__(self, platform):
        self.device, self.fp8 = platform.device, platform.fp8_dtype
        self.kept: dict[str, torch.Tensor] = {}

    def of(self, name: str, tokens: list[int], *shape: int, dtype=torch.bfloat16) -> torch.Tensor:
        if name not in self.kept:
            drawn = torch.randn(ROWS, *shape, device=self.device) * 3 + 1
            self.kept[name] = drawn.to(dtype)
        return self.kept[name][tokens].clone()

    def once(self, name: str, *shape: int, dtype=torch.bfloat16) -> torch.Tensor:
        if name not in self.kept:
            self.kept[name] = torch.randn(*shape, device=self.device).to(dtype)
        return self.kept[name]

    def slots(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor(tokens, device=self.device)

    def positions(self, tokens: list[int]) -> torch.Tensor:
        return self.slots(tokens) * 7 % POSITIONS

    def cache(self, *shape: int, dtype) -> torch.Tensor:
        return poisoned((ROWS, *shape), dtype, self.device)


# Each takes inputs and tokens, and returns what it made of each of these tokens.


def layernorm(size):
    def call(given: Inputs, tokens):
        x, weight, bias = given.of("x", tokens, size), given.once("w", size), given.once("b", size)
        return [layernorm_kernel.layernorm(x, weight, bias, 1e-6)]

    return call


def store_index_k(given: Inputs, tokens):
    cache = given.cache(indexer_kernel.PAGE_BYTES_PER_SLOT, dtype=torch.uint8)
    k, slots = given.of("k", tokens, indexer_kernel.HEAD_DIM), given.slots(tokens)
    indexer_kernel.store_index_k(k, cache, slots, 1, given.fp8)
    return [cache[tokens]]


def scale_head_gates(given: Inputs, tokens):
    gates = given.of("gates", tokens, 32)
    q_scale = given.of("scale", tokens, 32, 1, dtype=torch.float32)
    return [indexer_kernel.scale_head_gates(gates, q_scale, 32**-0.5, 128**-0.5)]


def write_rows(given: Inputs, tokens):
    rows = given.cache(1, 64 + 16, dtype=given.fp8)
    nope, pe = given.of("nope", tokens, 1, 64), given.of("pe", tokens, 1, 16)
    nsa_fp8_kv_kernel.write_rows(rows, given.slots(tokens), nope, pe)
    return [rows[tokens]]


def rope_and_write_rows(given: Inputs, tokens):
    rows = given.cache(1, 64 + 16, dtype=given.fp8)
    q = nsa_fp8_kv_kernel.rope_and_write_rows(
        rows,
        given.slots(tokens),
        given.of("q_nope", tokens, 3, 64),
        given.of("q_pe", tokens, 3, 16),
        given.of("nope", tokens, 1, 64),
        given.of("pe", tokens, 1, 16),
        given.positions(tokens),
        given.once("cos", POSITIONS, 8),
        given.once("sin", POSITIONS, 8),
        False,
        torch.bfloat16,
    )
    return [rows[tokens], q]


def saturating_cast(given: Inputs, tokens):
    return [nsa_fp8_kv_kernel.saturating_cast(given.of("x", tokens, 3, 80), given.fp8)]


def rotate_and_store(given: Inputs, tokens):
    q, k, v = (given.of(name, tokens, heads, 64) for name, heads in (("q", 6), ("k", 2), ("v", 2)))
    cache = LayerCache(*(given.cache(2, 64, dtype=given.fp8) for _ in range(2)), None)
    rope_kv_store_kernel.rotate_and_store(
        q, k, v, given.positions(tokens), given.once("angles", POSITIONS, 64), True,
        cache, given.slots(tokens), 0.11, 0.037,
    )  # fmt: skip
    return [q, k, cache.k[tokens], cache.v[tokens]]


def write_kv(given: Inputs, tokens):
    k, v = given.of("k", tokens, 2, 64), given.of("v", tokens, 2, 64)
    cache = LayerCache(*(given.cache(2, 64, dtype=given.fp8) for _ in range(2)), None)
    fp8_kv_write_kernel.write_kv(k, v, cache, given.slots(tokens), 0.11, 0.037)
    return [cache.k[tokens], cache.v[tokens]]


def widen(given: Inputs, tokens):
    k, v = (given.of(name, list(range(ROWS)), 2, 64, dtype=given.fp8) for name in ("k", "v"))
    slots = given.slots(tokens).int()
    end = torch.tensor([len(tokens)], dtype=torch.int32, device=given.device)
    wide = fp8_kv_write_widen_kernel.widen(k, v, slots, end, 0.11, 0.037, torch.bfloat16)
    return [x[tokens] for x in wide]


ALONE = {
    "_layernorm_kernel": (layernorm_kernel, [layernorm(128), layernorm(768), layernorm(1024)]),
    "_store_index_k_kernel": (indexer_kernel, [store_index_k]),
    "_scale_head_gates_kernel": (indexer_kernel, [scale_head_gates]),
    "_write_rows_kernel": (nsa_fp8_kv_kernel, [write_rows]),
    "_rope_and_write_kernel": (nsa_fp8_kv_kernel, [rope_and_write_rows]),
    "_saturating_cast_kernel": (nsa_fp8_kv_kernel, [saturating_cast]),
    "_rotate_and_store_kernel": (rope_kv_store_kernel, [rotate_and_store]),
    "_write_kv_kernel": (fp8_kv_write_kernel, [write_kv]),
    "_widen_kernel": (fp8_kv_write_widen_kernel, [widen]),
}


def test_every_kernel_of_the_overlay_answers():
    assert launched() == ALONE.keys() | BY_BATCH


class Watched:
    """A kernel that notes that it was launched."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


@pytest.mark.parametrize("kernel", ALONE)
def test_a_row_alone_has_the_bits_that_it_has_among_600(platform, kernel, monkeypatch):
    module, works = ALONE[kernel]
    watched = Watched(getattr(module, kernel))
    monkeypatch.setattr(module, kernel, watched)
    for work in works:
        given = Inputs(platform)
        together = work(given, list(range(ROWS)))
        for token in SAMPLE:
            for alone, among in zip(work(given, [token]), together, strict=True):
                assert_bitwise(alone[0], among[token], f"row {token}")
    assert watched.launches == len(works) * (1 + len(SAMPLE))


def test_the_parts_of_the_projections_sum_are_by_batch():
    """Why it is in BY_BATCH: the day that they are not, it belongs among the others."""
    hidden = 6144
    parts = {indexer_gate_kernel.launch_parameters(n, hidden)["PARTS"] for n in (1, ROWS, 8192)}
    assert len(parts) > 1


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.aot
def test_the_compiler_finds_no_product_and_sum_to_fuse(slug, arch):
    """It fuses what lies in one basic block, and each launch has blocks of its own."""
    for row in aot.recorded("past_31_bits", slug, arch):
        request = row["launch"]
        separate = request | {"options": request["options"] | {"enable_fp_fusion": False}}
        as_launched, kept_apart = (aot.compile_request(r).arithmetic for r in (request, separate))
        assert as_launched == kept_apart, f"{request['kernel']} {request['constexprs']}"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("size", [4, 65, 128, 512, 768, 1024, 5120, 12288])
@pytest.mark.aot
def test_every_launch_of_layernorm_adds_up_a_row_alike(arch, size):
    """Over the same lanes and waves, and with the same instructions for each element."""
    found = {}
    with believing(arch):
        choices = [layernorm_kernel.launch_parameters(n, size) for n in (1, 256, 257, ROWS, 8192)]
    for parameters in choices:
        tensors = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16")
        stride = "i32:16" if size % 16 == 0 else "i32"
        code = aot.compile(
            layernorm_kernel.__name__,
            "_layernorm_kernel",
            signature=tensors | {"num_rows": "i32", "x_row_stride": stride, "eps": "fp32"},
            constexprs={"N": size} | {k: v for k, v in parameters.items() if k != "num_warps"},
            arch=arch,
            num_warps=parameters["num_warps"],
            **layernorm_kernel.OPTIONS,
        )
        found[str(parameters)] = (row_of_sums(code.ttgir), dict(code.arithmetic))
    assert len(set(map(str, found.values()))) == 1, found


def row_of_sums(ttgir: str) -> list[tuple[str, str, str]]:
    """Of each sum along a row: elements of a thread, lanes and waves that the row lies in."""
    layouts = dict(re.findall(r"^#(\w+) = #ttg\.blocked<\{(.*)\}>", ttgir, re.M))
    summed = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<\d+x\d+xf32, #(\w+)>\)', ttgir, re.S)
    assert len(summed) == 2, "the mean and the variance"
    form = r"{} = \[\d+, (\d+)\]"
    return [
        tuple(
            re.search(form.format(part), layouts[name])[1]
            for part in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
        )
        for name in summed
    ]
