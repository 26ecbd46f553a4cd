"""The HIP source that TileLang writes of our sparse attention, in every form real models select.

    python3 -m tests.kernels.hip_source    into evidence/tilelang.gfx942.json and .gfx950.json

Needs TileLang, of a build that writes HIP source; no GPU and no ROCm. Registers are for the
compiler of the source to tell; what the source says is here: LDS, the widths of what is read from
the cache, the matrix instructions, the conversion.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tilelang
from tilelang import tvm

from bench.shapes import CACHE_DTYPES, ranks
from tests import evidence_key

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "overlay"))
from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla as sparse_mla  # noqa: E402
from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla_tiles as tiles  # noqa: E402

SLUG = "nsa-fp8-kv"
ARCHS = ("gfx942", "gfx950")
TOKENS = (1, 64, 8192)  # most splits, some, one


def writes_hip() -> bool:
    return tvm.get_global_func("target.build.tilelang_hip_without_compile", True) is not None


def lowered(arch: str, program) -> tuple[str, int]:
    """The HIP source and LDS of a program."""
    target = tvm.target.Target({"kind": "hip", "mcpu": arch})
    passes = {getattr(key, "value", key): on for key, on in tiles.PASSES.items()}
    with target, tvm.transform.PassContext(config=passes):
        artifact = tilelang.lower(program, target=target)
    (function,) = artifact.device_mod.functions.values()
    return artifact.kernel_source, int(function.attrs.get("dyn_shared_memory_buf", 0))


def partial(arch: str, fp8: bool, heads: int, tokens: int, d_v=512, tail=64, topk=2048):
    """The program that ``sparse_mla`` launches for such a call, and its settings."""
    tiling = sparse_mla.tiling_for(arch, heads, d_v, tail, topk)
    settings = {
        "fp8": fp8,
        "heads": heads,
        "d_v": d_v,
        "tail": tail,
        "topk": topk,
        "splits": sparse_mla.splits_for(arch, tiling, tokens, heads, d_v, tail, topk),
        "head_tile": tiling.heads,
        "keys": tiling.keys,
        "threads": tiling.threads,
    }
    return tiles.partial(platform="hip", **settings), settings


def forms(arch: str) -> Iterator[tuple[dict, list[dict]]]:
    """Each form, by its settings, with the calls that select it."""
    found: dict[str, tuple[dict, list[dict]]] = {}
    for model, tp, rank in ranks(SLUG):
        for cache_dtype in CACHE_DTYPES:
            for tokens in TOKENS:
                call = {"model": model, "tp": tp, "tokens": tokens, "cache_dtype": cache_dtype}
                _, settings = partial(arch, cache_dtype == "fp8", rank.q_heads, tokens)
                found.setdefault(json.dumps(settings), (settings, []))[1].append(call)
    yield from found.values()


def row(arch: str, settings: dict, calls: list[dict]) -> dict:
    source, lds = lowered(arch, tiles.partial(platform="hip", **settings))
    widths = {"int4": 16, "int2": 8, "int": 4}
    loads = re.findall(r"\*\((\w+)\*\)\(kv \+ (.*)\);", source)
    return {
        "slug": SLUG,
        "kernel": "sparse_mla_partial",
        "cache_dtype": calls[0]["cache_dtype"],
        "models": list(dict.fromkeys(f"{call['model']} TP{call['tp']}" for call in calls)),
        "tokens": sorted({call["tokens"] for call in calls}),
        **{name: settings[name] for name in ("heads", "splits", "keys", "threads")},
        "lds": lds,
        "cache_loads": sorted({widths[width] for width, _ in loads}, reverse=True),
        "addresses_64_bit": all("(int64_t)" in address for _, address in loads),
        "matrix_instructions": sorted(set(re.findall(r"mfma_\w+?x\d+\w*", source))),
        "e4m3": not settings["fp8"] or "__builtin_amdgcn_cvt_pk_f32_fp8" in source,
    }


def main() -> int:
    if not writes_hip():
        print(f"hip_source: this build of TileLang {tilelang.__version__} writes no HIP source")
        return 1
    key = evidence_key.key("none", evidence_key.sources([evidence_key.HIP_SOURCE]))
    for arch in ARCHS:
        rows = []
        for settings, calls in forms(arch):
            rows.append(row(arch, settings, calls))
            print(arch, json.dumps(settings), flush=True)
        lines = ",\n  ".join(json.dumps(each) for each in rows)
        path = ROOT / "evidence" / f"tilelang.{arch}.json"
        path.write_text(
            f'{{\n "key": {json.dumps(key | {"arch": arch})},\n "rows": [\n  {lines}\n ]\n}}\n'
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
