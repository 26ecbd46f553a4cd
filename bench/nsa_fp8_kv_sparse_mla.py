"""Sparse MLA attention on this GPU: ours beside upstream's TileLang kernels, in CUDA graphs.

    python3 bench/nsa_fp8_kv_sparse_mla.py --upstream build/sglang-0.5.10.post1 [--quick] [--json F]

A row is one call with all its launches, upstream's with its cast of q; ``floor`` is the bytes that
must move over 4.3 TB/s. Errors are ||out - ref|| / ||ref|| against fp64 attention over the cache as
stored, and over the cache before it was quantised.
"""

import argparse
import importlib.util
import json
import logging
import statistics
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "overlay")]
logging.disable(logging.INFO)  # TileLang tells of every compilation

from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla as ours  # noqa: E402

from tests.references import nsa_fp8_kv_sparse_mla as reference  # noqa: E402

BANDWIDTH = 4.3e6  # bytes in a microsecond, a copy's on one H200
SLOTS, TOPK, D_V, TAIL = 131072, 2048, 512, 64
SM_SCALE = (D_V + TAIL) ** -0.5
HEADS, TOKENS = (8, 16, 32, 64, 128), (1, 16, 64, 256)
CALLS, REPLAYS, CHECKED_TOKENS = 20, 15, 8
FORMATS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def load_upstream(tree: Path):
    """upstream's tilelang_kernel.py, alone, believing that it runs on gfx950."""
    for name in ("sglang.srt.layers", "sglang.srt.layers.quantization"):
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    quantisation = types.ModuleType("sglang.srt.layers.quantization.fp8_kernel")
    quantisation.is_fp8_fnuz = lambda: False
    utils = types.ModuleType("sglang.srt.utils")
    utils.is_hip = utils.is_gfx95_supported = lambda: True
    sys.modules |= {module.__name__: module for module in (quantisation, utils)}
    path = next(tree.rglob("layers/attention/nsa/tilelang_kernel.py"))
    spec = importlib.util.spec_from_file_location("upstream_tilelang_kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tilelang_sparse_fwd


def inputs(tokens, heads, cache):
    q = torch.randn(tokens, heads, D_V + TAIL, device="cuda").bfloat16()
    shape = (tokens, 1, TOPK)
    draws = [
        torch.randint(0, len(cache), shape, dtype=torch.int32, device="cuda") for _ in range(CALLS)
    ]
    return q, draws


def compile_ahead(job):
    """One configuration of one side, into TileLang's cache on disk."""
    tree, side, tokens, heads, dtype = job
    call = load_upstream(tree) if side == "upstream" else ours.sparse_mla
    cache = torch.zeros(64, 1, D_V + TAIL, device="cuda").to(FORMATS[dtype])
    q, draws = inputs(tokens, heads, cache)
    call(q, cache, draws[0], SM_SCALE, D_V)
    torch.cuda.synchronize()


def microseconds(call, draws) -> float:
    """Median over replays of a graph of one call for each draw of indices."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for draw in draws:
            call(draw)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for draw in draws:
                call(draw)
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(draws))
    return statistics.median(times)


def floor(tokens, heads, dtype) -> float:
    rows = tokens * TOPK * (D_V + TAIL) * FORMATS[dtype].itemsize
    q_and_out = tokens * heads * (2 * D_V + TAIL) * 2
    return (rows + q_and_out + tokens * TOPK * 4) / BANDWIDTH


def error(out, expected) -> float:
    return ((out.double() - expected).norm() / expected.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a tree of 0.5.10.post1")
    parser.add_argument("--quick", action="store_true", help="8 and 16 heads only")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    heads_of = HEADS[:2] if options.quick else HEADS
    jobs = [
        (options.upstream, side, tokens, heads, dtype)
        for side in ("upstream", "ours")
        for heads in heads_of
        for tokens in TOKENS
        for dtype in FORMATS
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), max_workers=15) as pool:
        list(pool.map(compile_ahead, jobs))
    upstream = load_upstream(options.upstream)
    exact = torch.randn(SLOTS, 1, D_V + TAIL, device="cuda").bfloat16()
    caches = {name: exact.to(dtype) for name, dtype in FORMATS.items()}
    rows = []
    print("heads tokens cache   ours us  x floor  upstream us  x floor   error: ours / upstream")
    for heads in heads_of:
        for tokens in TOKENS:
            for name, cache in caches.items():
                q, draws = inputs(tokens, heads, cache)
                row = {"heads": heads, "tokens": tokens, "cache_dtype": name}
                row["floor_us"] = floor(tokens, heads, name)
                some = slice(CHECKED_TOKENS)
                given = (draws[0][some], SM_SCALE, D_V)
                stored = reference.sparse_mla(q[some], cache, *given)
                unquantised = reference.sparse_mla(q[some], exact, *given)
                for side, call in (("ours", ours.sparse_mla), ("upstream", upstream)):
                    out = call(q, cache, draws[0], SM_SCALE, D_V).view(tokens, heads, D_V)[some]
                    row[f"{side}_error"] = error(out, stored)
                    row[f"{side}_error_unquantised"] = error(out, unquantised)
                    row[f"{side}_us"] = microseconds(
                        lambda draw, call=call, q=q, cache=cache: call(
                            q, cache, draw, SM_SCALE, D_V
                        ),
                        draws,
                    )
                rows.append(row)
                print(
                    f"{heads:5} {tokens:6} {name:5} "
                    f"{row['ours_us']:9.1f} {row['ours_us'] / row['floor_us']:8.2f} "
                    f"{row['upstream_us']:12.1f} {row['upstream_us'] / row['floor_us']:8.2f} "
                    f"  {row['ours_error']:.4f} / {row['upstream_error']:.4f}, unquantised "
                    f"{row['ours_error_unquantised']:.4f} / "
                    f"{row['upstream_error_unquantised']:.4f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
