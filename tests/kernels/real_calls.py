"""Each slug's wrappers as the real models call them, ours and upstream's, on meta tensors.

    for call in calls("rope-kv-store", "gfx942"): call.ours(); call.upstream and call.upstream()

Shapes are those of bench/shapes.py. q, k and v are parts of one projection; caches have the slots
that a large GPU has room for, so that some of them end past 2 GiB.
"""

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from unittest import mock

import torch
from sglang.srt.rocm_patches import (
    fp8_kv_write_kernel,
    fp8_kv_write_widen_kernel,
    indexer_gate_kernel,
    indexer_kernel,
    layernorm_kernel,
    nsa_fp8_kv_kernel,
    rope_kv_store_kernel,
)
from sglang.srt.rocm_patches.kv_cache import LayerCache

from bench.shapes import CACHE_DTYPES, TOKENS, GroupedQuery, SparseLatent, ranks
from tests.kernels.recorder import recorded
from tests.platform.trees import pristine_tree

UPSTREAM = "0.5.10.post1"
# Room for 3 million tokens: past 2 GiB for a whole model in bf16, below it for a rank of many.
SLOTS = 3 * 2**20
POSITIONS = 131072
MANY_TOKENS = 2**25  # times 128 elements, the shortest row of any kernel, are 2^32
ABOUT = ("work", "model", "tp", "tokens", "cache_dtype")
FP8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Call:
    slug: str
    work: str  # what it does, as bench/ calls it where it times it
    model: str
    tp: int
    tokens: int
    cache_dtype: str
    ours: Callable[[], object]
    upstream: Callable[[], object] | None = None  # the same work; None where it has no kernel


def calls(slug: str, arch: str) -> Iterator[Call]:
    """Every call of the models that a slug is about, at every degree of parallelism and batch."""
    for model, tp, rank in ranks(slug):
        for tokens in TOKENS:
            for cache_dtype in CACHE_DTYPES:
                given = (slug, model, tp, rank, tokens, cache_dtype, arch)
                yield from _OF_SLUG[slug](*given)


def distinct(slug: str, arch: str) -> list[dict]:
    """Each specialisation that some call selects, once, with the calls that do.

    ``{"launch": what aot.compile takes, "calls": [{work, model, tp, tokens, cache_dtype}],
    "upstream": the same of upstream's kernel for the first of the calls, None where it has none}``
    """
    found: dict[str, dict] = {}
    for call in calls(slug, arch):
        about = {name: getattr(call, name) for name in ABOUT}
        for launch in recorded(call.ours, arch):
            row = found.setdefault(json.dumps(launch.request), {"launch": launch.request})
            if "calls" not in row:
                theirs = recorded(call.upstream, arch) if call.upstream else []
                row |= {"calls": [], "upstream": theirs[0].request if theirs else None}
            row["calls"].append(about)
    return list(found.values())


def past_31_bits(slug: str, arch: str) -> list[dict]:
    """Launches of every kernel of a slug on tensors of more than 2^31 elements: addresses.narrow's.

    One for each set of arguments that a kernel is given: with scales or a slot mapping, or without.
    """
    found: dict[tuple, dict] = {}
    for model, tp, rank in ranks(slug):
        for cache_dtype in CACHE_DTYPES if tp == 1 else ():
            for call in _OF_SLUG[slug](slug, model, tp, rank, MANY_TOKENS, cache_dtype, arch):
                for launch in recorded(call.ours, arch):
                    request = launch.request
                    row = {"launch": request, "integers": launch.integers, "grid": launch.grid}
                    given = frozenset(request["signature"])
                    found.setdefault((request["kernel"], given), row)
    return list(found.values())


