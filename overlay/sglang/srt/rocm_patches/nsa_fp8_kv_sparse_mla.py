"""Sparse MLA attention over an FP8 or bf16 KV cache, prefill and decode, in one or two launches.

``sparse_mla`` replaces upstream's ``tilelang_sparse_fwd``. ``why_not`` gives the reason why a call
is not supported. This module chooses each chip's tiling and the number of splits, and checks the
LDS. The programs are in nsa_fp8_kv_sparse_mla_tiles.py and nsa_fp8_kv_sparse_mla_combine.py.
"""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import tilelang
import torch
from sglang.srt.rocm_patches import nsa_fp8_kv_sparse_mla_tiles as tiles
from sglang.srt.rocm_patches.nsa_fp8_kv_sparse_mla_combine import combine
from tilelang import tvm

# The ROCm images build TileLang from commits ebf4a7cb (0.5.9) and a55a8230 (0.5.10 and later). They
# are 31 and 48 commits after 0.1.7.post3, and 84 and 67 before 0.1.8. We tested wheels instead:
# 0.1.10 and later generate HIP source; the two before ran every pass for a HIP target short of the
# source, with the same instructions. The exact commits are untested.
CHECKED_RELEASES = ("0.1.7.post3", "0.1.8", "0.1.10", "0.1.11", "0.1.12", "0.1.15")
IMAGE_COMMITS = ("ebf4a7cb", "a55a8230")

FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
MOST_PARTS_BYTES = 1 << 30


@dataclass(frozen=True)
class Tiling:
    """Tile of one workgroup: ``keys`` cache rows per step, for ``heads`` query heads."""

    keys: int
    threads: int
    heads: int


@dataclass(frozen=True)
class Chip:
    """lds: bytes of LDS per compute unit, all usable by one workgroup. units: compute units.

    ``tilings``: the widest tile of heads first. A wider tile reads a token's rows once for more
    heads.
    """

    platform: str
    fp8: torch.dtype
    lds: int
    units: int
    tilings: tuple[Tiling, ...]


CHIPS = {
    # 32 keys: 64 rows of 576 fp16 values would exceed the LDS. Each of two waves takes the 16 rows
    # of one matrix instruction. One workgroup fits a compute unit.
    "gfx942": Chip("hip", torch.float8_e4m3fnuz, 64 << 10, 304, (Tiling(32, 128, 16),)),
    # The same tile: two workgroups fit; one computes while the other waits for memory.
    "gfx950": Chip("hip", torch.float8_e4m3fn, 160 << 10, 256, (Tiling(32, 128, 16),)),
    # For tests and benchmarks. 64 keys are the rows of a warpgroup's matrix instruction. A tile of
    # 32 heads or more fills a multiprocessor by itself, and reads its keys once for all heads.
    "sm_90": Chip(
        "cuda",
        torch.float8_e4m3fn,
        227 << 10,
        132,
        (Tiling(64, 256, 64), Tiling(64, 256, 32), Tiling(64, 128, 16)),
    ),
}


def lds_bytes(tiling: Tiling, d_v: int, tail: int, rows: int) -> int:
    """The most LDS that TileLang allocates for one workgroup of ``tiles.partial``.

    The sum of: slots of the split's ``rows`` keys; q and a tile of keys in 16 bits; the
    probabilities (TileLang before 0.1.10 pads their rows by 16 bytes); one maximum per 16 keys; the
    factors that rescale earlier tiles. The result and the sums reuse the LDS of q and the keys.
    """
    slots = 4 * rows
    operands = 2 * (tiling.heads + tiling.keys) * (d_v + tail)
    probabilities = 2 * tiling.keys * (tiling.heads + 8)
    maxima = 4 * tiling.keys // tiles.MATRIX_ROWS * tiling.heads
    shrink = 4 * tiling.heads
    return slots + operands + probabilities + maxima + shrink


