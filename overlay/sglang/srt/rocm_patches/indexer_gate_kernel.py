"""The indexer's head gates from the model's hidden states, projection and scaling, in two launches.

weights_proj is a GEMM with a small N (32 or 64 heads) and a large K (6144 or 7168). A decode step
has few tokens, so one program per output tile would leave most of the GPU idle. So we split K: each
part runs in its own program. A second launch adds the parts in a fixed order and applies the
scales. A batch of many tokens uses one part and one launch.
"""

import torch
import triton
import triton.language as tl
from sglang.srt.rocm_patches.launch_parameters import choose, device_programs, warps


@triton.jit
def _scaled(gate, q_scale, head_scale, softmax_scale):
    return gate * head_scale * q_scale * softmax_scale


# Do not specialize on num_tokens: Triton would compile three variants (1, a multiple of 16, any
# other) of identical code.
@triton.jit(do_not_specialize=["num_tokens"])
def _project_kernel(
    x_ptr,
    weight_ptr,
    q_scale_ptr,
    out_ptr,
    num_tokens,
    x_stride,
    head_scale,
    softmax_scale,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (b, p) computes part p of token block b; if PARTS == 1 it also scales the sums."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = (token < num_tokens)[:, None]
    head = tl.arange(0, HEADS)
    PART: tl.constexpr = HIDDEN // PARTS
    k = tl.program_id(1) * PART + tl.arange(0, BLOCK_K)
    x_tile = x_ptr + token[:, None] * x_stride + k[None, :]
    weight_tile = weight_ptr + head[None, :] * HIDDEN + k[:, None]
    total = tl.zeros([BLOCK_T, HEADS], dtype=tl.float32)
    for start in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        x = tl.load(x_tile + start, mask=inside, other=0.0)
        total = tl.dot(x, tl.load(weight_tile + start), total)
    gate = token[:, None] * HEADS + head[None, :]
    if PARTS == 1:
        q_scale = tl.load(q_scale_ptr + gate, mask=inside, other=0.0)
        total = _scaled(total, q_scale, head_scale, softmax_scale)
    else:
        gate += tl.program_id(1).to(tl.int64) * num_tokens * HEADS
    tl.store(out_ptr + gate, total, mask=inside)


@triton.jit(do_not_specialize=["num_gates"])
def _add_parts_kernel(
    part_ptr,
    q_scale_ptr,
    out_ptr,
    num_gates,
    head_scale,
    softmax_scale,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    gate = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = gate < num_gates
    part = tl.arange(0, PARTS)[:, None].to(tl.int64) * num_gates
    parts = tl.load(part_ptr + part + gate[None, :], mask=inside[None, :], other=0.0)
    q_scale = tl.load(q_scale_ptr + gate, mask=inside, other=0.0)
    total = _scaled(tl.sum(parts, axis=0), q_scale, head_scale, softmax_scale)
    tl.store(out_ptr + gate, total, mask=inside)


def launch_parameters(num_tokens: int, hidden: int) -> dict[str, int]:
    """Compile-time parameters of the projection.

    Use enough parts to give every compute unit a program. At most 32 parts for blocks of up to 16
    tokens, at most 16 for larger blocks: adding up more parts costs more than it saves.
    """
    choice = choose("indexer gate", num_tokens)
    programs = triton.cdiv(num_tokens, choice.size)
    parts = 32 if choice.size <= 16 else 16
    while parts > 1 and (parts * programs > device_programs() or hidden % (parts * choice.depth)):
        parts //= 2
    return {
        "PARTS": parts,
        "BLOCK_T": choice.size,
        "BLOCK_K": choice.depth,
        "STAGES": choice.stages,
        "num_warps": warps(choice.threads),
    }


def why_not(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why the kernel does not compute this projection; None if it does."""
    heads, hidden = weight.shape
    if not x.dtype == weight.dtype == torch.bfloat16:
        return f"hidden states are {x.dtype}, weights_proj {weight.dtype}, not both bf16"
    if x.dim() != 2 or x.stride(1) != 1 or not weight.is_contiguous():
        return "hidden states or weights_proj are not a matrix of contiguous rows"
    if hidden % 128:
        return f"a hidden size of {hidden} is no multiple of 128"
    if heads not in (16, 32, 64):
        return f"{heads} index heads are not 16, 32 or 64"
    return None


def project_head_gates(
    x: torch.Tensor,
    weight: torch.Tensor,
    q_scale: torch.Tensor,
    head_scale: float,
    softmax_scale: float,
) -> torch.Tensor:
    """``((x @ weight.T * head_scale) * q_scale) * softmax_scale``, all in fp32.

    x ``[T, hidden]`` and weight ``[H, hidden]``, bf16, as ``why_not`` takes them; q_scale
    ``[T, H, 1]``, fp32.
    Returns ``[T, H, 1]``, fp32. The projection is not rounded to bf16. The products have the order
    of ``Indexer._get_logits_head_gate``.

    Raises ValueError if q_scale has another dtype or shape.
    """
    num_tokens, heads = x.shape[0], weight.shape[0]
    if q_scale.dtype != torch.float32 or q_scale.shape != (num_tokens, heads, 1):
        raise ValueError(
            f"project_head_gates: q_scale must be fp32 {[num_tokens, heads, 1]}, "
            f"not {q_scale.dtype} {list(q_scale.shape)}"
        )
    out = torch.empty(q_scale.shape, dtype=torch.float32, device=x.device)
    if num_tokens == 0:
        return out
    q_scale = q_scale.contiguous()
    parameters = launch_parameters(num_tokens, x.shape[1])
    parts = parameters["PARTS"]
    sums = out
    if parts > 1:
        sums = torch.empty((parts, num_tokens, heads), dtype=torch.float32, device=x.device)
    _project_kernel[(triton.cdiv(num_tokens, parameters["BLOCK_T"]), parts)](
        x,
        weight,
        q_scale,
        sums,
        num_tokens,
        x.stride(0),
        head_scale,
        softmax_scale,
        HIDDEN=x.shape[1],
        HEADS=heads,
        **parameters,
    )
    if parts > 1:
        num_gates = num_tokens * heads
        choice = choose("indexer gate add", num_gates)
        _add_parts_kernel[(triton.cdiv(num_gates, choice.size),)](
            sums,
            q_scale,
            out,
            num_gates,
            head_scale,
            softmax_scale,
            PARTS=parts,
            BLOCK=choice.size,
            num_warps=warps(choice.threads),
        )
    return out
