"""The HIP source that TileLang writes of our sparse attention, in every form real models select.

    python3 -m tests.kernels.hip_source [ARCH]    into evidence/tilelang.gfx942.jsonl, .gfx950.jsonl

Needs TileLang, of a build that writes HIP source, and the HIP compiler of hip_compiler.py; no GPU.
The source says LDS, the widths of what is read from memory, 64-bit addresses, the matrix
instructions, the conversion, and the compiler registers, spills and scratch; beside them those of
upstream's kernel for the first call of a form. `problems` is the gate that
test_nsa_fp8_kv_sparse_mla.py holds every row to.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ci.entry import WRONG, Stop, needs_first, run

ARCHS = ("gfx942", "gfx950")


def asked() -> str | None:
    """The architecture that is asked for. --help needs no package, and a lacking one is named."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.kernels.hip_source",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arch", nargs="?", choices=ARCHS, help="default: both")
    only = parser.parse_args().arch
    needs_first("hip_source", "tilelang", "torch", "triton")
    return only


if __name__ == "__main__":
    only = asked()

import tilelang  # noqa: E402
import torch  # noqa: E402
from tilelang import tvm  # noqa: E402

from bench.shapes import CACHE_DTYPES, TOKENS, ranks  # noqa: E402
from evidence import key as keys  # noqa: E402
from evidence import store  # noqa: E402
from tests.platform.value import Platform  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "overlay"))
from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla as sparse_mla  # noqa: E402
from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla_tiles as tiles  # noqa: E402
from sglang.srt.rocm_patches.nsa_fp8_kv_sparse_mla_combine import combine  # noqa: E402

from tests.kernels import hip_compiler, real_calls  # noqa: E402
from tests.kernels.aot import CompilationError  # noqa: E402

SLUG = "nsa-fp8-kv"
UPSTREAM = "srt/layers/attention/nsa/tilelang_kernel.py"
WIDTHS = {"uint4": 16, "int4": 16, "fp8_e4_16_t": 16, "uint2": 8, "int2": 8, "int": 4}
# What is read row by row, in our programs and in upstream's.
ROWS = "kv|KV|kv_fp8|part|Partial_O"


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


