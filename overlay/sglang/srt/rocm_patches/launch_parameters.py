"""Launch parameters of every Triton kernel for each architecture, with the reasons.

Nothing is tuned at run time. The NVIDIA table was measured on an H200, which runs the tests and the
benchmarks (bench/README.md, "Versions tried"). Nobody has measured the AMD table. It keeps the
numbers of threads and of elements per thread from the NVIDIA table, with these differences.

- A wave has 64 lanes, not 32, so the same number of threads makes half as many waves.
- If there is enough work, a lane takes 16 elements, not 8: 16 bytes of e4m3 in one store.
- Switch to several rows per program later than on NVIDIA: 304 compute units (gfx942) or 256
  (gfx950) with four SIMDs each need more programs to be full than 132 multiprocessors.

Both AMD chips share one table. They differ in LDS, but none of these kernels is limited by LDS.
They differ in compute units, but by less than any limit here. TileLang's programs are limited by
LDS, so nsa_fp8_kv_sparse_mla.py has a table per chip.
"""

import math
from typing import NamedTuple

from sglang.srt.rocm_patches import arch

ANY = math.inf


class Choice(NamedTuple):
    """The launch parameters for a work count of at most ``up_to``.

    size: work per program; the table names the unit. threads: per program; 0 means that the kernel
    derives them from the number of elements.
    """

    up_to: float
    size: int
    threads: int


class ProductChoice(NamedTuple):
    """The same for a GEMM: BLOCK_K is ``depth``, num_stages is ``stages``."""

    up_to: float
    size: int
    threads: int
    depth: int
    stages: int


# Kernel: unit of the work count; unit of size. `choose` takes the first row with count <= up_to.
_NVIDIA = {
    # Tokens; elements of K (and as many of V). A decode step has few programs and is bound by
    # latency: one token per program. Beyond: 8 elements per thread, one 16-byte load of K and of V.
    "fp8-kv-write": (Choice(64, 1, 128), Choice(ANY, 1024, 128)),
    # Tokens times KV heads; elements of q. A decode step: one KV group of one token per program, 4
    # elements per thread. Beyond: 32 per thread, so that more elements share K and the angles.
    "rope-kv-store": (Choice(512, 1, 0), Choice(ANY, 4096, 128)),
    # Tokens; rows of 512 + 64. Two rows keep as many loads in flight, in twice the programs.
    "nsa-fp8-kv write": (Choice(1024, 2, 128), Choice(ANY, 4, 128)),
    # Query heads of one token; heads of 512 + 64.
    "nsa-fp8-kv rope": (Choice(ANY, 4, 64),),
    "nsa-fp8-kv cast": (Choice(ANY, 4096, 128),),  # elements
    # Tokens; keys of 128. A row of 132 bytes needs 4-byte stores: 4 elements of each half row per
    # thread. With more, the compiler moves values between threads through shared memory.
    "indexer store": (Choice(512, 4, 64), Choice(ANY, 16, 256)),
    # Tokens; tokens. A matrix instruction has at least 16 rows.
    "indexer gate": (
        ProductChoice(64, 16, 128, 64, 4),
        ProductChoice(2048, 64, 128, 64, 4),
        ProductChoice(ANY, 64, 128, 128, 4),
    ),
    "indexer gate add": (Choice(ANY, 64, 32),),  # gates
    # Rows; elements. Always 8 per thread, one 16-byte load: the order of a row's sum depends on the
    # elements per thread and must not change with the batch. A decode step: one warp. Beyond: 256
    # threads.
    "layernorm": (Choice(64, 256, 0), Choice(ANY, 2048, 0)),
    # Rows; elements of K (and as many of V). One 16-byte load of e4m3 makes two 16-byte stores.
    "fp8-kv-write widen": (Choice(ANY, 4096, 128),),
}
_AMD = {
    "fp8-kv-write": (Choice(256, 1, 128), Choice(ANY, 2048, 128)),
    "rope-kv-store": (Choice(2048, 1, 0), Choice(ANY, 4096, 256)),
    "nsa-fp8-kv write": (Choice(1024, 2, 128), Choice(ANY, 4, 128)),
    "nsa-fp8-kv rope": (Choice(ANY, 4, 64),),
    "nsa-fp8-kv cast": (Choice(ANY, 4096, 256),),
    # A decode step as on NVIDIA. Beyond: 8 elements of each half row per thread, in 16-byte loads;
    # the values go through LDS to 4-byte stores.
    "indexer store": (Choice(2048, 4, 64), Choice(ANY, 16, 128)),
    # Depth and stages are chosen so that LDS has room for four waves per SIMD.
    "indexer gate": (ProductChoice(64, 16, 256, 64, 2), ProductChoice(ANY, 64, 512, 64, 2)),
    "indexer gate add": (Choice(ANY, 64, 64),),  # one gate per lane
    "layernorm": (Choice(256, 512, 0), Choice(ANY, 2048, 0)),  # one wave
    "fp8-kv-write widen": (Choice(ANY, 4096, 256),),
}


def choose(kernel: str, count: int) -> Choice | ProductChoice:
    """The table's launch parameters for a work count of ``count`` on this GPU."""
    table = _AMD if on_amd() else _NVIDIA
    return next(choice for choice in table[kernel] if count <= choice.up_to)


def warps(threads: int) -> int:
    """The number of warps (AMD: waves) for ``threads`` threads, from 1 to 16."""
    return min(max(threads // (64 if on_amd() else 32), 1), 16)


def on_amd() -> bool:
    return arch() != ""


def device_programs() -> int:
    """About the number of programs that gives every compute unit of this GPU work."""
    return 256 if on_amd() else 128


# Cap of the grid if only the GPU knows the row count (graph capture): enough programs to fill any
# chip. Each program loops over the rows with a stride of num_programs.
PROGRAMS_OF_UNKNOWN_BATCH = 8192