@functools.cache
def chip_of(device: torch.device) -> str:
    """The device's name, as CHIPS would name it; the chip may be missing in CHIPS."""
    properties = torch.cuda.get_device_properties(device)
    # TileLang's own setting takes precedence: tests on an NVIDIA GPU set it.
    if torch.version.hip is not None and os.environ.get("TILELANG_DEFAULT_TARGET") != "cuda":
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache  # the same answer for every layer and step of a model
def tiling_for(arch: str, heads: int, d_v: int, tail: int, topk: int) -> Tiling:
    """The widest tiling that the heads fill and the LDS holds; ValueError with a reason if none."""
    chip = CHIPS[arch]
    if d_v <= 0 or d_v % 64:
        raise ValueError(f"{d_v} value columns: not a multiple of 64")
    if tail <= 0 or tail % 16:
        raise ValueError(f"{tail} rotary columns: not a multiple of 16")
    narrowest = chip.tilings[-1]
    if topk <= 0 or topk % narrowest.keys:
        raise ValueError(f"top-k of {topk}: not a multiple of {narrowest.keys} on {arch}")
    for tiling in chip.tilings:
        wanted = tiling.heads <= heads or tiling is narrowest
        if wanted and lds_bytes(tiling, d_v, tail, topk) <= chip.lds:
            return tiling
    raise ValueError(
        f"rows of {d_v} + {tail} and top-k of {topk} need "
        f"{lds_bytes(narrowest, d_v, tail, topk)} bytes of LDS, {arch} has {chip.lds}"
    )


