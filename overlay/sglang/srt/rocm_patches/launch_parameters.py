"""Launch parameters of every Triton kernel, for each architecture, and why: the one table.

Nothing is tuned at run time. The NVIDIA column is measured on an H200, where tests and benchmarks
run (bench/README.md, "Versions tried"). Nobody has measured the AMD columns: they take over what
the measurement showed to matter, as threads and as elements a thread, with these differences.

- A wave has 64 lanes, not 32, so the same threads are half as many waves.
- Where there is enough work, a lane has 16 elements, not 8: 16 bytes of e4m3 in one store.
- The limit from which a program takes more than it must is higher: 304 compute units (gfx942) or
  256 (gfx950), each of four SIMDs, want more programs than 132 multiprocessors do.
"""

import math
from typing import NamedTuple

from sglang.srt.rocm_patches import arch

ANY = math.inf


class Choice(NamedTuple):
    """For up to so many pieces of work: what one program takes, and by how many threads."""

    up_to: float
    size: int
    threads: int


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
    "indexer gate": (Choice(64, 16, 128), Choice(ANY, 64, 128)),  # tokens; tokens
    # Rows; elements. A decode step: a row each. Then 8 elements a thread: one load of 16 bytes.
    "layernorm": (Choice(64, 1, 0), Choice(ANY, 2048, 256)),
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
    "indexer gate": (Choice(64, 16, 256), Choice(ANY, 64, 512)),
    "layernorm": (Choice(256, 1, 0), Choice(ANY, 2048, 256)),
}


def choose(kernel: str, count: int) -> Choice:
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
