"""What an sglang layer needs around it, in the process of an arm."""

import contextlib
import functools
import importlib
import importlib.util
import socket
import types
from unittest import mock

import torch


def server_arguments(**fields):
    """The global arguments, with their defaults unresolved: no model and no GPU is looked at."""
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

    with mock.patch.object(ServerArgs, "__post_init__", return_value=None):
        arguments = ServerArgs(model_path="none", device="cuda")
    for name, value in ({"page_size": 1} | fields).items():
        setattr(arguments, name, value)
    set_global_server_args_for_scheduler(arguments)
    return arguments


@functools.cache
def parallel_state() -> None:
    """The process groups of one rank."""
    from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel

    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    init_distributed_environment(
        backend="nccl",
        world_size=1,
        rank=0,
        local_rank=0,
        distributed_init_method=f"tcp://127.0.0.1:{port}",
    )
    initialize_model_parallel()


def declined(slug: str) -> list[str]:
    """Why calls since the last time of asking took the pristine path; none in a pristine tree."""
    if importlib.util.find_spec("sglang.srt.rocm_patches") is None:
        return []
    from sglang.srt import rocm_patches

    reasons = importlib.import_module(rocm_patches.module_of(slug)).SLUG.declined
    said = list(reasons)
    reasons.clear()
    return said


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fill(module: torch.nn.Module, seed: int, scale: float = 0.05) -> None:
    """Random parameters that are the same in every arm, whatever type each arm holds them in."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator).bfloat16() * scale
        if name.endswith("norm.weight"):
            values = values + 1
        parameter.data.copy_(values)


def attention_layer(
    heads: int, kv_heads: int, head_dim: int, v_head_dim: int | None = None, **fields
):
    """The fields of RadixAttention that pools and backends read."""
    layer = types.SimpleNamespace(
        layer_id=0,
        tp_q_head_num=heads,
        tp_k_head_num=kv_heads,
        tp_v_head_num=kv_heads,
        qk_head_dim=head_dim,
        head_dim=head_dim,
        v_head_dim=v_head_dim or head_dim,
        scaling=head_dim**-0.5,
        logit_cap=0.0,
        sliding_window_size=-1,
        is_cross_attention=False,
        k_scale=None,
        v_scale=None,
        k_scale_float=None,
        v_scale_float=None,
    )
    vars(layer).update(fields)
    return layer


def scales(k_scale: float | None, v_scale: float | None, device) -> dict:
    """A layer's KV scales as load_kv_cache_scales leaves them."""
    if k_scale is None:
        return {}
    return {
        "k_scale": torch.tensor([k_scale], dtype=torch.float32, device=device),
        "v_scale": torch.tensor([v_scale], dtype=torch.float32, device=device),
        "k_scale_float": k_scale,
        "v_scale_float": v_scale,
    }


def forward_batch(mode, seq_lens: torch.Tensor, slots: torch.Tensor, pool, prefix=None, **fields):
    """A real ForwardBatch. `seq_lens` [B] with the new tokens, of which `prefix` [B] are older."""
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    prefix = torch.zeros_like(seq_lens) if prefix is None else prefix
    device = seq_lens.device
    batch = ForwardBatch(
        forward_mode=mode,
        batch_size=len(seq_lens),
        input_ids=torch.zeros(len(slots), dtype=torch.int64, device=device),
        req_pool_indices=torch.arange(len(seq_lens), device=device),
        seq_lens=seq_lens,
        seq_lens_cpu=seq_lens.cpu(),
        seq_lens_sum=int(seq_lens.sum()),
        out_cache_loc=slots,
        extend_prefix_lens=prefix,
        extend_prefix_lens_cpu=prefix.tolist(),
        extend_seq_lens=seq_lens - prefix,
        extend_seq_lens_cpu=(seq_lens - prefix).tolist(),
        **fields,
    )
    batch.token_to_kv_pool = pool
    return batch


def attention_backend(name: str):
    """What is asked which class it is: the named one, without a backend's inside.

    "unified" is an AiterAttnBackend with unified attention, "two" one that chooses one without,
    "overlap" one of two overlapping batches whose backend is "two".
    """
    if name == "overlap":
        return types.SimpleNamespace(primary=attention_backend("two"))
    if name == "two":
        chosen = attention_backend("AiterAttnBackend")
        return types.SimpleNamespace(_select_backend=lambda mode: chosen)
    kind = "AiterAttnBackend" if name == "unified" else name
    return type(kind, (), {"use_triton_unified_attention": name == "unified"})()