@functools.lru_cache(maxsize=4096)  # more than the number of batch sizes
def splits_for(
    arch: str, tiling: Tiling, tokens: int, heads: int, d_v: int, tail: int, topk: int
) -> int:
    """Number of splits of a token's keys: the fewest that nearly fill the chip once.

    More splits cost extra traffic for partial results. If two workgroups fit a compute unit, use at
    least 2 splits: two workgroups with one long loop each run in lockstep and compete for the same
    unit (bench/README.md: 10% slower on one H200 from 256 tokens on). Exception: use 1 split if the
    partial results would take MOST_PARTS_BYTES or more, as in a prefill of many heads.
    """
    chip = CHIPS[arch]
    resident = chip.lds // lds_bytes(tiling, d_v, tail, tiling.keys)
    fewest = 2 if resident > 1 and 4 * tokens * heads * d_v < MOST_PARTS_BYTES else 1
    programs = tokens * -(-heads // tiling.heads)
    tiles_of_keys = topk // tiling.keys
    allowed = [n for n in range(1, tiles_of_keys + 1) if tiles_of_keys % n == 0]
    enough = max(0.9 * chip.units * resident, programs * fewest)
    return next((n for n in allowed if programs * n >= enough), allowed[-1])


@functools.cache
def unchecked_tilelang(version: str = tilelang.__version__) -> str | None:
    """The reason why this version of TileLang counts as untested, or None.

    A source checkout calls itself 0.1.7.post3+rocm.gita55a8230, a wheel 0.1.8.
    """
    commit = re.search(r"git([0-9a-f]{8})", version)
    if commit[1] in IMAGE_COMMITS if commit else version.split("+")[0] in CHECKED_RELEASES:
        return None
    return (
        f"TileLang {version} was not checked: {', '.join(CHECKED_RELEASES)} were, for the "
        f"commits {' and '.join(IMAGE_COMMITS)} of the ROCm images"
    )


def why_never(
    device: torch.device, cache: torch.dtype, heads: int, d_v: int, tail: int, topk: int
) -> str | None:
    """Why ``sparse_mla`` supports no call of these sizes, or None. cache: the dtype of its rows."""
    if reason := unchecked_tilelang():
        return reason
    arch = chip_of(device)
    if arch not in CHIPS:
        return f"{arch} is none of {', '.join(CHIPS)}"
    if cache not in (torch.bfloat16, CHIPS[arch].fp8):
        return f"a KV cache of {cache} on {arch}"
    try:
        tiling_for(arch, heads, d_v, tail, topk)
    except ValueError as error:
        return str(error)
    return None


def why_not(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, d_v: int = 512) -> str | None:
    """Why ``sparse_mla`` does not support this call, for the log; None if it does."""
    if not (q.dim() == kv.dim() == indices.dim() == 3 and kv.shape[1] == indices.shape[1] == 1):
        return "q, KV cache or indices are not 3-D, or the last two have several heads"
    if kv.shape[2] != q.shape[2] or indices.shape[0] != q.shape[0]:
        return "shapes of q, KV cache and indices do not agree"
    if q.dtype not in (torch.bfloat16, kv.dtype):
        return f"q of {q.dtype} with a KV cache of {kv.dtype}"
    if indices.dtype != torch.int32:
        return f"indices of {indices.dtype}"
    if not (q.is_contiguous() and kv.is_contiguous() and indices.is_contiguous()):
        return "q, KV cache or indices are not contiguous"
    return why_never(kv.device, kv.dtype, q.shape[1], d_v, q.shape[2] - d_v, indices.shape[2])


@functools.cache
def _compiled(builder: Callable, arch: str, settings: tuple[tuple[str, object], ...]):
    chip = CHIPS[arch]
    name = {"hip": "mcpu", "cuda": "arch"}[chip.platform]
    target = tvm.target.Target({"kind": chip.platform, name: "sm_90a" if arch == "sm_90" else arch})
    return tilelang.compile(builder(**dict(settings)), target=target, pass_configs=tiles.PASSES)


def sparse_mla(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    kv_scale: float = 1.0,
) -> torch.Tensor:
    """softmax(q K^T * sm_scale) V over the cache rows that ``indices`` names.

    q [T, H, d_v + tail] bf16, or the cache's FP8 dtype; kv [slots, 1, d_v + tail] bf16, e4m3fn
    (gfx950, NVIDIA) or e4m3fnuz (gfx942), to be multiplied by ``kv_scale``; indices [T, 1, topk]
    int32, negative for no key. Returns [T, H, d_v] bf16; a token without keys gets zeros. V is the
    first d_v columns of K. With an FP8 cache, q beyond fp16's 65504 gives NaN.

    Raises ValueError with the reason of ``why_not``.
    """
    if reason := why_not(q, kv, indices, d_v):
        raise ValueError(f"sparse MLA attention: {reason}")
    return attend(q, kv, indices, sm_scale, d_v, kv_scale)


def attend(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int,
    kv_scale: float = 1.0,
) -> torch.Tensor:
    """``sparse_mla`` without the check; the caller has called ``why_not``."""
    tokens, heads, width = q.shape
    topk = indices.shape[2]
    out = torch.empty((tokens, heads, d_v), dtype=torch.bfloat16, device=q.device)
    if tokens == 0 or heads == 0:
        return out
    arch = chip_of(kv.device)
    tiling = tiling_for(arch, heads, d_v, width - d_v, topk)
    splits = splits_for(arch, tiling, tokens, heads, d_v, width - d_v, topk)
    part = out.unsqueeze(1)
    if splits > 1:
        part = torch.empty((tokens, splits, heads, d_v), dtype=out.dtype, device=q.device)
    lse = torch.empty((tokens, splits, heads), dtype=torch.float32, device=q.device)
    program = _compiled(
        tiles.partial,
        arch,
        tuple(
            {
                "platform": CHIPS[arch].platform,
                "fp8": kv.dtype in FP8,
                "heads": heads,
                "d_v": d_v,
                "tail": width - d_v,
                "topk": topk,
                "splits": splits,
                "head_tile": tiling.heads,
                "keys": tiling.keys,
                "threads": tiling.threads,
            }.items()
        ),
    )
    program(
        q.to(torch.bfloat16),  # exact if q is FP8
        kv.view(torch.int32).view(-1, 4),
        indices.squeeze(1),
        part,
        lse,
        sm_scale * kv_scale * tiles.LOG2_E,
        kv_scale,
    )
    if splits > 1:
        merge = _compiled(combine, arch, (("heads", heads), ("d_v", d_v), ("splits", splits)))
        merge(part, lse, out)
    return out
