"""What upstream's TileLang kernels of sparse MLA attention need of a workgroup's LDS.

TileLang tunes for the heads of tensor parallelism. Under DP attention a rank has them all, and its
bf16 kernel asks gfx942 for 115200 of 65536 bytes, at launch, in the first small batch
(https://github.com/sgl-project/sglang/pull/23963). The shape of that launch is chosen by `fit`.
"""

LDS_BYTES = {"gfx942": 64 * 1024, "gfx950": 160 * 1024}


def lds_bytes(
    *, fp8: bool, heads: int, width: int, block: int, inner_iter: int, threads: int
) -> int:
    """The most LDS that ``sparse_mla_fwd_decode_partial`` or its ``_fp8`` twin allocates.

    The sum of the kernel's shared buffers, with rows of ``width`` elements, ``block`` keys at a
    time for a tile of heads:

        q       tile x width      bf16: only where inner_iter is 1, else q lives in registers
        keys    block x width
        scores  tile x block
        slots   block x 4 bytes   fp8 only
        two reductions' work space, threads x 4 bytes each

    TileLang lets some of these overlap, so what it allocates is this or up to 4 KiB less.
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

    From 2 on the bf16 kernel keeps q in registers, as upstream itself has it for larger batches.
    Raises ValueError, naming the flags to change, where upstream has no kernel for so many heads.
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
    """That 0.5.9's bf16 kernels fit, which have q in the LDS always; ValueError as `fit`'s.

    Its ``sparse_attention_fwd_kernel_v1`` goes through all keys a block at a time, with the buffers
    of ``sparse_mla_fwd_decode_partial``: the result lies where q and the keys lay.
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