def settings_of(arch: str, fp8: bool, heads: int, tokens: int, d_v=512, tail=64, topk=2048) -> dict:
    """Those of the program that ``sparse_mla`` launches for such a call."""
    tiling = sparse_mla.tiling_for(arch, heads, d_v, tail, topk)
    return {
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


def partial(settings: dict):
    return tiles.partial(platform="hip", **settings)


def forms(arch: str) -> Iterator[tuple[str, dict, list[dict]]]:
    """Each form of each program, by its name and settings, with the calls that select it."""
    found: dict[str, tuple[str, dict, list[dict]]] = {}
    for model, tp, rank in ranks(SLUG):
        for cache_dtype in CACHE_DTYPES:
            for tokens in TOKENS:
                call = {"model": model, "tp": tp, "tokens": tokens, "cache_dtype": cache_dtype}
                settings = settings_of(arch, cache_dtype == "fp8", rank.q_heads, tokens)
                programs = {"sparse_mla_partial": settings}
                if settings["splits"] > 1:
                    of_both = ("heads", "d_v", "splits")
                    programs["sparse_mla_combine"] = {name: settings[name] for name in of_both}
                for name, form in programs.items():
                    found.setdefault(f"{name} {form}", (name, form, []))[2].append(call)
    yield from found.values()


def row(arch: str, name: str, settings: dict, calls: list[dict]) -> dict:
    caches = list(dict.fromkeys(call["cache_dtype"] for call in calls))
    combines = name == "sparse_mla_combine"
    program = combine(**settings) if combines else partial(settings)
    threads = settings.get("threads", settings["d_v"] // 4)
    return {
        "slug": SLUG,
        "kernel": name,
        "cache_dtype": " and ".join(caches),
        "models": list(dict.fromkeys(f"{call['model']} TP{call['tp']}" for call in calls)),
        "tokens": sorted({call["tokens"] for call in calls}),
        "heads": settings["heads"],
        "splits": settings["splits"],
        "keys": settings.get("keys", "–"),
        "threads": threads,
        **said(arch, program, threads),
        "upstream": upstream(arch, name, settings["heads"], calls[0]),
    }


def said(arch: str, program, threads: int) -> dict:
    """What its source and its compiler say of a program."""
    source, lds = lowered(arch, program)
    code = hip_compiler.compile(source, arch, lds, threads)
    return told(source, lds) | {
        "vgprs": code.vgpr_count,
        "spills": code.vgpr_spill_count + code.sgpr_spill_count,
        "scratch": code.private_segment_fixed_size,
    }


def waves(arch: str, row: dict) -> tuple[int, int]:
    """How many waves of a program that has LDS its registers, and its LDS, leave a compute unit.

    Four SIMDs, each with 512 registers a lane, in steps of 8, and eight waves.
    """
    by_registers = 4 * min(8, 512 // (-(-max(row["vgprs"], 1) // 8) * 8))
    return by_registers, sparse_mla.CHIPS[arch].lds // row["lds"] * row["threads"] // 64


def told(source: str, lds: int) -> dict:
    """What the source says of a program."""
    body = source[source.index('extern "C"') :]
    pointers = "|".join(re.findall(r"\* __restrict__ (\w+)", body.partition("{")[0]))
    # What an address is made of first; TileLang keeps some in a variable.
    first = set(re.findall(rf"\b(?:{pointers})(?: \+ |\[)\(*(\w+)", body))
    wide = first - {"int64_t"} <= set(re.findall(r"int64_t (\w+);", body))
    narrow = re.search(r"\(\(int\)blockIdx\.\w\) \*", body)
    loads = set(re.findall(rf"= \*\((\w+)\*\)\((?:{ROWS}) \+", body))
    return {
        "lds": lds,
        "cache_loads": sorted((WIDTHS[width] for width in loads), reverse=True),
        "addresses_64_bit": wide and not narrow,
        "matrix_instructions": sorted(set(re.findall(r"mfma_\w+?x\d+\w*", source))),
        "e4m3": "fp8" not in source or "__builtin_amdgcn_cvt_pk_f32_fp8" in source,
    }


def problems(arch: str, row: dict) -> Iterator[str]:
    """What is wrong with a form; row: one of `row`'s."""
    combines = row["kernel"] == "sparse_mla_combine"
    limit = 0 if combines else sparse_mla.CHIPS[arch].lds
    if row["lds"] > limit:
        yield f"{row['lds']} bytes of LDS, {limit} allowed"
    if row["cache_loads"] != [8 if combines else 16]:
        yield f"loads of {row['cache_loads']} bytes"
    if not row["addresses_64_bit"]:
        yield "an address computed in 32 bits"
    if not row["e4m3"]:
        yield "e4m3 in software"
    if row["spills"] or row["scratch"]:
        yield f"{row['spills']} spills, {row['scratch']} bytes of scratch a lane"
    if combines:
        return
    by_registers, by_lds = waves(arch, row)
    if by_registers < by_lds:
        yield f"{row['vgprs']} registers leave {by_registers} waves, LDS {by_lds}"
    if not all("16x16x16" in name for name in row["matrix_instructions"]):
        yield f"products by {row['matrix_instructions']}"


def upstream(arch: str, name: str, heads: int, call: dict) -> dict:
    """What upstream's program does that has the same part in a call, by its wrapper's choice."""
    module = real_calls.upstream(UPSTREAM, arch)
    programs = ("sparse_mla_fwd_decode_partial", "sparse_mla_fwd_decode_partial_fp8")
    programs += ("sparse_mla_fwd_decode_combine",)
    chosen = []

    def recording(program):
        def choose(*sizes, **settings):
            chosen.append((program, sizes, settings))
            return lambda *tensors: (None, None)

        return choose

    def tensor(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    cache = Platform("rocm", arch).fp8_dtype if call["cache_dtype"] == "fp8" else torch.bfloat16
    stand_ins = {program: recording(program) for program in programs}
    with mock.patch.multiple(module, _is_gfx95_supported=arch == "gfx950", **stand_ins):
        module.tilelang_sparse_fwd(
            tensor(call["tokens"], heads, 576, dtype=torch.bfloat16),
            tensor(1 << 20, 1, 576, dtype=cache),
            tensor(call["tokens"], 1, 2048, dtype=torch.int32),
            1.0,
        )
    program, sizes, settings = chosen[1 if name == "sparse_mla_combine" else 0]
    return {"kernel": program} | _lowered(arch, program, sizes, tuple(settings.items()))


@functools.cache
def _lowered(arch: str, program: str, sizes: tuple, settings: tuple) -> dict:
    builder = getattr(real_calls.upstream(UPSTREAM, arch), program)
    threads = dict(settings)["threads"]
    found = said(arch, builder.get_tir(*sizes, **dict(settings)), threads)
    del found["e4m3"]  # its FP8 products take the bytes as they are
    return found | {"threads": threads}


def main(only: str | None) -> int:
    if not writes_hip():
        raise Stop(f"this build of TileLang {tilelang.__version__} writes no HIP source")
    try:
        key = keys.key("none", keys.of_hip_source())
        key |= {"compiler": f"clang {hip_compiler.version()}"}
        for arch in [only] if only else ARCHS:
            write(arch, key | {"arch": arch})
    except CompilationError as error:
        raise Stop(str(error), WRONG) from error
    return 0


def write(arch: str, key: dict) -> None:
    rows = []
    for name, settings, calls in forms(arch):
        rows.append(row(arch, name, settings, calls))
        print(arch, name, json.dumps(settings), *problems(arch, rows[-1]), flush=True)
    store.write(evidence_of(arch), {"subject": "tilelang", "key": key}, rows)


def evidence_of(arch: str) -> Path:
    return ROOT / "evidence" / store.file_name("tilelang", arch)


if __name__ == "__main__":
    sys.exit(run("hip_source", lambda: main(only)))
