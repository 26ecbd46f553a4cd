"""Machine code of every overlay kernel on gfx942 and gfx950, in every form that real models select.

    python3 -m tests.kernels.machine_code    into evidence/aot.gfx942.jsonl and aot.gfx950.jsonl

A row is one specialisation: its resources as Triton compiled them ahead of time, beside those of
upstream's kernel for the same call (release 0.5.10.post1), if upstream has one. `problems` is the
gate: test_machine_code.py checks each row with it.
"""

import argparse
import collections
import sys
from collections.abc import Iterator
from pathlib import Path

from ci.entry import needs, run
from evidence import key as keys
from evidence import store
from evidence.code import merged
from patchset import series
from tests.kernels import aot
from tests.kernels.aot import MachineCode
from tests.platform.value import ARCHS

ROOT = Path(__file__).resolve().parents[2]
SLUGS = tuple(series.load(ROOT).slugs)
# Four waves on a SIMD are 128 registers a lane: while one computes, three have loads under way.
LEAST_WAVES = 4
# A row of the index cache has 132 bytes, one token each: no store to it can be wider than 4.
WIDEST_STORE = {"_store_index_k_kernel": 4}
MANY_TOKENS = 16384
CALL = ("work", "model", "tp", "tokens", "cache_dtype")  # what tells real calls of a slug apart


def problems(code: MachineCode, row: dict) -> Iterator[str]:
    """What is wrong with a specialisation; row: one of real_calls.distinct."""
    try:
        aot.assert_resources(code)
    except AssertionError as told:
        yield str(told)
    if code.waves < LEAST_WAVES:
        yield f"{code.vgpr_count} VGPRs and {code.lds} bytes of LDS leave {code.waves} waves a SIMD"
    fp8 = any("fp8" in kind for kind in row["launch"]["signature"].values())
    if code.native_e4m3 and not code.converts_e4m3:
        yield "e4m3 in software"
    if code.branches > code.branches_allowed:
        yield f"{code.branches} branches, {code.branches_allowed} allowed: one an element"
    if max(call["tokens"] for call in row["calls"]) == MANY_TOKENS:
        widest = WIDEST_STORE.get(row["launch"]["kernel"], 8 if fp8 else 16)
        for access, wanted in (("load", 16), ("store", widest)):
            if max(code.widths(access)) < wanted:
                yield f"{access}s of {max(code.widths(access))} bytes, {wanted} wanted"
            if (share := narrow_share(code.widths(access))) > 0.25:
                yield f"{share:.0%} of the bytes in {access}s of less than 4"


def narrow_share(widths: dict[int, int]) -> float:
    """How much of what a lane moves goes in accesses of less than 4 bytes."""
    moved = {width: width * count for width, count in widths.items()}
    return sum(n for width, n in moved.items() if width < 4) / sum(moved.values())


def describe(row: dict) -> str:
    launch, calls = row["launch"], row["calls"]
    tokens = [call["tokens"] for call in calls]
    ranks = dict.fromkeys(f"{call['model']} TP{call['tp']}" for call in calls)
    first = calls[0]
    return (
        f"{launch['kernel']} ({first['work']}, {first['cache_dtype']} cache, {', '.join(ranks)}, "
        f"{min(tokens)} to {max(tokens)} tokens)"
    )


# The report -------------------------------------------------------------------------------------


def table(arch: str) -> list[dict]:
    rows = []
    for slug in SLUGS:
        for found in aot.recorded("distinct", slug, arch):
            code = aot.compile_request(found["launch"])
            theirs = found["upstream"] and aot.compile_request(found["upstream"])
            calls = found["calls"]
            rows.append(
                {
                    "slug": slug,
                    "kernel": found["launch"]["kernel"],
                    "work": calls[0]["work"],
                    "cache_dtype": calls[0]["cache_dtype"],
                    "models": list(dict.fromkeys(f"{c['model']} TP{c['tp']}" for c in calls)),
                    "tokens": sorted({call["tokens"] for call in calls}),
                    "past_2_gib": found["launch"]["far"],
                    **resources(code),
                    "upstream": theirs
                    and {"kernel": found["upstream"]["kernel"]} | resources(theirs),
                }
            )
            print(f"{arch}  {describe(found)}", flush=True)
    return rows


def launches(arch: str) -> list[dict]:
    """Calls of more than one launch, with how many; a real call that is not here has one."""
    counts = collections.Counter(
        (slug, *(call[name] for name in CALL))
        for slug in SLUGS
        for found in aot.recorded("distinct", slug, arch)
        for call in found["calls"]
    )
    names = ("slug", *CALL, "launches")
    return [dict(zip(names, (*call, n), strict=True)) for call, n in counts.items() if n > 1]


def resources(code: MachineCode) -> dict:
    return {
        "warps": code.warps,
        "vgprs": code.vgpr_count,
        "sgprs": code.sgpr_count,
        "spills": code.vgpr_spill_count + code.sgpr_spill_count,
        "scratch": code.private_segment_fixed_size,
        "lds": code.lds,
        "waves": code.waves,
        "loads": code.widths("load"),
        "stores": code.widths("store"),
        "branches": code.branches,
        "instructions": sum(code.instructions.values()),
        "e4m3": code.converts_e4m3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.kernels.machine_code",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    needs("torch", "triton")
    key = keys.key("none", merged(*(keys.of_machine_code(slug) for slug in SLUGS)))
    for arch in ARCHS:
        header = {"subject": "aot", "key": key | {"arch": arch}, "launches": launches(arch)}
        store.write(ROOT / "evidence" / store.file_name("aot", arch), header, table(arch))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "overlay"))
    sys.exit(run("machine_code", main))