def tensor(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def slots(tokens: int) -> torch.Tensor:
    return tensor(tokens, dtype=torch.int64)


def qkv(rank: GroupedQuery, tokens: int) -> list[torch.Tensor]:
    """q, k and v ``[T, heads, head size]``, parts of one projection's output."""
    heads = (rank.q_heads, rank.kv_heads, rank.kv_heads)
    parts = tensor(tokens, sum(heads) * rank.head).split([n * rank.head for n in heads], -1)
    return [part.unflatten(-1, (-1, rank.head)) for part in parts]


def kv_cache(rank: GroupedQuery, dtype: torch.dtype, swa: bool = False) -> LayerCache:
    k, v = (tensor(SLOTS, rank.kv_heads, rank.head, dtype=dtype) for _ in range(2))
    return LayerCache(k, v, slots(SLOTS) if swa else None)


def _layernorm(slug, model, tp, rank: SparseLatent, tokens, cache_dtype, arch):
    if cache_dtype == "bf16":  # it has no cache
        x, weight, bias = tensor(tokens, rank.index_head), *(tensor(rank.index_head),) * 2
        yield Call(
            slug, "k_norm", model, tp, tokens, "–",
            lambda: layernorm_kernel.layernorm(x, weight, bias, 1e-6),
        )  # fmt: skip


def _indexer(slug, model, tp, rank: SparseLatent, tokens, cache_dtype, arch):
    if cache_dtype == "bf16":  # the index cache is FP8 whatever the other is
        return
    k, fp8 = tensor(tokens, rank.index_head), FP8[arch]
    cache = tensor(SLOTS, indexer_kernel.PAGE_BYTES_PER_SLOT, dtype=torch.uint8)
    quantised, scale = tensor(*k.shape, dtype=fp8), tensor(tokens, 1, dtype=torch.float32)
    accessor = functools.partial(upstream, "srt/layers/attention/nsa/index_buf_accessor.py", arch)
    yield Call(
        slug, "index K", model, tp, tokens, cache_dtype,
        lambda: indexer_kernel.store_index_k(k, cache, slots(tokens), 1, fp8),
        lambda: accessor()._set_k_and_s_triton(cache, slots(tokens), quantised, scale, 1),
    )  # fmt: skip
    gates = tensor(tokens, rank.index_heads)
    q_scale = tensor(tokens, rank.index_heads, 1, dtype=torch.float32)
    yield Call(
        slug, "scale gates", model, tp, tokens, "–",
        lambda: indexer_kernel.scale_head_gates(gates, q_scale, 0.1, 0.1),
    )  # fmt: skip
    x, weight = tensor(tokens, rank.hidden), tensor(rank.index_heads, rank.hidden)
    yield Call(
        slug, "head gates", model, tp, tokens, "–",
        lambda: indexer_gate_kernel.project_head_gates(x, weight, q_scale, 0.1, 0.1),
    )  # fmt: skip


def _nsa_fp8_kv(slug, model, tp, rank: SparseLatent, tokens, cache_dtype, arch):
    dtype = FP8[arch] if cache_dtype == "fp8" else torch.bfloat16
    rows = tensor(SLOTS, 1, rank.latent + rank.rotary, dtype=dtype)
    down = tensor(tokens, 1, rank.latent + rank.rotary)  # the down-projection's latent and rotary
    pe = down[..., rank.latent :]
    normed = tensor(tokens, 1, rank.latent)
    theirs = functools.partial(upstream, "srt/mem_cache/utils.py", arch)
    about = (model, tp, tokens, cache_dtype)

    def upstreams_write():
        if cache_dtype == "fp8":
            theirs().set_mla_kv_buffer_triton_fp8_quant(rows, slots(tokens), normed, pe, dtype)
        else:
            theirs().set_mla_kv_buffer_triton(rows, slots(tokens), normed, pe)

    yield Call(
        slug, "write", *about,
        lambda: nsa_fp8_kv_kernel.write_rows(rows, slots(tokens), normed, pe),
        upstreams_write,
    )  # fmt: skip
    absorbed = tensor(rank.q_heads, tokens, rank.latent).transpose(0, 1)
    q = tensor(tokens, rank.q_heads, 128 + 64 + rank.rotary)
    cos, sin = (tensor(POSITIONS, 1, 1, rank.rotary // 2) for _ in range(2))
    yield Call(
        slug, "rope and write", *about,
        lambda: nsa_fp8_kv_kernel.rope_and_write_rows(
            rows, slots(tokens), absorbed, q[..., -rank.rotary :], normed, pe, slots(tokens),
            cos, sin, False, torch.bfloat16,
        ),
    )  # fmt: skip
    if cache_dtype == "fp8":
        yield Call(
            slug, "rope and write, q in FP8", *about,
            lambda: nsa_fp8_kv_kernel.rope_and_write_rows(
                rows, slots(tokens), absorbed, q[..., -rank.rotary :], normed, pe, slots(tokens),
                cos, sin, False,
            ),
        )  # fmt: skip
        whole = tensor(tokens, rank.q_heads, rank.latent + rank.rotary)
        yield Call(
            slug, "cast q", *about, lambda: nsa_fp8_kv_kernel.saturating_cast(whole, dtype)
        )  # fmt: skip


def _rope_kv_store(slug, model, tp, rank: GroupedQuery, tokens, cache_dtype, arch):
    dtype = FP8[arch] if cache_dtype == "fp8" else torch.bfloat16
    angles, positions = tensor(POSITIONS, rank.rotary), slots(tokens)
    q, k, v = qkv(rank, tokens)
    one = tensor(1, dtype=torch.float32)
    forms = {"rope and store": (False, None)}
    if model.startswith("gpt-oss"):
        forms["rope and store, sliding window"] = (True, None)
    if cache_dtype == "fp8":
        forms |= {f"{work}, scaled": (swa, one) for work, (swa, _) in forms.items()}
    for work, (swa, scale) in forms.items():
        cache = kv_cache(rank, dtype, swa)

        def ours(cache=cache, scale=scale):
            rope_kv_store_kernel.rotate_and_store(
                q, k, v, positions, angles, True, cache, slots(tokens), scale, scale
            )

        def upstreams(cache=cache, scale=scale):
            upstream("srt/layers/attention/utils.py", arch).fused_qk_rope_reshape_and_cache(
                q, k, v, cache.k.unsqueeze(1), cache.v.unsqueeze(1), slots(tokens), positions,
                angles, scale, scale, True, True, q_out=q, k_out=k, output_zeros=False,
                swa_slot_mapping=cache.full_to_swa,
            )  # fmt: skip

        yield Call(slug, work, model, tp, tokens, cache_dtype, ours, upstreams)


def _fp8_kv_write(slug, model, tp, rank: GroupedQuery, tokens, cache_dtype, arch):
    if cache_dtype == "bf16":
        return
    _, k, v = qkv(rank, tokens)
    one = tensor(1, dtype=torch.float32)
    for form, scale in (("", None), (", scaled", one)):
        cache = kv_cache(rank, FP8[arch], model.startswith("gpt-oss"))

        def ours(cache=cache, scale=scale):
            fp8_kv_write_kernel.write_kv(k, v, cache, slots(tokens), scale, scale)

        def upstreams(cache=cache, scale=scale):
            upstream("srt/layers/attention/utils.py", arch).launch_reshape_and_cache_flash(
                k, v, cache.k.unsqueeze(1), cache.v.unsqueeze(1), slots(tokens),
                cache.full_to_swa, scale, scale,
            )  # fmt: skip

        yield Call(slug, f"write{form}", model, tp, tokens, cache_dtype, ours, upstreams)

        def read(cache=cache, scale=scale):
            in_use, end = slots(tokens).int(), tensor(1, dtype=torch.int32)
            fp8_kv_write_widen_kernel.widen(
                cache.k, cache.v, in_use, end, scale, scale, torch.bfloat16
            )

        yield Call(slug, f"widen{form}", model, tp, tokens, cache_dtype, read)


_OF_SLUG = {
    "layernorm": _layernorm,
    "indexer": _indexer,
    "nsa-fp8-kv": _nsa_fp8_kv,
    "rope-kv-store": _rope_kv_store,
    "fp8-kv-write": _fp8_kv_write,
}


# Upstream's files -------------------------------------------------------------------------------


@functools.cache
def upstream(path: str, arch: str) -> ModuleType:
    """One file of the published release, alone: what it imports of sglang answers anything.

    Its kernels need torch and Triton only. is_fp8_fnuz is what the file asks of the architecture.
    """
    name = f"upstream_{arch}_{path.replace('/', '_').removesuffix('.py')}"
    file = pristine_tree(UPSTREAM) / "sglang" / path
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    stand_ins = {
        "sglang.srt.utils": mock.Mock(is_cuda=lambda: False, is_hip=lambda: True),
        "sglang.srt.environ": mock.Mock(),
        "sglang.srt.layers": mock.Mock(),
        "sglang.srt.layers.quantization": mock.Mock(),
        "sglang.srt.layers.quantization.fp8_kernel": mock.Mock(
            is_fp8_fnuz=lambda: arch == "gfx942"
        ),
    }
    with mock.patch.dict(sys.modules, stand_ins):
        spec.loader.exec_module(module)
    sys.modules[name] = module  # aot.compile finds it there
    return module
