"""LDS that upstream's TileLang kernels of sparse MLA attention need per workgroup.

Upstream tunes for the number of heads per rank under tensor parallelism. Under DP attention a rank
has all heads. The bf16 kernel then requests 115200 bytes of gfx942's 65536, and the first small
batch fails at launch (https://github.com/sgl-project/sglang/pull/23963). `fit` chooses a launch
shape that fits.
"""

LDS_BYTES = {"gfx942": 64 * 1024, "gfx950": 160 * 1024}


def lds_bytes(
    *, fp8: bool, heads: int, width: int, block: int, inner_iter: int, threads: int
) -> int:
    """The most LDS that ``sparse_mla_fwd_decode_partial`` or its ``_fp8`` twin allocates.

    The sum of the kernel's shared buffers. A row has ``width`` elements; one step reads ``block``
    keys for a tile of heads:

        q       tile x width      bf16: only if inner_iter is 1, else q is in registers
        keys    block x width
        scores  tile x block
        slots   block x 4 bytes   fp8 only
        workspace of two reductions, threads x 4 bytes each

    TileLang lets some of these overlap, so it may allocate up to 4 KiB less.
    """
    if fp8:
        tile, element, slots, q_in_lds = 16, 1, 4 * block, True
    else:
        tile = 64 if heads >= 128 else max(16, 1 << (heads - 1).bit_length())
        element, slots, q_in_lds = 2, 0, inner_iter == 1
    elements = tile * width * q_in_lds + block * width + tile * block
    return elements * element + slots + 2 * 4 * threads


def fit(
    arch: str,
    *,
    fp8: bool,
    heads: int,
    width: int,
    block: int,
    inner_iter: int,
    key_blocks: int,
    threads: int,
) -> int:
    """The ``inner_iter`` to launch with: upstream's, or the next larger one that fits the LDS.

    From 2 on the bf16 kernel keeps q in registers, as upstream does for larger batches. Raises
    ValueError, naming the flags to change, if upstream has no kernel for this number of heads.
    """
    shape = {"fp8": fp8, "heads": heads, "width": width, "block": block, "threads": threads}
    limit, reason = LDS_BYTES[arch], _unsuitable(heads, fp8)
    while reason is None and lds_bytes(inner_iter=inner_iter, **shape) > limit:
        if inner_iter == key_blocks:
            reason = f"needs more than {limit} bytes of LDS for them"
        else:
            inner_iter *= 2
    if reason is None:
        return inner_iter
    raise _refusal(heads, fp8, reason)


def require(arch: str, *, heads: int, width: int, block: int, threads: int) -> None:
    """Check that 0.5.9's bf16 kernels fit, which always keep q in LDS; else ValueError as in `fit`.

    0.5.9's ``sparse_attention_fwd_kernel_v1`` loops over all keys in blocks, with the buffers of
    ``sparse_mla_fwd_decode_partial``. The result reuses the LDS of q and the keys.
    """
    needed = lds_bytes(
        fp8=False, heads=heads, width=width, block=block, inner_iter=1, threads=threads
    )
    if needed > LDS_BYTES[arch]:
        raise _refusal(heads, False, f"needs more than {LDS_BYTES[arch]} bytes of LDS for them")


def _refusal(heads: int, fp8: bool, reason: str) -> ValueError:
    return ValueError(
        f"{heads} query heads a rank: TileLang's {'FP8' if fp8 else 'bf16'} sparse attention "
        f"{reason}; change --tp-size or --dp-size (with --enable-dp-attention), or the "
        f"--nsa-prefill-backend and --nsa-decode-backend"
    )


def _unsuitable(heads: int, fp8: bool) -> str | None:
    if heads % 4:
        return "combines 4 heads at a time"
    if fp8 and heads > 16 and heads % 16:
        return "takes at most 16 or a multiple of 16"
    if not fp8 and heads > 128 and heads % 64:
        return "takes at most 128 or a multiple of 64"
    return None
