"""Time on this GPU: one call with all its launches, in CUDA (or HIP) graphs.

A graph holds CALLS calls; it is replayed REPLAYS times behind a pause in which the host queues
them all, and the median counts. Every call has slots of its own, as every layer has a cache of its
own: what is written does not lie in the GPU's cache from the call before. What is read does where
it fits, as in a model, where the kernel before has just written it.

``floor_us`` is the bytes that must move (each input read once, each output written once) over what
an elementwise kernel on a large tensor moves on this GPU in the same run.
"""

import ctypes
import dataclasses
import statistics
from collections.abc import Callable

import torch
import triton

from tests.platform.value import Platform

CALLS, REPLAYS = 20, 15
SLOTS = 131072  # of a cache
COPY_BYTES = 1 << 30
PAUSE = 2_000_000  # GPU cycles, some milliseconds: more than the host takes to queue REPLAYS graphs

Call = Callable[[int], object]  # of the i-th call


@dataclasses.dataclass(frozen=True)
class Sides:
    """The same work, done by each rival; None where this device or release has none."""

    ours: Call
    upstream: Call | None = None
    eager: Call | None = None
    more: dict[str, float] = dataclasses.field(default_factory=dict)  # columns of its own


@dataclasses.dataclass(frozen=True)
class Case:
    """One row to be. `build` makes its inputs, which live no longer than the row takes."""

    work: str
    model: str
    tp: int
    tokens: int
    cache_dtype: str  # of what is written: "bf16" or "fp8"
    bytes: int
    build: Callable[[], Sides]

    @property
    def group(self) -> tuple:
        """What is the same in all rows of one line of a plot."""
        return self.work, self.model, self.tp, self.cache_dtype


@dataclasses.dataclass(frozen=True)
class Ruler:
    """What this device does at its best, measured now."""

    empty_us: float
    bytes_per_us: float

    def row(self, case: Case) -> dict:
        """The row of a case: launches and microseconds a call of each side, and its floor."""
        sides = case.build()
        row = {
            name: getattr(case, name) for name in ("work", "model", "tp", "tokens", "cache_dtype")
        }
        row["launches"] = None
        for side in ("ours", "upstream", "eager"):
            call = getattr(sides, side)
            us, launches = (None, None) if call is None else time(call)
            row[f"{side}_us"] = us
            row["launches" if side == "ours" else f"{side}_launches"] = launches
        floor_us = round(case.bytes / self.bytes_per_us, 4)
        return row | {"floor_us": floor_us, "empty_us": self.empty_us} | sides.more


def slots(tokens: int) -> list[torch.Tensor]:
    """int64 `[tokens]` for each call, anywhere in a cache of SLOTS."""
    return [torch.randperm(SLOTS, device="cuda")[:tokens] for _ in range(CALLS)]


def dtype_of(cache_dtype: str, platform: Platform) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp8": platform.fp8_dtype}[cache_dtype]


def time(call: Call) -> tuple[float, float]:
    """Microseconds and launches of one call."""
    torch.cuda.synchronize()  # the inputs are there
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(2):
            call(i)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=stream):
            for i in range(CALLS):
                call(i)
        launches = nodes(graph) / CALLS
        for _ in range(3):
            graph.replay()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPLAYS)]
        torch.cuda._sleep(PAUSE)
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        stream.synchronize()
    times = [start.elapsed_time(end) * 1e3 / CALLS for start, end in events]
    return round(statistics.median(times), 4), launches


def nodes(graph: torch.cuda.CUDAGraph) -> int:
    """How many kernels, copies and fills a captured graph launches."""
    library, function = (
        ("libcuda.so.1", "cuGraphGetNodes")
        if torch.version.hip is None
        else ("libamdhip64.so", "hipGraphGetNodes")
    )
    count = ctypes.c_size_t()
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    error = getattr(ctypes.CDLL(library), function)(handle, None, ctypes.byref(count))
    if error:
        raise RuntimeError(f"{function} answered {error}")
    return count.value


@triton.jit
def _empty_kernel(x):
    pass


def measure_ruler() -> Ruler:
    # A kernel that reads and writes: a copy in a graph goes to a copy engine, which is slower.
    source = torch.zeros(COPY_BYTES // 4, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copy_us, _ = time(lambda _: torch.bitwise_not(source, out=target))
    empty_us, _ = time(lambda _: _empty_kernel[(1,)](source, num_warps=1))
    return Ruler(empty_us, 2 * COPY_BYTES / copy_us)
