"""Time on this GPU: one call with all its launches, in CUDA (or HIP) graphs.

A graph holds CALLS calls and is replayed REPLAYS times. A pause comes first, in which the host
queues all replays. The result is the median over the replays. A call of LONG_US or more gets a
graph of its own, which is replayed as often as BUDGET_US allows.

Each call writes to different slots: outputs are cold in the GPU's L2 cache, as in a model with one
KV cache per layer. Inputs are reused: they are warm in L2 if they fit, as in a model, where the
previous kernel has just written them.

``floor_us`` is the bytes that must move (each input read once, each output written once) divided by
the bandwidth of an elementwise kernel on a large tensor on this GPU, in the same run.
``products_us`` is the FLOPs of a case's matrix products divided by the rate of a large bf16 GEMM in
the same run; it is empty if a case has no matrix products to speak of.
"""

import ctypes
import dataclasses
import statistics
from collections.abc import Callable

import torch
import triton

from tests.platform.value import Platform

CALLS, REPLAYS = 20, 15
TRIALS, LONG_US, BUDGET_US, FEWEST_REPLAYS = 3, 1000, 300_000, 3
SLOTS = 131072  # of a cache
COPY_BYTES = 1 << 30
PRODUCT = 8192  # rows, columns and depth
PAUSE = 2_000_000  # GPU cycles, a few ms: longer than the host needs to queue REPLAYS graphs

Call = Callable[[int], object]  # of the i-th call


@dataclasses.dataclass(frozen=True)
class Sides:
    """The implementations of one work; None if this device or release lacks one."""

    ours: Call
    upstream: Call | None = None
    eager: Call | None = None
    others: dict[str, Call] = dataclasses.field(default_factory=dict)  # further rivals by name
    more: dict[str, float] = dataclasses.field(default_factory=dict)  # columns of its own

    def all(self) -> dict[str, Call]:
        """Those that are there, ours first."""
        three = {"ours": self.ours, "upstream": self.upstream, "eager": self.eager}
        return {name: call for name, call in (three | self.others).items() if call is not None}


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
    flops: int | None = None  # of matrix products, where they and not the bytes may be the bound

    @property
    def group(self) -> tuple:
        """What is the same in all rows of one line of a plot."""
        return self.work, self.model, self.tp, self.cache_dtype


@dataclasses.dataclass(frozen=True)
class Ruler:
    """What this device does at its best, measured now."""

    empty_us: float
    bytes_per_us: float
    flops_per_us: float

    def row(self, case: Case) -> dict:
        """The row of a case: launches and microseconds a call of each side, and its floor."""
        sides = case.build()
        row = {
            name: getattr(case, name) for name in ("work", "model", "tp", "tokens", "cache_dtype")
        }
        there = sides.all()
        for side in dict.fromkeys(("ours", "upstream", "eager", *there)):
            us, launches = time(there[side]) if side in there else (None, None)
            row["launches" if side == "ours" else f"{side}_launches"] = launches
            row[f"{side}_us"] = us
        row["floor_us"] = round(case.bytes / self.bytes_per_us, 4)
        row["products_us"] = case.flops and round(case.flops / self.flops_per_us, 4)
        return row | {"empty_us": self.empty_us} | sides.more


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
        call(0)  # compiles
        trials = [pair_of_events() for _ in range(TRIALS)]
        for i, (start, end) in enumerate(trials):
            start.record()
            call(i)
            end.record()
        stream.synchronize()
        # The quickest: a host that is held up for a moment makes no call a long one.
        calls, replays = repetitions(min(a.elapsed_time(b) for a, b in trials) * 1e3)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=stream):
            for i in range(calls):
                call(i)
        launches = nodes(graph) / calls
        for _ in range(min(3, replays // 3)):
            graph.replay()
        events = [pair_of_events() for _ in range(replays)]
        torch.cuda._sleep(PAUSE)
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        stream.synchronize()
    times = [start.elapsed_time(end) * 1e3 / calls for start, end in events]
    return round(statistics.median(times), 4), launches


def repetitions(call_us: float) -> tuple[int, int]:
    """Calls a graph and replays of it, for a call that takes about so long."""
    if call_us < LONG_US:
        return CALLS, REPLAYS
    return 1, max(FEWEST_REPLAYS, min(REPLAYS, int(BUDGET_US / call_us)))


def pair_of_events() -> list[torch.cuda.Event]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(2)]


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
    factors = torch.randn(2, PRODUCT, PRODUCT, device="cuda").bfloat16()
    product = torch.empty_like(factors[0])
    product_us, _ = time(lambda _: torch.mm(*factors, out=product))
    return Ruler(empty_us, 2 * COPY_BYTES / copy_us, 2 * PRODUCT**3 / product_us)
