"""Launch parameters of every Triton kernel, for each architecture, and why: the one table.

Nothing is tuned at run time. The NVIDIA column is measured on an H200, where tests and benchmarks
run (bench/README.md, "Versions tried"). Nobody has measured the AMD columns: they take over what
the measurement showed to matter, as threads and as elements a thread, with these differences.

- A wave has 64 lanes, not 32, so the same threads are half as many waves.
- Where there is enough work, a lane has 16 elements, not 8: 16 bytes of e4m3 in one store.
- The limit from which a program takes more than it must is higher: 304 compute units (gfx942) or
  256 (gfx950), each of four SIMDs, want more programs than 132 multiprocessors do.

Both AMD chips have one column: they differ in LDS, which none of these kernels is short of, and in
the number of units by less than any limit here. TileLang's programs, which are short of LDS, have a
table for each chip in nsa_fp8_kv_sparse_mla.py.
"""

import math
from typing import NamedTuple

from sglang.srt.rocm_patches import arch

ANY = math.inf


class Choice(NamedTuple):
    """For up to so many pieces of work: what one program takes, and by how many threads.

    Threads of 0: so many as the kernel has elements for.
    """

    up_to: float
    size: int
    threads: int


class ProductChoice(NamedTuple):
    """The same for a matrix product that adds up ``depth`` at a time, ``stages`` under way."""

    up_to: float
    size: int
    threads: int
    depth: int
    stages: int


# Kernel: what is counted, what a size is; then the choices, first that fits.
_NVIDIA = {
    # Tokens; elements of K, of V likewise. A decode step is short of programs and bound by
    # latency: a token each. Then 8 elements a thread: one load of 16 bytes each of K and V.
    "fp8-kv-write": (Choice(64, 1, 128), Choice(ANY, 1024, 128)),
    # Tokens times KV heads; elements of q. A decode step: a token's KV group each, 4 elements a
    # thread. Then 32 a thread: what a group shares, its K, its angles, is read for more of them.
    "rope-kv-store": (Choice(512, 1, 0), Choice(ANY, 4096, 128)),
    # Tokens; rows of 512 + 64. Two rows are as many loads under way, on twice the programs.
    "nsa-fp8-kv write": (Choice(1024, 2, 128), Choice(ANY, 4, 128)),
    # Query heads; heads of 512 + 64, of one token.
    "nsa-fp8-kv rope": (Choice(ANY, 4, 64),),
    "nsa-fp8-kv cast": (Choice(ANY, 4096, 128),),  # elements
    # Tokens; keys of 128. A row of 132 bytes takes stores of 4 bytes: 4 elements of each half a
    # thread, or the compiler sends the values to other threads through shared memory.
    "indexer store": (Choice(512, 4, 64), Choice(ANY, 16, 256)),
    # Tokens; tokens. 16 are the least rows of a matrix instruction.
    "indexer gate": (
        ProductChoice(64, 16, 128, 64, 4),
        ProductChoice(2048, 64, 128, 64, 4),
        ProductChoice(ANY, 64, 128, 128, 4),
    ),
    "indexer gate add": (Choice(ANY, 64, 32),),  # gates
    # Rows; elements. 8 a thread, one load of 16 bytes, always: a row's sum is laid out by what a
    # thread has, and must not change with the batch. A decode step: one warp; then 256 threads.
    "layernorm": (Choice(64, 256, 0), Choice(ANY, 2048, 0)),
    # Rows; elements of K, of V likewise. A load of 16 bytes of e4m3 is two stores of 16 of bf16.
    "fp8-kv-write widen": (Choice(ANY, 4096, 128),),
}
_AMD = {
    "fp8-kv-write": (Choice(256, 1, 128), Choice(ANY, 2048, 128)),
    "rope-kv-store": (Choice(2048, 1, 0), Choice(ANY, 4096, 256)),
    "nsa-fp8-kv write": (Choice(1024, 2, 128), Choice(ANY, 4, 128)),
    "nsa-fp8-kv rope": (Choice(ANY, 4, 64),),
    "nsa-fp8-kv cast": (Choice(ANY, 4096, 256),),
    # A decode step as there. Then 8 elements of each half: loads of 16 bytes, and the values go
    # through LDS to stores of 4.
    "indexer store": (Choice(2048, 4, 64), Choice(ANY, 16, 128)),
    # Depth and stages so that LDS has room for four waves a SIMD.
    "indexer gate": (ProductChoice(64, 16, 256, 64, 2), ProductChoice(ANY, 64, 512, 64, 2)),
    "indexer gate add": (Choice(ANY, 64, 64),),  # a lane each
    "layernorm": (Choice(256, 512, 0), Choice(ANY, 2048, 0)),  # one wave
    "fp8-kv-write widen": (Choice(ANY, 4096, 256),),
}


def choose(kernel: str, count: int) -> Choice | ProductChoice:
    """The table's choice for ``count`` pieces of work on this GPU."""
    table = _AMD if on_amd() else _NVIDIA
    return next(choice for choice in table[kernel] if count <= choice.up_to)


def warps(threads: int) -> int:
    """So many threads as warps, or waves, of this GPU: a power of two from 1 to 16."""
    return min(max(threads // (64 if on_amd() else 32), 1), 16)


def on_amd() -> bool:
    return arch() != ""


def device_programs() -> int:
    """About as many programs of one kernel as this GPU runs at once with all its units at work."""
    return 256 if on_amd() else 128


# Of a batch whose length the host does not know: enough to keep any of the chips busy. A longer one
# is walked in turns, so that a graph, which knows its largest batch alone, launches no more either.
PROGRAMS_OF_UNKNOWN_BATCH = 8192
